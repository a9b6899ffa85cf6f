"""The killing is done to a stand-in for the engine, so that every way to be wrong can be shown to be noticed."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks import kills
from benchmarks.kills import Kill, Kills, Moment, Reference, Twins
from benchmarks.program import Program

KEYS = {"seed": "sha256:" + "1" * 64, "tune": "sha256:" + "2" * 64, "image": "sha256:" + "3" * 64}
KNOWN = Reference("sha256:good", KEYS, 10.0)

ENGINE = """\
import json, os, subprocess, sys, time
from pathlib import Path
home = Path(os.environ["INTAGLIO_HOME"])
if sys.argv[1:3] == ["store", "verify"]:
    sys.exit("damaged" if (home / "damage").exists() else 0)
if not (home / "second").exists():
    (home / "second").touch()
    for fault in os.environ.get("FAULT", "").split():
        if fault == "daemon":
            subprocess.Popen(["sleep", "30"], start_new_session=True)
        else:
            (home / fault).touch()
    (home / "ready").touch()
    time.sleep(30)
image = "sha256:bad" if (home / "image").exists() else "sha256:good"
steps = [{"name": "seed", "status": "cached"}, {"name": "image", "status": "built"}]
print(json.dumps({"image": image, "steps": steps}))
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Program]:
    """A program that hangs the first time and builds the second, with the faults that are asked for."""
    monkeypatch.setattr(kills, "_GONE", 0.5)
    path = tmp_path / "engine"
    path.write_text(f"#!{sys.executable}\n{ENGINE}")
    path.chmod(0o755)
    (tmp_path / "home" / "store" / "environments").mkdir(parents=True)

    def make(fault: str = "") -> Program:
        return kills.fresh(Program(tmp_path / "home", path, {"FAULT": fault}), tmp_path / "fresh")

    return make


def strike(program: Program, tmp_path: Path) -> Kill:
    found = kills.kill(program, tmp_path, Moment(None, 1.0), KNOWN)
    assert found is not None
    return found


def test_a_good_end_is_good(engine: Callable[..., Program], tmp_path: Path) -> None:
    program = engine()
    found = strike(program, tmp_path)
    assert (program.home / "ready").exists()
    assert found == Kill(found.seconds, "before its first step", True, True, "sha256:good", 1)
    assert 1.0 <= found.seconds < 10.0
    assert Kills(KNOWN, (found,)).passed


@pytest.mark.parametrize(
    ("fault", "clean", "alone"), [("damage", False, True), ("image", True, True), ("daemon", True, False)]
)
def test_each_fault_is_noticed(
    engine: Callable[..., Program], tmp_path: Path, fault: str, clean: bool, alone: bool
) -> None:
    program = engine(fault)
    found = strike(program, tmp_path)
    for pid in kills.processes(program.home):
        os.kill(pid, signal.SIGKILL)
    assert (found.clean, found.alone) == (clean, alone)
    result = Kills(KNOWN, (found,))
    assert not result.passed
    assert [table.title for table in result.tables()] == ["Kills by phase", "What went wrong"]


def test_a_build_that_ended_before_is_no_kill(engine: Callable[..., Program], tmp_path: Path) -> None:
    program = engine()
    (program.home / "second").touch()
    assert kills.kill(program, tmp_path, Moment(None, 30.0), KNOWN) is None
    assert kills.kill(program, tmp_path, Moment("tune", 30.0), KNOWN) is None


def test_the_end_of_a_step_is_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "logs" / f"{KEYS['tune'].removeprefix('sha256:')}.jsonl"
    log.parent.mkdir()
    code = "import sys, time; time.sleep(0.3); open(sys.argv[1], 'w').write(sys.argv[2]); time.sleep(30)"
    line = json.dumps({"at": 1.0, "event": "ended"})
    with subprocess.Popen([sys.executable, "-c", code, str(log), line]) as build:
        kills.await_end(build, tmp_path, KEYS["tune"])
        assert build.poll() is None
        assert log.exists()
        build.kill()


def test_processes_are_found_by_what_they_were_started_with(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "30"], env={"HOME": str(tmp_path)}) as process:
        deadline = time.monotonic() + 10
        while not kills.processes(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert kills.processes(tmp_path) == [process.pid]
        process.kill()
    assert kills.vanished(tmp_path)


def test_moments_are_random_within_the_build_and_the_same_for_one_seed() -> None:
    def some(seed: int) -> list[Moment]:
        return list(itertools.islice(kills.moments(KNOWN, random.Random(seed)), 50))

    found = some(1)
    assert found == some(1)
    assert found != some(2)
    assert all(moment.after is None and 0.0 <= moment.delay <= 10.0 for moment in found[::2])
    assert {moment.after for moment in found[1::2]} == {"seed", "tune"}
    assert all(0.0 <= moment.delay <= 0.2 for moment in found[1::2])


def test_the_phase_is_told_by_claims_and_logs(tmp_path: Path) -> None:
    blobs, logs = tmp_path / "blobs" / "sha256", tmp_path / "logs"
    blobs.mkdir(parents=True)
    logs.mkdir()

    def log(step: str, *events: str) -> None:
        lines = [json.dumps({"at": 1.0, "event": event}) for event in events]
        (logs / f"{KEYS[step].removeprefix('sha256:')}.jsonl").write_text("\n".join([*lines, '{"at": 1.']))

    def claim(step: str) -> None:
        manifest = {"annotations": {"dev.intaglio.action": KEYS[step]}}
        (blobs / step).write_text(json.dumps(manifest, separators=(",", ":")))

    def phase() -> str:
        return kills.phase_of(tmp_path, KNOWN)

    assert phase() == "before its first step"
    log("seed", "started")
    assert phase() == "running seed"
    log("seed", "started", "ended")
    assert phase() == "collecting and claiming seed"
    claim("seed")
    assert phase() == "after seed"
    log("tune", "started", "ended")
    claim("tune")
    assert phase() == "assembling the image"
    claim("image")
    assert phase() == "signing and tagging"


def test_two_builds_that_both_ran_a_step_do_not_pass() -> None:
    def answer(status: str, image: str = "sha256:good") -> dict[str, object]:
        return {"image": image, "steps": [{"name": "seed", "status": status}]}

    assert Twins(KNOWN, (answer("built"), answer("cached"))).passed
    twice = Twins(KNOWN, (answer("built"), answer("built")))
    assert not twice.passed
    assert twice.table().rows[0] == ("`seed` was run", "2 ×", "**no**")
    assert not Twins(KNOWN, (answer("cached"), answer("cached"))).passed
    assert not Twins(KNOWN, (answer("built"), answer("cached", "sha256:other"))).passed
