"""Tar layers: a folder as one layer of a runnable image, the same bytes whoever writes it, whenever and wherever.

- A layer is a function of paths, kinds, permissions and bytes: sorted by path, mtime 0, owner 0, no user names.
- Uncompressed, so that the layer's digest is its diff id and no version of a compressor stands between the two.
- Files stream: a layer may be larger than memory. Set-uid, set-gid and sticky bits of files are dropped.

(OCI image specification 1.1, "Image Layer Filesystem Changeset"; POSIX.1-2001 pax interchange format.)
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from intaglio.dataclass import dataclass
from intaglio.errors import CorruptContent

_CHUNK = 1 << 20
_BLOCK = 512
_RECORD = 20 * _BLOCK


class Sink(Protocol):
    """Where a layer is written."""

    def write(self, chunk: bytes) -> None:
        """Append ``chunk``."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a layer."""

    path: str
    """Relative, ``/`` between its parts."""
    content: Path | bytes | None = None
    """A file's bytes, or where they stand; ``None`` for a folder or a link."""
    link: str | None = None
    """What a symbolic link points to."""
    mode: int = 0o755
    """Permissions; those of a link do not count."""


def from_folder(root: Path, prefix: str = "") -> Iterator[Entry]:
    """Yield what stands in the folder ``root``, below ``prefix``: files 0555 or 0444, folders 0755.

    Raises:
        CorruptContent: neither a file, nor a folder, nor a symbolic link.
    """
    start = f"{prefix}/" if prefix else ""
    pending = [(root, start)]
    while pending:
        folder, above = pending.pop()
        with os.scandir(folder) as entries:
            for one in entries:
                path, status = above + one.name, one.stat(follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    yield Entry(path, link=str(Path(one.path).readlink()))
                elif stat.S_ISDIR(status.st_mode):
                    yield Entry(path)
                    pending.append((Path(one.path), f"{path}/"))
                elif stat.S_ISREG(status.st_mode):
                    yield Entry(path, Path(one.path), mode=0o555 if status.st_mode & 0o111 else 0o444)
                else:
                    raise CorruptContent(f"{one.path}: expected a file, a folder or a link")


def write(entries: Iterable[Entry], sink: Sink) -> None:
    """Write the layer of ``entries``, in any order, with the folders above them that they leave out.

    Raises:
        CorruptContent: two entries for one path, a path that is none, or a file that changed while it was read.
    """
    members: dict[str, Entry] = {}
    for entry in entries:
        parts = entry.path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in entry.path:
            raise CorruptContent(f"a layer's member named {entry.path!r}")
        if entry.path in members:
            raise CorruptContent(f"two members of a layer named {entry.path!r}")
        members[entry.path] = entry
    for path in list(members):
        above = path
        while "/" in above:
            above = above.rpartition("/")[0]
            members.setdefault(above, Entry(above))
    size = sum(_write(members[path], sink) for path in sorted(members, key=lambda path: path.split("/")))
    size += 2 * _BLOCK
    sink.write(bytes(2 * _BLOCK + -size % _RECORD))


def _write(entry: Entry, sink: Sink) -> int:
    """Write one member; return how many bytes that took."""
    if isinstance(entry.content, Path):
        with open(entry.content, "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            head = _header(entry, size)
            sink.write(head)
            left = size
            while left:
                chunk = stream.read(min(left, _CHUNK))
                if not chunk:
                    raise CorruptContent(f"{entry.content}: changed while a layer was made of it")
                sink.write(chunk)
                left -= len(chunk)
    else:
        size = len(entry.content or b"")
        head = _header(entry, size)
        sink.write(head + (entry.content or b""))
    padding = -size % _BLOCK
    sink.write(bytes(padding))
    return len(head) + size + padding


def _header(entry: Entry, size: int) -> bytes:
    member = tarfile.TarInfo(entry.path)
    member.mode = entry.mode & 0o777
    if entry.link is not None:
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.link, 0o777
    elif entry.content is None:
        member.type, member.mode = tarfile.DIRTYPE, entry.mode & 0o1777
    else:
        member.size = size
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def files_of(files: Mapping[str, bytes], prefix: str = "") -> Iterator[Entry]:
    """Yield small files, by their paths below ``prefix``."""
    for path, data in files.items():
        yield Entry(f"{prefix}/{path}" if prefix else path, data, mode=0o444)
