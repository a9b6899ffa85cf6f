"""A trusted source as policies see it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from tests.images import Draft, claim, policy_text
from tests.trust import sources
from tests.trust.sources import NOW

from intaglio.dataclass import replace
from intaglio.digest import Digest
from intaglio.policy.document import parse
from intaglio.policy.listing import Listed, SourceListing
from intaglio.trust.statement import Dependency
from intaglio.trust.target import Name, Status, Target
from intaglio.trust.tuf import TrustedSource, refresh, set_anchor
from intaglio.verify import verify_layout


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


# --- a real one -------------------------------------------------------------------------------------------------------


def verified(home: Path, layout: Path, later: timedelta) -> tuple[str, int, set[str]]:
    """Return verdict, exit code and failing rules under what is kept below ``home`` some time later."""
    rules = parse(f'{policy_text()}\n[source]\nrequired = true\n[freshness]\nmax_age = "30d"\n'.encode())
    report = verify_layout(layout, rules, listing=SourceListing(TrustedSource.load(home, NOW + later)))
    return report.verdict, report.exit_code, {rule.rule for rule in report.rules if rule.result == "fail"}


def test_an_image_under_a_real_trusted_source(tmp_path: Path) -> None:
    base, other = sources.tree(), sources.tree("other")
    draft = Draft()
    made_of = [Dependency("input:base", base.digest, "origin"), Dependency("toolchain:x", other.digest, "toolchain")]
    draft.claims = [claim(draft.builder, "convert", draft.tree, made_of)]
    draft.sign().write(tmp_path / "layout")
    layout, home = tmp_path / "layout", tmp_path / "home"
    source = sources.Source().add()
    set_anchor(home, source.anchor)
    refresh(home, sources.MemoryMirror(source.publish()), NOW)
    assert verified(home, layout, timedelta(0)) == ("refused", 23, {"source"})  # the toolchain is not listed
    toolchain = sources.target("toolchains/acme/train@1", other)
    source.add(toolchain, other)
    refresh(home, sources.MemoryMirror(source.publish()), NOW)
    assert verified(home, layout, timedelta(days=30)) == ("verified", 0, set())
    assert verified(home, layout, timedelta(days=31)) == ("stale", 24, {"freshness"})
    source.add(replace(toolchain, status="yanked", reason="its compiler was tampered with"), other)
    refresh(home, sources.MemoryMirror(source.publish()), NOW)
    assert verified(home, layout, timedelta(0)) == ("refused", 23, {"source"})
