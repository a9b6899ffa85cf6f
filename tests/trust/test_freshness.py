"""Freshness: the later of what was seen and what was signed, and a clock that cannot make anything fresher."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from intaglio.errors import ExitCode, Stale
from intaglio.trust.freshness import judge, read, words, write

NOW = datetime(2026, 1, 10, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
EXPIRES = NOW + 7 * DAY


@pytest.mark.parametrize(
    ("clock", "signed", "seen", "as_of", "age"),
    [
        (NOW + 3 * DAY, NOW, None, NOW, 3 * DAY),
        (NOW + 3 * DAY, None, NOW, NOW, 3 * DAY),
        (NOW + 3 * DAY, NOW, NOW + DAY, NOW + DAY, 2 * DAY),
        (NOW + 3 * DAY, NOW + 2 * DAY, NOW + DAY, NOW + 2 * DAY, DAY),
        (NOW + 300 * DAY, NOW, NOW + DAY, NOW + DAY, 299 * DAY),  # expired long ago: only the age is judged
        (NOW - 365 * DAY, NOW, NOW + DAY, NOW + DAY, timedelta(0)),  # a clock set back makes nothing younger than new
        (NOW + 3 * DAY, NOW, NOW + 90 * DAY, NOW, 3 * DAY),  # seen after its expiry: it was not
    ],
)
def test_judge(
    clock: datetime, signed: datetime | None, seen: datetime | None, as_of: datetime, age: timedelta
) -> None:
    found = judge(clock=clock, signed=signed, seen=seen, expires=EXPIRES)
    assert (found.as_of, found.age) == (as_of, age)
    assert found.now >= found.as_of
    assert found.expired == (clock >= EXPIRES)


@pytest.mark.parametrize(("signed", "seen"), [(None, None), (None, EXPIRES), (EXPIRES, None)])
def test_nothing_says_when(signed: datetime | None, seen: datetime | None) -> None:
    with pytest.raises(Stale, match="nothing says when"):
        judge(clock=NOW, signed=signed, seen=seen, expires=EXPIRES)


def test_the_bound() -> None:
    found = judge(clock=NOW + 30 * DAY, signed=NOW, seen=None, expires=EXPIRES)
    found.require(30 * DAY)
    with pytest.raises(
        Stale, match=r"last known to be current on 2026-01-10T12:00:00Z, 30 d ago.*allows 29 d"
    ) as caught:
        found.require(29 * DAY)
    assert caught.value.exit_code == ExitCode.STALE
    assert "refresh" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-10T12:00:00", "2026-01-10T12:00:00+00:00", "2026-01-10T12:00Z", "2026-01-10T12:00:00.0Z", "2026-1-10",
        "20260110T120000Z", "2026-01-10T12:00:60Z", "2026-02-30T12:00:00Z", "2026-01-10T12:00:00z", "", "now", 5, None,
        "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-00:01", "2026-01-10 12:00:00Z", "2026-01-10T12:00:00Z ",
    ],
)  # fmt: skip
def test_nothing_else_is_a_moment(text: object) -> None:
    assert read(text) is None


def test_moments_are_written_in_utc() -> None:
    assert write(NOW) == "2026-01-10T12:00:00Z"
    assert write(NOW.astimezone(timezone(timedelta(hours=5)))) == "2026-01-10T12:00:00Z"
    assert read(write(NOW)) == NOW


@pytest.mark.parametrize("text", [None, 0, "", "2026-01-10", "2026-01-10T12:00:00", "2026-13-10T12:00:00Z", "now"])
def test_what_is_no_moment(text: object) -> None:
    assert read(text) is None


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(0), "0 min"),
        (timedelta(minutes=59, seconds=59), "59 min"),
        (timedelta(hours=3, minutes=5), "3 h 5 min"),
        (2 * DAY, "2 d"),
        (2 * DAY + timedelta(hours=7), "2 d 7 h"),
    ],
)
def test_words(span: timedelta, text: str) -> None:
    assert words(span) == text
