"""GGUF: counts, lengths and offsets checked before they are used."""

from __future__ import annotations

import contextlib
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.images import Gguf, gguf_pair, gguf_string

from intaglio.content.formats import gguf
from intaglio.content.formats.gguf import Tensor
from intaglio.errors import CorruptContent

HUGE = (1 << 64) - 1


def read(data: bytes) -> tuple[Tensor, ...]:
    return gguf.read(io.BytesIO(data), len(data), "file")


def test_reads_tensors_where_they_lie() -> None:
    data = Gguf().write()
    first, second = read(data)
    assert (first.name, first.dtype, data[first.begin : first.end]) == ("w", "Q8_0", b"\x11" * 68)
    assert (second.name, second.dtype, data[second.begin : second.end]) == ("b", "F32", b"\x22" * 32)


def test_values_of_every_type_are_passed_over() -> None:
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    pairs = [gguf_pair(f"scalar.{kind}", kind, b"\1" * size) for kind, size in sizes.items()]
    pairs += [gguf_pair(f"array.{k}", 9, struct.pack("<IQ", k, 3) + b"\1" * 3 * size) for k, size in sizes.items()]
    pairs.append(gguf_pair("strings", 9, struct.pack("<IQ", 8, 2) + gguf_string("a") + gguf_string(b"\xff\xfe")))
    inner = struct.pack("<IQ", 0, 2) + b"\1\2"
    pairs.append(gguf_pair("nested", 9, struct.pack("<IQ", 9, 2) + inner * 2))
    assert len(read(Gguf(pairs=pairs).write())) == 2


def test_another_alignment() -> None:
    pair = gguf_pair("general.alignment", 4, struct.pack("<I", 64))
    made = Gguf([pair], [("a", [8], 0, 0), ("b", [8], 0, 64)], b"\1" * 32 + bytes(32) + b"\2" * 32, alignment=64)
    assert [tensor.end - tensor.begin for tensor in read(made.write())] == [32, 32]


def test_padding_behind_the_last_tensor_may_be_there() -> None:
    made = Gguf(tensors=[("a", [2], 0, 0)], data=b"\1" * 8 + bytes(24))
    assert len(read(made.write())) == 1


def test_a_file_of_keys_alone() -> None:
    assert read(Gguf(tensors=[], data=b"").write()) == ()


WRONG = {
    "empty": b"",
    "another magic": Gguf(magic=b"GGML").write(),
    "big-endian": Gguf(version=3 << 24).write(),
    "version 1": Gguf(version=1).write(),
    "version 4": Gguf(version=4).write(),
    "endless tensors": Gguf(tensor_count=HUGE).write(),
    "endless pairs": Gguf(pair_count=HUGE).write(),
    "one tensor too many": Gguf(tensor_count=3).write(),
    "one pair too many": Gguf(pair_count=2).write(),
    "key twice": Gguf(pairs=[gguf_pair("k", 0, b"\1"), gguf_pair("k", 0, b"\1")]).write(),
    "key empty": Gguf(pairs=[gguf_pair("", 0, b"\1")]).write(),
    "key not UTF-8": Gguf(pairs=[gguf_pair(b"\xff", 0, b"\1")]).write(),
    "key endless": Gguf(pairs=[struct.pack("<Q", HUGE) + b"k"]).write(),
    "key very long": Gguf(pairs=[gguf_pair("k" * 70_000, 0, b"\1")]).write(),
    "value of unknown type": Gguf(pairs=[gguf_pair("k", 13, b"\1" * 16)]).write(),
    "string endless": Gguf(pairs=[gguf_pair("k", 8, struct.pack("<Q", HUGE))]).write(),
    "array endless": Gguf(pairs=[gguf_pair("k", 9, struct.pack("<IQ", 12, 1 << 61))]).write(),
    "strings endless": Gguf(pairs=[gguf_pair("k", 9, struct.pack("<IQ", 8, HUGE))]).write(),
    "array of unknown type": Gguf(pairs=[gguf_pair("k", 9, struct.pack("<IQ", 77, 1) + bytes(8))]).write(),
    "arrays nested deep": Gguf(pairs=[gguf_pair("k", 9, struct.pack("<IQ", 9, 1) * 20)]).write(),
    "alignment 0": Gguf(pairs=[gguf_pair("general.alignment", 4, bytes(4))]).write(),
    "alignment 24": Gguf(pairs=[gguf_pair("general.alignment", 4, struct.pack("<I", 24))]).write(),
    "alignment enormous": Gguf(pairs=[gguf_pair("general.alignment", 4, struct.pack("<I", 1 << 31))]).write(),
    "alignment a string": Gguf(pairs=[gguf_pair("general.alignment", 8, gguf_string("32"))]).write(),
    "tensor twice": Gguf(tensors=[("a", [8], 0, 0), ("a", [8], 0, 32)], data=bytes(64)).write(),
    "tensor without a name": Gguf(tensors=[("", [8], 0, 0)], data=bytes(32)).write(),
    "tensor with a long name": Gguf(tensors=[("n" * 65, [8], 0, 0)], data=bytes(32)).write(),
    "no dimensions": Gguf(tensors=[("a", [], 0, 0)], data=bytes(4)).write(),
    "five dimensions": Gguf(tensors=[("a", [1, 1, 1, 1, 8], 0, 0)], data=bytes(32)).write(),
    "unknown type": Gguf(tensors=[("a", [8], 999, 0)], data=bytes(32)).write(),
    "a type that was taken back": Gguf(tensors=[("a", [32], 4, 0)], data=bytes(32)).write(),
    "rows no multiple of the block": Gguf(tensors=[("a", [33], 8, 0)], data=bytes(64)).write(),
    "product overflows": Gguf(tensors=[("a", [1 << 32, 1 << 32], 24, 0)], data=bytes(32)).write(),
    "product overflows to what fits": Gguf(tensors=[("a", [1 << 63, 2], 24, 0)], data=bytes(32)).write(),
    "past the end": Gguf(tensors=[("a", [16], 0, 0)], data=bytes(32)).write(),
    "offset past the end": Gguf(tensors=[("a", [8], 0, 1 << 40)], data=bytes(32)).write(),
    "overlap": Gguf(tensors=[("a", [8], 0, 0), ("b", [8], 0, 0)], data=bytes(32)).write(),
    "gap": Gguf(tensors=[("a", [8], 0, 0), ("b", [8], 0, 64)], data=bytes(96)).write(),
    "unaligned": Gguf(tensors=[("a", [8], 0, 8)], data=bytes(40)).write(),
    "bytes behind": Gguf(data=Gguf().data + bytes(32)).write(),
    "padding that says something": Gguf(tensors=[("a", [2], 0, 0)], data=b"\1" * 8 + b"payload!").write(),
    "bytes behind keys alone": Gguf(tensors=[], data=b"\1").write(),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_deviation_is_refused(name: str) -> None:
    with pytest.raises(CorruptContent):
        read(WRONG[name])


@pytest.mark.parametrize("length", range(0, 280, 7))
def test_truncated(length: int) -> None:
    with pytest.raises(CorruptContent):
        read(Gguf().write()[:length])


@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    for prefix in (b"", b"GGUF\3\0\0\0"):
        with contextlib.suppress(CorruptContent):
            read(prefix + data)


@given(st.integers(min_value=0), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_stays_within_the_file(place: int, value: int) -> None:
    data = bytearray(Gguf().write())
    data[place % len(data)] = value
    try:
        tensors = read(bytes(data))
    except CorruptContent:
        return
    assert all(tensor.begin <= tensor.end <= len(data) for tensor in tensors)
