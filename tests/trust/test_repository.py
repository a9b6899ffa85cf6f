"""The publisher: nothing below a threshold, signatures over what is published, and the same bytes again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tests.trust.sources import DAY, NOW, ROOT, SNAPSHOT, STRANGER, TARGETS, TIMESTAMP, key, target, tree

from intaglio.digest import Digest
from intaglio.errors import CorruptContent, MachineError, NotVerifiable, Stale, Untrusted, UsageError
from intaglio.trust import repository as repositories
from intaglio.trust.key import PrivateKey, PublicKey
from intaglio.trust.mirror import FolderMirror
from intaglio.trust.repository import Repository, Signers, key_of
from intaglio.trust.target import Name
from intaglio.trust.tuf import TrustedSource, refresh, set_anchor

VECTORS = Path(__file__).parents[1] / "vectors" / "trust" / "tuf"
ONLINE = {"snapshot": SNAPSHOT, "timestamp": TIMESTAMP}


def public(keys: Iterable[PrivateKey]) -> tuple[PublicKey, ...]:
    return tuple(one.public for one in keys)


def make(folder: Path, now: datetime = NOW) -> Repository:
    signers = {
        "root": Signers(public(ROOT), 2),
        "targets": Signers(public(TARGETS), 2),
        "snapshot": Signers(public([SNAPSHOT])),
        "timestamp": Signers(public([TIMESTAMP])),
    }
    return Repository.create(folder, signers, now)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make(tmp_path / "source")


def sign(repository: Repository) -> Repository:
    for one in (*ROOT[:2], *TARGETS) if repository.waiting() else ():
        try:
            repository.sign(one)
        except Untrusted:  # nothing of this key's is staged
            continue
    return repository


def publish(repository: Repository, now: datetime = NOW) -> Path:
    out = repository.folder.parent / "www"
    sign(repository).publish(out, ONLINE, now)
    return out


def client(repository: Repository, now: datetime = NOW) -> TrustedSource:
    """What a client knows that has followed from the first root."""
    out, home = repository.folder.parent / "www", repository.folder.parent / "home"
    set_anchor(home, (out / "metadata" / "1.root.json").read_bytes())
    return refresh(home, FolderMirror(out), now)


def test_a_client_reads_what_was_published(repository: Repository) -> None:
    repository.add(target(), tree().manifest(), NOW)
    out = publish(repository)
    assert client(repository).targets() == repository.targets() == (target(),)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "metadata/1.root.json",
        "metadata/1.snapshot.json",
        "metadata/1.targets.json",
        "metadata/timestamp.json",
        f"targets/models/acme/base/{tree().digest.hex}.1.0.0",
    ]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in out.rglob("*.json"))
    assert Digest.of((out / f"targets/models/acme/base/{tree().digest.hex}.1.0.0").read_bytes()) == tree().digest
    assert repository.waiting() == ()


def test_the_same_changes_keys_and_times_are_the_same_bytes(repository: Repository) -> None:
    """Golden: what is published must never change for the same input."""
    repository.add(target(), tree().manifest(), NOW)
    rules = tree("rules", "policy.toml")
    repository.add(target("policies/acme/strict@2", rules, origins=()), rules.manifest(), NOW, b"rules")
    repository.yank(Name.parse("models/acme/base@1.0.0"), "weights leaked a password", NOW)
    out = publish(repository)
    found = {path.name: path.read_bytes() for path in (out / "metadata").iterdir()}
    if os.environ.get("REGENERATE_VECTORS"):
        VECTORS.mkdir(parents=True, exist_ok=True)
        for name, data in found.items():
            (VECTORS / name).write_bytes(data)
    assert found == {path.name: path.read_bytes() for path in VECTORS.iterdir()}


def test_nothing_is_published_below_a_threshold(repository: Repository) -> None:
    repository.add(target(), tree().manifest(), NOW)
    out = repository.folder.parent / "www"
    steps = [
        (None, "root 1: 2 more"),
        (ROOT[0], "root 1: 1 more"),
        (ROOT[2], "targets 1: 2 more"),
        (TARGETS[0], "targets 1: 1 more"),
    ]
    for one, says in steps:
        if one is not None:
            repository.sign(one)
        with pytest.raises(Untrusted, match=says):
            repository.publish(out, ONLINE, NOW)
        assert not out.exists()
        assert not any((repository.folder / "metadata").iterdir())
    repository.sign(TARGETS[1])
    assert repository.publish(out, ONLINE, NOW) == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}


def test_signing_twice_with_one_key_counts_once(repository: Repository) -> None:
    for _ in range(3):
        assert repository.sign(ROOT[0]) == ("root",)
    assert [(one.role, one.missing) for one in repository.waiting()] == [("root", 1), ("targets", 2)]


def test_a_key_that_is_none_of_the_signers_signs_nothing(repository: Repository) -> None:
    for one in (STRANGER, SNAPSHOT):
        with pytest.raises(Untrusted, match="signs for nothing that is staged"):
            repository.sign(one)


def test_what_waits_says_what_it_changes(repository: Repository) -> None:
    repository.add(target(), tree().manifest(), NOW)
    root, top = repository.waiting()
    assert (root.role, root.version, root.signed, root.missing, len(root.waiting)) == ("root", 1, (), 2, 3)
    assert "root: 2 of 3 keys must sign" in root.changes
    assert top.changes == (
        "valid until 2026-07-09",
        f"+ models/acme/base@1.0.0 {tree().digest} (Apache-2.0, Acme, active)",
    )
    publish(repository)
    repository.yank(Name.parse("models/acme/base@1.0.0"), "it leaked", NOW)
    (top,) = repository.waiting()
    assert top.changes[1:] == (f"~ models/acme/base@1.0.0 {tree().digest} (yanked: it leaked)",)


def test_a_change_drops_the_signatures(repository: Repository) -> None:
    sign(repository)
    repository.add(target(), tree().manifest(), NOW)
    with pytest.raises(Untrusted, match="targets 1: 2 more"):
        repository.publish(repository.folder.parent / "www", ONLINE, NOW)


def test_what_was_tampered_with_after_signing_is_not_published(repository: Repository) -> None:
    repository.add(target(), tree().manifest(), NOW)
    sign(repository)
    staged = repository.folder / "staged" / "targets.json"
    staged.write_bytes(staged.read_bytes().replace(b"Apache-2.0", b"Apache-1.0"))
    with pytest.raises(Untrusted, match="targets 1: 2 more"):
        repository.publish(repository.folder.parent / "www", ONLINE, NOW)


def test_a_name_and_version_never_becomes_something_else(repository: Repository) -> None:
    repository.add(target(), tree().manifest(), NOW)
    publish(repository)
    other = tree("other")
    with pytest.raises(UsageError, match="a version never becomes something else"):
        repository.add(target(content=other), other.manifest(), NOW)
    repository.add(target(licence="MIT"), tree().manifest(), NOW)  # what is said about it may be corrected
    publish(repository)
    assert client(repository).target("models/acme/base/1.0.0").licence == "MIT"


def test_yank(repository: Repository) -> None:
    repository.add(target(), tree().manifest(), NOW)
    publish(repository)
    name = Name.parse("models/acme/base@1.0.0")
    with pytest.raises(UsageError, match="is not listed"):
        repository.yank(Name.parse("models/acme/base@2.0.0"), "why", NOW)
    with pytest.raises(UsageError, match="one line"):
        repository.yank(name, "two\nlines", NOW)
    repository.yank(name, "it leaked", NOW)
    publish(repository)
    found = client(repository).target(name.path)
    assert (found.status, found.reason, found.digest) == ("yanked", "it leaked", tree().digest)
    with pytest.raises(UsageError, match="was yanked: it leaked"):
        repository.add(target(), tree().manifest(), NOW)


def test_a_policy_is_published_with_its_file_and_is_of_one_file_of_a_fixed_name(repository: Repository) -> None:
    rules = tree("rules", "policy.toml")
    named = target("policies/acme/strict@2", rules, origins=())
    for content, file in ((rules, b"RULES"), (rules, None), (tree("rules", "strict.toml"), b"rules")):
        with pytest.raises(CorruptContent):
            repository.add(target("policies/acme/strict@2", content), content.manifest(), NOW, file)
    repository.add(named, rules.manifest(), NOW, b"rules")
    out = publish(repository)
    assert (out / "blobs" / "sha256" / Digest.of(b"rules").hex).read_bytes() == b"rules"
    (repository.folder / "files" / Digest.of(b"rules").hex).write_bytes(b"rulez")
    with pytest.raises(CorruptContent, match="files/"):
        publish(repository)


def test_the_manifest_must_be_the_targets(repository: Repository) -> None:
    with pytest.raises(CorruptContent, match="expected a manifest with"):
        repository.add(target(), tree("other").manifest(), NOW)
    repository.add(target(), tree().manifest(), NOW)
    path = repository.folder / "manifests" / tree().digest.hex
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CorruptContent, match="expected 491 bytes with"):
        publish(repository)


def test_rotating_root_keys_needs_the_old_and_the_new(repository: Repository) -> None:
    publish(repository)
    new = key(14)
    repository.rotate("root", NOW, add=public([new]), remove=[key_of(ROOT[0].public).keyid[:10]], threshold=None)
    repository.sign(new)
    repository.sign(ROOT[1])
    out = repository.folder.parent / "www"
    with pytest.raises(Untrusted, match="root 2: 1 more"):  # two of the new keys, one of the old
        repository.publish(out, ONLINE, NOW)
    repository.sign(ROOT[2])
    assert repository.publish(out, ONLINE, NOW)["root"] == 2
    assert client(repository).versions()["root"] == 2
    repository.renew("root", NOW)
    with pytest.raises(Untrusted, match="signs for nothing"):
        repository.sign(ROOT[0])


def test_rotating_targets_keys_needs_targets_signed_by_them(repository: Repository) -> None:
    repository.add(target(), tree().manifest(), NOW)
    publish(repository)
    new = key(23)
    old = [key_of(one.public).keyid for one in TARGETS]
    repository.rotate("targets", NOW, add=public([new]), remove=old, threshold=1)
    out = repository.folder.parent / "www"
    sign(repository)
    with pytest.raises(Untrusted, match="not signed by the keys that the new root names"):
        repository.publish(out, ONLINE, NOW)
    repository.renew("targets", NOW)
    repository.sign(new)
    repository.publish(out, ONLINE, NOW)
    assert client(repository).targets() == (target(),)


def test_rotating_an_online_key(repository: Repository) -> None:
    publish(repository)
    client(repository)
    old = key_of(TIMESTAMP.public).keyid
    repository.rotate("timestamp", NOW, add=public([key(42)]), remove=[old], threshold=None)
    sign(repository)
    out = repository.folder.parent / "www"
    with pytest.raises(Untrusted, match="timestamp: the root does not name the key"):
        repository.publish(out, ONLINE, NOW)
    repository.publish(out, {**ONLINE, "timestamp": key(42)}, NOW)
    assert client(repository).versions() == {"root": 2, "timestamp": 2, "snapshot": 2, "targets": 1}


@pytest.mark.parametrize(
    ("add", "remove", "threshold", "says"),
    [
        ([ROOT[0]], [], None, "signs for it already"),
        ([], ["ffffffff"], None, "expected the id of one of its keys"),
        ([], [""], None, "expected the id of one of its keys"),
        ([key(number) for number in range(1000, 1062)], [], None, "expected at most 64 keys, found 65"),
        ([], [], 4, "4 of 3 keys cannot sign"),
        ([], [key_of(one.public).keyid for one in ROOT[:2]], None, "2 of 1 keys cannot sign"),
    ],
)
def test_bad_rotations(
    repository: Repository, add: list[PrivateKey], remove: list[str], threshold: int | None, says: str
) -> None:
    publish(repository)
    with pytest.raises(UsageError, match=says):
        repository.rotate("root", NOW, add=public(add), remove=remove, threshold=threshold)
    assert repository.waiting() == ()


def test_bad_signers(tmp_path: Path) -> None:
    for signers, says in (
        (Signers(public(ROOT), 4), "expected a threshold from 1 to its 3 keys, found 4"),
        (Signers(public(ROOT), 0), "found 0"),
        (Signers(public([ROOT[0], ROOT[0]])), "one key is named twice"),
        (Signers(()), "found 1"),
        (Signers(public(key(number) for number in range(1000, 1065))), "expected at most 64 keys, found 65"),
    ):
        with pytest.raises(UsageError, match=says):
            Repository.create(tmp_path / "source", {"root": signers}, NOW)


def test_renewing_moves_the_expiry_and_nothing_else(repository: Repository) -> None:
    repository.add(target(), tree().manifest(), NOW)
    publish(repository)
    later = NOW + 100 * DAY
    for role in ("root", "targets"):
        repository.renew(role, later)
    assert [one.changes for one in repository.waiting()] == [("valid until 2027-04-20",), ("valid until 2026-10-17",)]
    publish(repository, later)
    found = client(repository, later)
    assert found.versions() == {"root": 2, "timestamp": 2, "snapshot": 2, "targets": 2}
    assert found.expiries()["root"] == later + 365 * DAY


def test_publishing_again_renews_what_is_online(repository: Repository) -> None:
    publish(repository)
    later = NOW + 5 * DAY
    publish(repository, later)
    found = client(repository, later)
    assert found.versions() == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 1}
    assert found.expiries()["timestamp"] == later + 7 * DAY
    assert found.age == timedelta(0)


def test_expired_root_or_targets_are_not_published(repository: Repository) -> None:
    publish(repository)
    with pytest.raises(Stale, match="targets 1 expired"):
        publish(repository, NOW + 200 * DAY)


def test_another_sources_folder_is_left_alone(repository: Repository, tmp_path: Path) -> None:
    out = publish(repository)
    other = make(tmp_path / "other", NOW + DAY)
    sign(other)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds another trusted source"):
        other.publish(out, ONLINE, NOW)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_days_are_settings(repository: Repository) -> None:
    path = repository.folder / "repository.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("timestamp = 7", "timestamp = 1"), encoding="utf-8")
    opened = Repository.open(repository.folder)
    publish(opened)
    assert client(opened).expiries()["timestamp"] == NOW + DAY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 2\n[days]\nroot = 1\ntargets = 1\nsnapshot = 1\ntimestamp = 1\n",
        "version = 1\n[days]\nroot = 1\ntargets = 1\nsnapshot = 1\n",
        "version = 1\n[days]\nroot = 0\ntargets = 1\nsnapshot = 1\ntimestamp = 1\n",
        "version = 1\n[days]\nroot = true\ntargets = 1\nsnapshot = 1\ntimestamp = 1\n",
        "version = 1\ndays = 7\n",
        "version = ",
    ],
)
def test_bad_settings(repository: Repository, text: str) -> None:
    (repository.folder / "repository.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"repository\.toml"):
        Repository.open(repository.folder)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotVerifiable, match=r"no repository\.toml here"):
        Repository.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="expected no such folder, or an empty one"):
        make(tmp_path)


def test_a_crash_while_publishing_leaves_the_old_state_or_the_new(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.add(target(), tree().manifest(), NOW)
    publish(repository)
    put = repositories._put_file
    for number in range(1, 40):
        left = [number]

        def failing(path: Path, data: bytes, left: list[int] = left) -> None:
            if path.exists() and path.read_bytes() == data:
                return
            left[0] -= 1
            if left[0] == 0:
                raise MachineError(f"{path}: the disk is full")
            put(path, data)

        version = f"models/acme/base@2.{number}"
        repository.add(target(version), tree().manifest(), NOW)
        sign(repository)
        repository.renew("root", NOW)
        sign(repository)
        monkeypatch.setattr(repositories, "_put_file", failing)
        try:
            repository.publish(repository.folder.parent / "www", ONLINE, NOW)
            break
        except MachineError:
            pass
        finally:
            monkeypatch.setattr(repositories, "_put_file", put)
        assert client(repository).find(Name.parse(version).path) is None
        opened = Repository.open(repository.folder)
        sign(opened).publish(repository.folder.parent / "www", ONLINE, NOW)
        assert client(repository).find(Name.parse(version).path) is not None
    else:
        raise AssertionError("publishing never went through")
    assert number > 9  # what one publication writes


def test_no_private_key_stands_in_the_folder_or_what_is_published(repository: Repository) -> None:
    repository.add(target(), tree().manifest(), NOW)
    publish(repository)
    for path in repository.folder.parent.rglob("*"):
        assert path.is_dir() or b"PRIVATE" not in path.read_bytes()
