"""Tar archives, read strictly: regular files in a row, each with one name and one size, and nothing else.

- Links, devices, sparse files, global headers and other extensions are refused where they are met; nothing that a
  header announces is read into memory unless it is small.
- What one reader would take for a file and another for something else is refused: no header of unknown type is passed
  over, nothing stands behind the end.
- Members come in the order of the archive, which is read once, from front to back.

(POSIX.1-2001, "ustar Interchange Format" and "pax Interchange Format".)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from intaglio.dataclass import dataclass, field
from intaglio.errors import CorruptContent

BLOCK = 512
MAX_NAME = 1024
"""Longest name of a member in bytes."""
_CHUNK = 256 << 10
_MAX_EXTENSION = 4 * BLOCK
_MAX_PADDING = 1 << 20
_MAGIC = b"ustar\x0000"
_REGULAR, _EXTENSION = b"0", b"x"
_OCTAL = re.compile(rb" *([0-7]{1,12})[ \x00]*\Z")
_RECORD = re.compile(rb"([1-9][0-9]{0,3}) (path|size)=([^\n\x00]+)\n")
_COUNT = re.compile(rb"(0|[1-9][0-9]{0,17})\Z")


@dataclass
class Member:
    """One file of an archive; its bytes are to be read before the next member is asked for."""

    name: str
    size: int
    """Bytes."""
    _source: BinaryIO = field(repr=False)

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes; to the end, or the archive cannot be read on.

        Raises:
            CorruptContent: the archive ends within them.
        """
        left = self.size
        while left:
            chunk = self._source.read(min(left, _CHUNK))
            if not chunk:
                raise CorruptContent(f"the archive ends within {self.name[:128]!r}")
            left -= len(chunk)
            yield chunk
        _exactly(self._source, -self.size % BLOCK)

    def read(self, limit: int) -> bytes:
        """Return the bytes, of which there may be at most ``limit``.

        Raises:
            CorruptContent: there are more, or fewer than announced.
        """
        if self.size > limit:
            raise CorruptContent(f"{self.name[:128]!r}: expected at most {limit} bytes, found {self.size}")
        return b"".join(self.chunks())


def members(source: BinaryIO) -> Iterator[Member]:
    """Yield the members of the archive in ``source``.

    Raises:
        CorruptContent: it is no such archive, ends early, or holds something else than regular files.
    """
    while any(header := _exactly(source, BLOCK)):
        records: dict[str, bytes] = {}
        if _kind(header) == _EXTENSION:
            records = _records(source, header)
            header = _exactly(source, BLOCK)
        if _kind(header) != _REGULAR:
            raise CorruptContent(f"unexpected member {_name(header)[:128]!r}: not a regular file")
        name = _text(records["path"]) if "path" in records else _name(header)
        yield Member(name, _count(records["size"]) if "size" in records else _size(header), source)
    left = _MAX_PADDING
    while data := source.read(min(_CHUNK, left)):
        left -= len(data)
        if any(data) or not left:
            raise CorruptContent("there is more behind the archive's end")


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = source.read(size - len(data))
        if not more:
            raise CorruptContent("the archive ends early")
        data += more
    return data


def _kind(header: bytes) -> bytes:
    """Return the type of the header, whose checksum and form hold."""
    found = _OCTAL.match(header[148:156])
    if not found or int(found[1], 8) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
        raise CorruptContent("a header of the archive is damaged, or it is no tar archive")
    if header[257:265] != _MAGIC:
        raise CorruptContent("expected a POSIX tar archive")
    return header[156:157]


def _name(header: bytes) -> str:
    name, prefix = (header[start:end].split(b"\x00")[0] for start, end in ((0, 100), (345, 500)))
    return _text(prefix + b"/" + name if prefix else name)


def _size(header: bytes) -> int:
    found = _OCTAL.match(header[124:136])
    if not found:
        raise CorruptContent(f"{_name(header)[:128]!r}: its size is no octal number")
    return int(found[1], 8)


def _records(source: BinaryIO, header: bytes) -> dict[str, bytes]:
    """Return what an extension says about the member behind it: its name, its size, and nothing else."""
    size = _size(header)
    if size > _MAX_EXTENSION:
        raise CorruptContent(f"expected an extension of at most {_MAX_EXTENSION} bytes, found {size}")
    data = _exactly(source, size + -size % BLOCK)[:size]
    records: dict[str, bytes] = {}
    while data:
        found = _RECORD.match(data)
        if not found or int(found[1]) != found.end() or found[2].decode() in records:
            raise CorruptContent("an extension of the archive says something else than a name and a size")
        records[found[2].decode()] = found[3]
        data = data[found.end() :]
    return records


def _count(data: bytes) -> int:
    if not _COUNT.match(data):
        raise CorruptContent(f"expected a size in bytes, found {data[:40]!r}")
    return int(data)


def _text(data: bytes) -> str:
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise CorruptContent(f"unexpected member {data[:128]!r}: not plain ASCII") from None
    if not text or len(text) > MAX_NAME:
        raise CorruptContent(f"unexpected member {text[:128]!r}: expected a name of 1 to {MAX_NAME} bytes")
    return text
