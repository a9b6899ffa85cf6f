"""The decision: pure, every rule asked, the gravest failure named; and lineage as a graph."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.images import Draft, claim, key, origin, output, part, policy, policy_text

from intaglio.content.formats.inspect import Inspected
from intaglio.content.modelpack import ModelImage
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, ExitCode, PolicyRefusal
from intaglio.policy.decide import RULES, Verdict, decide
from intaglio.policy.document import Policy, parse
from intaglio.policy.evidence import Evidence, FileEvidence, ReferrerEvidence
from intaglio.trust.cosign import Link


def evidence(draft: Draft, **changes: object) -> Evidence:
    """Return the evidence that gathering would find, without any files."""
    model = ModelImage.parse(draft.manifest, "image")
    referrers = []
    for referrer in draft.referrers:
        layers = Link.parse(referrer.manifest, "referrer").layers
        referrers.append(ReferrerEvidence(referrer.digest, tuple(zip(layers, referrer.blobs[1:], strict=True))))
    files = tuple(FileEvidence(file, None, Inspected(file.path, "json")) for file in model.files)
    values = {"model": model, "files": files, "referrers": tuple(referrers)}
    return Evidence(draft.image.digest, **(values | changes))  # type: ignore[arg-type]


def failing(verdict: Verdict) -> set[str]:
    return {rule.rule for rule in verdict.rules if rule.result == "fail"}


def test_every_rule_is_asked_in_a_fixed_order() -> None:
    verdict = decide(evidence(Draft().sign()), policy())
    assert verdict.verdict == "verified"
    assert verdict.exit_code == 0
    optional = {"attestations", "evaluation", "licences", "names", "source", "freshness"}
    expected = [(name, "skip" if name in optional else "pass") for name, _ in RULES]
    assert [(rule.rule, rule.result) for rule in verdict.rules] == expected
    assert all(rule.detail for rule in verdict.rules)


def test_no_evidence_is_refused_by_every_rule_that_wants_some() -> None:
    verdict = decide(evidence(Draft().sign(), referrers=()), policy())
    assert verdict.verdict == "refused"
    assert verdict.exit_code == ExitCode.UNTRUSTED
    assert failing(verdict) == {"signature", "cosign", "model-signing", "provenance", "lineage", "sandbox"}


def test_what_the_policy_does_not_require_is_skipped() -> None:
    lax = parse(
        policy_text()
        .replace('"cosign", "model-signing", ', "")
        .replace("allow_unsandboxed = false", "allow_unsandboxed = true")
        .encode()
    )
    draft = Draft().sign()
    del draft.referrers[1:3]
    verdict = decide(evidence(draft), lax)
    skipped = {rule.rule for rule in verdict.rules if rule.result == "skip"}
    assert verdict.verdict == "verified"
    assert skipped >= {"cosign", "model-signing", "sandbox"}


def test_the_gravest_failure_gives_the_exit_code() -> None:
    draft = Draft().sign()
    found = evidence(draft)
    refused = PolicyRefusal("a pickle")
    pickled = (FileEvidence(draft.entries[0], None, refused), *found.files[1:])
    assert decide(evidence(draft, files=pickled), policy()).exit_code == ExitCode.POLICY
    assert decide(evidence(draft, files=pickled, referrers=()), policy()).exit_code == ExitCode.UNTRUSTED
    damaged = (CorruptContent("a bit"),)
    worst = decide(evidence(draft, files=pickled, referrers=(), damaged=damaged), policy())
    assert worst.exit_code == ExitCode.CORRUPT


def test_a_format_that_the_policy_leaves_out_is_refused() -> None:
    strict = parse(policy_text().replace('"gguf", "json", "text"', '"gguf"').encode())
    verdict = decide(evidence(Draft().sign()), strict)
    assert failing(verdict) == {"formats"}
    assert verdict.exit_code == ExitCode.POLICY


def test_files_that_could_not_be_looked_into_are_refused() -> None:
    draft = Draft().sign()
    files = tuple(FileEvidence(file, None, None) for file in draft.entries)
    assert "formats" in failing(decide(evidence(draft, files=files), policy()))


def test_strangers_attachments_are_no_obstacle() -> None:
    draft = Draft().sign()
    other = Draft(builder=key("stranger"), release=key("stranger")).sign()
    draft.referrers = [*other.referrers, *draft.referrers]
    assert decide(evidence(draft), policy()).verdict == "verified"


def test_a_second_trusted_key_counts() -> None:
    text = policy_text().replace('builder = ["builder"]', 'builder = ["builder", "other"]')
    both = parse((text + f'\n[keys.other]\npem = """\n{key("stranger").public.pem}"""\n').encode())
    assert decide(evidence(Draft(builder=key("stranger")).sign()), both).verdict == "verified"


# --- lineage ----------------------------------------------------------------------------------------------------------


def graph(edges: dict[str, list[list[str]]], unsandboxed: frozenset[str] = frozenset()) -> Draft:
    """Return an image whose tree is ``image``: name → for each claim about it, the outputs that it rests on."""
    draft = Draft().seal()

    def digest(name: str) -> Digest:
        return draft.tree if name == "image" else Digest.of(name.encode())

    draft.claims = [
        claim(
            draft.builder,
            f"step-{name}-{number}",
            digest(name),
            [origin("file:x"), part("program"), *(output(one, digest(one)) for one in needs)],
            sandbox="none" if f"{name}-{number}" in unsandboxed else "bubblewrap",
        )
        for name, claims in edges.items()
        for number, needs in enumerate(claims)
    ] or [claim(draft.builder, "unrelated", Digest.of(b"unrelated"), [])]
    return draft.sign()


def judge(edges: dict[str, list[list[str]]], unsandboxed: frozenset[str] = frozenset()) -> set[str]:
    return failing(decide(evidence(graph(edges, unsandboxed)), policy()))


@pytest.mark.parametrize(
    "edges",
    [
        {"image": [[]]},
        {"image": [["a"]], "a": [[]]},
        {"image": [["a", "b"]], "a": [["c"]], "b": [["c"]], "c": [[]]},
        # The same bytes out as in: a claim about "a" that rests on "a", beside one that says where it came from.
        {"image": [["a"]], "a": [["a"], []]},
        # Two builders' claims about one output, one of them without a past.
        {"image": [["a"]], "a": [["gone"], []]},
        {"image": [["a"]], "a": [[]], "elsewhere": [["gone"]]},
    ],
)
def test_grounded(edges: dict[str, list[list[str]]]) -> None:
    assert judge(edges) == set()


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ({}, "no builder's claim says how"),
        ({"image": [["a"]]}, "no builder's claim says how"),
        ({"image": [["a"]], "a": [["b"]]}, "no builder's claim says how"),
        ({"image": [["image"]]}, "circular"),
        ({"image": [["a"]], "a": [["a"]]}, "circular"),
        ({"image": [["a"]], "a": [["b"]], "b": [["a"]]}, "circular"),
        ({"image": [["a", "b"]], "a": [[]], "b": [["c"]], "c": [["b"]]}, "circular"),
    ],
)
def test_ungrounded(edges: dict[str, list[list[str]]], message: str) -> None:
    verdict = decide(evidence(graph(edges)), policy())
    assert failing(verdict) == {"lineage", "sandbox"}
    assert verdict.exit_code == ExitCode.UNTRUSTED
    assert message in next(rule.detail for rule in verdict.rules if rule.rule == "lineage")


def test_unsandboxed_steps_are_refused_where_they_matter() -> None:
    chain: dict[str, list[list[str]]] = {"image": [["a"]], "a": [[], []], "elsewhere": [[]]}
    assert judge(chain, frozenset({"elsewhere-0"})) == set()
    assert judge(chain, frozenset({"a-0"})) == set()
    assert judge(chain, frozenset({"a-0", "a-1"})) == {"sandbox"}
    lax = parse(policy_text().replace("unsandboxed = false", "unsandboxed = true").encode())
    assert decide(evidence(graph(chain, frozenset({"a-0", "a-1"}))), lax).verdict == "verified"


def test_a_long_chain_is_followed_without_recursion() -> None:
    edges = {f"n{number}": [[f"n{number + 1}"]] for number in range(1500)}
    assert judge({"image": [["n0"]], **edges, "n1500": [[]]}) == set()


NAMES = ["image", "a", "b", "c", "d"]


def grounded_by_definition(edges: dict[str, list[list[str]]]) -> bool:
    """The least fixed point, written the slow and obvious way."""
    known: set[str] = set()
    for _ in range(len(edges) + 1):
        known |= {name for name, claims in edges.items() if any(set(needs) <= known for needs in claims)}
    return "image" in known


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.lists(st.lists(st.sampled_from(NAMES), max_size=3), max_size=2)))
def test_any_graph_is_judged_by_the_definition(edges: dict[str, list[list[str]]]) -> None:
    assert ("lineage" not in judge(edges)) == grounded_by_definition(edges)


def test_the_decision_reads_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, rules = evidence(Draft().sign()), policy()

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("a rule opened a file")

    decide(found, rules)  # imports what it needs
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("os.open", refuse)
    verdict = decide(found, rules)
    monkeypatch.undo()
    assert verdict.verdict == "verified"
    assert isinstance(rules, Policy)
