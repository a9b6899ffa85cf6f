"""Kits: one archive with an image and all that is to travel with it, for networks without the internet.

- A kit is a tar file over an OCI image layout; the same contents give the same bytes: fixed order, owner and mode.
- It is written in one pass and read in one pass; every blob is hashed on the way, both times.
- Only the names below are members; links, devices, other names, repeats and excess are refused as they are met.
- A kit brings no trust: nothing in it says whom to believe, and nothing of it is visible before it was verified.

(POSIX.1-2001 pax interchange format; OCI image specification 1.1, "Image Layout".)
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from intaglio import strictjson
from intaglio.content.descriptor import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.content.intake import BlobWriter
from intaglio.content.layout import REF_NAME, Store
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable
from intaglio.progress import Progress, Silent, Task

ABOUT = "intaglio-kit.json"
VERSION = 1
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})\Z")
_SMALL = re.compile(r"(metadata|targets)/[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*\Z")
_MAX_SMALL = 8 << 20
_MAX_MEMBERS = 100_000
_CHUNK = 256 << 10


@dataclass(frozen=True, slots=True)
class About:
    """What a kit says of itself: where to look, not what to believe."""

    image: Digest
    name: str

    def to_bytes(self) -> bytes:
        """Return the canonical document."""
        return strictjson.canonical({"version": VERSION, "image": str(self.image), "name": self.name})

    @classmethod
    def parse(cls, data: bytes) -> About:
        """Return the document in ``data``.

        Raises:
            CorruptContent: another version, or unknown or missing keys.
        """
        value = strictjson.parse_object(data, what=ABOUT)
        if value.keys() != {"version", "image", "name"} or value["version"] != VERSION:
            raise CorruptContent(f"{ABOUT}: expected a kit of version {VERSION}")
        if not isinstance(value["name"], str):
            raise CorruptContent(f"{ABOUT}: name is not a string")
        return cls(Digest.parse(value["image"]), value["name"])


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A kit that was unpacked into a folder: every blob has its digest, and nothing else was checked."""

    about: About
    layout: Path
    """An OCI image layout."""
    small: Mapping[str, bytes]
    """``metadata/…`` and ``targets/…``: the trusted source's files, as they were found."""
    blobs: int
    size: int
    """Bytes of all blobs."""


def graph(store: Store, roots: Iterable[Digest]) -> dict[Digest, int]:
    """Return every blob that the manifests ``roots`` reach, with its size in bytes, the manifests included.

    Raises:
        NotVerifiable: a blob is not in the store.
        CorruptContent: a manifest is damaged.
    """
    found: dict[Digest, int] = {}
    for root in roots:
        what = f"manifest {root.short}"
        data = store.read(root, what=what)
        found[root] = len(data)
        manifest = strictjson.parse_object(data, what=what)
        layers = manifest.get("layers")
        for part in [manifest.get("config"), *(layers if isinstance(layers, list) else [])]:
            blob = Descriptor.parse(part, what)
            if not store.has(blob.digest, blob.size):
                raise NotVerifiable(f"{what}: {blob.digest} with {blob.size} bytes is not in the store {store.root}")
            found[blob.digest] = blob.size
    return found


def write(
    store: Store,
    sink: BinaryIO,
    about: About,
    roots: Iterable[Digest],
    small: Mapping[str, bytes],
    *,
    progress: Progress | None = None,
) -> int:
    """Write a kit with the manifests ``roots`` and all they reach; return its size in bytes.

    Raises:
        NotVerifiable: a blob is not in the store.
        CorruptContent: a blob does not have its digest; what was written is no kit then.
    """
    ordered = tuple(dict.fromkeys((about.image, *roots)))
    blobs = graph(store, ordered)
    counted = _Counted(sink)
    with tarfile.open(fileobj=counted, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, ABOUT, about.to_bytes())
        _add(archive, "oci-layout", _LAYOUT)
        _add(archive, "index.json", _index(store, about, ordered))
        for name in sorted(small):
            _add(archive, name, small[name])
        with (progress or Silent()).task("writing the kit", sum(blobs.values())) as task:
            for digest in sorted(blobs):
                with open(store.path(digest), "rb") as source:
                    checked = _Checked(source, digest, task)
                    archive.addfile(_member(f"blobs/sha256/{digest.hex}", blobs[digest]), checked)
                    checked.finish()
    return counted.size


def read(source: BinaryIO, folder: Path, *, progress: Progress | None = None, total: int | None = None) -> Unpacked:
    """Unpack the kit in ``source`` into the empty ``folder``.

    Raises:
        CorruptContent: it is no kit, or a blob does not have the digest that names it.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    small: dict[str, bytes] = {}
    count = size = 0
    try:
        with (
            (progress or Silent()).task("reading the kit", total) as task,
            tarfile.open(fileobj=source, mode="r|") as archive,
        ):
            for member in _members(archive):
                blob = _BLOB.match(member.name)
                if blob:
                    _unpack(archive, member, Digest.from_hex(blob[1]), blobs, folder, task)
                    count, size = count + 1, size + member.size
                else:
                    small[member.name] = _read_small(archive, member)
    except tarfile.TarError as error:
        raise CorruptContent(f"not a kit: {error}") from None
    for name in (ABOUT, "oci-layout", "index.json"):
        if name not in small:
            raise CorruptContent(f"not a kit: expected a member {name}, found none")
        if name != ABOUT:
            (folder / name).write_bytes(small[name])
    about = About.parse(small.pop(ABOUT))
    travelling = {name: data for name, data in small.items() if _SMALL.match(name)}
    return Unpacked(about, folder, travelling, count, size)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members; whatever a kit does not hold is refused."""
    seen: set[str] = set()
    for member in archive:
        name = member.name
        if not member.isreg() or not (
            name in (ABOUT, "oci-layout", "index.json") or _BLOB.match(name) or _SMALL.match(name)
        ):
            raise CorruptContent(f"not a kit: unexpected member {name[:128]!r}")
        if name in seen or len(seen) >= _MAX_MEMBERS:
            raise CorruptContent(f"not a kit: {name[:128]!r} stands there twice, or there are too many members")
        seen.add(name)
        yield member


def _unpack(
    archive: tarfile.TarFile, member: tarfile.TarInfo, digest: Digest, blobs: Path, temporary: Path, task: Task
) -> None:
    stream = archive.extractfile(member)
    assert stream is not None  # noqa: S101 - a regular member
    with BlobWriter(blobs, temporary, digest) as writer:
        left = member.size
        while left:
            chunk = stream.read(min(left, _CHUNK))
            if not chunk:
                raise CorruptContent(f"the kit ends within {digest}")
            writer.write(chunk)
            left -= len(chunk)
            task.advance(len(chunk))
        writer.commit()


def _read_small(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _MAX_SMALL:
        raise CorruptContent(f"not a kit: {member.name} has {member.size} bytes, expected at most {_MAX_SMALL}")
    stream = archive.extractfile(member)
    return stream.read() if stream is not None else b""


def _index(store: Store, about: About, roots: Iterable[Digest]) -> bytes:
    entries = []
    for digest in roots:
        data = store.read(digest, what=f"manifest {digest.short}")
        kind = strictjson.parse_object(data, what="manifest").get("artifactType")
        marks = {REF_NAME: about.name} if digest == about.image else {}
        entries.append(Descriptor(MANIFEST_TYPE, digest, len(data), kind, marks).to_json())
    return strictjson.canonical({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries})


def _member(name: str, size: int) -> tarfile.TarInfo:
    """Return a header that depends on name and size alone."""
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o644
    return member


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    archive.addfile(_member(name, len(data)), io.BytesIO(data))


class _Counted(io.RawIOBase):
    """A sink that counts."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self.size = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._sink.write(data)
        self.size += len(data)
        return len(data)

    def writable(self) -> bool:
        return True


class _Checked(io.RawIOBase):
    """A blob being read, hashed on the way."""

    def __init__(self, source: BinaryIO, digest: Digest, task: Task) -> None:
        import hashlib

        self._source, self._digest, self._task = source, digest, task
        self._hasher = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._hasher.update(data)
        self._task.advance(len(data))
        return data

    def readable(self) -> bool:
        return True

    def finish(self) -> None:
        """Compare what went by with the digest."""
        found = self._hasher.hexdigest()
        if found != self._digest.hex or self._source.read(1):
            raise CorruptContent(f"{self._digest}: damaged in the store", hint="intaglio store verify")


def take(unpacked: Unpacked, store: Store) -> None:
    """Move the blobs of a verified kit into ``store``, and index what refers to something.

    The kit must have been unpacked on the store's file system. Blobs that are there already are left alone.
    """
    from intaglio.content.layout import index_manifest

    blobs = unpacked.layout / "blobs" / "sha256"
    for entry in sorted(os.listdir(blobs)):
        digest = Digest.from_hex(entry)
        target = store.path(digest)
        if not store.has(digest, (blobs / entry).stat().st_size):
            os.rename(blobs / entry, target)
        index_manifest(store, digest)
