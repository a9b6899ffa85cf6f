"""What the server is started over: nothing that another process could rewrite before it is opened."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from intaglio.guard import launch
from intaglio.guard.memory import HeldFile, sealed


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[HeldFile]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    files = {"model.gguf": b"weights", "config.json": b"{}", "sub/other.json": b"[]"}
    return [HeldFile(path, len(data), sealed(path, data), copied=True) for path, data in files.items()]


def test_the_request_is_sealed(held: list[HeldFile], tmp_path: Path) -> None:
    path = launch.request(held, tmp_path, {"name": "x"})
    before = Path(path).read_bytes()
    writable = os.open(path, os.O_RDWR)
    try:
        for change in (lambda: os.pwrite(writable, b"y", 0), lambda: os.ftruncate(writable, 0)):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(writable)
    assert Path(path).read_bytes() == before
    assert json.loads(before)["name"] == "x"


def test_a_file_alone_of_its_kind_is_named_by_its_descriptor(held: list[HeldFile]) -> None:
    folder = launch.lay_out(held, Path("/nowhere"))
    files = json.loads(Path(launch.request(held, folder, {})).read_bytes())["model"]["files"]
    assert files["model.gguf"] == launch.descriptor_path(held[0].descriptor), "no link that could be swapped"
    assert files["sub/other.json"] == str(folder / "sub/other.json")


def test_parts_of_a_split_file_stand_beside_each_other(tmp_path: Path) -> None:
    parts = [HeldFile(f"m-0000{n}-of-00002.gguf", 1, sealed("part", b"x"), copied=True) for n in (1, 2)]
    files = json.loads(Path(launch.request(parts, tmp_path, {})).read_bytes())["model"]["files"]
    assert files == {part.path: str(tmp_path / part.path) for part in parts}


def test_the_folder_of_links_is_closed(held: list[HeldFile]) -> None:
    folder = launch.lay_out(held, Path("/nowhere"))
    for place in (folder, folder / "sub"):
        assert stat.S_IMODE(place.stat().st_mode) == 0o500
    assert (folder / "sub" / "other.json").read_bytes() == b"[]"


def test_what_was_not_copied_is_served_where_it_stands(tmp_path: Path) -> None:
    there = [HeldFile("model.gguf", 1, 0, copied=False)]
    assert launch.lay_out(there, tmp_path) == tmp_path
    files = json.loads(Path(launch.request(there, tmp_path, {})).read_bytes())["model"]["files"]
    assert files == {"model.gguf": str(tmp_path / "model.gguf")}
