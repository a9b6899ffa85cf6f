"""Exports: one image for other programs, as an OCI image layout or as a plain folder with its ``model.sig``.

- What is given away is a copy, re-hashed on the way: no later edit reaches the store.
- The target appears at once and whole, by one rename, and is never written over.
- ``index.json`` carries cosign's ``kind`` annotations, so that stock ``cosign verify --local-image`` reads it; the
  image is its first entry, since cosign 3 reads no other. Attestations are written in cosign's older form besides.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from intaglio import strictjson
from intaglio.content import attestations
from intaglio.content.cosign_tag import ATTESTATIONS, SIGNATURES
from intaglio.content.descriptor import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.content.intake import copy_stream
from intaglio.content.layout import REF_NAME, Store
from intaglio.content.modelpack import MODEL_SIG, SIMPLE_SIGNING_TYPE, ModelImage
from intaglio.content.runtime_image import open_image
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, MachineError, NotVerifiable, UsageError

_KIND = "kind"
_KIND_IMAGE = "dev.cosignproject.cosign/image"


def export_layout(store: Store, image: Digest, target: Path, *, name: str | None = None) -> None:
    """Write ``image`` and everything that refers to it as the OCI layout ``target``; ``name`` is its tag there.

    Raises:
        UsageError: ``target`` is there and not an empty folder.
        CorruptContent: a blob does not have its digest; then there is no ``target``.
        NotVerifiable: a blob is not in the store.
    """
    with appearing(target) as folder:
        blobs = folder / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        manifest = store.read(image, what=f"image {image.short}")
        open_image(manifest, f"image {image.short}")
        marks = {_KIND: _KIND_IMAGE} | ({REF_NAME: name} if name else {})
        entries = [_entry(image, manifest, marks)]
        _copy_graph(store, image, manifest, blobs)
        signatures, others = [], []
        for described in store.referrers(image):
            data = store.read(described.digest, what=f"referrer {described.digest.short}")
            _copy_graph(store, described.digest, data, blobs)
            if any(layer.media_type == SIMPLE_SIGNING_TYPE for layer in _parts(data)):
                signatures.append(_entry(described.digest, data, {_KIND: SIGNATURES.kind}))
            else:
                others.append(_entry(described.digest, data, dict(described.annotations)))
        entries += [*signatures, *_attestations(store, image, blobs), *sorted(others, key=lambda entry: entry.digest)]
        index: strictjson.Object = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [entry.to_json() for entry in entries],
        }
        (folder / "index.json").write_bytes(strictjson.canonical(index))
        (folder / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')


def export_files(store: Store, image: Digest, target: Path, oms_bundle: bytes) -> None:
    """Write the image's files into the folder ``target``, with ``oms_bundle`` as ``model.sig`` beside them.

    Raises:
        UsageError: ``target`` is there and not an empty folder, or the image holds a ``model.sig`` of its own.
        CorruptContent: a blob does not have its digest; then there is no ``target``.
        NotVerifiable: a blob is not in the store.
    """
    model = ModelImage.parse(store.read(image, what=f"image {image.short}"), f"image {image.short}")
    if any(file.path == MODEL_SIG for file in model.files):
        raise UsageError(f"the image holds a file {MODEL_SIG!r}, which is where its signature goes")
    with appearing(target) as folder:
        for file in model.files:
            place = folder / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            _copy(store, Descriptor("", file.digest, file.size), place, 0o755 if file.executable else 0o644)
        (folder / MODEL_SIG).write_bytes(oms_bundle)


@contextlib.contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes ``target`` when the body ends well, and is gone when it does not."""
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise UsageError(f"{target} is there already", hint="name a folder that is not there, or an empty one")
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.absolute().parent))
    except OSError as error:
        raise MachineError(f"{target} cannot be written: {error.strerror}") from None
    try:
        yield folder
        folder.chmod(0o755)
        os.rename(folder, target)
    except OSError as error:
        raise MachineError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _entry(digest: Digest, manifest: bytes, annotations: dict[str, str]) -> Descriptor:
    """Return a manifest's entry for ``index.json``; its artifact type is the one it has itself."""
    kind = strictjson.parse_object(manifest, what=f"manifest {digest.short}").get("artifactType")
    return Descriptor(MANIFEST_TYPE, digest, len(manifest), kind, annotations)


def _attestations(store: Store, image: Digest, blobs: Path) -> list[Descriptor]:
    """Write the attestations in cosign's older form, if there are any, and return their entry."""
    attested = attestations.derive(store, image)
    if attested is None:
        return []
    digest = Digest.of(attested.manifest)
    for data in (attested.manifest, *attested.blobs):
        (blobs / Digest.of(data).hex).write_bytes(data)
    return [_entry(digest, attested.manifest, {_KIND: ATTESTATIONS.kind})]


def _parts(manifest: bytes) -> list[Descriptor]:
    """Return config and layers of a manifest."""
    document = strictjson.parse_object(manifest, what="manifest")
    layers = document.get("layers")
    parts = [document.get("config"), *(layers if isinstance(layers, list) else [])]
    return [Descriptor.parse(part, "manifest") for part in parts]


def _copy_graph(store: Store, digest: Digest, manifest: bytes, blobs: Path) -> None:
    (blobs / digest.hex).write_bytes(manifest)
    for part in _parts(manifest):
        if not (blobs / part.digest.hex).exists():
            _copy(store, part, blobs / part.digest.hex, 0o644)


def _copy(store: Store, blob: Descriptor, place: Path, mode: int) -> None:
    if not store.has(blob.digest):
        raise NotVerifiable(f"{blob.digest} is not in the store {store.root}")
    with open(store.path(blob.digest), "rb") as source, open(place, "xb") as sink:
        digest, size = copy_stream(source, sink)
        os.fchmod(sink.fileno(), mode)
    if (digest, size) != (blob.digest, blob.size):
        raise CorruptContent(f"expected {blob.digest} of {blob.size} bytes, found {digest} of {size} in the store")
