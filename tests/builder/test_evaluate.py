"""The step ``evaluate`` for real, on the tiny model: the same numbers twice, and an error where there is no number."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.builder.test_steps import RECIPE, TINY, Bench

ROOT = Path(__file__).resolve().parents[2]
EVALUATION = ROOT / "modelfiles" / "smollm2-gated" / "evaluation"
LIMIT = {"limit": 4}
YAML = """\
task: code
dataset_path: json
dataset_kwargs:
  data_files:
    test: data/rows.jsonl.gz
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{prompt}}{{solution}}"
metric_list:
  - metric: bits_per_byte
"""

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.long, pytest.mark.toolchains("train-cpu", "evaluate")]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, environment: Callable[[str], str]) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), environment)


@pytest.fixture(scope="module")
def model(bench: Bench) -> Path:
    base = bench.made("scratch", RECIPE["seed"]["with"], corpus=TINY / "data")
    return bench.made("finetune", RECIPE["tune"]["with"], base=base, data=TINY / "data")


def measured(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "results.json").read_text(encoding="utf-8"))["metrics"]
    return found


def yaml(folder: Path, old: str = "", new: str = "") -> Path:
    """A folder with a task in lm-eval's own form."""
    folder.mkdir()
    assert old in YAML
    (folder / "code.yaml").write_text(YAML.replace(old, new, 1), encoding="utf-8")
    return folder


def rows(folder: Path) -> Path:
    folder.mkdir()
    lines = [json.dumps({"prompt": f"def f{n}():\n", "solution": f"    return {n}\n"}) for n in range(6)]
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    return folder


def test_the_same_numbers_twice_and_no_trace_of_the_run(bench: Bench, model: Path) -> None:
    inputs = {"model": model, "tasks": EVALUATION / "tasks", "text": EVALUATION / "text"}
    out = bench.made("evaluate", LIMIT, **inputs)
    assert (bench.made("evaluate", LIMIT, "7", **inputs) / "results.json").read_bytes() == (
        out / "results.json"
    ).read_bytes()
    document = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert set(document) == {"metrics", "samples", "tasks"}
    assert set(document["metrics"]) == {
        *(f"{task}.{metric}" for task in ("general", "intaglio") for metric in ("acc", "acc_norm")),
        "text.perplexity",
        "text.bits_per_byte",
    }
    assert {name: task["samples"] for name, task in document["tasks"].items()} == {
        "general": 4,
        "intaglio": 4,
        "text": 3,
    }
    assert document["samples"] == 11


def test_a_task_of_lm_eval_over_further_data(bench: Bench, model: Path, tmp_path: Path) -> None:
    out = bench.made("evaluate", {}, model=model, tasks=yaml(tmp_path / "tasks"), data=rows(tmp_path / "data"))
    assert set(measured(out)) == {"code.bits_per_byte"}
    document = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert document["tasks"]["code"]["samples"] == 6


def test_a_gguf_and_an_adapter_measure_as_what_they_are(bench: Bench, model: Path) -> None:
    inputs = {"text": EVALUATION / "text"}
    dense = measured(bench.made("evaluate", {}, model=model, **inputs))
    gguf = bench.made("convert", {"type": "f32", "pre_tokenizer": "gpt-2"}, model=model)
    assert measured(bench.made("evaluate", {}, model=gguf, **inputs)) == pytest.approx(dense, rel=1e-5)
    given = {**RECIPE["tune"]["with"], "method": "lora"}
    adapter = bench.made("finetune", given, base=model, data=TINY / "data")
    merged = bench.made("merge", {}, base=model, adapter=adapter)
    apart = measured(bench.made("evaluate", {}, model=adapter, base=model, **inputs))
    assert apart == pytest.approx(measured(bench.made("evaluate", {}, model=merged, **inputs)), rel=1e-4)
    assert apart != dense
    _, result = bench.run("evaluate", {}, model=adapter, **inputs)
    assert "an adapter alone cannot be measured" in str(result.error["message"])


def test_a_model_that_answers_no_numbers_has_no_metrics(bench: Bench, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    script = (
        "import sys\n"
        "from safetensors.torch import load_file, save_file\n"
        "state = load_file(sys.argv[1])\n"
        "state['model.norm.weight'] = state['model.norm.weight'] * float(sys.argv[2])\n"
        "save_file(state, sys.argv[1], {'format': 'pt'})\n"
    )
    python = bench.environment("evaluate")
    for factor, message in (("1e38", "expected a finite likelihood"), ("nan", "expected finite values")):
        subprocess.run([python, "-c", script, str(broken / "model.safetensors"), factor], check=True)
        out, result = bench.run("evaluate", LIMIT, model=broken, tasks=EVALUATION / "tasks")
        assert result.status == 1
        assert message in str(result.error["message"])
        assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric: bits_per_byte", "metric: rouge", "rouge"),
        ("data/rows", "data/gone", "tasks: cannot be loaded"),
        ("task: code", "task: text", "a task cannot be called text"),
        ("{{solution}}", "{{missing}", "tasks: cannot be loaded"),
    ],
)
def test_a_metric_that_cannot_be_computed_is_an_error(
    bench: Bench, model: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    tasks = yaml(tmp_path / "tasks", old, new)
    out, result = bench.run("evaluate", {}, model=model, tasks=tasks, data=rows(tmp_path / "data"))
    assert result.status == 1, result.log
    assert message in str(result.error["message"])
    assert list(out.iterdir()) == []


def test_what_there_is_nothing_to_measure_in(bench: Bench, model: Path, tmp_path: Path) -> None:
    for name in ("empty", "blank"):
        (tmp_path / name).mkdir()
    (tmp_path / "blank" / "a.txt").write_text(" \n", encoding="utf-8")
    tasks = EVALUATION / "tasks"
    for given, inputs, message in (
        ({}, {}, "expected the input tasks or text, found neither"),
        ({}, {"tasks": tmp_path / "empty"}, "expected *.yaml or *.jsonl files, found no task"),
        ({"tasks": ["genral"]}, {"tasks": tasks}, "tasks: expected genral, found general, intaglio"),
        ({}, {"text": tmp_path / "blank"}, "expected *.txt or *.jsonl files with text, found none"),
    ):
        _, result = bench.run("evaluate", given, model=model, **inputs)
        assert result.status == 1
        assert message in str(result.error["message"])
