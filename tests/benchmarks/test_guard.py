"""The guard's start: measured where it stands as in an image, and judged by its median."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import guard
from benchmarks.guard import Guard


def test_it_is_measured_with_and_without_a_trusted_source(tmp_path: Path) -> None:
    found = guard.measure(tmp_path / "guard", 1, lambda _: None)
    assert len(found.seconds) == 3
    assert found.table().rows[0][0] == "`python -I -c pass`"
    assert list((tmp_path / "guard").rglob("main.cpython-*.pyc")), "bytecode is there"


@pytest.mark.parametrize(("slow", "met"), [(0.2, True), (0.21, False)])
def test_the_median_decides(slow: float, met: bool) -> None:
    found = Guard({"python -I -c pass": [9.0], "the guard, by a policy alone": [0.1, slow, 0.9]})
    assert found.met is met
