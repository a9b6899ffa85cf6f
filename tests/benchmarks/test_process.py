from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import process, sandbox
from benchmarks.program import TINY, Program, ProgramFailed, recipe


def test_programs_start_and_are_timed(tmp_path: Path) -> None:
    found = process.measure(Program(tmp_path), [], 2, lambda _: None)
    assert list(found.seconds) == ["python -c pass", "python -c 'import intaglio'", "intaglio --help"]
    assert all(len(values) == 2 for values in found.seconds.values())


def test_targets_are_kept_or_not() -> None:
    fast = {"python -c pass": [9.0], "intaglio --help": [0.1], "intaglio build modelfiles/x": [0.5, 0.6, 9.0]}
    assert process.Process(fast).met
    assert not process.Process(fast | {"intaglio --help": [0.2]}).met
    assert [row[2:] for row in process.Process(fast).table().rows] == [
        ("", ""),
        ("≤ 0.15 s", "yes"),
        ("≤ 0.6 s", "yes"),
    ]


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match=r"exit status 25\nerror: there is no policy"):
        Program(tmp_path).run("verify", "nobody/nothing:1")


def test_a_program_has_a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTAGLIO_PASSPHRASE", "secret")
    program = Program(tmp_path, variables={"LANG": "C"}, prefix=("nice",))
    environment = program.environment()
    assert environment["INTAGLIO_HOME"] == str(tmp_path)
    assert environment["LANG"] == "C"
    assert "INTAGLIO_PASSPHRASE" not in environment
    assert program.argv("build", Path("x"))[0] == "nice"


def test_recipes_have_short_names() -> None:
    assert recipe("tiny").name == TINY
    assert recipe("tiny") == recipe(TINY)
    assert (recipe("tiny") / "Modelfile.toml").is_file()


@pytest.mark.real
def test_the_sandbox_is_timed(tmp_path: Path) -> None:
    found = sandbox.measure(tmp_path, 2, lambda _: None)
    assert all(len(values) == 2 for values in found.seconds.values())
    assert len(found.table().rows) == 3


def test_what_the_sandbox_adds_is_the_median_difference() -> None:
    seconds = {"plain": [0.001, 0.001, 0.5], "bubblewrap": [0.002] * 3, "sandbox": [0.02, 0.021, 0.6]}
    found = sandbox.Sandbox(seconds)
    assert found.added == pytest.approx(0.02)
    assert found.table().rows[2][2:] == ("20.0 ms", "≤ 15 ms", "**no**")
