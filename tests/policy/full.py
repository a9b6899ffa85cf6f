"""A policy that asks everything a policy can ask, and facts about an image that it accepts."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import Any

from tests.images import key

from intaglio.dataclass import replace
from intaglio.errors import ExitCode
from intaglio.policy.decide import RuleResult, Verdict, decide
from intaglio.policy.document import EVIDENCE, TEST_RESULT, Policy, parse
from intaglio.policy.rehearsal import Attestation, Facts, Input, rehearse
from intaglio.policy.rules.attestation import SUMMARY
from intaglio.strictjson import Object
from intaglio.trust.key import PrivateKey

FULL = f"""
version = 1
name = "full"
require = ["signature", "cosign", "model-signing", "provenance", "lineage"]
formats = ["safetensors", "gguf", "json", "text"]

[roles]
builder = ["builder"]
release = ["release", "bank"]
evaluator = ["evaluator"]
verifier = ["verifier"]

[attestations]
"{TEST_RESULT}" = "evaluator"
"{SUMMARY}" = "verifier"

[evaluation]
accuracy = {{ minimum = 0.8, maximum = 1 }}
perplexity = {{ maximum = 12.5 }}

[licences]
allow = ["Apache-2.0", "MIT", "GPL-2.0-only WITH Classpath-exception-2.0"]

[names.reserved]
"bank/*" = ["bank"]
"acme/falcon" = []
"umbrella" = []

[source]
required = true
programs = true

[freshness]
max_age = "30d"
"""


@cache
def signer(name: str) -> PrivateKey:
    """Return the key of that name: the fixed ones of the vectors, else a fresh one."""
    return key(name) if name in ("builder", "release", "stranger") else PrivateKey.generate()


def keys_of(*names: str) -> str:
    """Return the [keys] tables of a policy that speaks of those names."""
    return "".join(f'\n[keys.{name}]\npem = """\n{signer(name).public.pem}"""\n' for name in names)


NAMES = ("builder", "release", "bank", "evaluator", "verifier")
TEXT = FULL + keys_of(*NAMES)


def full(old: str = "", new: str = "") -> Policy:
    """Return the policy, with ``old`` replaced by ``new``."""
    assert old in TEXT
    return parse(TEXT.replace(old, new, 1).encode())


def attested(kind: str, by: str, predicate: Object, about: str = "image") -> Attestation:
    return Attestation(kind, by, predicate, about)


RESULT = attested(
    TEST_RESULT, "evaluator", {"result": "PASSED", "configuration": [], "metrics": {"accuracy": 0.9, "perplexity": 7}}
)
PASSED = attested(SUMMARY, "verifier", {"verificationResult": "PASSED"})
SIGNERS = {name: "builder" if name in ("provenance", "lineage") else "release" for name in EVIDENCE}
GOOD = Facts(
    "examples/demo",
    origins=(Input("models/example/base@1"), Input("datasets/example/questions@1", licence="MIT")),
    toolchains=(Input("toolchains/example/train@1", licence="LicenseRef-whatever"),),
    programs=(Input("steps/example/finetune@1"),),
    signers=SIGNERS,
    attestations=(RESULT, PASSED),
    source_age=timedelta(days=1),
)


def judge(policy: Policy | None = None, /, **changes: Any) -> Verdict:
    """Return the verdict on the good image with those facts changed."""
    facts = replace(GOOD, **changes)
    return decide(rehearse(facts, signer), policy or full())


def failing(verdict: Verdict) -> dict[str, RuleResult]:
    """Return the rules that failed, by name."""
    return {rule.rule: rule for rule in verdict.rules if rule.result == "fail"}


def refusal(rule: str, code: ExitCode, policy: Policy | None = None, /, **changes: Any) -> str:
    """Return why the one ``rule``, and no other, refuses the good image with those facts changed."""
    found = failing(judge(policy, **changes))
    assert set(found) == {rule}
    assert found[rule].exit_code == code
    return found[rule].detail


def passes(policy: Policy | None = None, /, **changes: Any) -> str:
    """Return the verdict's name; for what must be accepted."""
    verdict = judge(policy, **changes)
    assert failing(verdict) == {}
    return verdict.verdict
