"""The trusted source and its age; and that no two rules rest on different claims."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.policy.full import GOOD, failing, full, judge, passes, refusal, signer

from intaglio.dataclass import replace
from intaglio.digest import Digest
from intaglio.errors import ExitCode
from intaglio.policy.decide import decide
from intaglio.policy.lineage import named_dependencies, unlisted
from intaglio.policy.listing import Listed
from intaglio.policy.rehearsal import Facts, Input, rehearse
from intaglio.trust.statement import ASSEMBLE, Dependency, Provenance

P = ExitCode.POLICY
NO_LICENCES = full('[licences]\nallow = ["Apache-2.0", "MIT", "GPL-2.0-only WITH Classpath-exception-2.0"]\n')
YANKED = Input("models/example/old@1", status="yanked", reason="its weights were poisoned")
UNLISTED = Input("models/example/other@1", status="unlisted")


def test_what_was_found_is_named() -> None:
    details = {rule.rule: rule.detail for rule in judge().rules}
    names = "datasets/example/questions@1, models/example/base@1, steps/example/finetune@1, toolchains/example/train@1"
    assert details["source"] == f"4 inputs listed: {names}"
    assert details["freshness"] == "known to be current 1 d ago, of at most 30 d"


@pytest.mark.parametrize("kind", ["origins", "toolchains", "programs"])
def test_an_input_that_is_not_listed(kind: str) -> None:
    found = refusal("source", P, NO_LICENCES, **{kind: (UNLISTED,)})
    assert "models/example/other@1" in found
    assert found.endswith(f"{UNLISTED.digest}: the trusted source does not list it")


@pytest.mark.parametrize("kind", ["origins", "toolchains", "programs"])
def test_a_yanked_input_is_refused_with_the_reason(kind: str) -> None:
    found = refusal("source", P, **{kind: (YANKED, GOOD.origins[1])})
    assert found == "models/example/old@1 was yanked by the trusted source: its weights were poisoned"


def test_programs_need_not_be_listed_where_the_policy_does_not_say_so() -> None:
    lax = full("programs = true\n")
    assert passes(lax, programs=(UNLISTED,)) == "verified"
    details = {rule.rule: rule.detail for rule in judge(lax, programs=(UNLISTED,)).rules}
    assert details["source"].startswith("3 inputs listed: ")
    assert "was yanked" in refusal("source", P, lax, programs=(YANKED,))
    assert "does not list it" in refusal("source", P, lax, toolchains=(UNLISTED,))


def test_a_runtime_images_own_guard_and_anchor_need_not_be_listed_and_its_server_does() -> None:
    evidence = rehearse(GOOD, signer)
    parts = ("intaglio-guard", "anchor", "vllm")
    programs = tuple(Dependency(f"program:{name}", Digest.of(name.encode()), "program") for name in parts)
    assembly = Provenance(evidence.image, ASSEMBLE, {}, {}, programs, "builder")
    (found,) = unlisted(evidence, full(), {})(assembly)
    assert found.startswith("program:vllm ")
    yanked = {one.digest: Listed(one.name, "MIT", "example", "yanked", "old") for one in programs}
    assert len(unlisted(evidence, full("programs = true\n"), yanked)(assembly)) == 3


@pytest.mark.parametrize("name", ["intaglio-guard", "anchor"])
def test_a_step_program_that_is_called_like_a_part_of_a_runtime_is_listed_all_the_same(name: str) -> None:
    assert "does not list it" in refusal("source", P, programs=(Input(name, status="unlisted"),))


def test_all_that_is_wrong_is_named() -> None:
    many = tuple(Input(f"models/example/m{number}@1", status="yanked") for number in range(7))
    found = refusal("source", P, NO_LICENCES, origins=many)
    assert found.count("was yanked") == 5
    assert found.endswith("and 2 more")


def test_no_source_at_hand_is_no_verdict() -> None:
    verdict = judge(NO_LICENCES, source_age=None)
    found = failing(verdict)
    assert {name: rule.exit_code for name, rule in found.items()} == {"source": 25, "freshness": 25}
    assert (verdict.verdict, verdict.exit_code) == ("refused", ExitCode.NOT_VERIFIABLE)


def test_a_source_that_is_not_asked_is_not_missed() -> None:
    lax = full('[source]\nrequired = true\nprograms = true\n\n[freshness]\nmax_age = "30d"\n')
    assert passes(lax, origins=(YANKED,), toolchains=(UNLISTED,)) == "verified"
    skipped = {rule.rule for rule in judge(lax).rules if rule.result == "skip"}
    assert skipped == {"source", "freshness"}


@pytest.mark.parametrize(
    ("age", "verdict", "code"),
    [
        (timedelta(0), "verified", 0),
        (timedelta(days=30), "verified", 0),
        (timedelta(days=30, seconds=1), "stale", 24),
        (timedelta(days=4000), "stale", 24),
    ],
)
def test_the_age_of_the_source(age: timedelta, verdict: str, code: int) -> None:
    found = judge(source_age=age)
    assert (found.verdict, found.exit_code) == (verdict, code)
    assert set(failing(found)) == ({"freshness"} if code else set())


def test_stale_and_wrong_is_refused() -> None:
    found = judge(source_age=timedelta(days=31), licences=())
    assert (found.verdict, found.exit_code) == ("refused", P)


# --- claims -----------------------------------------------------------------------------------------------------------


def judged_together(*parts: Facts) -> dict[str, int]:
    """Return which rules fail when one image has the claims of several builds."""
    found = [rehearse(replace(part, signers=GOOD.signers), signer) for part in parts]
    listed = {digest: one for each in found if each.source for digest, one in each.source.listed.items()}
    referrers = {referrer.digest: referrer for each in found for referrer in each.referrers}
    assert found[0].source is not None
    whole = replace(found[0], referrers=tuple(referrers.values()), source=replace(found[0].source, listed=listed))
    return {name: rule.exit_code for name, rule in failing(decide(whole, full())).items()}


def test_one_good_lineage_among_several_is_enough() -> None:
    yanked = replace(GOOD, origins=(YANKED,))
    other = replace(GOOD, origins=(Input("models/example/another@1"),))
    assert judged_together(yanked, other) == {}
    assert judged_together(other, yanked) == {}
    assert judged_together(yanked) == {"source": P}


def test_a_lineage_has_to_be_good_in_every_respect_at_once() -> None:
    """Else two builds, each of them wrong in its own way, would pass together."""
    listed = replace(GOOD, sandboxed=False)
    sandboxed = replace(GOOD, origins=(YANKED, GOOD.origins[1]))
    assert judged_together(sandboxed, listed) == {"source": P}
    unlicensed = replace(GOOD, origins=(Input("models/example/free@1", licence="GPL-3.0-only"),))
    assert judged_together(unlicensed, sandboxed) == {"licences": P}


def test_what_a_source_is_asked_about() -> None:
    evidence = rehearse(GOOD, signer)
    expected = {one.digest for one in (*GOOD.origins, *GOOD.toolchains, *GOOD.programs)}
    assert named_dependencies(evidence.attachments()) == expected
    assert named_dependencies([("garbage", b"{"), ("nothing", b"")]) == set()
