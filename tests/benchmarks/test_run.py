from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks import proof, run
from benchmarks.program import ROOT
from benchmarks.table import Report


@pytest.mark.parametrize("module", ["benchmarks", "benchmarks.run"])
def test_measuring_writes_a_page_and_exits_by_the_targets(tmp_path: Path, module: str) -> None:
    options = ["--only", "ingest", "--rounds", "1", "--size", "1", "--scratch", str(tmp_path / "scratch")]
    argv = [sys.executable, "-m", module, *options, "--output", str(tmp_path / "proof")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
    document = json.loads((tmp_path / "proof" / "ingest.json").read_text(encoding="utf-8"))
    assert done.returncode == (0 if document["passed"] else 1), done.stderr
    assert document["bytes"] == 4 << 20
    assert document["command"] == "python -m benchmarks.run --only ingest --rounds 1 --size 1", "and no path of ours"
    assert (tmp_path / "proof" / "ingest.md").read_text(encoding="utf-8") + "\n" == done.stdout
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(("main", "arguments"), [(run.main, ["--only", "speed"]), (proof.main, ["everything"])])
def test_unknown_names_are_refused(
    main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "expected some of" in capsys.readouterr().err


def test_every_part_is_written_and_one_failure_fails_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def part(name: str, passed: bool) -> Callable[[object], Report]:
        return lambda _: Report(name, name, "x", {}, (), {}, passed)

    results = {"reproduce": True, "kills": False, "benchmarks": True}
    monkeypatch.setattr(proof, "_WORK", {name: part(name, passed) for name, passed in results.items()})
    assert proof.main([*results, "--output", str(tmp_path)]) == 1
    assert sorted(path.name for path in tmp_path.glob("*.md")) == ["benchmarks.md", "kills.md", "reproduce.md"]
    assert "kills: FAILED" in capsys.readouterr().err
    assert proof.main(["reproduce", "--output", str(tmp_path)]) == 0
