"""The manual of recipes: complete, and its example is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from intaglio.recipe import modelfile
from intaglio.recipe.limits import KEYS
from intaglio.recipe.shape import Named, Table
from intaglio.recipe.sources.interface import SCHEMES

MANUAL = (Path(__file__).parents[2] / "docs" / "modelfile.md").read_text(encoding="utf-8")


def keys() -> Iterator[str]:
    for key in modelfile.MODELFILE.keys.values():
        shape = key.shape.of if isinstance(key.shape, Named) else key.shape
        assert isinstance(shape, Table)
        yield from shape.keys
    yield from KEYS


@pytest.mark.parametrize("key", sorted(set(keys())))
def test_every_key_is_explained(key: str) -> None:
    assert re.search(rf"^\| `{key}` \|", MANUAL, re.MULTILINE)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_kind_of_address_is_explained(scheme: str) -> None:
    assert re.search(rf"^\| `{scheme}:", MANUAL, re.MULTILINE)


def test_the_example_is_a_recipe(tmp_path: Path) -> None:
    example = MANUAL.split("```toml\n")[1].split("```")[0]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "faq.jsonl").write_text("")
    (tmp_path / "Modelfile.toml").write_text(example)
    assert list(modelfile.read(tmp_path).steps) == ["tune", "merge", "gguf"]
