"""The recipes that ship are locked, and their locks pin the programs and toolchains that ship with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from intaglio.build.plan import toolchains
from intaglio.recipe import lock, modelfile

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "modelfiles").glob("*/Modelfile.toml")), ids=lambda path: path.parent.name
)
def test_locks_are_up_to_date(path: Path) -> None:
    recipe = modelfile.read(path)
    pins = lock.read(path.parent / lock.FILE)
    assert pins is not None
    wanted = lock.Wanted.of(recipe, toolchains(recipe))
    assert lock.unpinned(wanted, pins) == ()
    assert lock.outdated(wanted, pins) == ()
