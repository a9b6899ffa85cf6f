"""Licences: expressions, the image's own, and those of its pinned origins by source and by claim."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.full import GOOD, full, judge, passes, refusal, signer

from intaglio.dataclass import replace
from intaglio.errors import ExitCode
from intaglio.policy.decide import decide
from intaglio.policy.rehearsal import Input, rehearse
from intaglio.policy.rules.licences import permits

ALLOWED = frozenset({"Apache-2.0", "MIT", "GPL-2.0-only WITH Classpath-exception-2.0", "LGPL-2.1+"})
BASE = "models/example/base@1"
NO_SOURCE = full('[source]\nrequired = true\nprograms = true\n\n[freshness]\nmax_age = "30d"\n')


@pytest.mark.parametrize(
    "expression",
    [
        "MIT",
        " MIT ",
        "mit",
        "(MIT)",
        "MIT AND Apache-2.0",
        "GPL-3.0-only OR MIT",
        "MIT OR GPL-3.0-only",
        "(GPL-3.0-only OR MIT) AND (Apache-2.0)",
        "GPL-3.0-only AND BSD-2-Clause OR MIT",
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "MIT AND GPL-2.0-only WITH Classpath-exception-2.0",
        "LGPL-2.1+",
    ],
)
def test_permitted(expression: str) -> None:
    assert permits(expression, ALLOWED)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "GPL-3.0-only",
        "GPL-2.0-only",
        "MIT WITH Classpath-exception-2.0",
        "MIT AND GPL-3.0-only",
        "MIT AND (GPL-3.0-only OR BSD-2-Clause)",
        "GPL-3.0-only OR MIT AND BSD-2-Clause",
        "LGPL-2.1",
        "NOASSERTION",
        "NONE",
        # What cannot be read is not met, even where its beginning is.
        "MIT OR",
        "OR MIT",
        "MIT MIT",
        "MIT OR OR MIT",
        "MIT)",
        "(MIT",
        "()",
        "MIT or GPL-3.0-only",
        "MIT/Apache-2.0",
        "MIT, Apache-2.0",
        "MIT OR (",
        "AND",
        "WITH",
        "MIT WITH",
        "MIT OR \u202eMIT",
        "(" * 2000 + "MIT" + ")" * 2000,
        "(" * 500 + "MIT",
    ],
)
def test_not_permitted(expression: str) -> None:
    assert not permits(expression, ALLOWED)


def test_deep_nesting_ends() -> None:
    assert permits("(" * 100 + "MIT" + ")" * 100, ALLOWED)


WORDS = ["MIT", "Apache-2.0", "GPL-3.0-only", "BSD-2-Clause"]
TREES = st.recursive(
    st.sampled_from(WORDS), lambda inner: st.tuples(inner, st.sampled_from(["and", "or"]), inner), max_leaves=12
)


def met(tree: object) -> bool:
    if isinstance(tree, tuple):
        return (met(tree[0]) and met(tree[2])) if tree[1] == "and" else (met(tree[0]) or met(tree[2]))
    return tree in ("MIT", "Apache-2.0")


def write(tree: object) -> str:
    return f"({write(tree[0])} {tree[1].upper()} {write(tree[2])})" if isinstance(tree, tuple) else str(tree)


@settings(deadline=None)
@given(TREES)
def test_any_expression_has_the_value_of_its_parts(tree: object) -> None:
    assert permits(write(tree), ALLOWED) == met(tree)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_garbage_is_met_by_nothing(text: str) -> None:
    assert not permits(text, frozenset({"never"})) or "never" in text


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_what_was_found_is_named() -> None:
    assert {rule.rule: rule.detail for rule in judge().rules}["licences"] == "Apache-2.0; 2 pinned origins"


@pytest.mark.parametrize(
    ("licences", "message"),
    [
        ((), "says nothing about its licence"),
        (("GPL-3.0-only",), "the policy does not allow 'GPL-3.0-only'"),
        (("MIT", "GPL-3.0-only"), "the policy does not allow 'GPL-3.0-only'"),
        (("MIT", ""), "the policy does not allow ''"),
        (("NOASSERTION",), "does not allow"),
    ],
)
def test_the_images_own(licences: tuple[str, ...], message: str) -> None:
    assert message in refusal("licences", ExitCode.POLICY, licences=licences)


def base(**changes: str) -> tuple[Input, ...]:
    return (Input("models/example/base@1", **changes), GOOD.origins[1])


def test_an_origins_licence_by_the_trusted_source() -> None:
    assert passes(origins=base(licence="MIT OR GPL-3.0-only")) == "verified"
    message = refusal("licences", ExitCode.POLICY, origins=base(licence="GPL-3.0-only"))
    assert message == "models/example/base@1: the policy does not allow 'GPL-3.0-only'"


def test_the_trusted_sources_word_comes_before_the_claims() -> None:
    assert passes(origins=base(licence="MIT", claimed="GPL-3.0-only")) == "verified"
    assert refusal("licences", ExitCode.POLICY, origins=base(licence="GPL-3.0-only", claimed="MIT"))


def test_an_origins_licence_by_the_claim() -> None:
    unlisted = {"status": "unlisted"}
    claimed = (Input("models/example/base@1", claimed="MIT", status="unlisted"),)
    assert passes(NO_SOURCE, origins=claimed, source_age=None) == "verified"
    for said in ("GPL-3.0-only", "MIT AND GPL-3.0-only"):
        found = base(claimed=said, **unlisted)[:1]
        assert "does not allow" in refusal("licences", ExitCode.POLICY, NO_SOURCE, origins=found, source_age=None)


def test_an_unknown_licence_is_refused() -> None:
    found = refusal("licences", ExitCode.POLICY, NO_SOURCE, source_age=None)
    assert (
        found == "datasets/example/questions@1: its licence is unknown; models/example/base@1: its licence is unknown"
    )


def test_toolchains_are_not_in_the_image() -> None:
    assert GOOD.toolchains[0].licence not in ALLOWED
    assert passes() == "verified"


def test_an_image_whose_config_cannot_be_read_has_no_licence() -> None:
    verdict = decide(replace(rehearse(GOOD, signer), about=None), full())
    assert {rule.rule for rule in verdict.rules if rule.result == "fail"} == {"licences", "names"}
