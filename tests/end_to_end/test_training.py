"""Training in several processes, sandboxed: a build that is killed goes on, limits hold for all of them together."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from intaglio.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).with_name("intaglio")
DATA = ROOT / "modelfiles" / "tiny-from-scratch" / "data" / "capitals.jsonl"
RECIPE = """
[model]
name = "t/trained"
version = "1"
licence = "Apache-2.0"
[inputs.data]
uri = "file:data/capitals.jsonl"
[steps.base]
uses = "scratch"
inputs = {{ corpus = "data" }}
with = {{ seed = 7 }}
[steps.tune]
uses = "finetune"
inputs = {{ base = "base", data = "data" }}
with = {{ method = "full", parallel = "ddp", processes = 2, batch_size = 2, max_length = 64, {given} }}
limits = {{ {limits} }}
[image]
from = "tune"
"""
pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Home:
    """A home and the recipes beside it."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "INTAGLIO_HOME": str(self.path / "home")}

    def recipe(self, given: str, limits: str = 'time = "1h"') -> Path:
        folder = self.path / "recipe"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA, folder / "data")
        (folder / "Modelfile.toml").write_text(RECIPE.format(given=given, limits=limits))
        (folder / "Modelfile.lock").unlink(missing_ok=True)
        self.run("lock", folder)
        return folder

    def run(self, *words: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
        argv = [str(PROGRAM), *map(str, words), "--json"]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        argv = [str(PROGRAM), "build", str(folder), "--json"]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(argv, env=self.environment, stdout=quiet, stderr=quiet, start_new_session=True)

    def events(self) -> Iterator[Mapping[str, Any]]:
        """What the steps whose logs are there have said."""
        for path in (self.path / "home" / "store" / "logs").glob("*.jsonl"):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # the last one may be half written
                    yield json.loads(line)


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Home]:
    """Two homes with the same keys and environments, and each its own store."""
    one, two = (Home(tmp_path_factory.mktemp(name)) for name in ("one", "two"))
    one.run("init")
    one.run("build", one.recipe("steps = 1"))
    ours, theirs = (home.path / "home" for home in (one, two))
    shutil.copytree(ours, theirs, ignore=shutil.ignore_patterns("store"))
    (theirs / "store" / "blobs").mkdir(parents=True)
    environments = Path("store", "environments")
    shutil.copytree(ours / environments, theirs / environments, copy_function=os.link, symlinks=True)
    return one, two


def test_a_killed_training_ends_with_the_bytes_of_a_straight_one(homes: tuple[Home, Home]) -> None:
    one, two = homes
    given = "steps = 24, checkpoint_every = 4"
    straight = json.loads(one.run("build", one.recipe(given)).stdout)
    folder = two.recipe(given)
    process = two.start(folder)
    deadline = time.monotonic() + 600
    while not any(event.get("unit") == "steps" and event.get("done", 0) >= 6 for event in two.events()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = two.run("build", folder)
    assert "from its last checkpoint" in again.stderr
    (resumed,) = (event for event in two.events() if event["event"] == "resumed")
    assert resumed["done"] in range(4, 24, 4)
    answer = json.loads(again.stdout)
    assert [step["status"] for step in answer["steps"]] == ["cached", "built", "built"]
    assert answer["image"] == straight["image"]


@pytest.mark.parametrize(
    ("limits", "said"), [('memory = "500MiB"', "500 MiB of memory"), ("processes = 6", "6 processes")]
)
def test_limits_hold_for_all_processes_together(homes: tuple[Home, Home], limits: str, said: str) -> None:
    home = homes[0]
    done = home.run("build", home.recipe("steps = 2", limits), expect=ExitCode.LIMIT)
    assert f"reached its limit of {said}" in done.stderr
