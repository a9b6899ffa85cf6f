"""Multiple-choice questions out of JSONL: one object a line, ``{"question": …, "choices": […], "answer": 0}``.

* A file ``NAME.jsonl`` is a task ``NAME``. Each choice is rated by its likelihood after the question: ``acc`` takes the
  likeliest, ``acc_norm`` the likeliest for its length.
* What is wrong is reported with file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from request import Fault

HINT = 'Each line is an object: {"question": "…", "choices": ["…", "…"], "answer": 0}.'
_KEYS = {"question", "choices", "answer"}


def tasks(folder: Path) -> Iterator[dict[str, object]]:
    """Yield the lm-eval configuration of each ``*.jsonl`` file of ``folder``, by name.

    Raises:
        Fault: a file is not as described.
    """
    for path in sorted(folder.glob("*.jsonl")):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", path.stem):
            raise Fault(f"tasks: {path.name}: expected a name of letters, digits, - and _")
        _check(path)
        yield {
            "task": path.stem,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": path.name}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
            ],
        }


def _check(path: Path) -> None:
    count = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            raise Fault(f"{path.name}:{number}: expected an object, found an empty line")
        try:
            row = json.loads(line)
        except json.JSONDecodeError as problem:
            raise Fault(f"{path.name}:{number}: not JSON: {problem}", HINT) from None
        if not isinstance(row, dict) or set(row) != _KEYS:
            raise Fault(f"{path.name}:{number}: expected exactly {', '.join(sorted(_KEYS))}", HINT)
        choices, answer = row["choices"], row["answer"]
        if not isinstance(row["question"], str) or not row["question"].strip():
            raise Fault(f"{path.name}:{number}: expected a question", HINT)
        if (
            not isinstance(choices, list)
            or len(choices) < 2
            or not all(isinstance(one, str) and one for one in choices)
        ):
            raise Fault(f"{path.name}:{number}: expected two choices or more", HINT)
        if len(set(choices)) != len(choices):
            raise Fault(f"{path.name}:{number}: two choices are the same")
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise Fault(f"{path.name}:{number}: expected the place of a choice, counted from 0, found {answer!r}", HINT)
        count += 1
    if not count:
        raise Fault(f"{path.name}: expected questions, found none", HINT)
