"""Names: images released, properly, under names that are another's or can be taken for it.

Each is a real image that its own keys signed; what is wrong is the name. They are to be judged under ``RESERVED``.
"""

from __future__ import annotations

from pathlib import Path

from tests.attacks.corpus import Corpus
from tests.images import Draft, key, policy_text

from intaglio.digest import Digest
from intaglio.errors import ExitCode

CASES = Corpus()
case = CASES.case
P = ExitCode.POLICY
RESERVED = f"""{policy_text().replace('release = ["release"]', 'release = ["release", "bank"]')}
[names.reserved]
"northbank/*" = ["bank"]
"northbank/teller-7b" = ["bank"]

[keys.bank]
pem = \"\"\"
{key("stranger").public.pem}\"\"\"
"""
"""Northbank's models are released with a key of its own; the other release key has no right to the name."""


def named(folder: Path, name: str | None, **descriptor: str) -> Digest:
    """Write a good image under that name, with more of the config's descriptor."""
    draft = Draft()
    draft.config["descriptor"] |= descriptor
    if name is None:
        del draft.config["descriptor"]["name"]
    else:
        draft.config["descriptor"]["name"] = name
    return draft.seal().sign().write(folder)


@case(P, "names")
def the_name_itself(folder: Path) -> Digest:
    return named(folder, "northbank/teller-7b")


@case(P, "names")
def another_model_of_theirs(folder: Path) -> Digest:
    return named(folder, "northbank/auditor")


@case(P, "names")
def cyrillic_letters(folder: Path) -> Digest:
    return named(folder, "n\u043erthb\u0430nk/teller-7b")


@case(P, "names")
def greek_letters(folder: Path) -> Digest:
    return named(folder, "n\u03bfrthbank/\u03c4eller-7b")


@case(P, "names")
def small_capitals_and_strokes(folder: Path) -> Digest:
    return named(folder, "\u0274orthbank/te\u0142ler-7b")


@case(P, "names")
def full_width_letters(folder: Path) -> Digest:
    return named(folder, "\uff4e\uff4f\uff52\uff54\uff48bank/teller-7b")


@case(P, "names")
def mathematical_letters(folder: Path) -> Digest:
    return named(folder, "\U0001d427\U0001d428\U0001d42b\U0001d42d\U0001d421bank/teller-7b")


@case(P, "names")
def an_accent(folder: Path) -> Digest:
    return named(folder, "n\u00f6rthbank/teller-7b")


@case(P, "names")
def an_invisible_character(folder: Path) -> Digest:
    return named(folder, "north\u200bbank/teller-7b")


@case(P, "names")
def a_direction_override(folder: Path) -> Digest:
    return named(folder, "north\u202dbank/teller-7b")


@case(P, "names")
def digits_for_letters(folder: Path) -> Digest:
    return named(folder, "n0rthbank/te11er-7b")


@case(P, "names")
def a_capital_i_for_a_small_l(folder: Path) -> Digest:
    return named(folder, "northbank/teIIer-7b")


@case(P, "names")
def another_case(folder: Path) -> Digest:
    return named(folder, "NorthBank/Teller-7B")


@case(P, "names")
def other_separators(folder: Path) -> Digest:
    return named(folder, "north-bank/teller_7b")


@case(P, "names")
def separators_for_the_slash(folder: Path) -> Digest:
    return named(folder, "northbank-teller-7b")


@case(P, "names")
def one_slash_more(folder: Path) -> Digest:
    return named(folder, "north/bank/teller/7b")


@case(P, "names")
def official(folder: Path) -> Digest:
    return named(folder, "northbank-official/teller-7b")


@case(P, "names")
def enhanced(folder: Path) -> Digest:
    return named(folder, "northbank/teller-7b-enhanced")


@case(P, "names")
def a_word_glued_on(folder: Path) -> Digest:
    return named(folder, "officialnorthbank/teller-7b")


@case(P, "names")
def a_promise_in_cyrillic(folder: Path) -> Digest:
    return named(folder, "northbank-\u043effici\u0430l/teller-7b")


@case(P, "names")
def below_a_folder_of_ones_own(folder: Path) -> Digest:
    return named(folder, "mirrors/northbank/teller-7b")


@case(P, "names")
def as_its_vendor(folder: Path) -> Digest:
    return named(folder, "examples/teller", vendor="Northbank")


@case(P, "names")
def as_its_vendor_with_a_word_more(folder: Path) -> Digest:
    return named(folder, "examples/teller", vendor="North Bank Labs")


@case(P, "names")
def as_its_title(folder: Path) -> Digest:
    return named(folder, "examples/teller", title="northbank/teller-7b")


@case(P, "names")
def no_name_at_all(folder: Path) -> Digest:
    return named(folder, None)


@case(P, "names")
def as_an_annotation(folder: Path) -> Digest:
    draft = Draft()
    draft.document["annotations"] = {"org.opencontainers.image.vendor": "NORTHBANK"}
    return draft.seal().sign().write(folder)
