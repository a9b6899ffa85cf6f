"""Archives: a runtime image as the stream that container engines load, hashed while it passes.

- Every blob is hashed on its way; a damaged one ends the stream before its end marker, so that no engine takes it.
- Nothing is held: a layer may be larger than memory.
- The image's id in an engine is the digest of its config, or, where containerd keeps images, that of its manifest; both
  name every layer: whoever compares the id after the load knows what will run.
- Both readings stand in one archive, over the same blobs: an OCI image layout, with our manifest, and Docker's list.

Source: OCI Image Layout Specification 1.1; Docker Image Specification 1.2, "Combined Image JSON + Filesystem Changeset
Format"; ``docker save`` since 25 writes the same.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from intaglio import strictjson
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
from intaglio.content.runtime_image import RuntimeImage
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable
from intaglio.strictjson import Json, Object

LAYOUT = strictjson.canonical({"imageLayoutVersion": "1.0.0"})
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
"""Annotations that give an image its name: containerd's and podman's."""
_CHUNK = 1 << 20
_BLOCK = 512


class Blobs(Protocol):
    """Where blobs stand."""

    def path(self, digest: Digest) -> Path:
        """Return where the blob stands."""


def ids(image: RuntimeImage) -> tuple[Digest, Digest]:
    """Return what an engine that has taken ``image`` knows it by: the digest of its config, or of its manifest."""
    return image.config.digest, Digest.of(_manifest(image))


def stream(image: RuntimeImage, blobs: Blobs, name: str) -> Iterator[bytes]:
    """Yield the archive of ``image``, in which it is called ``name`` (``REPO:TAG``).

    Raises:
        CorruptContent: a blob does not have its digest; the archive is without its end then.
        NotVerifiable: a blob is not there.
    """
    yield from _blob(image.config.digest, image.config.size, blobs)
    for digest, size in {file.digest: file.size for file in image.files}.items():
        yield from _blob(digest, size, blobs)
    manifest = _manifest(image)
    described = Descriptor(MANIFEST_TYPE, Digest.of(manifest), len(manifest), annotations=dict.fromkeys(_NAMES, name))
    yield from _small(_place(described.digest), manifest)
    yield from _small("oci-layout", LAYOUT)
    index: Object = {"schemaVersion": 2, "manifests": [described.to_json()]}
    yield from _small("index.json", strictjson.canonical(index))
    layers: list[Json] = [_place(file.digest) for file in image.files]
    docker: Json = [{"Config": _place(image.config.digest), "RepoTags": [name], "Layers": layers}]
    yield from _small("manifest.json", strictjson.canonical(docker))
    yield bytes(2 * _BLOCK)


def _manifest(image: RuntimeImage) -> bytes:
    """Return the manifest as the archive has it: what names config and layers, and nothing else."""
    return strictjson.canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": image.config.to_json(),
            "layers": [one.to_json() for one in image.layers],
        }
    )


def _place(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"


def _small(name: str, data: bytes) -> Iterator[bytes]:
    yield _header(name, len(data)) + data + bytes(-len(data) % _BLOCK)


def _blob(digest: Digest, size: int, blobs: Blobs) -> Iterator[bytes]:
    """Yield one member; its last bytes only once all of it was hashed."""
    yield _header(_place(digest), size)
    hasher = hashlib.sha256()
    held, left = b"", size
    try:
        with open(blobs.path(digest), "rb", buffering=0) as source:
            while left and (chunk := source.read(min(left, _CHUNK))):
                hasher.update(chunk)
                left -= len(chunk)
                yield held
                held = chunk
    except FileNotFoundError:
        raise NotVerifiable(f"{digest} of the runtime image is not in the store") from None
    if left or Digest.from_hex(hasher.hexdigest()) != digest:
        raise CorruptContent(
            f"expected {digest} of {size} bytes, found other bytes in the store", hint="intaglio store verify --repair"
        )
    yield held + bytes(-size % _BLOCK)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
