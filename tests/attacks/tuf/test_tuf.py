"""Every case of the corpus gets the answer that is due, and nothing of the attacker's becomes visible."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from tests.attacks.tuf.cases import CASES, Case
from tests.trust import sources
from tests.trust.sources import DAY, NOW, MemoryMirror, Source, target, tree

from intaglio.content.layout import Store
from intaglio.errors import (
    CorruptContent,
    Error,
    ExitCode,
    PolicyRefusal,
    SourceUnreachable,
    Untrusted,
    VerificationError,
)
from intaglio.recipe.sources.http import Network
from intaglio.recipe.sources.mirror import WebMirror
from intaglio.trust.mirror import fetch_manifest
from intaglio.trust.repository import key_of
from intaglio.trust.tuf import TrustedSource, refresh, set_anchor


def kept(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (home / "tuf").iterdir()}


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attack(case: Case, tmp_path: Path) -> None:
    attack = case.build()
    set_anchor(tmp_path, attack.anchor)
    for state in attack.states[:-1]:
        before = refresh(tmp_path, MemoryMirror(state), NOW).versions()
    with pytest.raises(Error) as caught:
        refresh(tmp_path, MemoryMirror(attack.states[-1]), NOW)
    assert case.says in caught.value.message
    assert caught.value.exit_code == case.exit_code
    if case.name in ("signed_by_a_revoked_key", "expired_root"):
        with pytest.raises((Untrusted, VerificationError)):  # the new root is good, and counts at once
            TrustedSource.load(tmp_path, NOW)
    else:
        after = TrustedSource.load(tmp_path, NOW)
        assert after.versions() == {**before, "root": after.versions()["root"]}
        assert [str(one.name) for one in after.targets()] == ["models/acme/base@1.0.0"]


def test_a_delegated_role_says_nothing_outside_its_paths(tmp_path: Path) -> None:
    evil = tree("evil")
    names = ("models/team/own@1", "models/acme/base@1.0.0", "models/acme/new@1", "models/team/own/deep@1")
    entries = [target(name, evil) for name in names[:3]]
    source = Source().add().delegate("team", ["models/team/*/*"], entries)
    set_anchor(tmp_path, source.anchor)
    found = refresh(tmp_path, MemoryMirror(source.publish()), NOW)
    assert found.target("models/team/own/1").digest == evil.digest
    assert found.target("models/acme/base/1.0.0").digest == tree().digest
    assert found.find("models/acme/new/1") is None
    with pytest.raises(PolicyRefusal, match="does not list it"):
        found.target("models/acme/new/1")
    assert [str(one.name) for one in found.targets()] == ["models/acme/base@1.0.0", "models/team/own@1"]
    assert [str(one.name) for one in found.by_digest(evil.digest)] == ["models/team/own@1"]


def test_a_fast_forwarded_snapshot_is_recovered_by_rotating_the_keys(tmp_path: Path) -> None:
    source = Source().add()
    set_anchor(tmp_path, source.anchor)
    honest = (source.snapshot.version, source.timestamp.version)
    source.snapshot.version = source.timestamp.version = 2**31  # somebody stole the online keys
    refresh(tmp_path, MemoryMirror(source.publish()), NOW)
    source.snapshot.version, source.timestamp.version = honest
    source.targets.version = 1
    stolen = source.publish()
    with pytest.raises(Untrusted, match="rolled back"):
        refresh(tmp_path, MemoryMirror(stolen), NOW)
    for role, number in (("snapshot", 32), ("timestamp", 42)):
        old = source.signers[role][0]
        source.signers[role] = (sources.key(number),)
        source.root.revoke_key(key_of(old.public).keyid, role)
        source.root.add_key(key_of(sources.key(number).public), role)
    found = refresh(tmp_path, MemoryMirror(source.next_root().publish()), NOW)
    assert found.versions() == {"root": 2, "timestamp": 2, "snapshot": 2, "targets": 3}


def test_rotating_one_online_key_is_enough_to_recover(tmp_path: Path) -> None:
    source = Source().add()
    set_anchor(tmp_path, source.anchor)
    source.snapshot.version = 2**31
    refresh(tmp_path, MemoryMirror(source.publish()), NOW)
    source.snapshot.version = 1
    source.root.revoke_key(key_of(sources.SNAPSHOT.public).keyid, "snapshot")
    source.root.add_key(key_of(sources.key(32).public), "snapshot")
    source.signers["snapshot"] = (sources.key(32),)
    found = refresh(tmp_path, MemoryMirror(source.next_root().publish()), NOW)
    assert found.versions()["snapshot"] == 2


def flipped(data: bytes) -> bytes:
    place = data.index(b'"version":') + 10
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


POISONS: list[Callable[[bytes], bytes]] = [
    flipped,
    lambda data: data[:-1],
    lambda data: b"",
    lambda data: b"\0" * 6_000_000,
]


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize(
    "name", ["2.root.json", "1.timestamp.json", "1.snapshot.json", "1.targets.json", "1.team.json"]
)
def test_poisoned_files_on_disk_are_refused_and_healed(
    name: str, poison: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    source = Source().add().delegate("team", ["models/team/*/*"], [target("models/team/own@1")]).next_root()
    set_anchor(tmp_path, source.anchor)
    mirror = MemoryMirror(source.publish())
    refresh(tmp_path, mirror, NOW)
    before = kept(tmp_path)
    path = tmp_path / "tuf" / name
    path.write_bytes(poison(path.read_bytes()))
    with pytest.raises(VerificationError) as caught:
        TrustedSource.load(tmp_path, NOW).targets()
    assert caught.value.exit_code in (ExitCode.CORRUPT, ExitCode.UNTRUSTED)
    refresh(tmp_path, mirror, NOW)
    assert kept(tmp_path) == before


def test_a_poisoned_state_cannot_bring_an_older_version_back_online(tmp_path: Path) -> None:
    source = Source().add()
    set_anchor(tmp_path, source.anchor)
    old = source.publish()
    refresh(tmp_path, MemoryMirror(old), NOW)
    new = source.publish()
    refresh(tmp_path, MemoryMirror(new), NOW)
    (tmp_path / "tuf" / "state.json").write_bytes(b"{}")
    with pytest.raises(VerificationError):
        TrustedSource.load(tmp_path, NOW)
    assert refresh(tmp_path, MemoryMirror(new), NOW).versions()["targets"] == 2


def test_an_anchor_of_another_publisher_makes_nothing_that_is_kept_trusted(tmp_path: Path) -> None:
    source = Source().add()
    set_anchor(tmp_path, source.anchor)
    refresh(tmp_path, MemoryMirror(source.publish()), NOW)
    other = Source()
    other.root.expires = NOW + 30 * DAY
    (tmp_path / "root.json").write_bytes(sources.sign(other.root, [sources.STRANGER]))
    with pytest.raises(Untrusted, match="root 1: expected 2 good signatures, found 0"):
        TrustedSource.load(tmp_path, NOW)


def test_a_clock_set_forward_or_back(tmp_path: Path) -> None:
    source = Source().add()
    set_anchor(tmp_path, source.anchor)
    mirror = MemoryMirror(source.publish())
    with pytest.raises(VerificationError, match=r"root 1 expired.*the time is taken to be 2036"):
        refresh(tmp_path, mirror, NOW.replace(year=2036))
    assert not (tmp_path / "tuf" / "state.json").exists()  # the wrong time is not remembered
    refresh(tmp_path, mirror, NOW)
    back = TrustedSource.load(tmp_path, NOW - 365 * DAY)
    assert back.freshness.now == NOW
    assert back.age == timedelta(0)
    source.timestamp.expires = NOW - timedelta(hours=1)
    source.signed_at = NOW - DAY
    with pytest.raises(VerificationError, match="timestamp 2 expired"):
        refresh(tmp_path, MemoryMirror(source.publish()), NOW - 365 * DAY)


def test_a_manifest_that_is_not_the_target(tmp_path: Path) -> None:
    source = Source().add()
    set_anchor(tmp_path, source.anchor)
    files = source.publish()
    one = refresh(tmp_path, MemoryMirror(files), NOW).target("models/acme/base/1.0.0")
    store = Store.open(tmp_path / "store")
    path = f"targets/models/acme/base/{one.digest.hex}.1.0.0"
    for bad in (files[path][:-1], files[path][:-1] + b" ", files[path] + b" "):
        with pytest.raises(CorruptContent, match=f"expected {one.size} bytes with {one.digest}"):
            fetch_manifest(one, MemoryMirror({path: bad}), store)
        assert not store.has(one.digest)
    with pytest.raises(SourceUnreachable, match="has no targets/"):
        fetch_manifest(one, MemoryMirror({}), store)
    assert fetch_manifest(one, MemoryMirror(files), store) == tree().manifest()
    assert store.tree(one.digest) == tree()


@contextmanager
def socket_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that says what it likes, to each that connects."""
    listener = socket.create_server(("127.0.0.1", 0))
    closing = threading.Event()

    def serve() -> None:
        while not closing.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(65536)
                    answer(connection)
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        closing.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{")
    for _ in range(10_000):
        connection.sendall(b" " * 65536)


def slow(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 16000\r\n\r\n")
    for _ in range(40):
        connection.sendall(b" ")
        threading.Event().wait(0.05)


@pytest.mark.parametrize(("answer", "says"), [(endless, "at most 512000 bytes"), (slow, "2 tries")])
def test_endless_and_slow_metadata(answer: Callable[[socket.socket], None], says: str, tmp_path: Path) -> None:
    set_anchor(tmp_path, Source().anchor)
    network = Network(timeout=0.5, slowest=4096, attempts=2, backoff=0.01)
    with socket_server(answer) as url, pytest.raises(SourceUnreachable, match=says):
        refresh(tmp_path, WebMirror(url, network), NOW)
    assert [path.name for path in (tmp_path / "tuf").iterdir()] == []
