"""The table of servers: every cell of the manual's is tried."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import servers as proof

from intaglio.build import servers
from intaglio.build.servers import Form
from intaglio.recipe import modelfile


def test_every_form_of_the_table_is_tried() -> None:
    assert {proof._form(word) for word in proof.FORMS} == {
        Form("gguf"),
        *(Form("safetensors", word) for word in servers.QUANTIZATIONS if word != "other"),
    }
    rows = [line for line in servers.table().splitlines()[2:] if line]
    assert len(rows) == len(proof.FORMS)


@pytest.mark.parametrize("name", [proof.DENSE, proof.GGUF])
def test_what_the_engine_makes_of_it_is_a_recipe(tmp_path: Path, name: str) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "capitals.jsonl").touch()
    (tmp_path / "Modelfile.toml").write_text(proof.RECIPE.format(name=name), encoding="utf-8")
    recipe = modelfile.read(tmp_path)
    assert recipe.image.source == name
    assert f"{recipe.model.name}:{recipe.model.version}" == proof.NAME.format(name)
