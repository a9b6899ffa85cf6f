from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks import run, step, steps
from benchmarks.program import ROOT, Program

from intaglio.build import interpreter
from intaglio.content.layout import Store
from intaglio.recipe import modelfile
from intaglio.recipe.program import names

HERE = "=={}.{}.*".format(*sys.version_info)


def test_a_linked_environment_finds_its_packages(tmp_path: Path) -> None:
    python = interpreter.find(HERE)
    packages = tmp_path / "realised" / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    packages.mkdir(parents=True)
    (packages / "only_here.py").write_text("WORD = 'found'\n")
    programs = step.link_environment(tmp_path / "env", tmp_path / "realised", python)
    argv = [str(programs / "python"), "-s", "-P", "-c", "import only_here, sys; print(only_here.WORD, sys.prefix)"]
    variables = {name: step.outside(python, path) for name, path in python.environment.items()}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=variables)
    assert done.stdout.split() == ["found", str(tmp_path / "env")]


def test_what_the_sandbox_sees_stands_somewhere_outside() -> None:
    python = interpreter.find(HERE)
    assert Path(step.outside(python, python.executable_inside)).is_file()
    assert step.outside(python, "/bin/true") == "/bin/true"


def test_a_clone_is_a_store_of_its_own(tmp_path: Path) -> None:
    original = Store.open(tmp_path / "original")
    digest = original.put(b"{}")
    copy = step.clone(original, tmp_path / "copy")
    assert copy.read(digest, what="x") == b"{}"
    copy.path(digest).unlink()
    assert original.has(digest)
    assert (copy.root / "environments").readlink() == original.root / "environments"


def test_the_larger_allowance_counts() -> None:
    def steps(bare: list[float], engine: list[float]) -> step.Steps:
        return step.Steps("x", {"bare": bare, "engine": engine})

    assert steps([100.0], [104.0]).met
    assert steps([1.0], [1.4]).met
    assert not steps([10.0], [11.0]).met
    assert step.table([steps([10.0], [11.0])]).rows[0][3:] == ("1.100", "+1.00 s", "**no**", "", "")


def test_a_page_keeps_the_rows_that_were_not_measured_now() -> None:
    def row(title: str, seconds: float, date: str) -> step.Steps:
        return step.Steps(title, {"bare": [1.0], "engine": [seconds]}, date, f"that of {date}")

    page = json.loads(json.dumps({"rows": [row(title, 1.0, "then").to_json() for title in ("other", "a", "b")]}))
    found = step.kept(page, [row("b", 2.0, "now"), row("c", 2.0, "now")], ["c", "b", "a"])
    assert [(one.title, one.date) for one in found] == [("c", "now"), ("b", "now"), ("a", "then"), ("other", "then")]
    assert {one.processor for one in found[:2]} == {"that of now"}
    assert {one.processor for one in found[2:]} == {"that of then"}
    assert step.kept({}, found, []) == found


# --- the recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", steps.SAMPLES)
def test_each_step_has_a_recipe_that_needs_it(tmp_path: Path, name: str) -> None:
    folder = steps.write(name, tmp_path)
    recipe = modelfile.read(folder)
    assert recipe.steps[name].uses == steps.SAMPLES[name].uses
    assert name in recipe.evaluations or recipe.image.source == name
    assert all((folder / one.uri.removeprefix("file:")).exists() for one in recipe.inputs.values())


def test_every_step_program_is_measured() -> None:
    assert {sample.uses for sample in steps.SAMPLES.values()} == set(names(ROOT / "builder" / "steps"))


def test_steps_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(
        program: Program, folder: Path, name: str, place: Path, rounds: int, note: Callable[[str], None]
    ) -> dict[str, list[float]]:
        measured.append((folder.name, name, rounds))
        return {"bare": [1.0] * rounds, "engine": [1.0] * rounds}

    monkeypatch.setattr(step, "measure", measure)
    monkeypatch.setattr(Program, "run", lambda self, *arguments: "")
    given = ["--only", "step", "--scratch", str(tmp_path / "scratch"), "--output", str(tmp_path / "proof")]
    assert run.main([*given, "--step", "wheel", "--step", "scratch"]) == 0
    assert run.main([*given, "--step", "merge"]) == 0
    assert measured == [("scratch", "scratch", 3), ("wheel", "wheel", 3), ("merge", "merge", 3)]
    page = json.loads((tmp_path / "proof" / "step.json").read_text(encoding="utf-8"))
    assert [row["title"] for row in page["rows"]] == ["scratch", "merge", "wheel"]
