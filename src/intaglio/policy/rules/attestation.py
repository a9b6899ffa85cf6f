"""Rules about attestations that a policy requires beside provenance: that they are there, are about this image, and
say yes.

- An attestation counts when a key of the role that the policy names for its type signed it. What that role's keys say
  about this image all counts: one that says no is not outweighed by another that says yes.
- A summary or test result has to say ``PASSED``; ``WARNED`` is not that. Fields that are not known are passed over, as
  in-toto asks of readers; of those that are, each has to be of the right form.

(in-toto test result v0.1, with the extension field ``metrics``: an object of numbers; SLSA verification summary v1.)
"""

from __future__ import annotations

import math

from intaglio.errors import CorruptContent, PolicyRefusal, Untrusted, VerificationError
from intaglio.policy.document import TEST_RESULT, Bounds, Policy
from intaglio.policy.evidence import Evidence
from intaglio.policy.rules.signature import NotRequired, find_statements
from intaglio.trust.statement import Statement

SUMMARY = "https://slsa.dev/verification_summary/v1"
_RESULTS = {SUMMARY: "verificationResult", TEST_RESULT: "result"}
"""Predicate type → the field that says how it came out."""


def attestations(evidence: Evidence, policy: Policy) -> str:
    """Every attestation that the policy requires is there, by a key of its role, and says yes."""
    if not policy.attestations:
        raise NotRequired
    faults: list[VerificationError] = []
    for predicate_type, role in sorted(policy.attestations.items()):
        try:
            _attested(evidence, policy, predicate_type, role)
        except VerificationError as error:
            faults.append(error)
    if faults:
        gravest = min(faults, key=lambda fault: _GRAVITY.index(type(fault)))
        raise type(gravest)("; ".join(fault.message for fault in faults))
    return ", ".join(f"{_short(kind)} by {role}" for kind, role in sorted(policy.attestations.items()))


def evaluation(evidence: Evidence, policy: Policy) -> str:
    """Every metric that the policy bounds was measured by an evaluator, and lies within its bounds."""
    if not policy.thresholds:
        raise NotRequired
    found = measured(evidence, policy)
    faults, passed = [], []
    for name, bounds in sorted(policy.thresholds.items()):
        values = found.get(name)
        if not values:
            faults.append(f"{name}: no evaluation measured it")
        else:
            faults += [_outside(name, value, bounds) for value in values if not bounds.hold(value)]
            passed.append(f"{name} {min(values):g}")
    if faults:
        raise PolicyRefusal("; ".join(faults))
    return ", ".join(passed)


def measured(evidence: Evidence, policy: Policy) -> dict[str, list[float]]:
    """Return each metric that the policy's evaluators attest about the image, as often as it was measured.

    Raises:
        VerificationError: there is no test result of theirs, or one is malformed, about something else, or says no.
    """
    found: dict[str, list[float]] = {}
    for statement in _attested(evidence, policy, TEST_RESULT, "evaluator"):
        for name, value in _metrics(statement).items():
            found.setdefault(name, []).append(value)
    return found


_GRAVITY = (CorruptContent, Untrusted, PolicyRefusal)


def _attested(evidence: Evidence, policy: Policy, predicate_type: str, role: str) -> list[Statement]:
    """Return what the keys of ``role`` say about the image in attestations of that type: at least one, all of them yes.

    Raises:
        VerificationError: there is none, it is about something else, or it says no.
    """
    signed = find_statements(
        evidence.attachments(), predicate_type, policy.roles.get(role, ()), f"{role}'s {_short(predicate_type)}"
    )
    about = [
        one.statement for one in signed if any(subject.digest == evidence.image for subject in one.statement.subjects)
    ]
    if not about:
        raise CorruptContent(f"the {role}'s {_short(predicate_type)} is about something else than {evidence.image}")
    for statement in about:
        if predicate_type in _RESULTS:
            _require_passed(statement, _RESULTS[predicate_type], role)
    return about


def _require_passed(statement: Statement, key: str, role: str) -> None:
    what = f"the {role}'s {_short(statement.predicate_type)}"
    found = statement.predicate.get(key)
    if not isinstance(found, str):
        raise CorruptContent(f"{what}: expected {key}, found none")
    failed = statement.predicate.get("failedTests", [])
    if found != "PASSED":
        raise PolicyRefusal(f"{what} says {found[:40]}")
    if failed:
        raise PolicyRefusal(f"{what} says PASSED and names failed tests: {str(failed)[:80]}")


def _metrics(statement: Statement) -> dict[str, float]:
    metrics = statement.predicate.get("metrics", {})
    if not isinstance(metrics, dict):
        raise CorruptContent("the evaluator's test result: metrics are not an object")
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CorruptContent(f"the evaluator's test result: metric {name[:80]!r} is not a number")
    return metrics


def _outside(name: str, value: float, bounds: Bounds) -> str:
    return f"{name}: expected {bounds}, found {value:g}"


def _short(predicate_type: str) -> str:
    """Return a predicate type for people: its last parts, as in ``test-result/v0.1``."""
    return "/".join(predicate_type.rstrip("/").split("/")[-2:])
