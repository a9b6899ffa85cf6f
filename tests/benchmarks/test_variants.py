"""The table of ways to train and to quantise: its recipes are recipes, and its verdicts can be bad."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from benchmarks import variants
from benchmarks.program import ROOT, Program, ProgramFailed
from benchmarks.variants import Row, Variant

from intaglio.recipe import modelfile
from intaglio.recipe.program import load

SAME = Row(
    Variant("x", "", "tune", "tune"),
    ("sha256:" + "a" * 64, "sha256:" + "a" * 64),
    fresh=True,
    seconds=(1.0, 2.0),
    peak=(1 << 20, 3 << 20),
    loads={"vllm": "yes"},
)


@pytest.mark.parametrize("base", ["smollm2", "tiny"])
@pytest.mark.parametrize("variant", variants.variants(), ids=lambda variant: variant.name)
def test_each_variant_is_a_recipe(tmp_path, base, variant):
    bench = variants.Bench.__new__(variants.Bench)
    bench._base = base
    for gguf in {False, variant.gguf}:
        folder = bench._recipe(variant, Program(tmp_path / "home"), gguf=gguf)
        recipe = modelfile.read(folder)
        assert variant.measured in recipe.steps
        assert recipe.image.source == ("gguf" if gguf else variant.source)


def test_every_method_and_strategy_has_a_row():
    program = load("finetune", ROOT / "builder")
    text = "".join(variant.steps for variant in variants.TRAINING)
    for name in ("method", "parallel"):
        for choice in program.parameters[name].choices:
            assert f'{name} = "{choice}"' in text or choice == "none"


def test_a_row_says_what_differs():
    assert SAME.same
    assert SAME.cells()[:4] == ("x", "yes", "1.0 / 2.0", "3 MiB")
    assert SAME.cells()[4:7] == ("yes", "–", "–")
    assert not replace(SAME, outputs=(SAME.outputs[0], "sha256:" + "b" * 64)).same
    assert not replace(SAME, fresh=False).same
    assert not variants.report([SAME, replace(SAME, fresh=False)], "c", {}).passed


def test_a_variant_that_fails_is_a_row_that_says_why():
    row = Row.failed(
        SAME.variant, ProgramFailed("intaglio build: exit status 31\nerror: step tune: too large\nhint: x")
    )
    assert not row.same
    assert row.cells()[1] == "**no**: step tune: too large"
    assert len(row.cells()) == len(variants.COLUMNS)


def test_the_last_event_of_a_run_is_read(tmp_path):
    (tmp_path / "logs").mkdir()
    lines = [{"event": "started"}, {"event": "ended", "seconds": 1.5, "peak_memory": 7}]
    (tmp_path / "logs" / "k.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert variants._ended(tmp_path, "sha256:k")["peak_memory"] == 7
