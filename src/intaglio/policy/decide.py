"""The decision: rules in a fixed order over evidence, and the verdict that follows. No files, no clock, no network.

- An image is verified only when every rule passed, or was skipped because the policy does not require it.
- Every rule is asked, so that one report names all that is wrong.
- The exit code is that of the gravest failure: what is corrupt comes before what is untrusted, and both before
  what the policy would merely not have. It is ``stale`` only when nothing is wrong but the age of what is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from intaglio.content.runtime_image import RuntimeImage
from intaglio.dataclass import dataclass
from intaglio.errors import ExitCode, VerificationError
from intaglio.policy.document import Policy
from intaglio.policy.evidence import Evidence
from intaglio.policy.rules import attestation, content, licences, names, origin, runtime, signature, source

VerdictName = Literal["verified", "stale", "refused"]
RuleName = Literal["pass", "fail", "skip"]
_GRAVITY = (ExitCode.CORRUPT, ExitCode.NOT_VERIFIABLE, ExitCode.UNTRUSTED, ExitCode.POLICY, ExitCode.STALE)

Rule = Callable[[Evidence, Policy], str]
"""Says what it found, or raises: ``VerificationError`` for a failure, ``NotRequired`` where the policy asks nothing."""

RULES: tuple[tuple[str, Rule], ...] = (
    ("content", content.content),
    ("manifest", content.manifest),
    ("formats", content.formats),
    ("signature", signature.signature),
    ("cosign", signature.cosign),
    ("model-signing", signature.model_signing),
    ("provenance", origin.provenance),
    ("lineage", origin.lineage),
    ("sandbox", origin.sandbox),
    ("attestations", attestation.attestations),
    ("evaluation", attestation.evaluation),
    ("licences", licences.licences),
    ("names", names.names),
    ("source", source.source),
    ("freshness", source.freshness),
)
"""Name and function of each rule, in the order of the report."""

RUNTIME_RULES: tuple[tuple[str, Rule], ...] = (
    ("content", runtime.content),
    ("manifest", runtime.manifest),
    ("signature", signature.signature),
    ("cosign", signature.cosign),
    ("provenance", runtime.provenance),
    ("lineage", origin.lineage),
    ("sandbox", origin.sandbox),
    ("source", source.source),
    ("freshness", source.freshness),
)
"""The same for runtime images."""


@dataclass(frozen=True, slots=True)
class RuleResult:
    """What one rule said."""

    rule: str
    result: RuleName
    detail: str
    exit_code: ExitCode = ExitCode.OK


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from all rules together."""

    verdict: VerdictName
    rules: tuple[RuleResult, ...]
    exit_code: ExitCode


def decide(evidence: Evidence, policy: Policy) -> Verdict:
    """Return the verdict of ``policy`` on ``evidence``."""
    rules = RUNTIME_RULES if isinstance(evidence.model, RuntimeImage) else RULES
    results = tuple(_ask(name, rule, evidence, policy) for name, rule in rules)
    failures = [result.exit_code for result in results if result.result == "fail"]
    if not failures:
        return Verdict("verified", results, ExitCode.OK)
    gravest = min(failures, key=_GRAVITY.index)
    return Verdict("stale" if gravest == ExitCode.STALE else "refused", results, gravest)


def _ask(name: str, rule: Rule, evidence: Evidence, policy: Policy) -> RuleResult:
    try:
        return RuleResult(name, "pass", rule(evidence, policy))
    except signature.NotRequired:
        return RuleResult(name, "skip", "not required by the policy")
    except VerificationError as error:
        code = error.exit_code if error.exit_code in _GRAVITY else ExitCode.NOT_VERIFIABLE
        return RuleResult(name, "fail", error.message, code)
