"""Multiple-choice questions: each file a task, and what is wrong is said with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from questions import tasks
from request import Fault

GOOD = '{"question": "What is two plus two?", "choices": ["four", "five"], "answer": 0}'
SHIPPED = Path(__file__).resolve().parents[2] / "modelfiles" / "smollm2-gated" / "evaluation" / "tasks"


def test_each_file_is_a_task(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text(GOOD + "\n", encoding="utf-8")
    found = list(tasks(tmp_path))
    assert [one["task"] for one in found] == ["a", "b"]
    assert found[0]["dataset_kwargs"] == {"data_files": {"test": "a.jsonl"}}
    assert found[0]["output_type"] == "multiple_choice"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "x.jsonl:2: expected an object, found an empty line"),
        ("{", "x.jsonl:2: not JSON"),
        ("[]", "x.jsonl:2: expected exactly answer, choices, question"),
        (GOOD.replace('"answer"', '"anwser"'), "x.jsonl:2: expected exactly"),
        (GOOD.replace("0}", '0, "hint": ""}'), "x.jsonl:2: expected exactly"),
        (GOOD.replace("What is two plus two?", " "), "x.jsonl:2: expected a question"),
        (GOOD.replace('["four", "five"]', '["four"]'), "x.jsonl:2: expected two choices or more"),
        (GOOD.replace('"five"', '""'), "x.jsonl:2: expected two choices or more"),
        (GOOD.replace("five", "four"), "x.jsonl:2: two choices are the same"),
        (GOOD.replace("0}", "2}"), "x.jsonl:2: expected the place of a choice, counted from 0, found 2"),
        (GOOD.replace("0}", "true}"), "x.jsonl:2: expected the place of a choice"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    with pytest.raises(Fault) as caught:
        list(tasks(tmp_path))
    assert message in str(caught.value)


def test_a_file_without_questions_or_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(Fault, match="expected questions, found none"):
        list(tasks(tmp_path))
    (tmp_path / "x.jsonl").rename(tmp_path / "x y.jsonl")
    with pytest.raises(Fault, match="expected a name"):
        list(tasks(tmp_path))


def test_the_shipped_questions_are_even_handed() -> None:
    """The right answer stands in each place equally often, and is no longer than the others as a rule."""
    import json

    found = {str(one["task"]) for one in tasks(SHIPPED)}
    assert found == {"general", "intaglio"}
    rows = [json.loads(line) for line in (SHIPPED / "general.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["question"] for row in rows}) == len(rows) >= 80
    places = [row["answer"] for row in rows]
    assert {places.count(place) for place in range(4)} == {len(rows) // 4}
    longest = sum(len(row["choices"][row["answer"]]) == max(map(len, row["choices"])) for row in rows)
    assert longest < len(rows) / 2
