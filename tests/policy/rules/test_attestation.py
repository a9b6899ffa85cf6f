"""Attestations and evaluations: absent, by another, about another, saying no, or not measuring what is asked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.full import GOOD, PASSED, RESULT, attested, full, judge, passes, refusal

from intaglio.errors import ExitCode
from intaglio.policy.document import TEST_RESULT
from intaglio.policy.rehearsal import Attestation
from intaglio.policy.rules.attestation import SUMMARY
from intaglio.strictjson import Object

U, C, P = ExitCode.UNTRUSTED, ExitCode.CORRUPT, ExitCode.POLICY
ONLY_ATTESTATIONS = full("[evaluation]\naccuracy = { minimum = 0.8, maximum = 1 }\nperplexity = { maximum = 12.5 }\n")
ONLY_EVALUATION = full(f'[attestations]\n"{TEST_RESULT}" = "evaluator"\n"{SUMMARY}" = "verifier"\n')


def result(predicate: Object, by: str = "evaluator", about: str = "image") -> Attestation:
    return attested(TEST_RESULT, by, {"configuration": [], **predicate}, about)


def test_what_is_required_is_named() -> None:
    details = {rule.rule: rule.detail for rule in judge().rules}
    assert details["attestations"] == "test-result/v0.1 by evaluator, verification_summary/v1 by verifier"
    assert details["evaluation"] == "accuracy 0.9, perplexity 7"


@pytest.mark.parametrize(
    ("found", "code", "message"),
    [
        ((), U, "no evaluator's test-result/v0.1 by a key that the policy names"),
        ((result({"result": "PASSED"}, by="stranger"),), U, "not signed by a key"),
        ((result({"result": "PASSED"}, by="builder"),), U, "not signed by a key"),
        ((result({"result": "PASSED"}, by="verifier"),), U, "not signed by a key"),
        ((attested("https://example.com/other", "evaluator", {"result": "PASSED"}),), U, "no evaluator's"),
        ((result({"result": "PASSED"}, about="another"),), C, "about something else"),
        ((result({"result": "FAILED"}),), P, "says FAILED"),
        ((result({"result": "WARNED"}),), P, "says WARNED"),
        ((result({"result": "passed"}),), P, "says passed"),
        ((result({"result": True}),), C, "expected result, found none"),
        ((result({}),), C, "expected result, found none"),
        ((result({"result": "PASSED", "failedTests": ["toxicity"]}),), P, "names failed tests"),
        # One that says no is not outweighed by another that says yes, whichever comes first.
        ((RESULT, result({"result": "FAILED"})), P, "says FAILED"),
        ((result({"result": "FAILED"}), RESULT), P, "says FAILED"),
    ],
)
def test_a_test_result_that_is_none(found: tuple[Attestation, ...], code: ExitCode, message: str) -> None:
    assert message in refusal("attestations", code, ONLY_ATTESTATIONS, attestations=(*found, PASSED))


@pytest.mark.parametrize(
    ("predicate", "code", "message"),
    [
        ({"verificationResult": "FAILED"}, P, "says FAILED"),
        ({}, C, "expected verificationResult"),
        ({"result": "PASSED"}, C, "expected verificationResult"),
    ],
)
def test_a_summary_that_says_no(predicate: Object, code: ExitCode, message: str) -> None:
    found = (RESULT, attested(SUMMARY, "verifier", predicate))
    assert message in refusal("attestations", code, ONLY_ATTESTATIONS, attestations=found)


def test_all_that_is_missing_is_named_and_the_gravest_counts() -> None:
    another = attested(SUMMARY, "verifier", {"verificationResult": "PASSED"}, "another")
    detail = refusal("attestations", C, ONLY_ATTESTATIONS, attestations=(result({"result": "FAILED"}), another))
    assert "says FAILED" in detail
    assert "about something else" in detail


def test_what_strangers_say_is_passed_over() -> None:
    no = result({"result": "FAILED"}, by="stranger")
    assert passes(attestations=(no, *GOOD.attestations)) == "verified"


def test_fields_that_are_not_known_are_passed_over() -> None:
    more = result({**RESULT.predicate, "url": "https://example.com", "passedTests": ["a"], "extension": {"x": [1]}})
    assert passes(attestations=(more, PASSED)) == "verified"


def test_any_predicate_type_can_be_required() -> None:
    bom = "https://cyclonedx.org/bom"
    policy = full(f'"{SUMMARY}" = "verifier"', f'"{SUMMARY}" = "verifier"\n"{bom}" = "builder"')
    assert "no builder's cyclonedx.org/bom" in refusal("attestations", U, policy)
    assert passes(policy, attestations=(*GOOD.attestations, attested(bom, "builder", {}))) == "verified"


# --- evaluation -------------------------------------------------------------------------------------------------------


def measured(**metrics: object) -> Attestation:
    return result({"result": "PASSED", "metrics": metrics})


@pytest.mark.parametrize(
    ("found", "code", "message"),
    [
        ((), U, "no evaluator's test-result"),
        ((result({"result": "PASSED"}),), P, "accuracy: no evaluation measured it; perplexity: no evaluation"),
        ((measured(accuracy=0.9),), P, "perplexity: no evaluation measured it"),
        ((measured(accuracy=0.79, perplexity=7),), P, "accuracy: expected at least 0.8 and at most 1, found 0.79"),
        ((measured(accuracy=1.5, perplexity=7),), P, "accuracy: expected at least 0.8 and at most 1, found 1.5"),
        ((measured(accuracy=0.9, perplexity=12.6),), P, "perplexity: expected at most 12.5, found 12.6"),
        ((measured(accuracy=0.9, perplexity="7"),), C, "metric 'perplexity' is not a number"),
        ((measured(accuracy=True, perplexity=7),), C, "metric 'accuracy' is not a number"),
        ((measured(accuracy=None, perplexity=7),), C, "metric 'accuracy' is not a number"),
        ((result({"result": "PASSED", "metrics": [0.9]}),), C, "metrics are not an object"),
        ((result({"result": "FAILED", "metrics": RESULT.predicate["metrics"]}),), P, "says FAILED"),
        # A metric that two evaluations measured has to hold in both.
        ((RESULT, measured(accuracy=0.1)), P, "found 0.1"),
        ((result({**RESULT.predicate}, by="stranger"),), U, "not signed by a key"),
        ((result({**RESULT.predicate}, about="another"),), C, "about something else"),
    ],
)
def test_an_evaluation_that_does_not_do(found: tuple[Attestation, ...], code: ExitCode, message: str) -> None:
    assert message in refusal("evaluation", code, ONLY_EVALUATION, attestations=found)


def test_metrics_may_come_from_several_evaluations() -> None:
    assert passes(attestations=(measured(accuracy=0.8), measured(perplexity=12.5), PASSED)) == "verified"


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_bounds_themselves_hold(value: float) -> None:
    verdict = judge(ONLY_EVALUATION, attestations=(measured(accuracy=value, perplexity=0),))
    assert (verdict.verdict == "verified") == (0.8 <= value <= 1)
