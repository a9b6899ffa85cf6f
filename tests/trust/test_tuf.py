"""The client: what it fetches, what it keeps, and that what it keeps is judged anew each time."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.trust import sources
from tests.trust.sources import DAY, NOW, MemoryMirror, Source, target, tree
from tuf.api.metadata import Key

from intaglio.errors import NotVerifiable, SourceUnreachable, Stale, Untrusted, UsageError, VerificationError
from intaglio.trust.mirror import FolderMirror
from intaglio.trust.repository import key_of
from intaglio.trust.tuf import TrustedSource, last_address, refresh, set_anchor


@pytest.fixture
def source() -> Source:
    return Source().add()


@pytest.fixture
def home(source: Source, tmp_path: Path) -> Path:
    set_anchor(tmp_path / "home", source.anchor)
    return tmp_path / "home"


def test_refresh_then_load(source: Source, home: Path) -> None:
    mirror = MemoryMirror(source.publish())
    refresh(home, mirror, NOW)
    found = TrustedSource.load(home, NOW + DAY)
    assert found.versions() == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
    assert found.age == DAY
    assert found.address == last_address(home) == "memory:"
    one = found.target("models/acme/base/1.0.0")
    assert one == target()
    assert found.targets() == found.by_digest(tree().digest) == (one,)
    assert found.find("models/acme/base/2.0.0") is None
    assert found.by_digest(tree("other").digest) == ()
    assert found.signers()["root"] == (2, tuple(key_of(one.public).keyid for one in sources.ROOT))
    assert found.expiries()["timestamp"] == NOW + 7 * DAY


def test_what_has_not_changed_is_not_fetched_again(source: Source, home: Path) -> None:
    source.delegate("team", ["models/team/*/*"], [])
    refresh(home, MemoryMirror(source.publish()), NOW)
    mirror = MemoryMirror(source.now())
    refresh(home, mirror, NOW + DAY)
    assert mirror.asked == ["metadata/2.root.json", "metadata/timestamp.json"]
    assert TrustedSource.load(home, NOW + DAY).age == timedelta(0)  # seen again, and still current


def test_no_anchor_no_verdict(source: Source, tmp_path: Path) -> None:
    mirror = MemoryMirror(source.publish())
    works: tuple[Callable[[], object], ...] = (
        lambda: refresh(tmp_path, mirror, NOW),
        lambda: TrustedSource.load(tmp_path, NOW),
    )
    for work in works:
        with pytest.raises(NotVerifiable, match="there is no anchor") as caught:
            work()
        assert "trust anchor FILE" in (caught.value.hint or "")
    assert mirror.asked == []


def test_nothing_fetched_yet(home: Path) -> None:
    with pytest.raises(NotVerifiable, match="no trusted source has been fetched"):
        TrustedSource.load(home, NOW)


def test_an_anchor_must_sign_itself(source: Source, tmp_path: Path) -> None:
    with pytest.raises(Untrusted, match="expected 2 good signatures, found 1"):
        set_anchor(tmp_path, sources.sign(source.root, sources.ROOT[:1]))
    assert not (tmp_path / "root.json").exists()


def test_an_anchor_is_replaced_only_when_asked(source: Source, home: Path) -> None:
    refresh(home, MemoryMirror(source.publish()), NOW)
    other = Source()
    other.root.expires = NOW + DAY
    data = sources.sign(other.root, sources.ROOT[:2])
    with pytest.raises(UsageError, match="another anchor"):
        set_anchor(home, data)
    assert set_anchor(home, source.anchor).version == 1
    TrustedSource.load(home, NOW)
    set_anchor(home, data, replace=True)
    with pytest.raises(NotVerifiable, match="no trusted source has been fetched"):
        TrustedSource.load(home, NOW)
    assert (home / "root.json").read_bytes() == data


def test_an_anchor_that_is_expired_or_old_still_leads_to_the_newest_root(source: Source, home: Path) -> None:
    for _ in range(5):
        source.next_root()
    found = refresh(home, MemoryMirror(source.publish()), NOW)
    assert found.versions()["root"] == 6
    source.root.expires = NOW + 500 * DAY
    for part in (source.targets, source.snapshot, source.timestamp):
        part.expires = NOW + 500 * DAY
    later = NOW + 400 * DAY
    source.signed_at = later
    assert refresh(home, MemoryMirror(source.next_root().publish()), later).versions()["root"] == 7


def test_offline_the_age_is_judged_and_not_the_expiry(source: Source, home: Path) -> None:
    refresh(home, MemoryMirror(source.publish()), NOW + DAY)
    found = TrustedSource.load(home, NOW + 100 * DAY)
    assert found.freshness.expired
    assert found.age == 99 * DAY
    with pytest.raises(Stale, match="the policy allows 30 d"):
        found.freshness.require(30 * DAY)
    found.freshness.require(99 * DAY)


def test_what_was_expired_when_it_was_last_current_is_refused_offline_too(source: Source, home: Path) -> None:
    refresh(home, MemoryMirror(source.publish()), NOW)
    source.targets.expires = NOW - DAY
    files = source.publish()
    for name in ("2.targets.json", "2.snapshot.json"):
        (home / "tuf" / name).write_bytes(files[f"metadata/{name}"])
    (home / "tuf" / "2.timestamp.json").write_bytes(files["metadata/timestamp.json"])
    (home / "tuf" / "state.json").write_text(
        '{"address":"","root":1,"seen":"2026-01-10T12:00:00Z","timestamp":2}', encoding="utf-8"
    )
    with pytest.raises(Stale, match="targets 2 expired"):
        TrustedSource.load(home, NOW)


def test_without_a_signed_time_what_was_seen_counts(source: Source, home: Path) -> None:
    source.signed_at = None
    refresh(home, MemoryMirror(source.publish()), NOW)
    assert TrustedSource.load(home, NOW + DAY).age == DAY


def test_a_refused_refresh_leaves_what_was_known(source: Source, home: Path) -> None:
    refresh(home, MemoryMirror(source.publish()), NOW)
    files = source.publish()
    del files["metadata/2.targets.json"]
    with pytest.raises(SourceUnreachable):
        refresh(home, MemoryMirror(files), NOW + DAY)
    found = TrustedSource.load(home, NOW + DAY)
    assert (found.versions()["targets"], found.age) == (1, DAY)


def test_a_new_root_counts_at_once(source: Source, home: Path) -> None:
    """A revoked key stays revoked, although the rest could not be fetched."""
    refresh(home, MemoryMirror(source.publish()), NOW)
    source.root.revoke_key(key_of(sources.TIMESTAMP.public).keyid, "timestamp")
    source.root.add_key(key_of(sources.key(42).public), "timestamp")
    files = source.next_root().now()
    del files["metadata/timestamp.json"]
    with pytest.raises(SourceUnreachable):
        refresh(home, MemoryMirror(files), NOW)
    with pytest.raises(Untrusted, match="timestamp: expected 1 good signatures, found 0"):
        TrustedSource.load(home, NOW)


def test_files_that_nobody_names_are_removed_when_no_reader_can_be_at_them(source: Source, home: Path) -> None:
    refresh(home, MemoryMirror(source.publish()), NOW)
    refresh(home, MemoryMirror(source.publish()), NOW)
    assert (home / "tuf" / "1.targets.json").exists()
    old = time.time() - 7200
    for path in (home / "tuf").iterdir():
        os.utime(path, (old, old))
    refresh(home, MemoryMirror(source.publish()), NOW)
    names = {path.name for path in (home / "tuf").iterdir()}
    assert names == {"3.targets.json", "3.snapshot.json", "3.timestamp.json", "state.json"}


def test_a_read_only_home_is_enough_to_load(source: Source, home: Path) -> None:
    refresh(home, MemoryMirror(source.publish()), NOW)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    for path in home.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert TrustedSource.load(home, NOW).targets()
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
    assert stat.S_IMODE((home / "tuf").stat().st_mode) == 0o555


def test_delegations_are_searched_in_order(source: Source, home: Path) -> None:
    mine, theirs = tree("mine"), tree("theirs")
    source.delegate("first", ["models/*/*/*"], [target("models/team/own@1", mine)])
    source.delegate("second", ["models/*/*/*"], [target("models/team/own@1", theirs), target("models/team/more@1")])
    found = refresh(home, MemoryMirror(source.publish()), NOW)
    assert found.target("models/team/own/1").digest == mine.digest
    assert found.target("models/team/more/1").digest == tree().digest
    assert found.by_digest(theirs.digest) == ()


def test_hash_bins(source: Source, home: Path) -> None:
    from tuf.api.metadata import Delegations, SuccinctRoles, Targets

    public = key_of(sources.TEAM.public)
    bins = SuccinctRoles([public.keyid], 1, 3, "bin")
    source.targets.delegations = Delegations({public.keyid: public}, succinct_roles=bins)
    entries = [target(f"models/acme/m{number}@1", tree(str(number))) for number in range(20)]
    for name in bins.get_roles():
        role = Targets(version=1, expires=NOW + DAY)
        role.targets = {one.path: sources.listing(one) for one in entries if bins.get_role_for_target(one.path) == name}
        source.roles[name] = (role, (sources.TEAM,))
    found = refresh(home, MemoryMirror(source.publish()), NOW)
    assert [one.path for one in found.targets()] == sorted(["models/acme/base/1.0.0", *(one.path for one in entries)])


def test_a_search_looks_into_few_roles(source: Source, home: Path) -> None:
    for number in range(40):
        source.delegate(f"r{number:02}", ["models/*/*/*"], [target("models/team/deep@1")] if number == 39 else [])
    found = refresh(home, MemoryMirror(source.publish()), NOW)
    assert found.find("models/team/deep/1") is None


def test_ed25519_keys_count_too(tmp_path: Path) -> None:
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata, Root

    signer = CryptoSigner.generate_ed25519()
    public: Key = signer.public_key
    root = Root(expires=NOW + DAY)
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.add_key(public, role)
    metadata = Metadata(root)
    metadata.sign(signer)
    assert set_anchor(tmp_path, metadata.to_bytes()).version == 1


def _refresh(home: Path, folder: Path) -> None:
    refresh(home, FolderMirror(folder), NOW)


def test_readers_and_writers_at_once(source: Source, home: Path, tmp_path: Path) -> None:
    """While processes refresh to a later state and back to it, a reader finds one state or the other."""
    old, new = tmp_path / "old", tmp_path / "new"
    sources.write(source.publish(), old)
    _refresh(home, old)
    source.add(target("models/acme/base@2.0.0"))
    sources.write(source.publish(), new)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        writers = [pool.apply_async(_refresh, (home, new)) for _ in range(6)]
        seen = set()
        while not all(writer.ready() for writer in writers):
            found = TrustedSource.load(home, NOW)
            assert len(found.targets()) == found.versions()["targets"]
            seen.add(found.versions()["targets"])
        for writer in writers:
            writer.get()
    assert seen <= {1, 2}
    assert TrustedSource.load(home, NOW).versions()["targets"] == 2


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Source().add().delegate("team", ["models/team/*/*"], [target("models/team/own@1")]).next_root()
    home = tmp_path_factory.mktemp("home")
    set_anchor(home, source.anchor)
    refresh(home, MemoryMirror(source.publish()), NOW)
    return home


FILES = ["../root.json", "2.root.json", "1.timestamp.json", "1.snapshot.json", "1.targets.json", "1.team.json"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([*FILES, "state.json"]),
    place=st.floats(0, 1, exclude_max=True),
    replacement=st.binary(max_size=6),
    cut=st.integers(0, 6),
)
def test_any_change_of_what_is_kept_is_refused_or_changes_nothing(
    refreshed: Path, name: str, place: float, replacement: bytes, cut: int
) -> None:
    path = refreshed / "tuf" / name
    good = path.read_bytes()
    expected = TrustedSource.load(refreshed, NOW).targets()
    at = int(place * len(good))
    try:
        path.write_bytes(good[:at] + replacement + good[at + cut :])
        try:
            found = TrustedSource.load(refreshed, NOW).targets()
        except VerificationError:
            return
        assert found == expected
    finally:
        path.write_bytes(good)
