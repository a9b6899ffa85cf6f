"""What a trusted source lists, as policies ask for it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

from intaglio.dataclass import dataclass
from intaglio.digest import Digest

if TYPE_CHECKING:
    from intaglio.trust.target import Target


@dataclass(frozen=True, slots=True)
class Listed:
    """One target of a trusted source: what binds about it."""

    name: str
    """With its version, as in ``models/org/name@1.0.0``."""
    licence: str
    """SPDX expression."""
    publisher: str
    status: Literal["active", "yanked"] = "active"
    reason: str | None = None
    """Why it was yanked."""


class Listing(Protocol):
    """A verifier's trusted source, verified from its anchor upwards."""

    @property
    def age(self) -> timedelta:
        """How long ago it is known to have been current."""

    def lookup(self, digest: Digest) -> Listed | None:
        """Return the target that is this content, or nothing where there is none."""


class Source(Protocol):
    """What :class:`intaglio.trust.tuf.TrustedSource` offers of that, in its own words."""

    @property
    def age(self) -> timedelta:
        """How long ago it is known to have been current."""

    def targets(self) -> Iterable[Target]:
        """Return every target, yanked ones too."""


class SourceListing:
    """A trusted source as a listing; content that was yanked under one of its names counts as yanked."""

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def age(self) -> timedelta:
        """How long ago the source is known to have been current."""
        return self._source.age

    def lookup(self, digest: Digest) -> Listed | None:
        """Return the target that is this content, or nothing where there is none."""
        return self._table.get(digest)

    @cached_property
    def _table(self) -> dict[Digest, Listed]:
        table: dict[Digest, Listed] = {}
        for target in self._source.targets():
            if target.digest not in table or target.status == "yanked":
                table[target.digest] = Listed(
                    str(target.name), target.licence, target.publisher, target.status, target.reason
                )
        return table
