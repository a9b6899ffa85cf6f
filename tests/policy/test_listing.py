"""A trusted source as policies see it."""

from __future__ import annotations

from datetime import timedelta

from intaglio.digest import Digest
from intaglio.policy.listing import Listed, SourceListing
from intaglio.trust.target import Name, Status, Target


def target(version: str, content: bytes, status: Status = "active", reason: str | None = None) -> Target:
    name = Name("models/example/base", version)
    return Target(name, Digest.of(content), 1, "application/json", None, 1, "MIT", "Example", status, reason)


class Source:
    def __init__(self, *targets: Target) -> None:
        self.age = timedelta(hours=3)
        self.walks = 0
        self._targets = targets

    def targets(self) -> tuple[Target, ...]:
        self.walks += 1
        return self._targets


def test_what_binds_is_passed_on() -> None:
    source = Source(target("1", b"one"), target("2", b"two", "yanked", "poisoned"))
    listing = SourceListing(source)
    assert listing.age == timedelta(hours=3)
    assert listing.lookup(Digest.of(b"one")) == Listed("models/example/base@1", "MIT", "Example", "active", None)
    assert listing.lookup(Digest.of(b"two")) == Listed("models/example/base@2", "MIT", "Example", "yanked", "poisoned")
    assert listing.lookup(Digest.of(b"three")) is None
    assert source.walks == 1


def test_content_that_was_yanked_under_one_name_is_yanked() -> None:
    both = (target("1", b"same"), target("2", b"same", "yanked", "poisoned"))
    for order in (both, both[::-1]):
        found = SourceListing(Source(*order)).lookup(Digest.of(b"same"))
        assert found is not None
        assert (found.status, found.reason) == ("yanked", "poisoned")
