"""The ``wheel`` step run bare: what a build is told, and what it must not learn."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.builder.bare import Result, run_step

pytestmark = [pytest.mark.slow, pytest.mark.real]

SETUP = """
import os
from pathlib import Path
from setuptools import setup
said = [os.environ.get("SAID"), os.path.exists(".git"), os.path.exists("part/.git")]
Path("told.py").write_text(f"SAID = {said!r}\\n")
setup(name="told", version="1.0", py_modules=["told"])
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An sdist that holds a repository of its own, and one of a part of it."""
    folder = tmp_path / "source"
    folder.mkdir()
    files = {"setup.py": SETUP, "PKG-INFO": "Metadata-Version: 2.1\nName: told\nVersion: 1.0\n"}
    files |= {".git/HEAD": "ref: refs/heads/main\n", "part/.git": "gitdir: ../.git/modules/part\n"}
    with tarfile.open(folder / "told-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"told-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return folder


def build(source: Path, out: Path, python: str, *settings: str) -> Result:
    return run_step("wheel", {"source": source}, out, {"environment": list(settings)}, python=python)


def test_a_build_is_told_what_the_lock_says_and_nothing_of_history(
    source: Path, tmp_path: Path, environment: Callable[[str], str]
) -> None:
    done = build(source, tmp_path / "out", environment("wheel-build"), "SAID=a=b c")
    assert done.status == 0, done.log
    with zipfile.ZipFile(next((tmp_path / "out").iterdir())) as wheel:
        assert wheel.read("told.py") == b"SAID = ['a=b c', False, False]\n"


@pytest.mark.parametrize("entry", ["SAID", "1X=2", "=3", "A B=4"])
def test_what_is_no_variable(source: Path, tmp_path: Path, environment: Callable[[str], str], entry: str) -> None:
    error = build(source, tmp_path / "out", environment("wheel-build"), entry).error
    assert f"expected NAME=VALUE, found {entry!r}" in str(error["message"])
