"""safetensors: every byte described once, or refused."""

from __future__ import annotations

import contextlib
import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.images import raw_safetensors
from tests.images import safetensors as write

from intaglio.content.formats import safetensors
from intaglio.content.formats.safetensors import Tensor
from intaglio.errors import CorruptContent


def read(data: bytes) -> tuple[Tensor, ...]:
    return safetensors.read(io.BytesIO(data), len(data), "file")


def header(entries: object, body: bytes = b"\0" * 8) -> bytes:
    return raw_safetensors(json.dumps(entries).encode(), body)


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_tensors_where_they_lie() -> None:
    data = write({"a": ("F32", [2], b"\1" * 8), "b": ("F4", [4], b"\2\2"), "none": ("I64", [0, 5], b"")}, {"k": "v"})
    tensors = {tensor.name: tensor for tensor in read(data)}
    assert data[tensors["a"].begin : tensors["a"].end] == b"\1" * 8
    assert data[tensors["b"].begin : tensors["b"].end] == b"\2\2"
    assert tensors["none"].begin == tensors["none"].end


def test_an_empty_file_of_tensors_is_one() -> None:
    assert read(header({}, b"")) == ()


WRONG = {
    "empty": b"",
    "shorter than a length": b"\0" * 7,
    "length past the end": struct.pack("<Q", 1 << 63) + b"{}",
    "length one too many": struct.pack("<Q", 3) + b"{}",
    "header no object": raw_safetensors(b"[]", b""),
    "header after a space": raw_safetensors(b' {"a":1}', b""),
    "header not UTF-8": raw_safetensors(b'{"\xff":1}', b""),
    "header with NaN": raw_safetensors(b'{"a":NaN}', b""),
    "duplicate names": raw_safetensors(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b"\0" * 8,
    ),
    "metadata no strings": header({"__metadata__": {"a": 1}, "a": entry()}),
    "metadata a list": header({"__metadata__": [], "a": entry()}),
    "overlap": header({"a": entry(), "b": entry(shape=[1], offsets=[4, 8])}),
    "same place twice": header({"a": entry(), "b": entry()}),
    "gap at the start": header({"a": entry(shape=[1], offsets=[4, 8])}),
    "gap between": header({"a": entry("U8", [2], [0, 2]), "b": entry("U8", [2], [4, 6])}, b"\0" * 6),
    "past the end": header({"a": entry()}, b"\0" * 7),
    "bytes behind": header({"a": entry()}, b"\0" * 9),
    "offsets turned round": header({"a": entry(offsets=[8, 0])}),
    "offsets negative": header({"a": entry(shape=[2], offsets=[-8, 0])}),
    "offsets floats": header({"a": entry(offsets=[0.0, 8.0])}),
    "three offsets": header({"a": entry(offsets=[0, 8, 8])}),
    "shape too large": header({"a": entry(shape=[3])}),
    "shape whose product wraps in 64 bits": header({"a": entry("U8", [1 << 32, 1 << 32], [0, 0])}, b""),
    "shape negative": header({"a": entry(shape=[-2])}),
    "shape true": header({"a": entry("U8", [True, 8])}),
    "shape of many dimensions": header({"a": entry("U8", [1] * 40 + [8])}),
    "type unknown": header({"a": entry("F31")}),
    "type no string": header({"a": entry(["F32"])}),
    "half a byte": header({"a": entry("F4", [3], [0, 1])}, b"\0"),
    "unknown key": header({"a": entry() | {"extra": 1}}),
    "no shape": header({"a": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "entry null": header({"a": None}),
    "nested deep": raw_safetensors(b'{"a":' + b"[" * 50 + b"]" * 50 + b"}", b""),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_deviation_is_refused(name: str) -> None:
    with pytest.raises(CorruptContent):
        read(WRONG[name])


def test_a_huge_header_is_refused_without_being_read() -> None:
    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert size <= safetensors.MAX_HEADER
            return super().read(size)

    size = 100 << 20
    with pytest.raises(CorruptContent, match="header of"):
        safetensors.read(Endless(struct.pack("<Q", size)), size + 8, "file")


@given(st.binary(max_size=300))
def test_garbage(data: bytes) -> None:
    with contextlib.suppress(CorruptContent):
        read(data)


@given(st.integers(min_value=0), st.integers(0, 255))
def test_a_changed_header_is_refused_or_describes_every_byte(place: int, value: int) -> None:
    data = bytearray(write({"a": ("F32", [2], b"\1" * 8), "b": ("BF16", [4], b"\2" * 8)}))
    data[place % (len(data) - 16)] = value
    try:
        tensors = read(bytes(data))
    except CorruptContent:
        return
    assert tensors[-1].end == len(data)
    assert sum(tensor.end - tensor.begin for tensor in tensors) == 16
