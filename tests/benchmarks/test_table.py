from __future__ import annotations

import json
from pathlib import Path

from benchmarks.table import Report, Table, figures, verdict


def test_a_report_is_a_page_and_a_document(tmp_path: Path) -> None:
    table = Table("Speed", ("what", "seconds"), (("a|b", "1"),), "Read it so.")
    report = Report("speed", "How fast", "python -m x", {"date": "2020-01-01"}, (table,), {"raw": [1, 2]}, False)
    page = report.write(tmp_path / "proof")
    text = page.read_text(encoding="utf-8")
    assert text.startswith(
        "# How fast\n\nWritten by `python -m x`.\n\n- date: 2020-01-01\n\n## Speed\n\n| what | seconds |\n"
    )
    assert "| a\\|b | 1 |\n\nRead it so.\n" in text
    document = json.loads((tmp_path / "proof" / "speed.json").read_text(encoding="utf-8"))
    assert document["raw"] == [1, 2]
    assert document["passed"] is False


def test_figures_are_median_and_range() -> None:
    assert figures([3.0, 1.0, 2.0]) == "2.00 s (1.00–3.00)"
    assert figures([0.5], "ms", 1) == "0.5 ms (0.5–0.5)"


def test_a_missed_target_stands_out() -> None:
    assert (verdict(True), verdict(False)) == ("yes", "**no**")
