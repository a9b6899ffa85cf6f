"""The index: a cache of the blobs that can be thrown away."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from intaglio.content.index import Index
from intaglio.digest import ActionKey, Digest
from intaglio.errors import MachineError

SUBJECT, OTHER = Digest.of(b"subject"), Digest.of(b"other")
KEY = ActionKey(str(Digest.of(b"action")))
KEYS = [ActionKey(str(Digest.of(str(n).encode()))) for n in range(3)]


def manifest(n: int) -> Digest:
    return Digest.of(f"manifest {n}".encode())


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(tmp_path / "index.sqlite")
    yield made
    made.close()


def test_referrers_and_claims(index: Index) -> None:
    assert index.fresh
    index.add_referrer(SUBJECT, manifest(1), None)
    index.add_referrer(SUBJECT, manifest(2), KEY)
    index.add_referrer(OTHER, manifest(3), KEY)
    index.add_referrer(SUBJECT, manifest(2), KEY)
    assert index.referrers(SUBJECT) == tuple(sorted([manifest(1), manifest(2)]))
    assert index.claims(KEY) == tuple(sorted([manifest(2), manifest(3)]))
    assert index.referrers(Digest.of(b"nobody")) == index.claims(KEYS[0]) == ()
    index.forget_referrers()
    assert index.referrers(SUBJECT) == index.claims(KEY) == ()


def test_history_is_newest_first_without_repeats(index: Index) -> None:
    for key in (KEYS[0], KEYS[0], KEYS[1], KEYS[0]):
        index.record("recipe", "step", key)
    assert index.history("recipe", "step") == (KEYS[0], KEYS[1], KEYS[0])
    assert index.history("recipe", "other") == index.history("other", "step") == ()


def test_stamps(index: Index) -> None:
    assert index.stamp("/a") is None
    index.set_stamp("/a", "1 2 3", SUBJECT)
    assert index.stamp("/a") == ("1 2 3", SUBJECT)
    index.set_stamp("/a", "4 5 6", OTHER)
    assert index.stamp("/a") == ("4 5 6", OTHER)


def test_it_is_still_there_when_opened_again(index: Index, tmp_path: Path) -> None:
    index.add_referrer(SUBJECT, manifest(1), KEY)
    index.filled()
    again = Index(tmp_path / "index.sqlite")
    assert not again.fresh
    assert again.claims(KEY) == (manifest(1),)
    again.close()


def test_a_transaction_that_fails_changes_nothing(index: Index) -> None:
    index.add_referrer(SUBJECT, manifest(1), None)
    with pytest.raises(RuntimeError), index.transaction():  # noqa: PT012
        index.forget_referrers()
        raise RuntimeError
    assert index.referrers(SUBJECT) == (manifest(1),)


def test_until_it_was_filled_whole_it_is_fresh(index: Index, tmp_path: Path) -> None:
    """Who crashes while it is being filled leaves it to the next."""
    with pytest.raises(KeyboardInterrupt), index.transaction():  # noqa: PT012
        index.add_referrer(SUBJECT, manifest(1), None)
        index.filled()
        raise KeyboardInterrupt
    again = Index(tmp_path / "index.sqlite")
    assert again.fresh
    assert again.referrers(SUBJECT) == ()
    with again.transaction():
        again.add_referrer(SUBJECT, manifest(1), None)
        again.filled()
    again.close()
    last = Index(tmp_path / "index.sqlite")
    assert not last.fresh
    last.close()


@pytest.mark.parametrize("damage", [b"", b"not a database at all", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "index.sqlite"
    first = Index(path)
    first.add_referrer(SUBJECT, manifest(1), None)
    first.filled()
    first.close()
    path.write_bytes(damage)
    second = Index(path)
    assert second.fresh
    assert second.referrers(SUBJECT) == ()
    second.add_referrer(SUBJECT, manifest(2), None)
    assert second.referrers(SUBJECT) == (manifest(2),)
    second.close()


def test_damage_inside_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    first = Index(path)
    with first.transaction():
        for n in range(500):
            first.add_referrer(SUBJECT, manifest(n), KEY)
        first.filled()
    first.close()
    data = bytearray(path.read_bytes())
    assert len(data) > 5 * 4096
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    second = Index(path)
    assert second.fresh
    assert second.claims(KEY) == ()
    second.close()


def test_what_cannot_be_written_is_an_error_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    path.mkdir()
    with pytest.raises(MachineError, match="unable to open database file"):
        Index(path)
    assert path.is_dir()


def test_threads_share_it(index: Index) -> None:
    def add(start: int) -> None:
        for n in range(start, start + 50):
            index.add_referrer(SUBJECT, manifest(n), None)
            index.record("recipe", "step", KEYS[n % 3])

    threads = [threading.Thread(target=add, args=(start,)) for start in (0, 50, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(index.referrers(SUBJECT)) == 150


PROCESS = """
import sys
from pathlib import Path
from intaglio.content.index import Index
from intaglio.digest import Digest
index = Index(Path(sys.argv[1]))
for n in range(40):
    index.add_referrer(Digest.of(b"subject"), Digest.of(f"{sys.argv[2]} {n}".encode()), None)
"""


def test_processes_share_it(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    started = [subprocess.Popen([sys.executable, "-c", PROCESS, str(path), str(n)]) for n in range(4)]
    assert [process.wait(timeout=60) for process in started] == [0] * 4
    index = Index(path)
    assert len(index.referrers(SUBJECT)) == 160
    index.close()
