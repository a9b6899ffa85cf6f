"""A toolchain with a package that ships no wheel: the wheel is built by a sandboxed action, and must be the lock's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INTAGLIO = Path(sys.executable).with_name("intaglio")
LOCK = ROOT / "tests" / "builder" / "toolchains" / "docopt" / "pylock.toml"
pytestmark = [pytest.mark.slow, pytest.mark.real]

RECIPE = """
[model]
name = "t/uses-an-sdist"
version = "1"
licence = "MIT"
[steps.parse]
uses = "./parse"
[image]
from = "parse"
"""
DESCRIPTION = """
step = "parse"
summary = "Say which docopt this is."
toolchain = "docopt"
reproducible = "bit"
outputs = ["version.json"]
"""
PROGRAM = """
import json
import docopt
json.dump(docopt.__version__, open("/out/version.json", "w"))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A recipe whose step runs in the toolchain, beside the shipped builder."""
    shutil.copytree(ROOT / "builder", tmp_path / "data" / "builder")
    chain = tmp_path / "data" / "builder" / "toolchains" / "docopt"
    chain.mkdir()
    shutil.copy(LOCK, chain)
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    for name, text in (("Modelfile.toml", RECIPE), ("parse.toml", DESCRIPTION), ("parse.py", PROGRAM)):
        (recipe / name).write_text(text)
    return tmp_path


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "INTAGLIO_HOME": str(place / "home"), "INTAGLIO_DATA": str(place / "data")}
    return subprocess.run([INTAGLIO, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_is_built_in_the_sandbox_and_has_a_claim(place: Path) -> None:
    lock = place / "data" / "builder" / "toolchains" / "docopt" / "pylock.toml"
    line = 'build-toolchain = "wheel-build"\n'
    lock.write_text(lock.read_text().replace(line, line + 'environment = ["WORD=said in the lock"]\n'))
    for command in (("init",), ("lock", str(place / "recipe"))):
        assert run(place, *command).returncode == 0
    done = run(place, "build", str(place / "recipe"), "--json")
    assert done.returncode == 0, done.stderr
    assert [step["status"] for step in json.loads(done.stdout)["steps"]] == ["built", "built"]
    blobs = place / "home" / "store" / "blobs" / "sha256"
    claims = [
        path
        for path in blobs.iterdir()
        if path.stat().st_size < 1 << 16 and b"dev.intaglio.action" in path.read_bytes()
    ]
    assert len(claims) == 3, "the wheel, the step and the image"
    told = [path for path in blobs.iterdir() if b'"environment":["WORD=said in the lock"]' in path.read_bytes()]
    assert told, "what a build is told is in its key"


def test_another_wheel_than_the_locks_is_refused(place: Path) -> None:
    lock = place / "data" / "builder" / "toolchains" / "docopt" / "pylock.toml"
    text = lock.read_text()
    promised = text.rpartition('sha256 = "')[2].partition('"')[0]
    lock.write_text(text.replace(promised, "0" * 64))
    for command in (("init",), ("lock", str(place / "recipe"))):
        assert run(place, *command).returncode == 0
    done = run(place, "build", str(place / "recipe"))
    assert done.returncode == 32, done.stderr
    assert "docopt-0.6.2-py2.py3-none-any.whl" in done.stderr
