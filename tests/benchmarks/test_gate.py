"""The gate's proof: what counts as one."""

from __future__ import annotations

from benchmarks import gate
from benchmarks.gate import Gated
from benchmarks.program import ROOT

REFUSED = {"exit_code": 23, "message": "no image was made: step check: a\nstep check: b"}
GOOD = Gated("sha256:" + "0" * 64, {"general.acc": 0.7}, REFUSED, False)


def test_it_holds_only_where_one_is_made_and_the_other_refused() -> None:
    assert GOOD.passed
    assert not Gated("", {}, REFUSED, False).passed
    assert not Gated(GOOD.image, {}, REFUSED, True).passed
    assert not Gated(GOOD.image, {}, {"exit_code": 30, "message": "a step failed"}, False).passed


def test_the_table_says_what_was_missed() -> None:
    rows = GOOD.table().rows
    assert rows[0][:2] == ("awq", "image `sha256:000000000000…`, general.acc 0.7")
    assert rows[1][:2] == ("gptq", "no image was made: step check: a; step check: b")


def test_the_recipe_has_the_word_that_is_changed() -> None:
    text = (ROOT / "modelfiles" / gate.RECIPE / "Modelfile.toml").read_text(encoding="utf-8")
    assert text.count('method = "awq"') == 1
    assert "[steps.check.gates]" in text
