"""The recipes that are shipped: what they use is there, what they say is small and can be read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from examples import read_examples

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "modelfiles").glob("*/Modelfile.toml"))
OWN = [folder for folder in FOLDERS if (folder / "data").is_dir()]
"""Those that have data of their own."""
LIMIT = 300_000


def recipe(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "Modelfile.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_recipe_uses_what_is_there(folder: Path) -> None:
    document = recipe(folder)
    steps, inputs = document["steps"], document["inputs"]
    assert document["image"]["from"] in steps
    for step in steps.values():
        description = tomllib.loads((ROOT / "builder" / "steps" / f"{step['uses']}.toml").read_text(encoding="utf-8"))
        assert set(step.get("with", {})) <= set(description["parameters"])
        required = {name for name, entry in description["inputs"].items() if not entry.get("optional")}
        assert required <= set(step["inputs"]) <= set(description["inputs"])
        assert all(source in steps or source in inputs for source in step["inputs"].values())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_recipe_is_small_and_explained(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LIMIT
    assert (folder / "README.md") in files


@pytest.mark.parametrize("folder", OWN, ids=lambda folder: folder.name)
def test_the_data_can_be_read(folder: Path) -> None:
    examples = read_examples(folder / "data")
    distinct = {(example.messages, example.text) for example in map(frozen, examples)}
    assert len(distinct) == len(examples), "an example stands twice"


def frozen(example: Any) -> Any:
    from types import SimpleNamespace

    messages = tuple(tuple(sorted(message.items())) for message in example.messages)
    return SimpleNamespace(messages=messages, text=example.text)
