"""How bytes enter the store: hashed once, while they stream, on all cores; visible by rename, when whole.

- Copy: read, hash and write in one pass into a temporary file, bring it to disk, rename. A large file's bytes go past
  the page cache while the next ones are hashed: there is nothing left to write back when the last byte is hashed, and
  no page of the machine's cache is spent on a copy of bytes that it already holds.
- Move: hash in place a file that nobody else can write any more, bring it to disk, rename.
- What is not a regular file is refused, links first: ``O_NOFOLLOW`` and the opened file's own status decide.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

from intaglio.content.direct import WriteBehind
from intaglio.content.tree import MAX_FILES, File, check_paths
from intaglio.digest import Digest
from intaglio.errors import CorruptContent
from intaglio.progress import Progress, Task

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
BUFFER = 1 << 20
"""Bytes a read: large enough to let hashlib run beside other threads, small enough to stay in cache."""

_BLOB = re.compile(r"[0-9a-f]{64}\Z")
YOUNG = 60.0
"""Seconds for which a temporary file is left alone, locked or not."""


class BlobWriter:
    """Takes chunks, hashes them, and makes them a blob on :meth:`commit`; left without commit, nothing stays."""

    def __init__(self, blobs: Path, temporary: Path, expected: Digest | None) -> None:
        self._blobs = blobs
        self._expected = expected
        self._hasher = hashlib.sha256()
        self._size = 0
        fd, name = tempfile.mkstemp(prefix="blob-", dir=temporary)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self._stream = os.fdopen(fd, "wb", buffering=0)
        self._name: str | None = name

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append ``chunk``."""
        self._hasher.update(chunk)
        view = memoryview(chunk)
        self._size += len(view)
        while view:
            view = view[self._stream.write(view) :]

    def commit(self) -> tuple[Digest, int]:
        """Make the blob visible; return its digest and size in bytes.

        Raises:
            CorruptContent: the bytes do not have the expected digest; nothing is kept.
        """
        digest = Digest.from_hex(self._hasher.hexdigest())
        if self._expected is not None and digest != self._expected:
            raise CorruptContent(f"expected {self._expected}, found {digest}")
        assert self._name is not None  # noqa: S101 - commit is called once
        _publish(self._stream.fileno(), self._name, self._blobs / digest.hex)
        self._name = None
        return digest, self._size

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._name is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._name)
        self._stream.close()


def copy_stream(source: BinaryIO, sink: BinaryIO, task: Task | None = None) -> tuple[Digest, int]:
    """Copy ``source`` to ``sink`` and return digest and size in bytes of what went over."""
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(BUFFER))
    read = source.readinto  # type: ignore[attr-defined]
    size = 0
    while count := read(buffer):
        hasher.update(buffer[:count])
        rest = buffer[:count]
        while rest:
            rest = rest[sink.write(rest) :]
        size += count
        if task is not None:
            task.advance(count)
    return Digest.from_hex(hasher.hexdigest()), size


def _copy(source: BinaryIO, fd: int, size: int, task: Task | None) -> tuple[Digest, int]:
    """Copy ``source``, of about ``size`` bytes, to ``fd``; return digest and size in bytes of what went over."""
    hasher = hashlib.sha256()
    read = source.readinto  # type: ignore[attr-defined]
    copied = 0
    with WriteBehind(fd, size) as behind:
        while count := read(view := behind.space()[:BUFFER]):
            hasher.update(view[:count])
            behind.filled(count)
            copied += count
            if task is not None:
                task.advance(count)
        behind.settle()
    return Digest.from_hex(hasher.hexdigest()), copied


def adopt(
    path: Path, blobs: Path, temporary: Path, *, expected: Digest | None, move: bool, task: Task | None = None
) -> tuple[Digest, int]:
    """Bring one regular file into ``blobs``: see :meth:`intaglio.content.layout.Store.adopt`."""
    fd = _open_regular(path, alone=move)
    with os.fdopen(fd, "rb", buffering=0) as source:
        if move:
            digest, size = _hash(source, task)
            _require(digest, expected, path)
            here, there = os.fstat(fd), os.lstat(path)
            if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino) or here.st_size != size:
                raise CorruptContent(f"{path}: replaced while it was read")
            _publish(fd, path, blobs / digest.hex)
            return digest, size
        sink, name = tempfile.mkstemp(prefix="blob-", dir=temporary)
        try:
            fcntl.flock(sink, fcntl.LOCK_EX)
            digest, size = _copy(source, sink, os.fstat(fd).st_size, task)
            _require(digest, expected, path)
            _publish(sink, name, blobs / digest.hex)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        finally:
            os.close(sink)
        return digest, size


def ingest(root: Path, blobs: Path, temporary: Path, *, move: bool, progress: Progress) -> list[File]:
    """Bring every file below ``root`` (or ``root`` itself) into ``blobs``; nothing enters unless all look good."""
    found = sorted(walk(root)) if root.is_dir() and not root.is_symlink() else [(root.name, root)]
    if not found:
        raise CorruptContent(f"{root}: expected at least one file, found none")
    if len(found) > MAX_FILES:
        raise CorruptContent(
            f"{root}: expected at most {MAX_FILES} files, found {len(found)}",
            hint="pack many small files into one archive or one JSONL file",
        )
    check_paths(name for name, _ in found)
    status = {name: os.lstat(path) for name, path in found}
    for name, path in found:
        _require_regular(status[name], path, alone=move)  # and once more, of what is opened
    # The largest files first: no core idles while another hashes the one big file at the end.
    found.sort(key=lambda item: -status[item[0]].st_size)
    with progress.task(f"hashing {root.name}", sum(item.st_size for item in status.values())) as task:

        def one(item: tuple[str, Path]) -> File:
            name, path = item
            digest, size = adopt(path, blobs, temporary, expected=None, move=move, task=task)
            return File(name, digest, size, bool(status[name].st_mode & 0o100))

        return _parallel(one, found)


def _parallel(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """Run ``work`` over ``items`` on all cores; the first error ends it."""
    workers = min(len(items), len(os.sched_getaffinity(0)))
    if workers <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


def walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (relative path, path) of every regular file below ``root``.

    Raises:
        CorruptContent: anything there that is neither folder nor regular file.
    """
    pending = [(root, "")]
    while pending:
        folder, prefix = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + os.fsencode(entry.name).decode("utf-8", "surrogateescape")
                if entry.is_symlink():
                    raise CorruptContent(f"{name}: expected a regular file, found a symbolic link")
                if entry.is_dir(follow_symlinks=False):
                    pending.append((Path(entry.path), name + "/"))
                elif entry.is_file(follow_symlinks=False):
                    yield name, Path(entry.path)
                else:
                    raise CorruptContent(f"{name}: expected a regular file, found {_kind(entry.stat().st_mode)}")


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISDIR, "a folder"),
    )
    return next((text for test, text in kinds if test(mode)), "something else")


def _open_regular(path: Path, *, alone: bool) -> int:
    """Open a regular file without following links; ``alone`` demands that no other name leads to it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise CorruptContent(f"{path}: expected a regular file, found a symbolic link") from None
        raise error from None
    try:
        _require_regular(os.fstat(fd), path, alone=alone)
    except CorruptContent:
        os.close(fd)
        raise
    return fd


def _require_regular(status: os.stat_result, path: Path, *, alone: bool) -> None:
    fault = None
    if not stat.S_ISREG(status.st_mode):
        fault = _kind(status.st_mode)
    elif status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        fault = "a set-uid or set-gid file"
    elif alone and status.st_nlink != 1:
        fault = f"a hard link ({status.st_nlink} names)"
    if fault:
        raise CorruptContent(f"{path}: expected a regular file, found {fault}")


def _hash(stream: BinaryIO, task: Task | None = None) -> tuple[Digest, int]:
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(BUFFER))
    read = stream.readinto  # type: ignore[attr-defined]
    size = 0
    while count := read(buffer):
        hasher.update(buffer[:count])
        size += count
        if task is not None:
            task.advance(count)
    return Digest.from_hex(hasher.hexdigest()), size


def _require(digest: Digest, expected: Digest | None, path: Path) -> None:
    if expected is not None and digest != expected:
        raise CorruptContent(f"{path}: expected {expected}, found {digest}")


def _publish(fd: int, source: str | Path, target: Path) -> None:
    """Bring the open file to disk and give it its final name; a damaged blob of that name is replaced."""
    os.fchmod(fd, 0o444)
    os.fsync(fd)
    os.rename(source, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in ``folder`` to disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes, temporary: Path) -> None:
    """Write ``data`` to ``path`` so that readers see the old or the new bytes, never a part."""
    fd, name = tempfile.mkstemp(prefix="file-", dir=temporary)
    try:
        with os.fdopen(fd, "wb") as stream:
            fcntl.flock(fd, fcntl.LOCK_EX)
            stream.write(data)
            stream.flush()
            os.fchmod(fd, 0o644)
            os.fsync(fd)
            os.rename(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def sweep(temporary: Path) -> None:
    """Remove what a crash left in ``temporary``: whatever is older than a minute and nobody holds a lock on."""
    for entry in list(os.scandir(temporary)):
        path = Path(entry.path)
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            if time.time() - entry.stat(follow_symlinks=False).st_mtime < YOUNG:
                continue  # its maker may stand between making it and locking it
            if not entry.is_dir(follow_symlinks=False):
                _with_lock(path, path.unlink)
            elif (path / ".lock").exists():
                _with_lock(path / ".lock", functools.partial(remove, path))
            else:  # its maker was killed before it could lock it, or while it removed it
                remove(path)


def remove(folder: Path) -> None:
    """Remove a folder, whatever modes a step gave to what is in it."""
    for parent, names, _ in os.walk(folder):
        for place in (Path(parent, name) for name in names):
            if not place.is_symlink():
                with contextlib.suppress(OSError):
                    place.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _with_lock(guard: Path, work: Callable[[], None]) -> None:
    with open(guard, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        work()


class DamagedBlob(CorruptContent):
    """A blob that does not have the digest that it is named by."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path


def verify_blobs(blobs: Path, progress: Progress) -> tuple[int, tuple[DamagedBlob, ...]]:
    """Re-hash every blob; return how many there are, and what is wrong."""
    entries = [Path(entry.path) for entry in os.scandir(blobs)]
    total = sum(path.stat().st_size for path in entries)
    with progress.task("verifying the store", total) as task:
        return len(entries), check_blobs(entries, task)


def check_blobs(paths: Sequence[Path], task: Task | None = None) -> tuple[DamagedBlob, ...]:
    """Re-hash the blobs at ``paths``; return what is wrong."""

    def one(path: Path) -> DamagedBlob | None:
        if not _BLOB.match(path.name):
            return DamagedBlob(path, "not a blob's name")
        try:
            with os.fdopen(_open_regular(path, alone=False), "rb", buffering=0) as stream:
                digest, _ = _hash(stream, task)
        except FileNotFoundError:
            return DamagedBlob(path, "gone")
        except CorruptContent as error:
            return DamagedBlob(path, error.message.removeprefix(f"{path}: "))
        return None if digest.hex == path.name else DamagedBlob(path, f"expected its name, found {digest}")

    return tuple(fault for fault in _parallel(one, paths) if fault is not None)
