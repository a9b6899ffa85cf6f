from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import machine, scratch
from benchmarks.program import ROOT


def test_scratch_is_gone_afterwards_read_only_folders_and_links_included(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    with scratch.folder(tmp_path) as place:
        assert place.parent == tmp_path
        (place / "a" / "b").mkdir(parents=True)
        (place / "a" / "b" / "file").write_text("x")
        (place / "link").symlink_to(kept)
        for folder in ("a/b", "a"):
            (place / folder).chmod(0o555)
    assert not place.exists()
    assert (kept / "file").exists()


def test_scratch_is_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), scratch.folder(tmp_path) as place:
        raise KeyError("x")
    assert not place.exists()


def test_scratch_is_gone_after_a_request_to_end(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from benchmarks import scratch\n"
        "with scratch.folder(Path(sys.argv[1])) as place: print(place, flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        place = process.stdout.readline().strip()
        assert place.startswith(str(tmp_path))
        process.terminate()
        assert process.wait(30) == 143
    assert list(tmp_path.iterdir()) == []


def test_a_machine_is_described_without_its_name(tmp_path: Path) -> None:
    import socket

    facts = machine.describe(tmp_path)
    assert {"date", "processor", "memory", "file system", "versions"} <= facts.keys()
    assert "cores" in facts["processor"]
    assert machine.file_system(tmp_path) != "unknown"
    assert machine.file_system(Path("/proc")) == "proc"
    name = socket.gethostname()
    assert len(name) < 4 or name not in " ".join(facts.values())
