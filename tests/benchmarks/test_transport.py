from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import transport
from benchmarks.transport import Row, Transport
from tests import programs


def row(what: str, ratio: float = 1.0, peak: float = 100.0) -> Row:
    return Row(what, 1.0, 2.0, ratio, peak)


def test_only_ours_have_targets() -> None:
    theirs = [row("crane push"), row("crane pull"), row("crane pull, then sync", ratio=9.0, peak=999.0)]
    good = Transport(4 << 20, (*map(row, transport.OURS), *theirs))
    assert good.met
    assert [line[-1] for line in good.table().rows] == ["yes", "yes", "", "", ""]
    for bad in (row("intaglio push", ratio=1.31), row("intaglio pull", peak=151.0)):
        assert not Transport(4 << 20, (bad, *theirs)).met
        assert Transport(4 << 20, (bad, *theirs)).table().rows[0][-1] == "**no**"


@pytest.mark.real
def test_every_kind_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    for program in (programs.crane, lambda: programs.docker_registry("trixie")):
        program()
    found = transport.compare(tmp_path / "work", 1 << 20, 1, lambda _: None)
    kinds = {"intaglio push", "crane push", "intaglio pull", "crane pull", "crane pull, then sync"}
    assert {row["what"] for row in found.to_json()} == kinds
    assert all(row.seconds > 0 and row.peak > 0 for row in found.rows)
    assert list(tmp_path.iterdir()) == []
