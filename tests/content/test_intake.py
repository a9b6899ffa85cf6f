"""Intake: what is refused, and that nothing is visible before it is whole."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.content import intake
from intaglio.content.layout import Store
from intaglio.content.tree import MAX_FILES
from intaglio.digest import Digest
from intaglio.errors import CorruptContent
from intaglio.progress import Silent, Task


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_bytes(b"a")
    (made / "sub" / "b.txt").write_bytes(b"b")
    return made


def blobs(store: Store) -> set[str]:
    return {path.name for path in (store.root / "blobs" / "sha256").iterdir()}


def leftovers(store: Store) -> list[str]:
    return [path.name for path in (store.root / "tmp").iterdir()]


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", [False, True])
def test_a_folder_becomes_a_tree(store: Store, folder: Path, move: bool) -> None:
    (folder / "run").write_bytes(b"#!")
    (folder / "run").chmod(0o755)
    (folder / "empty folder").mkdir()
    tree = store.ingest(folder, move=move)
    assert [(file.path, file.size, file.executable) for file in tree.files] == [
        ("a.txt", 1, False),
        ("run", 2, True),
        ("sub/b.txt", 1, False),
    ]
    assert store.tree(tree.digest) == tree
    assert (folder / "a.txt").exists() is not move
    for file in tree.files:
        assert stat.S_IMODE(store.path(file.digest).stat().st_mode) == 0o444
    if not move:
        (folder / "a.txt").write_bytes(b"another")
        assert store.read(tree.files[0].digest, what="a") == b"a"
    assert leftovers(store) == []


@pytest.mark.parametrize("move", [False, True])
def test_a_single_file_becomes_a_tree_of_one(store: Store, folder: Path, move: bool) -> None:
    tree = store.ingest(folder / "a.txt", move=move)
    assert [(file.path, file.digest) for file in tree.files] == [("a.txt", Digest.of(b"a"))]


def test_the_order_and_times_of_files_do_not_matter(store: Store, tmp_path: Path) -> None:
    trees = []
    for number, names in enumerate([["x", "y", "z"], ["z", "x", "y"]]):
        made = tmp_path / str(number)
        made.mkdir()
        for name in names:
            (made / name).write_text(name)
            os.utime(made / name, (number, number))
        trees.append(store.ingest(made, move=False))
    assert trees[0].digest == trees[1].digest


def test_files_of_one_content_are_one_blob(store: Store, tmp_path: Path) -> None:
    made = tmp_path / "same"
    made.mkdir()
    for n in range(20):
        (made / str(n)).write_bytes(b"same" * 1000)
    for move in (False, True):
        tree = store.ingest(made, move=move)
        assert len({file.digest for file in tree.files}) == 1
    assert leftovers(store) == []


def link(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")


def link_inside(folder: Path) -> None:
    (folder / "link").symlink_to("a.txt")


def link_to_folder(folder: Path) -> None:
    (folder / "link").symlink_to("sub")


def dangling(folder: Path) -> None:
    (folder / "sub" / "link").symlink_to("nowhere")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "fifo")


def unix_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "s"))


def device(folder: Path) -> None:
    try:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def set_uid(folder: Path) -> None:
    (folder / "a.txt").chmod(0o4755)


def set_gid(folder: Path) -> None:
    (folder / "a.txt").chmod(0o2755)


def twins(folder: Path) -> None:
    (folder / "A.TXT").write_bytes(b"A")


def bad_name(folder: Path) -> None:
    (folder / "a\\b").write_bytes(b"x")


def bad_bytes(folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff"))).write_bytes(b"x")


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize(
    "spoil",
    [
        link, link_inside, link_to_folder, dangling, fifo, unix_socket, device, set_uid, set_gid, twins, bad_name,
        bad_bytes,
    ],
)  # fmt: skip
def test_what_is_no_plain_file_is_refused(
    store: Store, folder: Path, spoil: Callable[[Path], None], move: bool
) -> None:
    spoil(folder)
    with pytest.raises(CorruptContent):
        store.ingest(folder, move=move)
    assert blobs(store) == set(), "nothing enters unless all of it is good"
    assert leftovers(store) == []


def test_a_hard_link_is_refused_when_moving_and_copied_otherwise(store: Store, folder: Path, tmp_path: Path) -> None:
    os.link(folder / "a.txt", tmp_path / "mine")
    with pytest.raises(CorruptContent, match="a hard link"):
        store.ingest(folder, move=True)
    assert blobs(store) == set()
    assert (folder / "sub" / "b.txt").exists()
    assert store.ingest(folder, move=False).files[0].digest == Digest.of(b"a")
    (tmp_path / "mine").write_bytes(b"changed")
    assert store.read(Digest.of(b"a"), what="a") == b"a"


@pytest.mark.parametrize("empty", ["no files", "only folders"])
def test_no_file_at_all_is_refused(store: Store, tmp_path: Path, empty: str) -> None:
    made = tmp_path / "made"
    (made / "sub" if empty == "only folders" else made).mkdir(parents=True)
    with pytest.raises(CorruptContent, match="at least one file"):
        store.ingest(made, move=True)


def test_too_many_files_are_refused_with_a_hint_to_pack(store: Store, tmp_path: Path) -> None:
    made = tmp_path / "many"
    made.mkdir()
    for n in range(MAX_FILES + 1):
        (made / str(n)).touch()
    with pytest.raises(CorruptContent, match=f"at most {MAX_FILES} files, found {MAX_FILES + 1}") as found:
        store.ingest(made, move=False)
    assert "pack" in (found.value.hint or "")
    assert blobs(store) == set()


def test_a_single_link_or_device_is_refused(store: Store, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file link").symlink_to(folder / "a.txt")
    for place in (tmp_path / "link", tmp_path / "file link", Path("/dev/null")):
        with pytest.raises(CorruptContent):
            store.ingest(place, move=False)
        with pytest.raises(CorruptContent):
            store.adopt(place, move=False)
    assert blobs(store) == set()


def test_a_fifo_does_not_make_it_wait(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CorruptContent, match="a FIFO"):
        store.adopt(tmp_path / "fifo", move=True)


# --- races -----------------------------------------------------------------------------------------------------------


def test_a_link_raced_into_place_is_not_followed(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file becomes a link between the look at the folder and the opening."""
    (folder.parent / "secret").write_text("secret")
    real = intake.adopt

    def swap(path: Path, *rest: Any, **more: Any) -> tuple[Digest, int]:
        if path.name == "a.txt":
            path.unlink()
            path.symlink_to(folder.parent / "secret")
        return real(path, *rest, **more)

    monkeypatch.setattr(intake, "adopt", swap)
    with pytest.raises(CorruptContent, match="symbolic link"):
        store.ingest(folder, move=False)
    assert Digest.of(b"secret").hex not in blobs(store)


def test_a_file_replaced_while_it_is_moved_is_refused(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = intake._hash

    def swap(stream: BinaryIO, task: Task | None = None) -> tuple[Digest, int]:
        found = real(stream, task)
        (folder / "new").write_bytes(b"x")
        (folder / "new").rename(folder / "a.txt")
        return found

    monkeypatch.setattr(intake, "_hash", swap)
    with pytest.raises(CorruptContent, match="replaced while it was read"):
        store.adopt(folder / "a.txt", move=True)
    assert blobs(store) == set()


def test_a_file_that_grows_while_it_is_moved_is_refused(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = intake._hash

    def grow(stream: BinaryIO, task: Task | None = None) -> tuple[Digest, int]:
        found = real(stream, task)
        with open(folder / "a.txt", "ab") as more:
            more.write(b"more")
        return found

    monkeypatch.setattr(intake, "_hash", grow)
    with pytest.raises(CorruptContent, match="replaced while it was read"):
        store.adopt(folder / "a.txt", move=True)
    assert blobs(store) == set()


# --- one file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", [False, True])
def test_adopting_what_was_promised(store: Store, folder: Path, move: bool) -> None:
    place = folder / "a.txt"
    with pytest.raises(CorruptContent, match="expected sha256:"):
        store.adopt(place, expected=Digest.of(b"other"), move=move)
    assert blobs(store) == set()
    assert leftovers(store) == []
    assert place.read_bytes() == b"a"
    assert store.adopt(place, expected=Digest.of(b"a"), move=move) == (Digest.of(b"a"), 1)
    assert place.exists() is not move


def test_a_missing_file_is_not_found(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.adopt(tmp_path / "nothing", move=False)


@settings(deadline=None, max_examples=25)
@given(data=st.binary(max_size=3 * 4096))
def test_any_bytes_come_back(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("any")
    store = Store.open(root / "store")
    (root / "file").write_bytes(data)
    assert store.adopt(root / "file", move=False) == (Digest.of(data), len(data))
    assert store.read(Digest.of(data), what="x") == data


@pytest.mark.parametrize("size", [0, 1, intake.BUFFER - 1, intake.BUFFER, intake.BUFFER + 1, 3 * intake.BUFFER + 7])
def test_sizes_around_the_buffer(store: Store, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    for move in (False, True):
        (tmp_path / "file").write_bytes(data)
        assert store.adopt(tmp_path / "file", move=move) == (Digest.of(data), size)
        assert store.path(Digest.of(data)).read_bytes() == data
        store.path(Digest.of(data)).unlink()


# --- writers ---------------------------------------------------------------------------------------------------------


def test_a_writer_shows_nothing_before_commit(store: Store) -> None:
    with store.writer(expected=Digest.of(b"hello world")) as writer:
        writer.write(b"hello ")
        assert blobs(store) == set()
        writer.write(memoryview(b"world"))
        assert blobs(store) == set()
        assert writer.commit() == (Digest.of(b"hello world"), 11)
        assert blobs(store) == {Digest.of(b"hello world").hex}
    assert leftovers(store) == []


def test_a_writer_left_without_commit_leaves_nothing(store: Store) -> None:
    with store.writer() as writer:
        writer.write(b"x")
    with pytest.raises(RuntimeError), store.writer() as writer:  # noqa: PT012
        writer.write(b"x")
        raise RuntimeError
    with pytest.raises(CorruptContent), store.writer(expected=Digest.of(b"y")) as writer:  # noqa: PT012
        writer.write(b"x")
        writer.commit()
    assert blobs(store) == set()
    assert leftovers(store) == []


WRITER = """
import sys, time
from pathlib import Path
from intaglio.content.layout import Store
store = Store.open(Path(sys.argv[1]))
with store.scratch("work") as scratch, store.writer() as writer:
    (scratch / "half").write_bytes(b"half")
    writer.write(b"x" * 100000)
    print("ready", flush=True)
    time.sleep(60)
    writer.commit()
"""


def test_a_killed_writer_leaves_nothing_visible_and_is_swept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(store.root)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert len(leftovers(store)) == 2
    monkeypatch.setattr(intake, "YOUNG", 0.0)
    store.sweep()
    assert len(leftovers(store)) == 2, "what a living process holds is left alone, however old"
    process.kill()
    process.communicate()
    assert blobs(store) == set()
    monkeypatch.undo()
    store.sweep()
    assert len(leftovers(store)) == 2, "what is young may belong to somebody who is about to lock it"
    monkeypatch.setattr(intake, "YOUNG", 0.0)
    store.sweep()
    assert leftovers(store) == []


def test_sweeping_takes_whatever_a_crash_can_leave(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp = store.root / "tmp"
    (tmp / "made-but-not-locked").mkdir()
    (tmp / "half-removed" / "d" / "sub").mkdir(parents=True)
    (tmp / "half-removed" / "d" / "file").write_bytes(b"x")
    (tmp / "blob-x").write_bytes(b"x")
    locked = tmp / "blob-y"
    locked.write_bytes(b"y")
    monkeypatch.setattr(intake, "YOUNG", 0.0)
    with open(locked, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        store.sweep()
        assert leftovers(store) == ["blob-y"]
    store.sweep()
    assert leftovers(store) == []


def test_removing_takes_folders_whose_modes_forbid_it_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o711)
    folder = tmp_path / "folder"
    (folder / "closed" / "deeper").mkdir(parents=True)
    (folder / "closed" / "deeper" / "file").write_bytes(b"x")
    (folder / "link").symlink_to(outside)
    (folder / "closed" / "deeper").chmod(0)
    (folder / "closed").chmod(0)
    intake.remove(folder)
    assert not folder.exists()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o711


# --- other files -----------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    intake.replace_file(tmp_path / "f", b"one", tmp_path)
    with open(tmp_path / "f", "rb") as reader:
        intake.replace_file(tmp_path / "f", b"two", tmp_path)
        assert reader.read() == b"one"
    assert (tmp_path / "f").read_bytes() == b"two"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644
    with pytest.raises(FileNotFoundError):
        intake.replace_file(tmp_path / "gone" / "f", b"x", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_checking_blobs_finds_each_kind_of_damage(store: Store) -> None:
    good = store.put(b"good")
    bad = store.put(b"bad")
    store.path(bad).chmod(0o644)
    store.path(bad).write_bytes(b"BAD")
    gone = Digest.of(b"gone")
    linked = Digest.of(b"linked")
    store.path(linked).symlink_to(store.path(good))
    stray = store.path(good).with_name("stray")
    stray.write_bytes(b"")
    paths = [store.path(digest) for digest in (good, bad, gone, linked)]
    faults = {fault.path.name: fault.message for fault in intake.check_blobs([*paths, stray])}
    assert set(faults) == {bad.hex, gone.hex, linked.hex, "stray"}
    assert f"found {Digest.of(b'BAD')}" in faults[bad.hex]
    count, found = intake.verify_blobs(store.root / "blobs" / "sha256", Silent())
    assert (count, len(found)) == (4, 3)


def test_several_files_are_hashed_at_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads meet inside: were one file taken after the other, they never would."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    made = tmp_path / "two"
    made.mkdir()
    for n in range(2):
        (made / str(n)).write_bytes(bytes([n]) * 1000)
    meeting = threading.Barrier(2, timeout=30)
    real = intake._hash

    def meet(stream: BinaryIO, task: Task | None = None) -> tuple[Digest, int]:
        meeting.wait()
        return real(stream, task)

    monkeypatch.setattr(intake, "_hash", meet)
    assert len(store.ingest(made, move=True).files) == 2
