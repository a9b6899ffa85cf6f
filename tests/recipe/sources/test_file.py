"""``file:`` — copied in, recognised when unchanged, refused when changed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.recipe.sources.kept import blobs, leftovers

from intaglio.content.layout import Store
from intaglio.content.tree import File, Tree
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, SourceUnreachable
from intaglio.progress import Silent
from intaglio.recipe.sources.interface import BadUri, Stat, resolve


class Memory:
    """A cache of digests that counts."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, Stat], Digest] = {}
        self.hits = 0

    def get(self, path: str, stat: Stat) -> Digest | None:
        found = self.known.get((path, stat))
        self.hits += found is not None
        return found

    def put(self, path: str, stat: Stat, digest: Digest) -> None:
        self.known[path, stat] = digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "recipe"
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "data" / "a.txt").write_bytes(b"a")
    (folder / "data" / "deep" / "b.sh").write_bytes(b"b")
    (folder / "data" / "deep" / "b.sh").chmod(0o755)
    return folder


def fetch(
    uri: str, folder: Path, store: Store, expected: Digest | None = None, offline: bool = False, **options: Any
) -> Tree:
    return resolve(uri, folder, name="data", **options).fetch(
        store, expected=expected, progress=Silent(), offline=offline
    )


def age(folder: Path, seconds: int = 10) -> None:
    """Give every file an old time, as after a night: only then do times tell a change."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


TREE = Tree.of([File("a.txt", Digest.of(b"a"), 1), File("deep/b.sh", Digest.of(b"b"), 1, executable=True)])


def test_a_folder(folder: Path, store: Store) -> None:
    assert fetch("file:data", folder, store) == TREE
    assert store.has_tree(TREE.digest)


def test_a_file_becomes_a_tree_of_one(folder: Path, store: Store) -> None:
    assert fetch("file:data/deep/b.sh", folder, store).files == (File("b.sh", Digest.of(b"b"), 1, executable=True),)


@pytest.mark.parametrize("uri", ["file:data", "file:./data/", "file:data/../data", "file:../recipe/data"])
def test_spellings_of_one_place(folder: Path, store: Store, uri: str) -> None:
    assert fetch(uri, folder, store) == TREE


def test_an_absolute_path(folder: Path, store: Store) -> None:
    assert fetch(f"file://{folder}/data", folder, store) == TREE
    assert fetch(f"file:{folder}/data", folder, store) == TREE


def test_a_later_edit_does_not_reach_the_store(folder: Path, store: Store) -> None:
    fetch("file:data", folder, store)
    (folder / "data" / "a.txt").write_bytes(b"edited")
    assert store.path(Digest.of(b"a")).read_bytes() == b"a"


def test_unchanged_files_need_no_second_copy(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch("file:data", folder, store)
    monkeypatch.setattr(store, "ingest", None)
    assert fetch("file:data", folder, store, expected=TREE.digest, offline=True) == TREE


def test_a_changed_file_is_refused_and_not_kept(folder: Path, store: Store) -> None:
    fetch("file:data", folder, store)
    before = blobs(store)
    (folder / "data" / "a.txt").write_bytes(b"A")
    with pytest.raises(CorruptContent) as caught:
        fetch("file:data", folder, store, expected=TREE.digest)
    assert "file:data: the bytes changed" in caught.value.message
    assert str(TREE.digest) in caught.value.message
    assert "intaglio update data" in (caught.value.hint or "")
    assert blobs(store) == before
    assert not leftovers(store)


@pytest.mark.parametrize("change", ["add", "remove", "rename", "mode"])
def test_every_kind_of_change_is_seen(folder: Path, store: Store, change: str) -> None:
    memory = Memory()
    fetch("file:data", folder, store, stats=memory)
    age(folder)
    fetch("file:data", folder, store, expected=TREE.digest, stats=memory)
    file = folder / "data" / "a.txt"
    if change == "add":
        (folder / "data" / ".hidden").touch()
    elif change == "remove":
        file.unlink()
    elif change == "rename":
        file.rename(file.with_name("c.txt"))
    else:
        file.chmod(0o755)
    with pytest.raises(CorruptContent):
        fetch("file:data", folder, store, expected=TREE.digest, stats=memory)


def test_the_cache_spares_the_reading(folder: Path, store: Store) -> None:
    memory = Memory()
    fetch("file:data", folder, store)
    time.sleep(0.15)  # a file's times must have settled before they are believed
    fetch("file:data", folder, store, expected=TREE.digest, stats=memory)
    assert (memory.hits, len(memory.known)) == (0, 2)
    fetch("file:data", folder, store, expected=TREE.digest, stats=memory)
    assert memory.hits == 2


def test_a_change_that_keeps_size_and_time_is_seen(folder: Path, store: Store) -> None:
    memory = Memory()
    fetch("file:data", folder, store)
    time.sleep(0.15)
    fetch("file:data", folder, store, expected=TREE.digest, stats=memory)
    file = folder / "data" / "a.txt"
    status = file.stat()
    file.write_bytes(b"X")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    with pytest.raises(CorruptContent):
        fetch("file:data", folder, store, expected=TREE.digest, stats=memory)


def test_a_file_that_was_just_written_is_not_remembered(folder: Path, store: Store) -> None:
    memory = Memory()
    fetch("file:data", folder, store)
    (folder / "data" / "a.txt").write_bytes(b"a")
    fetch("file:data", folder, store, expected=TREE.digest, stats=memory)
    assert not any(path.endswith("a.txt") for path, _ in memory.known)


def test_a_store_that_lost_the_files_gets_them_again(folder: Path, store: Store, tmp_path: Path) -> None:
    from intaglio.content.layout import Store

    fetch("file:data", folder, store)
    other = Store.open(tmp_path / "other")
    assert fetch("file:data", folder, other, expected=TREE.digest) == TREE
    assert other.has_tree(TREE.digest)


def test_a_missing_file(folder: Path, store: Store) -> None:
    with pytest.raises(SourceUnreachable) as caught:
        fetch("file:gone", folder, store)
    assert "missing file: expected" in caught.value.message


def test_a_link_is_refused(folder: Path, store: Store) -> None:
    (folder / "data" / "link").symlink_to("/etc/passwd")
    for expected in (None, TREE.digest):
        with pytest.raises(CorruptContent) as caught:
            fetch("file:data", folder, store, expected=expected)
        assert "symbolic link" in caught.value.message
    (folder / "other").symlink_to("data")
    for expected in (None, TREE.digest):
        with pytest.raises(CorruptContent):
            fetch("file:other", folder, store, expected=expected)
    assert not any(b"root:" in blob for blob in blobs(store))


def test_an_empty_folder(folder: Path, store: Store) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(CorruptContent):
        fetch("file:empty", folder, store)


@pytest.mark.parametrize(
    "uri", ["file:", "file://host/x", "file:a#b", "file:a?b", "file:a\0b", "file:.", "file:..", "file:/"]
)
def test_bad_addresses(folder: Path, uri: str) -> None:
    with pytest.raises(BadUri):
        resolve(uri, folder)


def test_a_promised_tree_is_kept_to(folder: Path, store: Store) -> None:
    assert fetch("file:data", folder, store, digest=TREE.digest) == TREE
    with pytest.raises(CorruptContent):
        fetch("file:data", folder, store, digest=Digest.of(b"other"))
