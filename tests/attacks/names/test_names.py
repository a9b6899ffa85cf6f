"""Every look-alike is refused by its name alone, and the key that the name is reserved for releases under it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.attacks.corpus import Case
from tests.attacks.names.cases import CASES, RESERVED, named
from tests.images import Draft, key, policy

from intaglio.errors import PolicyRefusal
from intaglio.verify import verify_layout


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attack(case: Case, tmp_path: Path) -> None:
    digest = case.build(tmp_path)
    report = verify_layout(tmp_path, policy(RESERVED), image=digest)
    assert {rule.rule for rule in report.rules if rule.result == "fail"} == case.rules
    assert (report.verdict, report.exit_code, report.files) == ("refused", case.exit_code, ())
    with pytest.raises(PolicyRefusal, match="names:"):
        report.require()
    # Nothing but the name is wrong with it.
    assert verify_layout(tmp_path, policy(), image=digest).verdict == "verified"


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("name", ["northbank/teller-7b", "northbank/auditor", "NorthBank-Official/teller"])
def test_the_key_that_a_name_is_reserved_for_may_use_it(name: str, tmp_path: Path) -> None:
    draft = Draft(release=key("stranger"))
    draft.config["descriptor"]["name"] = name
    draft.seal().sign().write(tmp_path)
    assert verify_layout(tmp_path, policy(RESERVED)).verdict == "verified"


@pytest.mark.parametrize("name", ["examples/teller", "northbankers/teller-7b", "south/northern-bank", "north/teller"])
def test_other_names_are_free(name: str, tmp_path: Path) -> None:
    named(tmp_path, name, vendor="Northern Bankers", title="A teller")
    assert verify_layout(tmp_path, policy(RESERVED)).verdict == "verified"
