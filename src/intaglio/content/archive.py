"""Archives: a runtime image as the stream that container engines load, hashed while it passes.

- Every blob is hashed on its way; a damaged one ends the stream before its end marker, so that no engine takes it.
- Nothing is held: a layer may be larger than memory.
- The image's id in an engine is the digest of its config, which names every layer: whoever compares the id after the
  load knows what will run.

Source: Docker Image Specification 1.2, "Combined Image JSON + Filesystem Changeset Format" (``docker save``).
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from intaglio.content.runtime_image import RuntimeImage
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable

_CHUNK = 1 << 20
_BLOCK = 512


class Blobs(Protocol):
    """Where blobs stand."""

    def path(self, digest: Digest) -> Path:
        """Return where the blob stands."""


def stream(image: RuntimeImage, blobs: Blobs, name: str) -> Iterator[bytes]:
    """Yield the archive of ``image``, in which it is called ``name`` (``REPO:TAG``).

    Raises:
        CorruptContent: a blob does not have its digest; the archive is without its end then.
        NotVerifiable: a blob is not there.
    """
    config = f"{image.config.digest.hex}.json"
    yield from _blob(config, image.config.digest, image.config.size, blobs)
    layers = []
    for file in image.files:
        member = f"{file.digest.hex}/layer.tar"
        if member not in layers:
            yield from _blob(member, file.digest, file.size, blobs)
        layers.append(member)
    manifest = json.dumps([{"Config": config, "RepoTags": [name], "Layers": layers}]).encode()
    yield _header("manifest.json", len(manifest)) + manifest + bytes(-len(manifest) % _BLOCK)
    yield bytes(2 * _BLOCK)


def _blob(name: str, digest: Digest, size: int, blobs: Blobs) -> Iterator[bytes]:
    """Yield one member; its last bytes only once all of it was hashed."""
    yield _header(name, size)
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
