"""Tar archives, read strictly: what another reader could take for something else is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.content import stricttar
from intaglio.errors import CorruptContent

FILES = {"a": b"one", "folder/b": b"", "c" * 150: b"x" * 513, "d": b"y" * 512}


def packed(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT, **header: object) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in header.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def read(data: bytes) -> dict[str, bytes]:
    return {member.name: member.read(1 << 20) for member in stricttar.members(io.BytesIO(data))}


def sealed(header: bytes) -> bytes:
    """A header with the checksum that it needs."""
    plain = header[:148] + b" " * 8 + header[156:]
    return header[:148] + f"{sum(plain):06o}\0 ".encode() + header[156:]


def test_what_was_packed_is_read() -> None:
    assert read(packed(FILES)) == FILES
    assert read(packed({})) == {}


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,20}(/[a-z0-9._-]{1,120}){0,3}", fullmatch=True), st.binary(max_size=2000))
)
def test_any_files_come_back(files: dict[str, bytes]) -> None:
    assert read(packed(files)) == files


def test_a_size_past_eight_gibibytes_is_read_from_its_extension() -> None:
    member = tarfile.TarInfo("large")
    member.size = 9 << 30
    header = member.tobuf(tarfile.PAX_FORMAT)
    found = next(stricttar.members(io.BytesIO(header)))
    assert (found.name, found.size) == ("large", 9 << 30)
    with pytest.raises(CorruptContent, match="ends within 'large'"):
        for _ in found.chunks():
            pass


def test_a_member_is_read_in_pieces() -> None:
    sizes = [len(chunk) for chunk in next(stricttar.members(io.BytesIO(packed({"a": b"x" * 1_000_000})))).chunks()]
    assert sum(sizes) == 1_000_000
    assert max(sizes) <= 256 << 10


@pytest.mark.parametrize(
    "kind",
    [
        *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE),
        *(tarfile.CONTTYPE, tarfile.AREGTYPE, tarfile.GNUTYPE_SPARSE, b"Z"),
    ],
)
def test_what_is_no_regular_file_is_refused(kind: bytes) -> None:
    with pytest.raises(CorruptContent, match="not a regular file"):
        read(packed({"a": b""}, type=kind, linkname="b"))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_other_extensions_are_refused(form: int) -> None:
    headers = {"pax_headers": {"comment": "x"}} if form == tarfile.PAX_FORMAT else {}
    with pytest.raises(CorruptContent):
        read(packed({"n" * 200: b""}, form, **headers))


@pytest.mark.parametrize("key", ["GNU.sparse.map", "GNU.sparse.major", "linkpath", "uid", "hdrcharset"])
def test_an_extension_says_name_and_size_alone(key: str) -> None:
    with pytest.raises(CorruptContent, match="something else than a name and a size"):
        read(packed({"a": b"x"}, pax_headers={key: "1"}))


def test_a_global_extension_is_refused() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "b"}) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    with pytest.raises(CorruptContent, match="not a regular file"):
        read(sink.getvalue())


def test_a_large_extension_is_not_read() -> None:
    """Its announced size alone decides: nothing of it is held."""
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    header[156:157], header[124:136] = b"x", b"77777777777\0"
    with pytest.raises(CorruptContent, match="expected an extension of at most"):
        read(sealed(bytes(header)))


@pytest.mark.parametrize(
    ("place", "data", "said"),
    [
        (slice(124, 136), b"\x80" + b"\0" * 10 + b"\x05", "no octal number"),
        (slice(124, 136), b"-0000000001\0", "no octal number"),
        (slice(0, 4), b"\0\0\0\0", "name of 1 to"),
        (slice(0, 2), "ä".encode(), "not plain ASCII"),
        (slice(257, 265), b"ustar  \0", "POSIX"),
    ],
)
def test_odd_headers_are_refused(place: slice, data: bytes, said: str) -> None:
    header = bytearray(tarfile.TarInfo("abcd").tobuf(tarfile.USTAR_FORMAT))
    header[place] = data
    with pytest.raises(CorruptContent, match=said):
        read(sealed(bytes(header)) + bytes(1024))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:512],
        lambda data: data[:515],
        lambda data: data[:1024],
        lambda data: b"x" * 512 + data,
        lambda data: data[:3] + b"!" + data[4:],
        lambda data: data + b"x",
        lambda data: data + packed({"more": b""}),
        lambda data: data + bytes(2 << 20),
    ],
)
def test_damage_and_excess_are_refused(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CorruptContent):
        read(change(packed({"a": b"one"})))


def test_more_than_the_limit_is_not_read() -> None:
    member = next(stricttar.members(io.BytesIO(packed({"a": b"x" * 100}))))
    with pytest.raises(CorruptContent, match="at most 99 bytes, found 100"):
        member.read(99)
