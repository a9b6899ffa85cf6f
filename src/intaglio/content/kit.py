"""Kits: one archive with an image and all that is to travel with it, for networks without the internet.

- A kit is a tar file over an OCI image layout; the same contents give the same bytes: fixed order, owner and mode.
- It is written in one pass and read in one pass; every blob is hashed on the way, both times.
- Only the names below are members; links, devices, other names, repeats and excess are refused as they are met.
- A kit brings no trust: nothing in it says whom to believe, and nothing of it is visible before it was verified.
- Unpacked it is a folder as :mod:`intaglio.trust.carried` reads it: an OCI image layout with ``metadata/`` and
  ``targets/`` beside it.

(POSIX.1-2001 pax interchange format; OCI image specification 1.1, "Image Layout".)
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from intaglio import strictjson
from intaglio.content import stricttar
from intaglio.content.descriptor import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.content.intake import BlobWriter, sync_folder
from intaglio.content.layout import REF_NAME, ListedReferrer, Store, check_name
from intaglio.content.stricttar import Member
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable, UsageError
from intaglio.progress import Progress, Silent, Task

ABOUT = "intaglio-kit.json"
VERSION = 1
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_LAYOUT_NAMES = ("oci-layout", "index.json")
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})\Z")
_METADATA = re.compile(r"metadata/[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.json\Z")
_WORD = r"[a-z0-9][a-z0-9._-]{0,199}"
_TARGET = re.compile(rf"targets/[a-z]+/{_WORD}/{_WORD}/([0-9a-f]{{64}})\.[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}\Z")
_FORMS = (_BLOB, _METADATA, _TARGET)
_MAX_SMALL = 8 << 20
_MAX_ALL_SMALL = 256 << 20
_MAX_MEMBERS = 100_000


@dataclass(frozen=True, slots=True)
class About:
    """What a kit says of itself: where to look, not what to believe."""

    image: Digest
    name: str
    """What it was called where it came from, or its digest: for people."""

    @classmethod
    def of(cls, image: Digest, reference: str) -> About:
        """Return what to say about ``image``, exported as ``reference``."""
        return cls(image, reference if _is_name(reference) else str(image))

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
        image, name = Digest.parse(value["image"]), value["name"]
        if name != str(image) and not (isinstance(name, str) and _is_name(name)):
            raise CorruptContent(f"{ABOUT}: expected a name such as team/model:1.0, found {str(name)[:80]!r}")
        return cls(image, name)


def _is_name(text: str) -> bool:
    try:
        return bool(check_name(text))
    except UsageError:
        return False


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A kit that was unpacked into a folder: every blob has its digest, and nothing else was checked."""

    about: About
    layout: Path
    """An OCI image layout, with the trusted source's ``metadata/`` and ``targets/`` as they were found."""
    blobs: frozenset[Digest]
    size: int
    """Bytes of all blobs."""


class Blobs(Protocol):
    """Where blobs stand: a store, a bare layout."""

    @property
    def root(self) -> Path:
        """The layout's folder."""

    def read(self, digest: Digest, *, what: str, max_bytes: int = strictjson.MAX_BYTES) -> bytes:
        """Return a small blob, re-hashed."""

    def path(self, digest: Digest) -> Path:
        """Return where a blob stands."""


def graph(source: Blobs, roots: Iterable[Digest]) -> dict[Digest, int]:
    """Return every blob that the manifests ``roots`` reach, with its size in bytes, the manifests included.

    Raises:
        NotVerifiable: a blob is not there.
        CorruptContent: a manifest is damaged.
    """
    found: dict[Digest, int] = {}
    for root in roots:
        what = f"manifest {root.short}"
        data = source.read(root, what=what)
        found[root] = len(data)
        manifest = strictjson.parse_object(data, what=what)
        layers = manifest.get("layers")
        for part in [manifest.get("config"), *(layers if isinstance(layers, list) else [])]:
            blob = Descriptor.parse(part, what)
            place = source.path(blob.digest)
            if not place.is_file() or place.stat().st_size != blob.size:
                raise NotVerifiable(f"{what}: {blob.digest} with {blob.size} bytes is not in {source.root}")
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

    Args:
        store: where they are.
        sink: where it is written.
        about: what the kit says of itself; its image is the first root.
        roots: further manifests.
        small: files of the trusted source, as :func:`intaglio.trust.carried.files` returns them.
        progress: told of the bytes.

    Raises:
        NotVerifiable: a blob is not in the store.
        CorruptContent: a blob does not have its digest; what was written is no kit then.
    """
    ordered = tuple(dict.fromkeys((about.image, *roots)))
    blobs = graph(store, ordered)
    beside = {Digest.from_hex(found[1]): data for name, data in small.items() if (found := _BLOB.match(name))}
    beside = {digest: data for digest, data in beside.items() if digest not in blobs}
    counted = _Counted(sink)
    with tarfile.open(fileobj=counted, mode="w|", format=tarfile.PAX_FORMAT) as sheet:
        _add(sheet, ABOUT, about.to_bytes())
        _add(sheet, "oci-layout", _LAYOUT)
        _add(sheet, "index.json", _index(store, about, ordered))
        for name in sorted(name for name in small if not _BLOB.match(name)):
            _add(sheet, name, small[name])
        with (progress or Silent()).task("writing the kit", sum(blobs.values())) as task:
            for digest in sorted({*blobs, *beside}):
                if digest in beside:
                    _add(sheet, f"blobs/sha256/{digest.hex}", beside[digest])
                    continue
                with open(store.path(digest), "rb") as source:
                    checked = _Checked(source, digest, task)
                    sheet.addfile(_member(f"blobs/sha256/{digest.hex}", blobs[digest]), checked)
                    checked.finish()
    return counted.size


def read(source: BinaryIO, folder: Path, *, progress: Progress | None = None, total: int | None = None) -> Unpacked:
    """Unpack the kit in ``source`` into the empty ``folder``; what is held in memory does not grow with it.

    Raises:
        CorruptContent: it is no kit, or a blob does not have the digest that names it.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    about: About | None = None
    held: set[Digest] = set()
    size = small = 0
    with (progress or Silent()).task("reading the kit", total) as task:
        for member in _members(source):
            if blob := _BLOB.match(member.name):
                digest = Digest.from_hex(blob[1])
                _unpack(member, digest, blobs, folder, task)
                held.add(digest)
                size += member.size
                continue
            small += member.size
            if small > _MAX_ALL_SMALL:
                raise CorruptContent(f"not a kit: more than {_MAX_ALL_SMALL} bytes of metadata and targets")
            data = member.read(_MAX_SMALL)
            task.advance(len(data))
            if member.name == ABOUT:
                about = About.parse(data)
            else:
                _put(member.name, data, folder)
    if about is None:
        raise CorruptContent(f"not a kit: expected a member {ABOUT}, found none")
    for name in _LAYOUT_NAMES:
        if not (folder / name).is_file():
            raise CorruptContent(f"not a kit: expected a member {name}, found none")
    return Unpacked(about, folder, frozenset(held), size)


def take(unpacked: Unpacked, store: Store, roots: Iterable[Digest]) -> int:
    """Move what the manifests ``roots`` of a verified kit reach into ``store``; return how many blobs that are.

    The kit must have been unpacked on the store's file system, by this process: its blobs have just been hashed, so
    they replace those of the store, which nobody has looked at for a while. What no root reaches is left behind.

    Raises:
        NotVerifiable: a root is not whole.
        CorruptContent: a root is a malformed referrer.
    """
    from intaglio.content.bare import BareLayout

    layout = BareLayout(unpacked.layout)
    ordered = tuple(dict.fromkeys(roots))
    wanted = graph(layout, ordered)
    manifests = {digest: layout.read(digest, what=f"manifest {digest.short}") for digest in ordered}
    referring = [digest for digest, data in manifests.items() if "subject" in strictjson.parse_object(data, what="")]
    for digest in referring:
        ListedReferrer.parse(manifests[digest])  # refused now, not when half of the kit is visible
    for digest in sorted(wanted.keys() - set(referring)):
        os.rename(layout.path(digest), store.path(digest))
    sync_folder(store.path(unpacked.about.image).parent)
    for digest in referring:
        store.put_referrer(manifests[digest], ())
    return len(wanted)


def _members(source: BinaryIO) -> Iterator[Member]:
    """Yield the members; whatever a kit does not hold is refused."""
    seen: set[str] = set()
    try:
        for member in stricttar.members(source):
            name = member.name
            if not (name == ABOUT or name in _LAYOUT_NAMES or any(form.match(name) for form in _FORMS)):
                raise CorruptContent(f"unexpected member {name[:128]!r}")
            if name in seen or len(seen) >= _MAX_MEMBERS:
                raise CorruptContent(f"{name[:128]!r} stands there twice, or there are too many members")
            seen.add(name)
            yield member
    except CorruptContent as error:
        raise CorruptContent(f"not a kit: {error.message}") from None


def _unpack(member: Member, digest: Digest, blobs: Path, temporary: Path, task: Task) -> None:
    with BlobWriter(blobs, temporary, digest) as writer:
        for chunk in member.chunks():
            writer.write(chunk)
            task.advance(len(chunk))
        writer.commit()


def _put(name: str, data: bytes, folder: Path) -> None:
    """Write a small file; a target's bytes must be what its name says."""
    target = _TARGET.match(name)
    if target and Digest.of(data).hex != target[1]:
        raise CorruptContent(f"{name}: expected sha256:{target[1]}, found {Digest.of(data)}")
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)


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


def _add(sheet: tarfile.TarFile, name: str, data: bytes) -> None:
    sheet.addfile(_member(name, len(data)), io.BytesIO(data))


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
