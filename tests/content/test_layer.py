"""Tar layers: the same bytes from the same folder, and nothing in them but what counts."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from intaglio.content import layer
from intaglio.content.layer import Entry
from intaglio.digest import Digest
from intaglio.errors import CorruptContent


class Sink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, chunk: bytes) -> None:
        self.data += chunk


def made(*entries: Entry) -> bytes:
    sink = Sink()
    layer.write(entries, sink)
    return sink.data


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: member for member in archive}


def test_a_layer_has_these_bytes_for_ever() -> None:
    data = made(
        Entry("b/run", b"#!/bin/sh\n", mode=0o555),
        Entry("a", b"x", mode=0o444),
        Entry("b/link", link="run"),
        Entry("tmp", mode=0o1777),
        Entry("ü" * 80 + "/long", b"y" * 513, mode=0o444),
    )
    assert str(Digest.of(data)) == "sha256:ade2f43ada137bd5ce1b55f84747f76a43421e5811821f90150fe5aa67de404c"
    assert len(data) % 10240 == 0


def test_members_are_sorted_with_the_folders_above_them() -> None:
    data = made(Entry("a/b/c", b"1"), Entry("a.b", b"2"), Entry("a-b/c", b"3"))
    assert list(members(data)) == ["a", "a/b", "a/b/c", "a-b", "a-b/c", "a.b"]


def test_owner_time_and_special_bits_are_lost() -> None:
    found = members(made(Entry("a", b"1", mode=0o6755), Entry("t", mode=0o1777), Entry("l", link="/x")))
    assert [(one.uid, one.gid, one.uname, one.gname, one.mtime) for one in found.values()] == [(0, 0, "", "", 0)] * 3
    assert (found["a"].mode, found["t"].mode, found["l"].linkname) == (0o755, 0o1777, "/x")


def test_a_folder_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir(mode=0o700)
    (tmp_path / "sub" / "program").write_bytes(b"p" * 3_000_000)
    (tmp_path / "sub" / "program").chmod(0o700)
    (tmp_path / "text").write_bytes(b"t")
    (tmp_path / "text").chmod(0o600)
    (tmp_path / "link").symlink_to("text")
    data = made(*layer.from_folder(tmp_path, "opt/x"))
    found = members(data)
    assert {name: one.mode for name, one in found.items()} == {
        "opt": 0o755, "opt/x": 0o755, "opt/x/link": 0o777, "opt/x/sub": 0o755,
        "opt/x/sub/program": 0o555, "opt/x/text": 0o444,
    }  # fmt: skip
    os.utime(tmp_path / "text", (1, 1))
    (tmp_path / "sub").chmod(0o755)
    assert made(*layer.from_folder(tmp_path, "opt/x")) == data
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        stream = archive.extractfile("opt/x/sub/program")
        assert stream is not None
        assert stream.read() == b"p" * 3_000_000


def test_what_is_neither_file_nor_folder_nor_link_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CorruptContent, match="pipe"):
        list(layer.from_folder(tmp_path))


@pytest.mark.parametrize("path", ["/a", "a/", "a//b", "../a", "a/../b", "./a", "", "a\0"])
def test_a_path_that_is_none(path: str) -> None:
    with pytest.raises(CorruptContent, match="member named"):
        made(Entry(path, b""))


def test_two_members_of_one_name() -> None:
    with pytest.raises(CorruptContent, match="two members"):
        made(Entry("a", b"1"), Entry("a", b"2"))


def test_an_empty_layer_is_a_whole_archive() -> None:
    assert members(made()) == {}
