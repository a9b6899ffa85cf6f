"""What ``run`` runs: which runtime image belongs to a model, and what is laid out for its container.

- A tag is resolved once; everything after that speaks digests.
- What labels say decides only what is looked for: the runtime image is verified before any of it counts, and the guard
  inside verifies the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from intaglio import strictjson
from intaglio.build import servers, serving
from intaglio.build.action import processor_flags
from intaglio.build.containers import Order
from intaglio.content.layout import Store
from intaglio.content.modelpack import ModelImage
from intaglio.content.runtime_image import (
    EMBED_LABEL,
    MODEL_LABEL,
    RUNTIME_LABEL,
    SERVER_LABEL,
    RuntimeImage,
    is_runtime,
)
from intaglio.content.tree import Tree
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, Error, UsageError
from intaglio.recipe.limits import Limits
from intaglio.recipe.program import UnknownProgram

_BUILD = 'let the recipe say `[image] runtime = "llama.cpp"`, or name a runtime image with --image'


@dataclass(frozen=True, slots=True)
class Chosen:
    """A runtime image and the model that it serves."""

    runtime: Digest
    image: RuntimeImage
    labels: Mapping[str, str]
    model: Digest
    name: str
    """What the model is called, here and by its server."""

    @property
    def embedded(self) -> bool:
        """Whether the model is inside the runtime image."""
        return self.labels.get(EMBED_LABEL) == "true"


def choose(store: Store, reference: str, *, runtime: str | None = None, image: str | None = None) -> Chosen:
    """Return what ``reference`` means: a model, with the runtime image built for it, or such a runtime image itself.

    Args:
        store: where both are.
        reference: a name or a digest.
        runtime: which runtime, where the model has images of several.
        image: the runtime image by its name or digest; it may be one that was built for another model.

    Raises:
        NotVerifiable: there is no such image.
        UsageError: there is no runtime image for it, or there are several, or its server cannot serve the model.
        CorruptContent: an image is malformed.
    """
    found = store.resolve(reference)
    if image is not None:
        return _pair(store, store.resolve(image), found, reference)
    if not is_runtime(_manifest(store, found)):
        return _pair(store, _beside(store, reference, found, runtime), found, reference)
    labels = _labels(store, *_open(store, found))
    if labels.get(EMBED_LABEL) == "true":
        return _pair(store, found, None, reference)
    name = reference.removesuffix(f"-{labels.get(RUNTIME_LABEL)}")
    if name == reference or name not in store.tags():
        raise UsageError(
            f"{reference} is a runtime image, and says of no model here that it serves it",
            hint=f"intaglio run MODEL --image {reference}",
        )
    return _pair(store, found, store.resolve(name), name)


def _pair(store: Store, runtime: Digest, model: Digest | None, name: str) -> Chosen:
    """Return both as one; ``model`` is what the label says where the model is inside."""
    image, what = _open(store, runtime)
    labels = _labels(store, image, what)
    inside = labels.get(MODEL_LABEL)
    if labels.get(EMBED_LABEL) == "true" and inside is not None:
        named = Digest.parse(inside)
        if model is not None and model != named:
            raise UsageError(
                f"{what} holds the model {named}, not {model}", hint="name a runtime image without a model"
            )
        model = named
    if model is None:
        raise CorruptContent(f"{what}: expected the label {MODEL_LABEL} of an image that holds its model")
    chosen = Chosen(runtime, image, labels, model, name)
    if not chosen.embedded:
        _require_served(store, labels.get(SERVER_LABEL, ""), model)
    return chosen


def _require_served(store: Store, server: str, model: Digest) -> None:
    """Refuse a model that ``server`` does not serve here; of a server that is not here nothing is known."""
    files = ModelImage.parse(_manifest(store, model), f"image {model.short}").files
    with contextlib.suppress(UnknownProgram):
        servers.choose(serving.form(store, files), server, processor=processor_flags())


def _beside(store: Store, reference: str, model: Digest, runtime: str | None) -> Digest:
    """Return the runtime image that was built with a model: its tag is the model's and the runtime's name."""
    tags = store.tags()
    names = [reference] if reference in tags else [name for name, one in tags.items() if one.digest == model]
    found: dict[str, Digest] = {}
    for tag, described in tags.items():
        for name in names:
            word = tag.removeprefix(f"{name}-")
            if word != tag and word in (runtime, _runtime_of(store, described.digest)):
                found[word] = described.digest
    if runtime is not None:
        found = {word: digest for word, digest in found.items() if word == runtime}
    if len(set(found.values())) > 1:
        raise UsageError(
            f"{reference} has runtime images for {', '.join(sorted(found))}", hint="name one with --runtime"
        )
    if not found:
        wanted = f"{runtime} image" if runtime else "runtime image"
        raise UsageError(f"no {wanted} stands beside {reference} in the store", hint=_BUILD)
    return next(iter(found.values()))


def _runtime_of(store: Store, digest: Digest) -> str | None:
    """Return the runtime of an image; nothing where it is no runtime image, or not to be read."""
    try:
        return _labels(store, *_open(store, digest)).get(RUNTIME_LABEL)
    except Error:
        return None


def _manifest(store: Store, digest: Digest) -> bytes:
    return store.read(digest, what=f"image {digest.short}")


def _open(store: Store, digest: Digest) -> tuple[RuntimeImage, str]:
    what = f"runtime image {digest.short}"
    return RuntimeImage.parse(_manifest(store, digest), what), what


def _labels(store: Store, image: RuntimeImage, what: str) -> Mapping[str, str]:
    settings = image.check_config(store.read(image.config.digest, what=f"config of {what}"), what)["config"]
    labels: Mapping[str, str] = settings["Labels"] if isinstance(settings, dict) else {}
    return labels


# --- laying out ------------------------------------------------------------------------------------------------------


def lay_out(
    store: Store, chosen: Chosen, scratch: Path, home: Path, clock: datetime, *, context: int | None = None
) -> Order:
    """Return the container for ``chosen``; model and passport are laid out in ``scratch``.

    Raises:
        VerificationError: a part of the model or of its passport is not there, or what the home keeps of its trusted
            source does not verify.
    """
    from intaglio.build import passport

    scratch.chmod(0o700)
    folders = {}
    papers = scratch / "passport"
    passport.write(store, chosen.model, papers, home, clock)
    if chosen.embedded:
        # Only what ages is brought along: metadata of the trusted source, which no image can hold.
        parts = {f"/passport/{part}": papers / part for part in ("metadata", "targets")}
        folders = {inside: folder for inside, folder in parts.items() if folder.is_dir()}
    else:
        folders = {"/passport": papers, "/model": _model(store, chosen.model, scratch / "model")}
    environment = {"INTAGLIO_MODEL_NAME": chosen.name}
    if context is not None:
        environment["INTAGLIO_CONTEXT"] = str(context)
    limits = _limits(chosen.labels.get(SERVER_LABEL, ""))
    return Order(chosen.image.config.digest, folders, scratch, limits.memory, limits.processes, environment)


def _model(store: Store, model: Digest, folder: Path) -> Path:
    """Return a folder of links to the model's blobs."""
    image = ModelImage.parse(_manifest(store, model), f"image {model.short}")
    folder.mkdir(mode=0o755)
    store.link_tree(Tree.of(image.files), folder)
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)  # whatever the umask: another user reads it
    return folder


def _limits(server: str) -> Limits:
    """Return what the server program here may take; the defaults where this side has no such program."""
    from intaglio.recipe.data import data_folder
    from intaglio.recipe.program import load_server

    try:
        return load_server(server, data_folder("builder")).limits
    except Error:
        return Limits()


def about(chosen: Chosen, url: str, container: str, engine: str) -> strictjson.Object:
    """Return the interface of ``intaglio run --json``."""
    return {
        "url": url,
        "container": container,
        "image": str(chosen.model),
        "runtime": str(chosen.runtime),
        "name": chosen.name,
        "engine": engine,
    }
