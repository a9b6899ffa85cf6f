from __future__ import annotations

import os
from pathlib import Path

from benchmarks import ingest

NAMES = {"hashing", "moved", "copied", "cached", "direct", "buffered"}


def test_every_way_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    fsync = os.fsync
    found = ingest.measure(tmp_path, 2, 2 << 20, lambda _: None)
    assert found.size == 8 << 20
    assert found.seconds.keys() == NAMES
    assert all(len(values) == 2 and min(values) > 0 for values in found.seconds.values())
    assert os.fsync is fsync
    assert list(tmp_path.iterdir()) == []


def test_files_differ_and_have_their_size(tmp_path: Path) -> None:
    ingest.write_files(tmp_path / "files", 100_001)
    contents = {path.read_bytes() for path in (tmp_path / "files").iterdir()}
    assert len(contents) == ingest.FILES
    assert {len(data) for data in contents} == {100_001}


def test_the_table_says_what_was_missed() -> None:
    slow = {name: [1.0] for name in NAMES} | {"moved": [2.0], "copied": [1.5]}
    found = ingest.Ingest(1 << 30, slow)
    assert found.ratios == {"moved": 0.5, "copied": 1 / 1.5}
    rows = {row[0]: row for row in found.table().rows}
    assert rows["ingest, moved"][3:] == ("0.50", "≥ 0.9", "**no**")
    assert rows["ingest, copied and brought to disk"][3:] == ("0.67", "≥ 0.65", "yes")
    assert rows["hashing with two bare threads"][2] == "1.07 GB/s"
