"""Files are written behind: the same bytes, digests, modes and refusals whichever way they take to the disk."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from intaglio.content import direct
from intaglio.content.direct import WriteBehind
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import CorruptContent

CHUNK = 4 * 4096
BLOCK = 4096


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(direct, "LARGE", 1)
    monkeypatch.setattr(direct, "_CHUNK", CHUNK)
    return Store.open(tmp_path / "store")


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each write past the page cache really was one, in order."""
    seen = []
    pwrite = os.pwrite

    def noted(fd: int, data: bytes | memoryview, offset: int) -> int:
        seen.append(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", noted)
    return seen


def leftovers(store: Store) -> list[Path]:
    return [*(store.root / "tmp").iterdir(), *(store.root / "blobs" / "sha256").iterdir()]


@pytest.mark.parametrize(
    "size",
    [
        1,
        BLOCK - 1,
        BLOCK,
        BLOCK + 1,
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        3 * CHUNK,
        3 * CHUNK + 1,
        4 * CHUNK - 5,
        9 * CHUNK + 7,
    ],
)
def test_every_size_comes_back_whole(store: Store, tmp_path: Path, writes: list[bool], size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    assert store.adopt(tmp_path / "file", move=False) == (Digest.of(data), size)
    blob = store.path(Digest.of(data))
    assert blob.read_bytes() == data
    assert blob.stat().st_mode & 0o7777 == 0o444
    assert writes
    assert (tmp_path / "file").read_bytes() == data


def test_small_files_are_not_written_that_way(
    store: Store, tmp_path: Path, writes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "LARGE", 1000)
    (tmp_path / "file").write_bytes(b"x" * 999)
    store.adopt(tmp_path / "file", move=False)
    assert writes == [False]


def test_a_file_system_that_refuses_the_flag_is_written_through_the_cache(
    store: Store, tmp_path: Path, writes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def refusing(fd: int, command: int, *rest: Any) -> Any:
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "no such thing here")
        return real(fd, command, *rest)

    monkeypatch.setattr(fcntl, "fcntl", refusing)
    data = os.urandom(5 * CHUNK + 3)
    (tmp_path / "file").write_bytes(data)
    digest, _ = store.adopt(tmp_path / "file", move=False)
    assert store.path(digest).read_bytes() == data
    assert writes
    assert not any(writes)


def test_a_file_system_that_refuses_the_write_is_written_through_the_cache(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.pwrite, []

    def refusing(fd: int, data: bytes | memoryview, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "blocks of another size are wanted")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    data = os.urandom(5 * CHUNK + 3)
    (tmp_path / "file").write_bytes(data)
    digest, _ = store.adopt(tmp_path / "file", move=False)
    assert store.path(digest).read_bytes() == data
    assert refused == [0]  # once: from then on it is not tried again


def test_a_short_write_is_continued(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:BLOCK], offset))
    data = os.urandom(4 * CHUNK + 9)
    (tmp_path / "file").write_bytes(data)
    digest, _ = store.adopt(tmp_path / "file", move=False)
    assert store.path(digest).read_bytes() == data


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_full_disk_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    real, count = os.pwrite, iter(range(100))

    def full(fd: int, data: bytes | memoryview, offset: int) -> int:
        if next(count) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    (tmp_path / "file").write_bytes(os.urandom(8 * CHUNK))
    with pytest.raises(OSError, match="No space left"):
        store.adopt(tmp_path / "file", move=False)
    assert leftovers(store) == []


def test_other_bytes_than_promised_leave_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(2 * CHUNK))
    with pytest.raises(CorruptContent, match="expected"):
        store.adopt(tmp_path / "file", expected=Digest.of(b"other"), move=False)
    assert leftovers(store) == []


def test_what_is_published_was_brought_to_disk_at_its_true_size(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    real = os.fsync

    def noted(fd: int) -> None:
        sizes.append(os.fstat(fd).st_size)
        real(fd)

    monkeypatch.setattr(os, "fsync", noted)
    (tmp_path / "file").write_bytes(os.urandom(CHUNK + 17))
    store.adopt(tmp_path / "file", move=False)
    assert sizes[0] == CHUNK + 17


def append(behind: WriteBehind, data: bytes) -> None:
    """Let ``behind`` take ``data``."""
    while data:
        space = behind.space()
        count = min(len(space), len(data))
        space[:count] = data[:count]
        behind.filled(count)
        data = data[count:]


@pytest.mark.parametrize("start", [1, BLOCK, BLOCK + 7, CHUNK, 3 * CHUNK + 5])
def test_what_is_there_is_appended_to(store: Store, tmp_path: Path, writes: list[bool], start: int) -> None:
    data = os.urandom(5 * CHUNK + 11)
    path = tmp_path / "file"
    path.write_bytes(data[:start])
    fd = os.open(path, os.O_RDWR)
    try:
        with direct.WriteBehind(fd, len(data), start) as behind:
            append(behind, data[start:])
            behind.settle()
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    finally:
        os.close(fd)
    assert path.read_bytes() == data
    assert any(writes)


def test_more_than_was_expected_is_written_as_well(store: Store, tmp_path: Path) -> None:
    data = os.urandom(3 * CHUNK)
    with open(tmp_path / "file", "w+b") as file, direct.WriteBehind(file.fileno(), 10) as behind:
        append(behind, data)
        behind.settle()
    assert (tmp_path / "file").read_bytes() == data


def test_nothing_is_written_after_what_failed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(6 * CHUNK)
    real, count = os.pwrite, iter(range(100))

    def failing(fd: int, chunk: bytes | memoryview, offset: int) -> int:
        if next(count) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, chunk, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    with open(tmp_path / "file", "w+b") as file, direct.WriteBehind(file.fileno(), len(data)) as behind:
        with pytest.raises(OSError, match="No space left"):
            append(behind, data)
        with pytest.raises(OSError, match="earlier write failed"):
            behind.settle()
    assert (tmp_path / "file").read_bytes() == data[:CHUNK]


def test_what_is_left_without_an_end_has_only_whole_buffers(store: Store, tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK + 100)
    with open(tmp_path / "file", "w+b") as file, direct.WriteBehind(file.fileno(), len(data)) as behind:
        append(behind, data)
    written = (tmp_path / "file").read_bytes()
    assert len(written) <= 2 * CHUNK
    assert data.startswith(written)
