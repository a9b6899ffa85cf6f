"""Measure a language model: lm-eval tasks over pinned data, and perplexity of held-out text.

* What is measured is the tree that the step was given, loaded anew: see ``reload``.
* A metric that could not be computed is an error, never a value: no samples, a NaN anywhere on the way, a metric that
  the toolchain lacks, a task that lm-eval complained about.
* What is written says what was measured and on what, and holds no path, time or version of the run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))  # in a checkout

import canonical
import events
import questions
import reload
import weights
from request import Fault, Request, run

TEXT = "text"
"""The name under which perplexity of held-out text is reported; no task may have it."""
_NOT_METRICS = {"alias", "name", "sample_len", "samples"}


@dataclass
class Results:
    """What came out: metrics by ``task.metric``, and what each task was."""

    metrics: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, dict[str, object]] = field(default_factory=dict)

    def metric(self, name: str, value: object) -> None:
        """Take one metric.

        Raises:
            Fault: it is not a finite number.
        """
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise Fault(f"{name}: expected a finite number, found {value!r}: it could not be computed")
        self.metrics[name] = float(value)

    def document(self) -> dict[str, object]:
        """Return what is written."""
        samples = sum(int(str(task["samples"])) for task in self.tasks.values())
        return {"metrics": self.metrics, "samples": samples, "tasks": self.tasks}


class Complaints(logging.Handler):
    """Keeps what lm-eval calls an error: it goes on without the metric, and we do not."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what was said."""
        self.said.append(record.getMessage())

    def require_none(self) -> None:
        """Raise what was complained about.

        Raises:
            Fault: something was.
        """
        if self.said:
            raise Fault(f"lm-eval: {self.said[0]}")


def digest(value: object) -> str:
    """The sha256 of a JSON document; a function stands there by its name, for the tree of the tasks holds its code."""
    text = json.dumps(
        value,
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
        default=lambda one: getattr(one, "__name__", ""),
    )
    return f"sha256:{hashlib.sha256(text.encode('utf-8')).hexdigest()}"


# --- tasks -----------------------------------------------------------------------------------------------------------


def lay_out(request: Request) -> Path:
    """Link tasks and further data into one folder, from which tasks name their files.

    Raises:
        Fault: both hold the same file.
    """
    folder = request.work / "tasks"
    folder.mkdir()
    for name, below in (("tasks", folder), ("data", folder / "data")):
        for path in sorted(request.inputs[name].rglob("*")) if name in request.inputs else ():
            if not path.is_file():
                continue
            place = below / path.relative_to(request.inputs[name])
            if place.exists():
                raise Fault(f"data: {place.relative_to(folder)} stands among the tasks, too")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
    return folder


def load_tasks(folder: Path, wanted: list[str], complaints: Complaints) -> Any:
    """Load the tasks of ``folder``: those ``wanted``, or all.

    Raises:
        Fault: there are none, one that is wanted is not among them, or one cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    specs: dict[str, Any] = {name: name for name in (*manager.all_groups, *manager.all_subtasks)}
    if not specs:
        specs = {str(one["task"]): one for one in questions.tasks(folder)}
    else:
        within = {child for group in manager.all_groups for child in manager.load([group])["tasks"]}
        specs = {name: spec for name, spec in specs.items() if wanted or name not in within}
    missing = [name for name in wanted if name not in specs]
    if missing or not specs:
        raise Fault(
            f"tasks: expected {', '.join(missing) or '*.yaml or *.jsonl files'}, found {', '.join(specs) or 'no task'}"
        )
    if TEXT in specs:
        raise Fault(f"tasks: a task cannot be called {TEXT}: that is the held-out text")
    try:
        return manager.load([specs[name] for name in (wanted or sorted(specs))])
    except Fault:
        raise
    except Exception as problem:
        complaints.require_none()  # what it complained about says more than what it fell over afterwards
        said = str(problem).strip().splitlines()
        raise Fault(f"tasks: cannot be loaded: {type(problem).__name__}: {said[0] if said else ''}") from problem


def measure_tasks(lm: Any, loaded: Any, request: Request, results: Results) -> None:
    """Run the tasks and take their metrics."""
    from lm_eval.evaluator import evaluate

    few_shot = request.optional_integer("few_shot")
    for task in loaded["tasks"].values():
        if few_shot is not None:
            task.set_config(key="num_fewshot", value=few_shot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=request.integer("seed"))
    limit = request.optional_integer("limit")
    found = evaluate(
        lm=lm,
        task_dict=loaded,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
        apply_chat_template=request.boolean("chat_template"),
    )
    for name, task in sorted(loaded["tasks"].items()):
        docs = [doc for _, doc in task.doc_iterator(limit=limit)]
        if not docs or found["n-samples"][name]["effective"] != len(docs):
            raise Fault(f"task {name}: expected samples, found none")
        results.tasks[name] = {
            "config": digest(task.config.to_dict(keep_callable=True)),
            "data": digest(docs),
            "samples": len(docs),
        }
        take(name, found["results"].get(name, {}), results)
    for name, values in sorted(found.get("groups", {}).items()):
        take(name, values, results)


def take(name: str, values: dict[str, object], results: Results) -> None:
    """Take the metrics of one task or group; standard errors are not among them.

    Raises:
        Fault: it has none.
    """
    count = len(results.metrics)
    for key, value in sorted(values.items()):
        metric, _, chosen = key.partition(",")
        if key not in _NOT_METRICS and not metric.endswith("_stderr"):
            results.metric(f"{name}.{metric}" + (f".{chosen}" if chosen not in ("", "none") else ""), value)
    if len(results.metrics) == count:
        raise Fault(f"task {name}: expected metrics, found none")


# --- text ------------------------------------------------------------------------------------------------------------


def read_texts(folder: Path) -> Iterator[str]:
    """Yield the texts of a folder, in the order of file names and lines.

    Raises:
        Fault: a file is neither, or a line is not ``{"text": …}``.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".txt":
            yield path.read_text(encoding="utf-8")
        elif path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as problem:
                    raise Fault(f"text: {path.name}:{number}: not JSON: {problem}") from None
                if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                    raise Fault(f'text: {path.name}:{number}: expected {{"text": "…"}}')
                yield row["text"]


def measure_text(lm: Any, texts: Iterable[str], results: Results) -> None:
    """Take the perplexity of texts, a token, and their bits a byte, which models with other tokenizers share.

    Raises:
        Fault: there is nothing in them.
    """
    from lm_eval.api.instance import Instance

    kept = [text for text in texts if text.strip()]
    tokens, size = sum(len(lm.tok_encode(text)) for text in kept), sum(len(text.encode("utf-8")) for text in kept)
    if not tokens:
        raise Fault("text: expected *.txt or *.jsonl files with text, found none")
    asked = [Instance("loglikelihood_rolling", {}, (text,), place) for place, text in enumerate(kept)]
    total = math.fsum(lm.loglikelihood_rolling(asked, disable_tqdm=True))
    results.metric(f"{TEXT}.perplexity", math.exp(-total / tokens))
    results.metric(f"{TEXT}.bits_per_byte", -total / size / math.log(2))
    results.tasks[TEXT] = {"data": digest(kept), "samples": len(kept)}


# --- model -----------------------------------------------------------------------------------------------------------


def language_model(request: Request) -> Any:
    """Return the model as lm-eval asks it; an answer that is not a finite number is refused at once."""
    from lm_eval.models.huggingface import HFLM

    class Checked(HFLM):  # type: ignore[misc]
        """lm-eval's own, with its answers looked at."""

        def loglikelihood(self, requests: Any, *rest: Any, **more: Any) -> Any:
            answers = super().loglikelihood(requests, *rest, **more)
            require_numbers(value for value, _ in answers)
            return answers

        def loglikelihood_rolling(self, requests: Any, *rest: Any, **more: Any) -> Any:
            answers = super().loglikelihood_rolling(requests, *rest, **more)
            require_numbers(answers)
            return answers

    model, tokenizer = reload.load(
        request.inputs["model"], request.inputs.get("base"), request.work, request.text("dtype")
    )
    model.eval()
    reload.require_finite(model, tokenizer)
    return Checked(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=request.integer("batch_size"),
        max_length=request.optional_integer("max_length"),
        softmax_dtype="float32",  # bfloat16 has eight bits for a likelihood
    )


def require_numbers(values: Iterable[float]) -> None:
    """Refuse an answer that is no number.

    Raises:
        Fault: one is not finite.
    """
    for value in values:
        if not math.isfinite(value):
            raise Fault(f"model: expected a finite likelihood, found {value}: it answers nothing that can be measured")


def evaluate(request: Request) -> None:
    """The step."""
    if not {"tasks", "text"} & request.inputs.keys():
        raise Fault("expected the input tasks or text, found neither: there is nothing to measure")
    os.environ["TQDM_DISABLE"] = "1"  # bars belong on a terminal, not into a log
    complaints = Complaints()
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
    logging.getLogger("lm_eval").addHandler(complaints)
    random.seed(request.integer("seed"))
    weights.start_torch(request.integer("seed"))
    results, loaded = Results(), None
    if "tasks" in request.inputs:
        folder = lay_out(request)
        os.chdir(folder)
        loaded = load_tasks(folder, request.texts("tasks"), complaints)
        complaints.require_none()
    lm = language_model(request)
    parts = ("tasks" in request.inputs) + (TEXT in request.inputs) + 1
    events.progress(1, parts, "parts")
    if loaded is not None:
        measure_tasks(lm, loaded, request, results)
        events.progress(2, parts, "parts")
    if TEXT in request.inputs:
        texts = list(read_texts(request.inputs[TEXT]))
        measure_text(lm, texts[: request.optional_integer("limit")], results)
        events.progress(parts, parts, "parts")
    complaints.require_none()
    for name, value in results.metrics.items():
        events.metric(name, value)
    canonical.write_json(request.out / "results.json", results.document())


if __name__ == "__main__":
    sys.exit(run(evaluate))
