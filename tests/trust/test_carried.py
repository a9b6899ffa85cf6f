"""A trusted source that travels in a folder: judged under this side's anchor, and no older than what it knows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.trust import sources
from tests.trust.sources import DAY, NOW, STRANGER, Files, MemoryMirror, Source, target, tree

from intaglio.content.tree import File, Tree
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable, PolicyRefusal, Stale, Untrusted
from intaglio.trust import carried
from intaglio.trust.kept import Kept
from intaglio.trust.repository import key_of
from intaglio.trust.target import Name
from intaglio.trust.tuf import TrustedSource, last_address, refresh, set_anchor

POLICY = b'version = 1\nname = "carried"\n'
NAME = "policies/acme/release@1"


@pytest.fixture
def source() -> Source:
    return Source().add()


@pytest.fixture
def home(source: Source, tmp_path: Path) -> Path:
    set_anchor(tmp_path / "home", source.anchor)
    return tmp_path / "home"


@pytest.fixture
def pack(tmp_path: Path) -> Callable[[Files], Path]:
    """Writes what is published into a folder of its own."""
    count = iter(range(100))
    return lambda files: sources.write(files, tmp_path / f"kit-{next(count)}")


Pack = Callable[[Files], Path]


def with_policy(source: Source, data: bytes = POLICY) -> Source:
    content = Tree.of([File("policy.toml", Digest.of(data), len(data))])
    source.add(target(NAME, content), content)
    source.files[f"blobs/sha256/{Digest.of(data).hex}"] = data
    return source


def kept(home: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


def test_judging_writes_nothing(source: Source, home: Path, pack: Pack) -> None:
    before = kept(home)
    found = carried.judge(pack(with_policy(source).publish()), home, NOW + DAY)
    assert found.versions() == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
    assert found.target("models/acme/base/1.0.0").digest == tree().digest
    assert found.file(Name.parse(NAME)) == POLICY
    assert kept(home) == before
    with pytest.raises(NotVerifiable, match="no trusted source has been fetched"):
        TrustedSource.load(home, NOW)


def test_without_an_anchor_there_is_no_verdict(source: Source, tmp_path: Path, pack: Pack) -> None:
    folder = pack(source.publish())
    for work in (carried.judge, carried.take):
        with pytest.raises(NotVerifiable, match="there is no anchor"):
            work(folder, tmp_path / "nobody", NOW)
    assert not (tmp_path / "nobody").exists()


def test_the_roots_in_the_folder_count_for_nothing(home: Path, pack: Pack) -> None:
    """A source signed by other keys, whole in itself, its own first root in the folder."""
    other = Source()
    other.root.keys.clear()
    theirs = {role: (sources.key(900 + number),) for number, role in enumerate(other.signers)}
    for role in other.root.roles:
        other.root.roles[role].keyids.clear()
        other.root.roles[role].threshold = 1
        other.root.add_key(key_of(theirs[role][0].public), role)
    other.signers.update(theirs)
    other.files = {"metadata/1.root.json": sources.sign(other.root, theirs["root"])}
    folder = pack(other.add().publish())
    with pytest.raises(Untrusted, match="timestamp"):
        carried.judge(folder, home, NOW)
    own = home.parent / "theirs"
    set_anchor(own, other.anchor)
    assert carried.judge(folder, own, NOW).versions()["root"] == 1  # it would do, under its own root


def test_another_anchor_can_be_named_and_forgets_what_was_seen(source: Source, home: Path, pack: Pack) -> None:
    refresh(home, MemoryMirror(source.publish()), NOW)
    old = pack(source.now())
    source.take_snapshot()
    refresh(home, MemoryMirror(source.now()), NOW)
    with pytest.raises(Untrusted, match="rolled back"):
        carried.judge(old, home, NOW)
    with pytest.raises(Untrusted, match="rolled back"):
        carried.judge(old, home, NOW, anchor=source.anchor)
    again = sources.sign(source.root, sources.ROOT[1:])  # other bytes: another anchor
    assert carried.judge(old, home, NOW, anchor=again).versions()["timestamp"] == 1


def test_a_rotated_root_is_followed(source: Source, home: Path, pack: Pack) -> None:
    source.publish()
    source.root.revoke_key(key_of(sources.TIMESTAMP.public).keyid, "timestamp")
    source.root.add_key(key_of(sources.TEAM.public), "timestamp")
    source.signers["timestamp"] = (sources.TEAM,)
    source.next_root()
    found = carried.judge(pack(source.publish()), home, NOW)
    assert found.versions()["root"] == 2


def test_what_is_kept_advances_by_taking(source: Source, home: Path, pack: Pack) -> None:
    refresh(home, MemoryMirror(source.publish()), NOW)
    source.signed_at = NOW + 3 * DAY
    carried.take(pack(with_policy(source).publish()), home, NOW + 4 * DAY)
    found = TrustedSource.load(home, NOW + 5 * DAY)
    assert found.versions()["timestamp"] == 2
    assert found.file(Name.parse(NAME)) == POLICY
    assert found.age == 2 * DAY, "as of when the kit's timestamp was signed"
    assert last_address(home) == "memory:", "where it was fetched is where it can be refreshed"


def test_a_first_kit_leaves_no_address(source: Source, home: Path, pack: Pack) -> None:
    carried.take(pack(source.publish()), home, NOW)
    assert last_address(home) is None


@pytest.mark.parametrize(("signed", "seen", "age"), [(2, 1, 3), (1, 2, 3), (None, 2, 3)])
def test_freshness_is_the_later_of_seen_and_signed(
    source: Source, home: Path, pack: Pack, signed: int | None, seen: int, age: int
) -> None:
    refresh(home, MemoryMirror(source.publish()), NOW + seen * DAY)
    source.signed_at = None if signed is None else NOW + signed * DAY
    found = carried.judge(pack(source.publish()), home, NOW + 5 * DAY)
    assert found.age == age * DAY


def test_carrying_is_not_seeing(source: Source, home: Path, pack: Pack) -> None:
    """A kit that arrives late is as old as it is, whoever brings it."""
    found = carried.judge(pack(source.publish()), home, NOW + 30 * DAY)
    assert (found.age, found.freshness.expired) == (30 * DAY, True)
    carried.take(pack(source.publish()), home, NOW + 30 * DAY)
    assert TrustedSource.load(home, NOW + 30 * DAY).age == 30 * DAY


def test_what_was_never_current_is_stale(source: Source, home: Path, pack: Pack) -> None:
    source.signed_at = None
    with pytest.raises(Stale, match="nothing says when"):
        carried.judge(pack(source.publish()), home, NOW)


def test_targets_that_had_expired_when_the_timestamp_was_signed_are_stale(
    source: Source, home: Path, pack: Pack
) -> None:
    source.targets.expires = NOW - DAY
    with pytest.raises(Stale, match="targets 1 expired"):
        carried.judge(pack(source.publish()), home, NOW)


@pytest.mark.parametrize("part", ["timestamp", "snapshot", "targets"])
def test_a_rolled_back_part_is_refused(source: Source, home: Path, pack: Pack, part: str) -> None:
    source.publish()
    refresh(home, MemoryMirror(source.publish()), NOW)
    if part == "timestamp":
        source.timestamp.version = 0
        files = source.stamp()
    elif part == "snapshot":
        source.snapshot.version = 0
        files = source.take_snapshot()
    else:
        source.targets.version = 0
        files = source.publish()
    before = kept(home)
    for work in (carried.judge, carried.take):
        with pytest.raises(Untrusted, match="rolled back"):
            work(pack(files), home, NOW)
    assert {name: data for name, data in kept(home).items() if name in before} == before
    assert TrustedSource.load(home, NOW).versions()["timestamp"] == 2


def test_parts_of_two_states_do_not_fit(source: Source, home: Path, pack: Pack) -> None:
    old = source.publish()
    source.targets.targets.clear()
    new = source.publish()
    mixed = {**new, "metadata/2.targets.json": old["metadata/1.targets.json"]}
    with pytest.raises(CorruptContent, match="not the file that was promised"):
        carried.judge(pack(mixed), home, NOW)
    source.hashes = False
    old, source.targets.version = source.publish(), source.targets.version
    new = source.publish()
    number = source.targets.version
    mixed = {**new, f"metadata/{number}.targets.json": old[f"metadata/{number - 1}.targets.json"]}
    with pytest.raises(Untrusted, match="as the snapshot says"):
        carried.judge(pack(mixed), home, NOW)


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_missing_metadata_is_damage(source: Source, home: Path, pack: Pack, name: str) -> None:
    folder = pack(source.publish())
    (folder / "metadata" / name).unlink()
    with pytest.raises(CorruptContent, match=rf"metadata/{name}: missing"):
        carried.judge(folder, home, NOW)


def test_a_stranger_cannot_sign_a_timestamp(source: Source, home: Path, pack: Pack) -> None:
    source.publish()
    source.signers["timestamp"] = (STRANGER,)
    with pytest.raises(Untrusted):
        carried.judge(pack(source.stamp()), home, NOW)


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "large"])
def test_only_regular_files_of_a_fair_size_are_read(source: Source, home: Path, pack: Pack, kind: str) -> None:
    folder = pack(source.publish())
    place = folder / "metadata" / "timestamp.json"
    data = place.read_bytes()
    place.unlink()
    if kind == "link":
        (folder / "elsewhere").write_bytes(data)
        place.symlink_to(folder / "elsewhere")
    elif kind == "folder":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.write_bytes(data + b" " * 20_000)
    with pytest.raises((CorruptContent, NotVerifiable)):
        carried.judge(folder, home, NOW)


def test_a_policy_that_is_not_what_was_signed_is_refused(source: Source, home: Path, pack: Pack) -> None:
    folder = pack(with_policy(source).publish())
    (folder / "blobs" / "sha256" / Digest.of(POLICY).hex).write_bytes(POLICY.replace(b"carried", b"carries"))
    with pytest.raises(CorruptContent, match="policy"):
        carried.judge(folder, home, NOW)


def test_a_policy_that_stayed_behind_is_said_when_it_is_asked_for(source: Source, home: Path, pack: Pack) -> None:
    files = with_policy(source).publish()
    folder = pack({path: data for path, data in files.items() if not path.startswith("blobs/")})
    found = carried.judge(folder, home, NOW)
    with pytest.raises(NotVerifiable, match="is listed, and is not here"):
        found.file(Name.parse(NAME))


def test_a_policy_beside_the_source_is_none(source: Source, home: Path, pack: Pack) -> None:
    """Manifest and file are there, in their places, and no signed metadata lists them."""
    plain = source.publish()
    extra = {path: data for path, data in with_policy(Source()).files.items() if not path.startswith("metadata/")}
    found = carried.judge(pack({**plain, **extra}), home, NOW)
    with pytest.raises(PolicyRefusal, match="does not list it"):
        found.file(Name.parse(NAME))


def test_what_is_packed_is_what_was_published(source: Source, home: Path, pack: Pack) -> None:
    source.delegate("team", ["models/team/*/*"], [target("models/team/other@1", tree("other"))])
    source.publish()
    source.next_root()
    published = with_policy(source).publish()
    refresh(home, MemoryMirror(published), NOW)
    packed = carried.files(home, NOW, {tree().digest}, lambda digest: {tree().digest: tree().manifest()}.get(digest))
    assert {path: published[path] for path in packed} == packed
    current = {"1.root", "2.root", "timestamp", "2.snapshot", "2.targets", "1.team"}
    assert {path for path in packed if path.startswith("metadata/")} == {f"metadata/{one}.json" for one in current}
    assert {path.split("/")[1] for path in packed if path.startswith("targets/")} == {"models", "policies"}
    assert f"blobs/sha256/{Digest.of(POLICY).hex}" in packed
    other = home.parent / "other"
    set_anchor(other, source.anchor)
    found = carried.judge(pack(packed), other, NOW)
    assert [one.path for one in found.targets()] == [
        "models/acme/base/1.0.0",
        "models/team/other/1",
        "policies/acme/release/1",
    ]


def test_nothing_is_packed_where_there_is_no_source(home: Path, tmp_path: Path) -> None:
    assert carried.files(home, NOW, (), lambda digest: None) == {}
    assert carried.files(tmp_path, NOW, (), lambda digest: None) == {}


def test_what_is_damaged_is_not_packed(source: Source, home: Path) -> None:
    refresh(home, MemoryMirror(source.publish()), NOW)
    place = Kept(home).folder / "1.targets.json"
    place.write_bytes(place.read_bytes().replace(b"Apache", b"apache"))
    with pytest.raises(CorruptContent):
        carried.files(home, NOW, (), lambda digest: None)


def test_a_folder_brings_metadata_or_none(source: Source, pack: Pack, tmp_path: Path) -> None:
    assert carried.present(pack(source.publish()))
    assert not carried.present(tmp_path)
    (tmp_path / "metadata").mkdir()
    assert not carried.present(tmp_path)
    (tmp_path / "metadata").rmdir()
    (tmp_path / "metadata").write_text("x")
    with pytest.raises(CorruptContent, match="expected a folder"):
        carried.present(tmp_path)
