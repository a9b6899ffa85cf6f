"""Freshness: as of when the trusted source is known to be what it says, and how long ago that is.

- What was seen online, unexpired, was current then; what a timestamp says about its own signing was current when it
  was signed. The later of the two counts: it is the moment as of which the metadata is known to be current.
- A clock that was set back makes nothing fresher than it was: the latest moment known is the earliest that *now* can
  be.
- A moment at or past the metadata's own expiry is no evidence: it could not have been seen valid then.

(TUF specification 1.0, section 5.1, "fixed update start time"; offline use is ours: docs/trust.md.)
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from intaglio.dataclass import dataclass
from intaglio.errors import Stale

FORM = "%Y-%m-%dT%H:%M:%SZ"
"""How moments are written: whole seconds, UTC (TUF specification 1.0, section 4.2)."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """What is known about the age of trusted metadata."""

    now: datetime
    """The reference time: the clock's, or the latest moment known where the clock is behind it."""
    as_of: datetime
    """When the metadata is known to have been current."""
    expires: datetime
    """When the timestamp expires."""

    @property
    def age(self) -> timedelta:
        """How long ago the metadata is known to have been current; never negative."""
        return self.now - self.as_of

    @property
    def expired(self) -> bool:
        """Whether the timestamp is past its date: then only the age can be judged."""
        return self.now >= self.expires

    def require(self, bound: timedelta) -> None:
        """Check that the age is at most ``bound``.

        Raises:
            Stale: it is more.
        """
        if self.age > bound:
            raise Stale(
                f"the trusted source was last known to be current on {write(self.as_of)}, {words(self.age)} ago; "
                f"the policy allows {words(bound)}",
                hint="intaglio trust refresh   (or import a newer kit)",
            )


def judge(*, clock: datetime, signed: datetime | None, seen: datetime | None, expires: datetime) -> Freshness:
    """Return how fresh metadata is.

    Args:
        clock: the time here.
        signed: when its timestamp says that it was signed.
        seen: when it was last seen online.
        expires: when its timestamp expires.

    Raises:
        Stale: neither moment is known.
    """
    moments = [moment for moment in (signed, seen) if moment is not None and moment < expires]
    if not moments:
        raise Stale("nothing says when the trusted source was current", hint="intaglio trust refresh")
    as_of = max(moments)
    return Freshness(now=max(clock, as_of), as_of=as_of, expires=expires)


def write(moment: datetime) -> str:
    """Return ``moment`` as text, in UTC."""
    return moment.astimezone(UTC).strftime(FORM)


def read(text: object) -> datetime | None:
    """Return the moment that :func:`write` writes as ``text``; nothing if it is none."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)  # strptime brings calendars and locales along
        return moment if moment.tzinfo is not None and write(moment) == text else None
    except (ValueError, OverflowError):
        return None


def words(span: timedelta) -> str:
    """Return ``span`` for people, in its two largest units."""
    minutes = int(span.total_seconds()) // 60
    days, hours, rest = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    return f"{hours} h {rest} min" if hours else f"{rest} min"
