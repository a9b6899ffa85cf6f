"""The bare runner of steps: what a step may take, it takes, and not a second more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.builder import bare

SLOW = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("child", "w").write(str(child.pid))
os.rename("child", "children")
time.sleep(600)
"""


def test_the_limit_is_the_descriptions() -> None:
    assert bare.time_limit("wheel") == 2 * 3600
    assert bare.time_limit("import") == 3600


def test_a_step_past_its_time_ends_with_all_its_processes(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            bare.run([sys.executable, "-c", SLOW], tmp_path, dict(os.environ), writing, 5.0)
    finally:
        os.close(reading)
        os.close(writing)
    child = int((tmp_path / "children").read_text())
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_program_within_its_time_gives_status_and_log(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"]
    assert bare.run(program, tmp_path, dict(os.environ), 1, 60) == (3, b"out\nerr\n")
