"""Errors and exit codes: one table, in the code, in the documentation, and in the docstring's tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from intaglio import errors
from intaglio.errors import EXIT_MEANING, Error, ExitCode

PAGE = Path(__file__).parents[1] / "docs" / "exit-codes.md"
CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Error)]


def table() -> str:
    """The documentation's table, as it must be."""
    rows = [f"| {int(code)} | {EXIT_MEANING[code]} |" for code in ExitCode]
    return "\n".join(["| Code | Meaning |", "| ---: | --- |", *rows])


def test_every_code_has_a_meaning() -> None:
    assert set(EXIT_MEANING) == set(ExitCode)
    assert len({int(code) for code in ExitCode}) == len(ExitCode)


def test_the_page_holds_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), f"docs/exit-codes.md must hold:\n{table()}"


def test_what_is_quoted_from_strangers_controls_no_terminal_and_is_not_endless() -> None:
    error = errors.CorruptContent("target '\x1b]0;owned\x07\r\u202e\x9b':\nlower case – naïve …")
    assert error.message == "target '" + r"\x1b]0;owned\x07\r\u202e\x9b" + "':\nlower case – naïve …"
    assert str(error) == error.message
    assert len(errors.Untrusted("x" * 5_000_000).message) == errors.MAX_MESSAGE + 1


def test_codes_are_never_renumbered() -> None:
    """An interface that scripts rely on."""
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0, "USAGE": 2, "RECIPE": 10, "LOCK": 11, "SOURCE": 20, "CORRUPT": 21, "UNTRUSTED": 22, "POLICY": 23,
        "STALE": 24, "NOT_VERIFIABLE": 25, "STEP": 30, "LIMIT": 31, "NOT_REPRODUCIBLE": 32, "REGISTRY": 40,
        "MACHINE": 50, "BUG": 70,
    }  # fmt: skip


def test_the_docstring_draws_the_hierarchy() -> None:
    drawn = dict(re.findall(r"([A-Z]\w+) +(\d+)$", errors.__doc__ or "", re.MULTILINE))
    assert drawn == {one.__name__: str(int(one.exit_code)) for one in CLASSES if one.__name__ in drawn}
    assert set(drawn) == {one.__name__ for one in CLASSES} - {"Error", "VerificationError"}


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_has_message_hint_and_code(kind: type[Error]) -> None:
    error = kind("expected a, found b", hint="do c")
    assert (str(error), error.message, error.hint) == ("expected a, found b", "expected a, found b", "do c")
    assert kind("x").hint is None
    assert error.exit_code in ExitCode
    assert error.exit_code != ExitCode.OK


def test_verification_errors_are_those_of_twenty_one_to_twenty_five() -> None:
    codes = {int(one.exit_code) for one in CLASSES if issubclass(one, errors.VerificationError)}
    assert codes == {21, 22, 23, 24, 25}
    assert issubclass(errors.LimitReached, errors.StepFailed)
