"""An OCI image layout that is not a store of ours, such as an export or a mounted volume: read, never written.

- Blobs are opened without following links and re-hashed when they are read.
- ``index.json`` is where to look, not what to believe: every manifest it names is opened.

(OCI image specification 1.1, "Image Layout".)
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from intaglio import strictjson
from intaglio.content.descriptor import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.content.modelpack import MODEL_TYPE
from intaglio.content.runtime_image import IMAGE_CONFIG_TYPE
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable

MAX_MANIFESTS = 4096
"""Most manifests looked at in one layout."""
_MAX_NESTING = 4


def open_regular(path: Path, what: str) -> BinaryIO:
    """Return the open file at ``path``, which must be a regular one; the last part is no link.

    Raises:
        CorruptContent: it is missing, a link, a folder, or a device.
        NotVerifiable: it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CorruptContent(f"{what}: missing: {path}") from None
    except OSError as error:
        if path.is_symlink():
            raise CorruptContent(f"{what}: expected a regular file, found a symbolic link: {path}") from None
        raise NotVerifiable(f"{what}: {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CorruptContent(f"{what}: expected a regular file: {path}")
    return os.fdopen(fd, "rb")


class BareLayout:
    """A folder with ``index.json`` and ``blobs/sha256/``; the same questions as a store's, nothing is kept."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: Digest) -> Path:
        """Return where the blob stands, whether it does or not."""
        return self.root / "blobs" / "sha256" / digest.hex

    def read(self, digest: Digest, *, what: str, max_bytes: int = strictjson.MAX_BYTES) -> bytes:
        """Return a small blob, re-hashed.

        Raises:
            CorruptContent: it is missing, larger than ``max_bytes``, or does not have its digest.
        """
        with open_regular(self.path(digest), what) as stream:
            data = stream.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise CorruptContent(f"{what}: expected at most {max_bytes} bytes, found more ({digest})")
        if Digest.of(data) != digest:
            raise CorruptContent(f"{what}: the blob does not have its digest {digest}")
        return data

    def referrers(self, subject: Digest) -> tuple[Descriptor, ...]:
        """Return the manifests of the index that have ``subject`` as their subject."""
        return tuple(
            described for described, manifest in self._manifests if _digest_of(manifest.get("subject")) == subject
        )

    def manifests(self) -> tuple[Descriptor, ...]:
        """Return every image manifest of the index, described by what it says itself."""
        return tuple(described for described, _ in self._manifests)

    def images(self) -> tuple[Descriptor, ...]:
        """Return the images of the index, of models and runnable ones."""
        return tuple(described for described, manifest in self._manifests if _is_image(described, manifest))

    @cached_property
    def _manifests(self) -> tuple[tuple[Descriptor, strictjson.Object], ...]:
        """Every image manifest that ``index.json`` leads to, each once, described by what it says itself."""
        found: dict[Digest, tuple[Descriptor, strictjson.Object]] = {}
        for entry, data in self._walk():
            manifest = strictjson.parse_object(data, what=f"manifest {entry.digest.short}")
            kind = manifest.get("artifactType")
            described = Descriptor(MANIFEST_TYPE, entry.digest, len(data), kind if isinstance(kind, str) else None)
            found[entry.digest] = (described, manifest)
        return tuple(found.values())

    def _walk(self) -> Iterator[tuple[Descriptor, bytes]]:
        what = f"{self.root}"
        with open_regular(self.root / "index.json", what) as stream:
            index = stream.read(strictjson.MAX_BYTES + 1)
        pending = [(entry, 0) for entry in _entries(index, f"{self.root / 'index.json'}")]
        count = 0
        while pending:
            entry, depth = pending.pop(0)
            count += 1
            if count > MAX_MANIFESTS or depth > _MAX_NESTING:
                raise CorruptContent(f"{what}: more than {MAX_MANIFESTS} manifests, or indexes nested too deep")
            if entry.media_type not in (MANIFEST_TYPE, INDEX_TYPE):
                continue
            data = self.read(entry.digest, what=f"manifest {entry.digest.short}")
            if len(data) != entry.size:
                raise CorruptContent(f"{what}: {entry.digest} has {len(data)} bytes, its entry says {entry.size}")
            if entry.media_type == INDEX_TYPE:
                pending += [(inner, depth + 1) for inner in _entries(data, f"index {entry.digest.short}")]
            else:
                yield entry, data


def _entries(data: bytes, what: str) -> list[Descriptor]:
    index = strictjson.parse_object(data, what=what)
    manifests = index.get("manifests")
    if index.get("mediaType", INDEX_TYPE) != INDEX_TYPE or "layers" in index or not isinstance(manifests, list):
        raise CorruptContent(f"{what}: not an OCI image index")
    entries = []
    for entry in manifests:
        if isinstance(entry, dict):
            entry = {key: value for key, value in entry.items() if key not in ("platform", "urls", "data")}
        entries.append(Descriptor.parse(entry, what))
    return entries


def _is_image(described: Descriptor, manifest: strictjson.Object) -> bool:
    """Return whether a manifest is a model image or a runtime image, and not what refers to one."""
    config = manifest.get("config")
    runnable = isinstance(config, dict) and config.get("mediaType") == IMAGE_CONFIG_TYPE and "subject" not in manifest
    return described.artifact_type == MODEL_TYPE or (runnable and described.artifact_type is None)


def _digest_of(value: object) -> Digest | None:
    """Return the digest in a descriptor, or nothing where there is no descriptor that anyone could follow."""
    try:
        return Descriptor.parse(value, "subject").digest
    except CorruptContent:
        return None
