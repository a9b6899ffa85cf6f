"""Runtime images: a server with its toolchain and the guard, on a root file system, as a runnable OCI image.

- Every layer is a function of pinned inputs: Debian packages, wheels, programs, the anchor. The Python that unpacks and
  compiles for it is the root file system's own, so no byte of this machine gets in.
- Without an embedded model the image does not depend on the model: one serves many, under one anchor.
- Assembling is an action with a claim, like any other; the image is signed by the release key.
- Layers stream into the store and are made once: what each was made of names it.

(OCI image specification 1.1; docs/runtime-images.md.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias

from intaglio import strictjson
from intaglio.build import claim, guard_package, passport, release, rootfs, toolchain, wheels
from intaglio.build.action import Action
from intaglio.build.claim import Circumstances, Claim
from intaglio.build.plan import toolchain_folder
from intaglio.build.runner import Runner
from intaglio.build.toolchain import Distribution, Toolchain
from intaglio.content import layer
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
from intaglio.content.intake import replace_file
from intaglio.content.layer import Entry
from intaglio.content.layout import Store
from intaglio.content.modelpack import ModelImage
from intaglio.content.runtime_image import (
    EMBED_LABEL,
    IMAGE_CONFIG_TYPE,
    LAYER_TYPE,
    MODEL_LABEL,
    RUNTIME_LABEL,
    SERVER_LABEL,
    RuntimeImage,
)
from intaglio.content.tree import File, Tree
from intaglio.dataclass import dataclass, replace
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, VerificationError
from intaglio.guard.launch import OFFLINE
from intaglio.progress import Progress
from intaglio.recipe.data import data_folder
from intaglio.recipe.program import ServerProgram, load_server
from intaglio.strictjson import Object
from intaglio.trust.cosign import lineage_referrer, runtime_referrers
from intaglio.trust.key import PrivateKey, PublicKey
from intaglio.trust.statement import Dependency

Recorder: TypeAlias = Callable[[Action, Descriptor, Circumstances], Claim]
"""Signs and keeps a claim."""
STEP = "runtime"
"""The name under which assembling a runtime image is reported."""
ASSEMBLE_RUNTIME = "intaglio:assemble-runtime/v1"
"""The program of assembling one: built in, and named by its version alone."""
GUARD = "guard"
"""Name of the toolchain that the guard runs in."""
LAYOUT = 2
"""Number of the image's form below: a change of it makes every runtime image anew."""
GUARD_FOLDER = "opt/intaglio"
SERVER_FOLDER = "opt/server"
ANCHOR_FOLDER = "etc/intaglio"
ANCHOR_FILES = ("policy.toml", "policy.name", "root.json")
"""What of a home is the anchor of its runtime images."""
_TITLE = "org.opencontainers.image.title"
_VERSION = "org.opencontainers.image.version"
SCRIPT = """#!/opt/intaglio/bin/python -I
import gc
gc.disable()  # whatever the guard makes, it needs until it is the server
import sys
from intaglio.guard.main import main
sys.exit(main())
"""
"""What starts the guard in an image: its program, with the Python beside it."""
_ENTRYPOINT = (
    *("/opt/intaglio/bin/intaglio-guard", "--root", "/etc/intaglio", "--passport", "/passport", "--model", "/model"),
    *("--", "/env/bin/python", "-B", "-s", "-P", "/opt/server/server.py", "{request}"),
)
_ENVIRONMENT = {
    **OFFLINE,
    "HF_HOME": "/tmp/hf",  # noqa: S108 - the container's own
    "HOME": "/tmp",  # noqa: S108
    "LC_ALL": "C.UTF-8",
    "PATH": "/env/bin:/usr/bin",
    "TMPDIR": "/tmp",  # noqa: S108
    "USER": "intaglio",
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What a runtime image is made of, beside anchor and model; all of it pinned."""

    name: str
    server: ServerProgram
    chain: Toolchain
    guard: Toolchain
    root: rootfs.Rootfs

    def toolchains(self) -> dict[str, Digest]:
        """Return what of it a lock pins, by name."""
        found = {one.name: one.tree().digest for one in (self.chain, self.guard)}
        return {**found, self.root.name: self.root.tree().digest}


@dataclass(frozen=True, slots=True)
class RuntimeResult:
    """A runtime image that was built."""

    name: str
    image: Descriptor
    tag: str
    embed: bool
    status: str
    """``cached`` or ``built``."""
    referrers: tuple[Descriptor, ...]

    def to_json(self) -> Object:
        """Return what ``build --json`` says about it."""
        return {"name": self.name, "image": str(self.image.digest), "tag": self.tag, "embed": self.embed}


def parts(name: str) -> Parts:
    """Return what the runtime ``name`` is made of.

    Raises:
        RecipeError: there is no such server, or no such toolchain.
        LockError: a lock of its is not one of ours, or there is no such root file system.
    """
    builder = data_folder("builder")
    server = load_server(name.replace(".", "-"), builder)
    return Parts(
        name,
        server,
        toolchain.load(toolchain_folder(server.toolchain)),
        toolchain.load(toolchain_folder(GUARD)),
        rootfs.load(builder / "rootfs" / server.rootfs),
    )


def anchor_of(home: Path) -> dict[str, bytes]:
    """Return the files of the anchor in ``home``, by their names."""
    return {name: (home / name).read_bytes() for name in ANCHOR_FILES if (home / name).is_file()}


def with_guard(chain: Toolchain, wheel: bytes) -> Toolchain:
    """Return the guard's toolchain with its own wheel among the others."""
    own = Distribution(
        "intaglio-guard",
        guard_package.file_name().split("-")[1],
        guard_package.file_name(),
        Digest.of(wheel),
        len(wheel),
    )
    return replace(chain, wheels=(*chain.wheels, own))


class Signers(Protocol):
    """The keys of a build."""

    builders: tuple[PublicKey, ...]
    """Whose claims are believed."""
    release_public: PublicKey

    def release(self) -> PrivateKey:
        """Return the release key."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """A model that is to stand inside the image."""

    image: Digest
    claims: tuple[bytes, ...]
    """Bundles of all claims that it rests on, its own assembly's among them."""


class Assembly:
    """Makes runtime images in one store."""

    def __init__(
        self,
        store: Store,
        runner: Runner,
        progress: Progress,
        signers: Signers,
        *,
        offline: bool,
        anchor: Mapping[str, bytes],
    ) -> None:
        """Prepare; ``anchor`` is what the guard in the image is to trust."""
        self._store = store
        self._runner = runner
        self._progress = progress
        self._offline = offline
        self._anchor = dict(anchor)
        self._signers = signers

    def build(
        self, made_of: Parts, recipe: str, tag: str, embedded: Embedded | None, record: Recorder
    ) -> RuntimeResult:
        """Make the image of those parts, sign it, and let ``tag`` with the runtime's name behind it mean it.

        Raises:
            SourceUnreachable: a package or wheel is not here and could not be fetched.
            Error: as the parts that are used say.
        """
        made, status = self._make(made_of, recipe, embedded.image if embedded else None, record)
        size = len(self._store.read(made.subject, what="runtime image"))
        image = Descriptor(MANIFEST_TYPE, made.subject, size)
        referrers = self._sign(image, made_of.name, embedded.claims if embedded else ())
        name = f"{tag}-{made_of.name}"
        self._store.tag(name, image, referrers)
        self._progress.note(f"{STEP}: {status} → {made.subject}")
        return RuntimeResult(made_of.name, image, name, embedded is not None, status, referrers)

    def _make(self, made_of: Parts, recipe: str, model: Digest | None, record: Recorder) -> tuple[Claim, str]:
        """Return the claim about the image of those parts, with ``model`` in it where one is given, and its status."""
        embedded = passport.contents(self._store, model) if model else {}
        wheel = guard_package.wheel()
        action = self._action(made_of, recipe, wheel, model, embedded)
        found = self._believed(action)
        if found is not None:
            return found, "cached"
        with self._store.lock(action.key.hex, self._progress):
            found = self._believed(action)
            if found is not None:
                return found, "cached"
            image = self._assemble(made_of, recipe, wheel, model, embedded)
            return record(action, image, self._about(made_of, wheel, recipe, model)), "built"

    def _believed(self, action: Action) -> Claim | None:
        for found in claim.find(self._store, action.key, self._signers.builders):
            try:
                image = RuntimeImage.parse(self._store.read(found.subject, what="runtime image"), "runtime image")
                self._store.read(image.config.digest, what="config")
            except VerificationError:
                continue
            if all(self._store.has(file.digest, file.size) for file in image.files):
                return found
        return None

    @cached_property
    def _anchor_tree(self) -> Tree:
        return _tree(self._anchor)

    def _action(
        self, made_of: Parts, recipe: str, wheel: bytes, model: Digest | None, embedded: Mapping[str, bytes]
    ) -> Action:
        inputs = {
            "rootfs": made_of.root.tree().digest,
            "guard": with_guard(made_of.guard, wheel).tree().digest,
            "server": made_of.server.tree().digest,
            "anchor": self._anchor_tree.digest,
        }
        if model is not None:
            inputs |= {"model": model, "passport": _tree(embedded).digest}
        settings: Object = {"layout": LAYOUT, "rootfs": rootfs.LAYOUT, **_settings(made_of, recipe, model)}
        chain = made_of.chain.tree().digest
        return Action(ASSEMBLE_RUNTIME, chain, settings, inputs, (), "linux/amd64", {}, {})

    def _about(self, made_of: Parts, wheel: bytes, recipe: str, model: Digest | None) -> Circumstances:
        own = _tree({guard_package.file_name(): wheel})
        for files in ({guard_package.file_name(): wheel}, self._anchor, made_of.server.files):
            for data in files.values():
                self._store.put(data)
            self._store.put_tree(_tree(files).files)
        found = [Dependency(f"toolchain:{name}", digest, "toolchain") for name, digest in made_of.toolchains().items()]
        found += [
            Dependency(f"program:{made_of.server.name}", made_of.server.tree().digest, "program"),
            Dependency("program:intaglio-guard", own.digest, "program"),
            Dependency("program:anchor", self._anchor_tree.digest, "program"),
        ]
        found += [Dependency("input:model", model, "output")] if model else []
        return Circumstances(recipe, STEP, "assemble", "bit", "bubblewrap", tuple(found))

    # --- layers --------------------------------------------------------------------------------------------------

    def _assemble(
        self, made_of: Parts, recipe: str, wheel: bytes, model: Digest | None, embedded: Mapping[str, bytes]
    ) -> Descriptor:
        """Make every layer, config and manifest; return the manifest's descriptor."""
        root = rootfs.realise(made_of.root, self._store, offline=self._offline, progress=self._progress)
        python = rootfs.interpreter(root)
        self._store.put(wheel)
        guard_chain = with_guard(made_of.guard, wheel)
        wheels.fetch(made_of.guard, self._store, offline=self._offline, progress=self._progress)
        environment = self._runner.environment(made_of.chain, python)
        guard = self._runner.environment(guard_chain, python)
        layers = [
            self._layer(root.name, lambda: rootfs.entries(root)),
            self._layer(environment.name, lambda: layer.from_folder(environment, "env")),
            self._layer(f"guard-{guard.name}", lambda: _guard_entries(guard)),
            self._small({f"{SERVER_FOLDER}/{path}": data for path, data in made_of.server.files.items()}),
            self._small({f"{ANCHOR_FOLDER}/{path}": data for path, data in self._anchor.items()}),
        ]
        if model is not None:
            layers.append(self._small({f"passport/{path}": data for path, data in embedded.items()}))
            layers.append(self._layer(f"model-{model.hex}", lambda: self._model_entries(model)))
        config = _config(_settings(made_of, recipe, model), layers)
        manifest = _manifest(config, layers)
        self._store.put(config)
        return Descriptor(MANIFEST_TYPE, self._store.put(manifest), len(manifest))

    def _layer(self, name: str, entries: Callable[[], Iterable[Entry]]) -> Descriptor:
        """Return the layer of that name, made first where it is not in the store."""
        kept = self._store.root / "environments" / "layers" / f"{LAYOUT}-{name}.json"
        try:
            found = Descriptor.parse(strictjson.parse_object(kept.read_bytes(), what=str(kept)), str(kept))
            if self._store.has(found.digest, found.size):
                return found
        except (OSError, CorruptContent):
            pass
        made = self._write(entries())
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_file(kept, strictjson.canonical(made.to_json()), kept.parent)
        return made

    def _small(self, files: Mapping[str, bytes]) -> Descriptor:
        return self._write(layer.files_of(files))

    def _write(self, entries: Iterable[Entry]) -> Descriptor:
        with self._store.writer() as writer, self._progress.task("writing a layer") as task:
            layer.write(entries, _Counting(writer.write, task.advance))
            digest, size = writer.commit()
        return Descriptor(LAYER_TYPE, digest, size)

    def _model_entries(self, model: Digest) -> Iterable[Entry]:
        what = f"image {model.short}"
        for file in ModelImage.parse(self._store.read(model, what=what), what).files:
            yield Entry(f"model/{file.path}", self._store.path(file.digest), mode=0o555 if file.executable else 0o444)

    # --- signing -------------------------------------------------------------------------------------------------

    def _sign(self, image: Descriptor, name: str, claims: tuple[bytes, ...]) -> tuple[Descriptor, ...]:
        """Give the image its lineage and release signatures, unless it has them; return its referrers."""
        if claims:
            lineage = lineage_referrer(image, claims)
            self._store.put_referrer(lineage.manifest, lineage.blobs)
        if not release.is_released(self._store, image, None, self._signers.release_public):
            for referrer in runtime_referrers(image, f"runtimes/{name}", self._signers.release()):
                self._store.put_referrer(referrer.manifest, referrer.blobs)
        return self._store.referrers(image.digest)


class _Counting:
    """A sink that tells how much went into it."""

    def __init__(self, write: Callable[[bytes], None], advance: Callable[[int], None]) -> None:
        self._write, self._advance = write, advance

    def write(self, chunk: bytes) -> None:
        self._write(chunk)
        self._advance(len(chunk))


def _guard_entries(guard: Path) -> Iterable[Entry]:
    yield from layer.from_folder(guard, GUARD_FOLDER)
    yield Entry(f"{GUARD_FOLDER}/bin/intaglio-guard", SCRIPT.encode(), mode=0o555)


def _tree(files: Mapping[str, bytes]) -> Tree:
    return Tree.of(File(path, Digest.of(data), len(data)) for path, data in files.items())


def _settings(made_of: Parts, recipe: str, model: Digest | None) -> Object:
    """Return how the image runs; one without a model in it is called by what it is made of, not by whoever built it."""
    labels = {RUNTIME_LABEL: made_of.name, SERVER_LABEL: made_of.server.name, EMBED_LABEL: str(bool(model)).lower()}
    if model is not None:
        title, _, version = recipe.rpartition("@")
        labels |= {MODEL_LABEL: str(model), _TITLE: title, _VERSION: f"{version}-{made_of.name}"}
    else:
        labels |= {_TITLE: f"runtimes/{made_of.name}", _VERSION: made_of.chain.tree().digest.hex[:12]}
    return {
        "Entrypoint": list(_ENTRYPOINT),
        "Env": [f"{name}={value}" for name, value in sorted(_ENVIRONMENT.items())],
        "Labels": labels,
        "User": f"{rootfs.USER}:{rootfs.USER}",
        "WorkingDir": "/",
    }


def _config(settings: Object, layers: Iterable[Descriptor]) -> bytes:
    return strictjson.canonical(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [str(one.digest) for one in layers]},
        }
    )


def _manifest(config: bytes, layers: Iterable[Descriptor]) -> bytes:
    return strictjson.canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": Descriptor(IMAGE_CONFIG_TYPE, Digest.of(config), len(config)).to_json(),
            "layers": [one.to_json() for one in layers],
        }
    )
