"""Case files, what comes of trying them, and the policies that are shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.images import policy_text
from tests.policy.full import GOOD, SIGNERS, TEXT, signer

from intaglio.dataclass import replace
from intaglio.errors import ExitCode, NotVerifiable
from intaglio.policy.cases import load, read, run
from intaglio.policy.decide import RULES, decide
from intaglio.policy.document import DEFAULT, parse
from intaglio.policy.rehearsal import Attestation, Input, rehearse

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "policies").glob("*.toml"))
HEAD = 'version = 1\n[image]\nname = "a/b"\n'
CASE = '[[case]]\ntitle = "t"\nexpect = "verified"\n'


# --- what is shipped --------------------------------------------------------------------------------------------------


def test_the_three_are_there() -> None:
    assert {path.stem for path in SHIPPED} == {"default", "strict", "air-gap"}
    assert all((path.parent / "cases" / path.name).is_file() for path in SHIPPED)


def test_the_default_template_is_what_init_fills_in() -> None:
    assert (ROOT / "policies" / "default.toml").read_text() == DEFAULT


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_case_comes_out_as_stated(path: Path) -> None:
    outcomes = run(path.read_bytes(), load(path.parent / "cases" / path.name))
    assert [(one.case.title, one.problem) for one in outcomes if one.problem] == []
    assert {one.case.expect for one in outcomes} >= {"verified", "refused"}
    assert all(one.case.exit_code for one in outcomes if one.case.expect != "verified")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_rule_that_a_shipped_policy_asks_is_tried(path: Path) -> None:
    outcomes = run(path.read_bytes(), load(path.parent / "cases" / path.name))
    asked = {rule.rule for rule in outcomes[0].verdict.rules if rule.result != "skip"}
    tried = {rule for one in outcomes for rule in one.failed}
    new = {"attestations", "evaluation", "licences", "names", "source", "freshness"}
    assert asked & new <= tried
    assert {"signature", "sandbox"} <= tried


# --- trying -----------------------------------------------------------------------------------------------------------


def one(case: str, image: str = "", policy: str = DEFAULT) -> tuple[str | None, int]:
    """Return what is wrong with the outcome of one case, and its exit code."""
    (outcome,) = run(policy.encode(), read(f"{HEAD}{image}\n[[case]]\ntitle = 't'\n{case}\n".encode()))
    return outcome.problem, outcome.verdict.exit_code


def test_an_outcome_that_is_not_as_stated_is_a_problem() -> None:
    damaged = "damaged = true"
    assert one('expect = "verified"') == (None, 0)
    assert one('expect = "verified"', damaged) == ("expected verified, found refused", 21)
    assert one('expect = "refused"\nrules = ["content"]') == ("expected refused, found verified", 0)
    assert one('expect = "refused"\nrules = ["content", "formats"]\nexit = 21', damaged) == (None, 21)
    found = one('expect = "refused"\nrules = ["content"]', damaged)
    assert found == ("expected to fail: content; failed: content, formats", 21)
    found = one('expect = "refused"\nrules = ["content", "formats"]\nexit = 23', damaged)
    assert found == ("expected exit code 23, found 21", 21)
    assert one('expect = "stale"\nrules = ["content"]', damaged)[0] == "expected stale, found refused"


def test_a_policy_with_keys_is_tried_with_others() -> None:
    """The keys of a real policy sign nothing here: they are not at hand, and need not be."""
    assert one('expect = "verified"', policy=policy_text()) == (None, 0)


def test_a_case_changes_the_image_and_merges_signers() -> None:
    image = 'licences = ["MIT"]\nsigners = { cosign = "x", signature = "y" }'
    changes = 'expect = "verified"\nimage = { formats = ["json"], signers = { cosign = "z" } }'
    (case,) = read(f"{HEAD}{image}\n[[case]]\ntitle = 't'\n{changes}\n".encode())
    assert (case.facts.licences, case.facts.formats) == (("MIT",), ("json",))
    assert case.facts.signers == {"cosign": "z", "signature": "y"}


def test_every_fact_is_read() -> None:
    text = f"""{HEAD}
title = "T"
vendor = "V"
sandboxed = false
origins = [{{ name = "m@1", licence = "MIT", claimed = "X", status = "yanked", reason = "r" }}]
toolchains = [{{ name = "t@1" }}]
without = ["cosign"]
attestations = [{{ type = "https://x", by = "k", about = "another", predicate = {{ a = 1 }} }}]
source_age = "2d"
{CASE}
[[case]]
title = "no source"
expect = "refused"
rules = ["source"]
image.without = ["source"]
"""
    first, second = (case.facts for case in read(text.encode()))
    assert (first.title, first.vendor, first.sandboxed) == ("T", "V", False)
    assert first.without == {"cosign"}
    assert first.origins == (Input("m@1", "MIT", "X", "yanked", "r"),)
    assert first.toolchains == (Input("t@1"),)
    assert first.attestations == (Attestation("https://x", "k", {"a": 1}, "another"),)
    assert first.source_age is not None
    assert (second.source_age, second.without) == (None, frozenset())


WRONG = {
    "version": ("version = 1", "version = 2", "version: expected 1, found 2"),
    "unknown table": ("[image]", "[images]", "images: unknown key; did you mean image?"),
    "unknown fact": (
        'name = "a/b"',
        'name = "a/b"\nlicence = "x"',
        "image.licence: unknown key; did you mean lic",
    ),
    "no name": ('name = "a/b"', "", "image.name: expected a string"),
    "no case": (CASE, "", "case: expected at least one [[case]]"),
    "unknown verdict": ('"verified"', '"accepted"', "expect: expected one of verified, stale, refused"),
    "no verdict": ('expect = "verified"', "", "expect: expected one of"),
    "no title": ('title = "t"', "", "case 1.title: expected a string"),
    "verified and failing": ('"verified"', '"verified"\nrules = ["content"]', "rules: none fails"),
    "refused by nothing": ('"verified"', '"refused"', "expected an array of some of"),
    "unknown rule": ('"verified"', '"refused"\nrules = ["licenses"]', "unknown 'licenses'; did you mean licences?"),
    "unknown exit": ('"verified"', '"verified"\nexit = 99', "exit: expected an exit code, found 99"),
    "unknown change": ('"verified"', '"verified"\nimage.sandbox = false', "image.sandbox: unknown key"),
    "unknown signer": ('"verified"', '"verified"\nimage.signers = { sig = "x" }', "signers.sig: unknown key"),
    "signer a number": (
        '"verified"',
        '"verified"\nimage.signers = { cosign = 1 }',
        "cosign: expected a string",
    ),
    "unknown gap": ('"verified"', '"verified"\nimage.without = ["x"]', "image.without: unknown 'x'"),
    "unknown status": (
        '"verified"',
        '"verified"\nimage.origins = [{name = "x", status = "x"}]',
        "status: expected one of",
    ),
    "origin a string": ('"verified"', '"verified"\nimage.origins = ["x"]', "origins[0]: expected a table"),
    "origins a string": ('"verified"', '"verified"\nimage.origins = "x"', "origins: expected an array of tables"),
    "nameless origin": ('"verified"', '"verified"\nimage.toolchains = [{}]', "toolchains[0].name: expected a string"),
    "about what": (
        '"verified"',
        '"verified"\nimage.attestations = [{type = "https://x", by = "k", about = "x"}]',
        "about: expected image or another",
    ),
    "a date": (
        '"verified"',
        '"verified"\nimage.attestations = [{type = "https://x", by = "k", predicate = {a = 2020-01-01}}]',
        "predicate: expected what JSON can hold",
    ),
    "strange format": ('"verified"', '"verified"\nimage.formats = ["../x"]', "expected words such as gguf"),
    "age": ('"verified"', '"verified"\nimage.source_age = 3', "source_age: expected a span"),
    "not TOML": ("version = 1", "version", "not TOML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_mistake_in_a_case_file_is_named(name: str) -> None:
    old, new, message = WRONG[name]
    assert old in HEAD + CASE
    with pytest.raises(NotVerifiable) as caught:
        read((HEAD + CASE).replace(old, new, 1).encode())
    assert message in caught.value.message


def test_a_fault_of_the_common_image_is_named_once() -> None:
    with pytest.raises(NotVerifiable) as caught:
        read((HEAD.replace('"a/b"', "1") + CASE + CASE).encode())
    assert caught.value.message.count("name: expected a string") == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotVerifiable, match="No such file"):
        load(tmp_path / "none.toml")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    with pytest.raises(NotVerifiable):
        read(data)


# --- rehearsals -------------------------------------------------------------------------------------------------------


def test_a_rehearsal_is_judged_by_every_rule() -> None:
    evidence = rehearse(GOOD, signer)
    verdicts = run(TEXT.encode(), read((HEAD + CASE).encode()))[0].verdict
    assert [rule.rule for rule in verdicts.rules] == [name for name, _ in RULES]
    assert evidence.image == GOOD.image


def test_a_rehearsal_is_believed_for_its_signatures_alone() -> None:
    """Under a policy that names other keys than those which signed, the same facts are refused."""
    text = policy_text().encode()
    (outcome,) = run(text, read((HEAD + CASE).encode()))
    assert outcome.verdict.verdict == "verified"
    for signed, exit_code in (("release", ExitCode.OK), ("stranger", ExitCode.UNTRUSTED)):
        signers = {**SIGNERS, **dict.fromkeys(("signature", "cosign", "model-signing"), signed)}
        evidence = rehearse(replace(outcome.case.facts, signers=signers), signer)
        assert decide(evidence, parse(text)).exit_code == exit_code
