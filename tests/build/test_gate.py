"""Gates: strict results, what is missed and by how much, and the statement that says what was measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio import strictjson
from intaglio.build.comparison import compare
from intaglio.build.gate import Evaluation, Results, require
from intaglio.digest import Digest
from intaglio.errors import PolicyRefusal, StepFailed
from intaglio.recipe.gates import Gate
from intaglio.trust.statement import TEST_RESULT

IMAGE = Digest.of(b"image")


def evaluation(gates: dict[str, Gate], **metrics: float) -> Evaluation:
    return Evaluation("check", Results(metrics, 80), gates, (("input:tasks", Digest.of(b"tasks")),))


def test_results_are_read() -> None:
    found = Results.parse(b'{"metrics": {"qa.acc": 0.5, "n": 3}, "samples": 10, "tasks": {}}', "results")
    assert found == Results({"qa.acc": 0.5, "n": 3}, 10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "results"),
        (b"[]", "results"),
        (b"{}", "expected metrics, found none"),
        (b'{"metrics": {}, "samples": 1}', "expected metrics, found none"),
        (b'{"metrics": {"a": NaN}, "samples": 1}', "results"),
        (b'{"metrics": {"a": null}, "samples": 1}', "a: expected a finite number, found None"),
        (b'{"metrics": {"a": true}, "samples": 1}', "a: expected a finite number, found True"),
        (b'{"metrics": {"a": "0.5"}, "samples": 1}', "a: expected a finite number, found 0.5"),
        (b'{"metrics": {"a": 1e999}, "samples": 1}', "results"),
        (b'{"metrics": {"a": 1, "a": 2}, "samples": 1}', "results"),
        (b'{"metrics": {"a": 1}}', "expected samples, found None"),
        (b'{"metrics": {"a": 1}, "samples": 0}', "expected samples, found 0"),
        (b'{"metrics": {"a": 1}, "samples": true}', "expected samples, found True"),
    ],
)
def test_results_that_are_none(data: bytes, message: str) -> None:
    with pytest.raises(StepFailed) as caught:
        Results.parse(data, "results")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("gate", "missed"),
    [
        (Gate(minimum=0.5), None),
        (Gate(maximum=0.5), None),
        (Gate(0.5, 0.5), None),
        (Gate(minimum=0.6), "qa.acc: expected at least 0.6, found 0.5: 0.1 too low"),
        (Gate(maximum=0.25), "qa.acc: expected at most 0.25, found 0.5: 0.25 too high"),
        (Gate(0.75, 1), "qa.acc: expected at least 0.75 and at most 1, found 0.5: 0.25 too low"),
    ],
)
def test_what_is_missed_is_said_by_how_much(gate: Gate, missed: str | None) -> None:
    assert evaluation({"qa.acc": gate}, **{"qa.acc": 0.5}).missed() == ([missed] if missed else [])


def test_a_gated_metric_that_was_not_measured_is_missed() -> None:
    (text,) = evaluation({"qa.acc": Gate(minimum=0)}, other=1).missed()
    assert text == "qa.acc: expected at least 0, but it was not measured; measured: other"


def test_every_missed_gate_of_every_step_is_named() -> None:
    found = [evaluation({"a": Gate(minimum=2), "b": Gate(maximum=0), "c": Gate(0, 9)}, a=1, b=1, c=1)]
    require([evaluation({"a": Gate(minimum=1)}, a=1)])
    with pytest.raises(PolicyRefusal) as caught:
        require([*found, evaluation({"d": Gate(minimum=1)}, e=1)])
    lines = caught.value.message.splitlines()
    assert [line.partition("step check: ")[2][:1] for line in lines] == ["a", "b", "d"]


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_a_gate_is_missed_exactly_when_its_bound_is(value: float, bound: float) -> None:
    assert bool(evaluation({"m": Gate(minimum=bound)}, m=value).missed()) == (value < bound)
    assert bool(evaluation({"m": Gate(maximum=bound)}, m=value).missed()) == (value > bound)


def test_the_statement_is_about_the_image_and_holds_what_policies_read() -> None:
    statement = evaluation({"qa.acc": Gate(minimum=0.25)}, **{"qa.acc": 0.5, "n": 3}).statement(IMAGE)
    assert [subject.digest for subject in statement.subjects] == [IMAGE]
    assert statement.predicate_type == TEST_RESULT
    assert strictjson.parse_object(statement.payload(), what="statement")["predicate"] == {
        "result": "PASSED",
        "configuration": [{"name": "input:tasks", "digest": {"sha256": Digest.of(b"tasks").hex}}],
        "passedTests": ["qa.acc"],
        "failedTests": [],
        "metrics": {"qa.acc": 0.5, "n": 3},
        "gates": {"qa.acc": {"minimum": 0.25}},
        "samples": 80,
    }


def test_two_images_side_by_side() -> None:
    pairs = compare({"a": 1.0, "b": 2.0}, {"b": 2.5, "c": 3.0})
    assert {name: pair.to_json() for name, pair in pairs.items()} == {
        "a": {"a": 1.0, "b": None, "difference": None},
        "b": {"a": 2.0, "b": 2.5, "difference": 0.5},
        "c": {"a": None, "b": 3.0, "difference": None},
    }
