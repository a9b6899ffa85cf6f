"""The structure of a safetensors file: its header describes every byte of it, once.

- The header is strict JSON, at most 16 MiB, starts with ``{``; names do not repeat.
- Each tensor's length is its shape times its type; tensors lie side by side from the first byte to the last:
  no overlap, no gap, nothing behind, so nothing can hide in the file.

(safetensors format description, ``README.md`` of huggingface/safetensors; types of release 0.8.)
"""

from __future__ import annotations

from typing import BinaryIO

from intaglio import strictjson
from intaglio.dataclass import dataclass
from intaglio.errors import CorruptContent

MAX_HEADER = 16 << 20
"""Largest header accepted, in bytes; the format itself allows 100 MB."""
MAX_DIMENSIONS = 32
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of one element, by the type's name."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's place in a file."""

    name: str
    dtype: str
    begin: int
    """First byte, from the start of the file."""
    end: int
    """One past the last byte."""


def read(stream: BinaryIO, size: int, what: str) -> tuple[Tensor, ...]:
    """Return the tensors of a file of ``size`` bytes, in the order in which they lie.

    Raises:
        CorruptContent: any deviation from the form that the module describes.
    """
    stream.seek(0)
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise CorruptContent(f"{what}: not safetensors: the header's length is past the end of the file")
    if length > MAX_HEADER:
        raise CorruptContent(f"{what}: a safetensors header of {length} bytes, expected at most {MAX_HEADER}")
    data = stream.read(length)
    if not data.startswith(b"{"):
        raise CorruptContent(f"{what}: not safetensors: the header does not start with '{{'")
    header = strictjson.parse_object(data, what=f"{what}, header", max_bytes=MAX_HEADER, max_depth=4)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(item, str) for item in metadata.values()):
        raise CorruptContent(f"{what}: __metadata__ is not an object of strings")
    tensors = [_tensor(name, entry, 8 + length, f"{what}, tensor {name[:80]!r}") for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    place = 8 + length
    for tensor in tensors:
        if tensor.begin != place:
            fault = "overlaps the one before" if tensor.begin < place else "leaves a gap before it"
            raise CorruptContent(f"{what}: tensor {tensor.name[:80]!r} {fault}")
        place = tensor.end
    if place != size:
        raise CorruptContent(f"{what}: tensors end at byte {place}, the file at {size}")
    return tuple(tensors)


def _tensor(name: str, entry: object, start: int, what: str) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptContent(f"{what}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CorruptContent(f"{what}: unknown type {dtype!r}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise CorruptContent(f"{what}: the shape is not an array of counts")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptContent(f"{what}: data_offsets are not a beginning and an end")
    bits = BITS[dtype]
    for count in shape:
        bits *= count
    if bits != 8 * (offsets[1] - offsets[0]):
        raise CorruptContent(f"{what}: shape × type is {bits} bits, the offsets hold {8 * (offsets[1] - offsets[0])}")
    return Tensor(name, dtype, start + offsets[0], start + offsets[1])


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
