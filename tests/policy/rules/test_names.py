"""Reserved names: the name itself, and what can be taken for it."""

from __future__ import annotations

import pytest
from tests.policy.full import GOOD, SIGNERS, failing, full, judge, passes, refusal, signer

from intaglio.dataclass import replace
from intaglio.errors import ExitCode
from intaglio.policy.decide import decide
from intaglio.policy.evidence import About
from intaglio.policy.rehearsal import rehearse
from intaglio.policy.rules.names import MAX_LENGTH, looks_like

P = ExitCode.POLICY
BANK = {**SIGNERS, "signature": "bank", "cosign": "bank", "model-signing": "bank"}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("acme/falcon", "acme/falcon"),
        ("Acme/FALCON", "acme/falcon"),
        ("acme/fal-con", "acme/falcon"),
        ("acme_falcon", "acme/falcon"),
        ("acme-official/falcon", "acme/falcon"),
        ("acme/falcon-enhanced", "acme/falcon"),
        ("the-real-acme/new.falcon", "acme/falcon"),
        ("AcmeOfficial/Falcon", "acme/falcon"),
        ("officialacme/falcon", "acme/falcon"),
        ("\u0430cme/falcon", "acme/falcon"),  # Cyrillic a
        ("acme/f\u03b1lc\u03bfn", "acme/falcon"),  # Greek alpha, omicron
        ("\u0391CM\u0395/falcon", "acme/falcon"),  # Greek capitals
        ("acrne/falcon", "acme/falcon"),  # r n
        ("acme/faIcon", "acme/falcon"),  # capital I
        ("acme/fa1c0n", "acme/falcon"),
        ("acm\u00e9/falcon", "acme/falcon"),
        ("\uff41\uff43\uff4d\uff45/falcon", "acme/falcon"),  # full width
        ("ac\u200bme/falcon", "acme/falcon"),  # zero width
        ("acme\u2215falcon", "acme/falcon"),  # a division slash is a separator
        ("mirror/acme/falcon", "acme/falcon"),
        ("acme/anything", "acme/*"),
        ("acme-team/any/thing", "acme/*"),
        ("other/falcon-7b", "falcon-*"),
        ("falcon", "falcon"),
        ("acme/my-falcon-2", "*falcon*"),
        ("x/y", "*"),
        ("deepseek/m", "deepseek-ai/*"),
        ("open-ai/m", "openai/*"),
        ("OpenAI/m", "openai/*"),
    ],
)
def test_look_alikes(name: str, pattern: str) -> None:
    assert looks_like(name, pattern)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("acme/falcon-2", "acme/falcon"),
        ("acme/hawk", "acme/falcon"),
        ("acmebrick/falcon", "acme/*"),
        ("falcon/acme", "acme/falcon"),
        ("acme", "acme/*"),
        ("other/acme", "acme/*"),
        ("open/m", "openai/*"),
        ("official", "acme"),
        ("acme/f.lcon", "acme/falcon"),
        ("acme/falcon", "acme/falc.n"),
    ],
)
def test_others(name: str, pattern: str) -> None:
    assert not looks_like(name, pattern)


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_what_was_found_is_named() -> None:
    assert {rule.rule: rule.detail for rule in judge().rules}["names"] == "examples/demo: not reserved"


@pytest.mark.parametrize("name", ["bank/teller", "b\u0430nk/teller", "Bank-Official/teller", "mirror/bank/teller"])
def test_a_reserved_name_is_for_its_keys(name: str) -> None:
    found = refusal("names", P, name=name)
    assert found == f"name {name!r} is, or looks like, 'bank/*', which is reserved for other keys"
    assert passes(name=name, signers=BANK) == "verified"


def test_a_name_that_is_reserved_for_nobody() -> None:
    for signers in (SIGNERS, BANK):
        assert "reserved for nobody" in refusal("names", P, name="acme/falcon", signers=signers)


def test_a_strangers_signature_reserves_nothing() -> None:
    """Another key's release signature is there beside the bank's key, which signed nothing."""
    only_cosign = {**SIGNERS, "cosign": "bank", "model-signing": "bank"}
    assert "bank/*" in refusal("names", P, name="bank/teller", signers=only_cosign)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"vendor": "Bank"}, "vendor 'Bank'"),
        ({"vendor": "B\u0410NK Inc."}, "vendor"),
        ({"title": "bank/teller"}, "title 'bank/teller'"),
        ({"title": "Umbrella"}, "title 'Umbrella'"),
        ({"vendor": "Umbrella Corp"}, "vendor 'Umbrella Corp'"),
        ({"name": "umbrella/virus"}, "name 'umbrella/virus'"),
    ],
)
def test_every_place_where_a_name_stands(changes: dict[str, str], where: str) -> None:
    assert refusal("names", P, **changes).startswith(where)


def test_a_huge_name_is_refused_before_it_is_compared() -> None:
    assert "longer than" in refusal("names", P, name="official" * 100_000)
    assert passes(name="x" * MAX_LENGTH) == "verified"


def test_names_are_not_looked_at_where_none_is_reserved() -> None:
    free = full('[names.reserved]\n"bank/*" = ["bank"]\n"acme/falcon" = []\n"umbrella" = []\n')
    assert passes(free, name="bank/teller") == "verified"


def test_what_an_image_says_about_itself() -> None:
    config = {"descriptor": {"name": "a/b", "vendor": "V", "licenses": ["MIT"], "family": "f"}}
    marks = {"org.opencontainers.image.vendor": "W", "org.opencontainers.image.title": "T", "other": "x"}
    found = About.of(config, marks)
    assert [text for _, text in found.names] == ["a/b", "T"]
    assert [text for _, text in found.publishers] == ["V", "W"]
    assert found.licences == ("MIT",)
    assert About.of({"descriptor": {}}, {}) == About(())


def test_an_image_without_a_name_has_no_right_to_any() -> None:
    nameless = replace(rehearse(GOOD, signer), about=About((), (), ("MIT",)))
    assert failing(decide(nameless, full()))["names"].detail == "the image has no name"
