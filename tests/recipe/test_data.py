"""Where the four data folders are found."""

from __future__ import annotations

from pathlib import Path

import pytest

import intaglio
from intaglio.errors import MachineError
from intaglio.recipe.data import data_folder


def test_in_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTAGLIO_DATA", raising=False)
    for name in ("modelfiles", "builder", "registry", "policies"):
        folder = data_folder(name)
        assert (folder.parent / "pyproject.toml").is_file()


def test_in_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INTAGLIO_DATA", raising=False)
    package = tmp_path / "site-packages" / "intaglio"
    (package / "_data" / "builder").mkdir(parents=True)
    monkeypatch.setattr(intaglio, "__file__", str(package / "__init__.py"))
    assert data_folder("builder") == package / "_data" / "builder"


def test_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "builder").mkdir()
    monkeypatch.setenv("INTAGLIO_DATA", str(tmp_path))
    assert data_folder("builder") == tmp_path / "builder"
    with pytest.raises(MachineError) as caught:
        data_folder("policies")
    assert str(tmp_path / "policies") in caught.value.message
    assert "INTAGLIO_DATA" in (caught.value.hint or "")
