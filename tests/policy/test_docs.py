"""The page on policies: its examples are what it says they are."""

from __future__ import annotations

import re
from pathlib import Path

from intaglio.policy import cases
from intaglio.policy.decide import RULES
from intaglio.policy.document import ROLES, TOP, key_names, parse
from intaglio.trust.key import PrivateKey

PAGE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
POLICY, CASES = (text.encode() for text in re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))


def test_the_example_is_a_policy_that_uses_every_table() -> None:
    policy = parse(POLICY, keys={name: PrivateKey.generate().public for name in key_names(POLICY)})
    assert policy.thresholds
    assert all(key.encode() in POLICY for key in TOP)


def test_its_cases_come_out_as_stated() -> None:
    found = cases.run(POLICY, cases.read(CASES))
    assert [outcome.problem for outcome in found] == [None, None, None]


def test_every_rule_and_role_is_described_in_order() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", PAGE.partition("## The rules")[2].partition("## Att")[0], re.MULTILINE)
    assert rows == [name for name, _ in RULES]
    assert all(f"`roles.{role}`" in PAGE for role in ROLES)
