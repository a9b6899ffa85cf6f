"""The table of ways to train and to quantise: its recipes are recipes, and its verdicts can be bad."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import machine, variants
from benchmarks.program import ROOT, Program, ProgramFailed
from benchmarks.variants import Load, Row
from tests import images

from intaglio.content.layout import Store
from intaglio.recipe import modelfile
from intaglio.recipe.program import load

SAME = Row(
    "full",
    ("sha256:" + "a" * 64, "sha256:" + "a" * 64),
    fresh=True,
    seconds=(1.0, 2.0),
    peak=(1 << 20, 3 << 20),
    loads={"vllm": Load("yes", declared=True), "transformers": Load("no: it will not", declared=False)},
    date="2020-01-01",
    processor="one",
)


@pytest.mark.parametrize("base", ["smollm2", "tiny"])
@pytest.mark.parametrize("variant", variants.variants(), ids=lambda variant: variant.name)
def test_each_variant_is_a_recipe(tmp_path: Path, base: str, variant: variants.Variant) -> None:
    bench = variants.Bench.__new__(variants.Bench)
    bench._base = base
    for gguf in {False, variant.gguf}:
        folder = bench._recipe(variant, Program(tmp_path / "home"), gguf=gguf)
        recipe = modelfile.read(folder)
        assert variant.measured in recipe.steps
        assert recipe.image.source == ("gguf" if gguf else variant.source)


def test_every_method_and_strategy_has_a_row() -> None:
    program = load("finetune", ROOT / "builder")
    text = "".join(variant.steps for variant in variants.TRAINING)
    for name in ("method", "parallel"):
        for choice in program.parameters[name].choices:
            assert f'{name} = "{choice}"' in text or choice == "none"


def test_a_row_says_what_differs() -> None:
    assert SAME.same
    assert SAME.good
    assert SAME.cells()[:4] == ("full", "yes", "1.0 / 2.0", "3 MiB")
    assert SAME.cells()[4:7] == ("yes", "–", "no: it will not")
    assert SAME.cells()[-2:] == ("2020-01-01", "one")
    assert not replace(SAME, outputs=(SAME.outputs[0], "sha256:" + "b" * 64)).same
    assert not replace(SAME, fresh=False).same
    assert variants.report([SAME], variants.SMOLLM2, {}).passed
    assert not variants.report([SAME, replace(SAME, fresh=False)], variants.SMOLLM2, {}).passed


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (Load("no: it ended", declared=True), "no: it ended (**no**: the server says that it does)"),
        (Load("yes", declared=False), "yes (**no**: the server does not say that it does)"),
    ],
)
def test_what_does_not_load_as_it_is_declared_fails_the_page(load: Load, said: str) -> None:
    row = replace(SAME, loads={**SAME.loads, "vllm": load})
    assert row.same
    assert not row.good
    assert row.cells()[4] == said
    assert not variants.report([SAME, row], variants.SMOLLM2, {}).passed


def test_what_is_declared_is_read_from_the_image_itself(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    config["quantization_config"]["bnb_4bit_quant_type"] = "nf4"
    for name, files, expected in (
        ("gguf", {"model.gguf": images.Gguf().write()}, {"llama.cpp"}),
        ("nf4", {"config.json": json.dumps(config).encode(), "model.safetensors": b"x"}, {"transformers"}),
    ):
        store = Store.open(tmp_path / name)
        draft = images.Draft(files).sign()
        for blob in draft.blobs().values():
            store.put(blob)
        found = {one for one in variants.RUNTIMES if variants._declared(store.root, str(draft.image.digest), one)}
        assert found == expected


def test_what_is_not_served_says_what_serve_says(tmp_path: Path) -> None:
    program = Program(tmp_path / "home")
    program.run("init")
    Store.open(program.store)
    with pytest.raises(variants._Unserved, match="no/such:1"), variants._served(program, "no/such:1", "llama.cpp"):
        raise AssertionError("served")


def made(rows: Sequence[Row], base: str = variants.SMOLLM2) -> dict[str, Any]:
    """The page of ``rows``, as it is read again."""
    page: dict[str, Any] = json.loads(json.dumps(variants.report(rows, base, {}).data))
    return page


def test_a_row_is_read_again_as_it_was_written() -> None:
    failed = Row.failed(variants.TRAINING[1], ProgramFailed("x"))
    page = made([SAME, failed])
    assert variants.kept(page, variants.SMOLLM2) == {"full": SAME, "LoRA": failed}
    assert variants.kept(page, variants.TINY) == {}, "another base model makes another page"
    assert variants.kept({}, variants.SMOLLM2) == {}


class Rows(variants.Bench):
    """Rows without builds."""

    bad = "DoRA"

    def __init__(self, place: Path, base: str, note: Callable[[str], None]) -> None:
        pass

    def row(self, variant: variants.Variant, *, serving: bool) -> Row:
        if variant.name == self.bad:
            raise ProgramFailed("error: no")
        return replace(SAME, name=variant.name)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[tuple[str, bool]]]]:
    """A run of some variants into one folder; it returns the exit status and the page's rows, by variant."""
    monkeypatch.setattr(variants, "Bench", Rows)
    monkeypatch.setattr(machine, "describe", lambda _: {"date": "2030-01-01", "processor": "another"})

    def run(*arguments: str) -> tuple[int, list[tuple[str, bool]]]:
        output = tmp_path / "proof"
        status = variants.main([*arguments, "--output", str(output), "--scratch", str(tmp_path / "scratch")])
        rows = json.loads((output / "variants.json").read_text(encoding="utf-8"))["rows"]
        assert len((output / "variants.md").read_text(encoding="utf-8").splitlines()) > len(rows)
        assert {(row["date"], row["processor"]) for row in rows} == {("2030-01-01", "another")}
        return status, [(row["variant"], row["same"]) for row in rows]

    return run


def test_a_page_is_made_in_several_runs(
    page: Callable[..., tuple[int, list[tuple[str, bool]]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert page("--only", "LoRA") == (0, [("LoRA", True)])
    assert page("--only", "full") == (0, [("full", True), ("LoRA", True)])
    assert page("--only", "DoRA") == (1, [("full", True), ("LoRA", True), ("DoRA", False)])
    assert page("--only", "LoRA")[0] == 1, "the page is judged, not the run"
    monkeypatch.setattr(Rows, "bad", "")
    status, rows = page("--resume")
    assert (status, [name for name, _ in rows]) == (0, [variant.name for variant in variants.variants()])
    assert "DoRA" in capsys.readouterr().err
    assert page("--resume")[0] == 0
    assert "nothing left to do" in capsys.readouterr().err
    assert page("--tiny", "--only", "LoRA") == (0, [("LoRA", True)])


def test_a_variant_that_fails_is_a_row_that_says_why() -> None:
    row = Row.failed(
        variants.TRAINING[0], ProgramFailed("intaglio build: exit status 31\nerror: step tune: too large\nhint: x")
    )
    assert not row.same
    assert row.cells()[1] == "**no**: step tune: too large"
    assert len(row.cells()) == len(variants.COLUMNS)


def test_the_last_event_of_a_run_is_read(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    lines = [{"event": "started"}, {"event": "ended", "seconds": 1.5, "peak_memory": 7}]
    (tmp_path / "logs" / "k.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert variants._ended(tmp_path, "sha256:k")["peak_memory"] == 7
