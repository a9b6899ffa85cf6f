"""Digests: one form, strictly read."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.digest import CHUNK, ActionKey, Digest, hash_stream
from intaglio.errors import CorruptContent

HEX = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_digest_of_nothing() -> None:
    digest = Digest.of(b"")
    assert str(digest) == digest.value == f"sha256:{HEX}"
    assert (digest.hex, digest.short) == (HEX, "sha256:e3b0c44298fc")
    assert digest == Digest.parse(f"sha256:{HEX}") == Digest.from_hex(HEX)


@pytest.mark.parametrize(
    "text",
    [
        "", HEX, f"sha256:{HEX[1:]}", f"sha256:{HEX}0", f"sha256:{HEX.upper()}", f"SHA256:{HEX}", f"sha512:{HEX}",
        f"sha512:{HEX * 2}", f"sha256:{HEX}\n", f" sha256:{HEX}", f"sha256:{HEX[:-1]}g", f"sha256:{HEX[:-1]}０",
        f"sha256:{HEX}\0", f"sha256/{HEX}", "sha256:", "sha256:../../" + HEX[6:], None, 7, b"sha256:" + HEX.encode(),
        ["sha256:" + HEX], {"sha256": HEX},
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(CorruptContent, match="not a digest"):
        Digest.parse(text)


def test_an_action_key_is_no_content() -> None:
    assert ActionKey(f"sha256:{HEX}") != Digest(f"sha256:{HEX}")
    assert ActionKey(f"sha256:{HEX}") == ActionKey.of(b"")
    with pytest.raises(CorruptContent):
        ActionKey("sha256:x")


def test_digests_sort_and_cannot_change() -> None:
    assert sorted([Digest.from_hex("f" * 64), Digest.from_hex("0" * 64)])[0].hex == "0" * 64
    with pytest.raises(AttributeError):
        Digest.of(b"").value = "sha256:" + "0" * 64  # type: ignore[misc]


class _Dribble(io.RawIOBase):
    """A stream that gives a little at a time, as pipes and sockets do."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._step = data, step

    def readinto(self, buffer: Any) -> int:
        piece, self._data = self._data[: self._step], self._data[self._step :]
        buffer[: len(piece)] = piece
        return len(piece)


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 64))
def test_a_stream_is_hashed_however_it_comes(data: bytes, step: int) -> None:
    expected = Digest.from_hex(hashlib.sha256(data).hexdigest())
    assert hash_stream(_Dribble(data, step)) == (expected, len(data))  # type: ignore[arg-type]
    assert hash_stream(io.BytesIO(data), bytearray(step)) == (expected, len(data))
    assert Digest.of(data) == expected


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_a_stream_longer_than_the_buffer(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    assert hash_stream(io.BytesIO(data)) == (Digest.of(data), size)
