"""Writing behind: the disk takes one buffer of a file while the next is being filled.

- A large file goes past the page cache: nothing is left to write back when its last byte has been hashed, and no page
  of the machine's cache is spent on bytes that nobody reads soon. A small one goes through it, and so does any on a
  file system that does not know direct writes.
- Bytes reach the file in order, none after one that failed: whatever is there after a crash is a beginning of it.

(open(2), ``O_DIRECT``: buffers, offsets and lengths are whole blocks; what is left over goes through the cache.)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

LARGE = 16 << 20
"""Bytes from which on a file is written past the page cache."""

_CHUNK = 4 << 20
"""Bytes of a buffer."""

_CHUNKS = 3
"""Buffers: one is filled while the others wait for the disk."""

_BLOCK = 4096
"""Bytes of which a write past the page cache is a multiple; no file system here asks for more."""


class WriteBehind:
    """Appends to an open file: fill :meth:`space`, say how much with :meth:`filled`, and :meth:`settle` at the end.

    A context manager: however it is left, no write is under way any more. The descriptor stays the caller's.
    """

    def __init__(self, fd: int, size: int, start: int = 0) -> None:
        """Prepare to append to the ``start`` bytes that are there; ``size`` is what is expected in all, no limit."""
        self._fd = fd
        self._place = start - start % _BLOCK
        self._filled = start - self._place
        self._length = min(_CHUNK, -(-max(size - self._place, 1) // _BLOCK) * _BLOCK)
        self._idle = [self._new()]
        self._buffer = self._idle.pop()
        self._buffer[: self._filled] = os.pread(fd, self._filled, self._place)  # a block is written whole
        self._count = 1
        self._writer: ThreadPoolExecutor | None = None
        self._pending: deque[tuple[Future[None], memoryview]] = deque()
        self._failed = False
        if size - start >= LARGE:
            set_direct(fd, True)

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def space(self) -> memoryview:
        """Return where the next bytes go; never empty.

        Raises:
            OSError: the disk did not take earlier ones.
        """
        if self._filled == len(self._buffer):
            self._hand_over()
        return self._buffer[self._filled :]

    def filled(self, count: int) -> None:
        """Say that the first ``count`` bytes of :meth:`space` are to be written."""
        self._filled += count

    def settle(self) -> None:
        """Return when the file holds what was taken; bringing it to disk is the caller's.

        Raises:
            OSError: the disk did not take it.
        """
        try:
            self._wait(0)
            if self._filled % _BLOCK:
                set_direct(self._fd, False)
            self._append(self._buffer[: self._filled], self._place)
        finally:
            self.leave()

    def leave(self) -> None:
        """Return when no write is under way, and begin none; what was not written is not there."""
        if self._writer is not None:
            self._writer.shutdown(cancel_futures=True)
        self._pending.clear()
        set_direct(self._fd, False)

    def _hand_over(self) -> None:
        """Let the full buffer be written, and take another."""
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending.append((self._writer.submit(self._append, self._buffer, self._place), self._buffer))
        self._place += len(self._buffer)
        self._filled = 0
        if not self._idle and self._count < _CHUNKS:
            self._count += 1
            self._idle.append(self._new())
        if not self._idle:
            self._wait(len(self._pending) - 1)
        self._buffer = self._idle.pop()

    def _new(self) -> memoryview:
        return memoryview(mmap.mmap(-1, self._length))

    def _wait(self, count: int) -> None:
        """Wait until at most ``count`` writes are under way."""
        while len(self._pending) > count:
            future, buffer = self._pending.popleft()
            future.result()
            self._idle.append(buffer)

    def _append(self, chunk: memoryview, place: int) -> None:
        if self._failed:
            raise OSError(errno.EIO, "an earlier write failed")
        try:
            _write(self._fd, chunk, place)
        except OSError:
            self._failed = True
            raise


def _write(fd: int, chunk: memoryview, place: int) -> None:
    """Write ``chunk`` at ``place``; through the page cache after all where the file system will not have it."""
    while chunk:
        try:
            count = os.pwrite(fd, chunk, place)
        except OSError as error:
            if error.errno != errno.EINVAL or not set_direct(fd, False):
                raise
            continue
        chunk, place = chunk[count:], place + count


def set_direct(fd: int, wanted: bool) -> bool:
    """Turn direct writing on or off where there is such a thing; return whether that changed anything."""
    direct = getattr(os, "O_DIRECT", 0)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if bool(flags & direct) != wanted and direct:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETFL, flags ^ direct)
            return True
    return False
