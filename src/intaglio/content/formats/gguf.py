"""The structure of a GGUF file: every count, length and offset checked against the file before it is used.

- Versions 2 and 3, little-endian. Keys and tensor names do not repeat; the alignment is a power of two.
- Tensors lie side by side, each at the next aligned place; at most padding follows the last.
- The header (all before the tensor data) is at most 128 MiB: vocabularies are what fills it.

(ggml, ``docs/gguf.md``; block sizes from ``gguf-py`` 0.19, ``constants.py``.)
"""

from __future__ import annotations

from typing import BinaryIO

from intaglio.dataclass import dataclass
from intaglio.errors import CorruptContent

MAX_HEADER = 128 << 20
MAX_NAME = 64
"""Longest tensor name, in bytes (ggml's ``GGML_MAX_NAME``)."""
MAX_KEY = 65_535
MAX_ALIGNMENT = 1 << 16
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each scalar value type; 8 is a string, 9 an array."""
_STRING, _ARRAY, _UINT32 = 8, 9, 4

BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""Tensor types: name, elements a block, bytes a block."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's place in a file."""

    name: str
    dtype: str
    begin: int
    """First byte, from the start of the file."""
    end: int
    """One past the last byte."""


class _Reader:
    """Takes bytes from the header, never past its limit or the file's end."""

    def __init__(self, stream: BinaryIO, size: int, what: str) -> None:
        self._stream = stream
        self._end = min(size, MAX_HEADER)
        self.what = what
        self.place = 0
        stream.seek(0)

    def refuse(self, why: str) -> CorruptContent:
        return CorruptContent(f"{self.what}: not GGUF: {why} (at byte {self.place})")

    def take(self, count: int) -> bytes:
        if count > self._end - self.place:
            raise self.refuse(f"{count} bytes expected past the end of the file or of its largest header")
        data = self._stream.read(count)
        if len(data) != count:
            raise self.refuse("the file ended early")
        self.place += count
        return data

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def count(self, each: int) -> int:
        """Return a 64-bit count of things of at least ``each`` bytes, which must fit into what is left."""
        count = self.number(8)
        if count * each > self._end - self.place:
            raise self.refuse(f"a count of {count} is past the end of the file")
        return count

    def string(self, longest: int) -> str:
        length = self.count(1)
        if length > longest:
            raise self.refuse(f"a string of {length} bytes, expected at most {longest}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse("a name that is not UTF-8") from None

    def skip_value(self, kind: int, depth: int = 0) -> None:
        if kind in _SIZES:
            self.take(_SIZES[kind])
        elif kind == _STRING:
            self.take(self.count(1))
        elif kind == _ARRAY and depth < 4:
            inner = self.number(4)
            if inner in _SIZES:
                self.take(self.count(_SIZES[inner]) * _SIZES[inner])
                return
            for _ in range(self.count(8)):
                self.skip_value(inner, depth + 1)
        else:
            raise self.refuse(f"unknown value type {kind}")


def read(stream: BinaryIO, size: int, what: str) -> tuple[Tensor, ...]:
    """Return the tensors of a file of ``size`` bytes, in the order in which they lie.

    Raises:
        CorruptContent: any deviation from the form that the module describes.
    """
    reader = _Reader(stream, size, what)
    if reader.take(4) != b"GGUF":
        raise reader.refuse("the magic is another")
    version = reader.number(4)
    if version not in (2, 3):
        raise reader.refuse(f"version {version}, expected 2 or 3, little-endian")
    tensors, pairs = reader.count(24), reader.count(13)
    alignment = _read_pairs(reader, pairs)
    infos = _read_infos(reader, tensors)
    return _place(infos, reader, alignment, size, stream)


def _read_pairs(reader: _Reader, count: int) -> int:
    alignment = 32
    seen: set[str] = set()
    for _ in range(count):
        key = reader.string(MAX_KEY)
        if not key or key in seen:
            raise reader.refuse(f"the key {key[:80]!r} is empty or comes twice")
        seen.add(key)
        kind = reader.number(4)
        if key != "general.alignment":
            reader.skip_value(kind)
            continue
        alignment = reader.number(4) if kind == _UINT32 else 0
        if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise reader.refuse("the alignment is not a 32-bit power of two from 8 on")
    return alignment


def _read_infos(reader: _Reader, count: int) -> list[tuple[str, int, int, str]]:
    """Return (name, offset, length in bytes, type) of each tensor."""
    infos = []
    seen: set[str] = set()
    for _ in range(count):
        name = reader.string(MAX_NAME)
        if not name or name in seen:
            raise reader.refuse(f"the tensor {name!r} has no name or comes twice")
        seen.add(name)
        dimensions = reader.number(4)
        if not 1 <= dimensions <= 4:
            raise reader.refuse(f"tensor {name!r} has {dimensions} dimensions, expected 1 to 4")
        shape = [reader.number(8) for _ in range(dimensions)]
        kind = reader.number(4)
        if kind not in BLOCKS:
            raise reader.refuse(f"tensor {name!r} has the unknown type {kind}")
        dtype, block, width = BLOCKS[kind]
        if shape[0] % block:
            raise reader.refuse(f"tensor {name!r}: rows of {shape[0]} are no multiple of {dtype}'s {block}")
        elements = 1
        for dimension in shape:
            elements *= dimension
        if elements >= 1 << 63:
            raise reader.refuse(f"tensor {name!r}: the shape's product overflows")
        infos.append((name, reader.number(8), elements // block * width, dtype))
    return infos


def _place(
    infos: list[tuple[str, int, int, str]], reader: _Reader, alignment: int, size: int, stream: BinaryIO
) -> tuple[Tensor, ...]:
    start = -(-reader.place // alignment) * alignment if infos else reader.place
    placed = []
    place = end = 0
    for name, offset, length, dtype in sorted(infos, key=lambda info: (info[1], info[2])):
        if offset != place:
            raise reader.refuse(f"tensor {name!r} at offset {offset}, expected {place}: overlapping, gapped, unaligned")
        end = offset + length
        if start + end > size:
            raise reader.refuse(f"tensor {name!r} ends past the end of the file")
        place = -(-end // alignment) * alignment
        placed.append(Tensor(name, dtype, start + offset, start + end))
    rest = size - start - end
    if rest < 0 or rest >= alignment:
        raise reader.refuse(f"{rest} bytes behind the last tensor")
    stream.seek(start + end)
    if stream.read(rest).strip(b"\0"):
        raise reader.refuse("the padding behind the last tensor is not zero")
    return tuple(placed)
