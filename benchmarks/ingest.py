"""How fast bytes enter the store, against hashing the same files with two bare threads in the same round.

- Moved: a step's output, which lies on the disk already and is renamed.
- Copied: a user's files, which are written anew and brought to disk before they are visible.
- The disk's own speed is measured beside it, in the same rounds: no copy can be faster than that.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest import mock

from benchmarks.scratch import discard
from benchmarks.table import Table, figures, verdict
from benchmarks.timing import interleave, ratio, stopwatch
from intaglio.content import direct
from intaglio.content.layout import Store

MOVED, COPIED = 0.9, 0.65
"""Least share of bare hashing speed that is wanted."""
FILES = 4
_THREADS = 2
_BUFFER = 1 << 20
_CHUNK = 16 << 20
_BLOCK = 1 << 20
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


@dataclass(frozen=True, slots=True)
class Ingest:
    """What was measured: seconds by variant, and the bytes each of them handled."""

    size: int
    seconds: Mapping[str, list[float]]

    def table(self) -> Table:
        """Return it as rows."""
        moved, copied, cached = (
            ratio(self.seconds["hashing"], self.seconds[name]) for name in ("moved", "copied", "cached")
        )
        rows = (
            self._row("hashing with two bare threads", "hashing", "1.00", "", ""),
            self._row("ingest, moved", "moved", f"{moved:.2f}", f"≥ {MOVED}", verdict(moved >= MOVED)),
            self._row("ingest, copied and brought to disk", "copied", f"{copied:.2f}", f"≥ {COPIED}", self._copied),
            self._row("the same through the page cache, never brought to disk", "cached", f"{cached:.2f}", "", ""),
            self._row("disk: plain write past the page cache, two files", "direct", self._share("direct"), "", ""),
            self._row("disk: plain write through the page cache, fsync", "buffered", self._share("buffered"), "", ""),
        )
        files = f"{FILES} × {self.size // FILES >> 20} MiB"
        note = (
            "Files were brought to disk beforehand and stand in the page cache. The ratio is bare hashing time over "
            "the row's time, the median of the rounds' own ratios. No copy can be faster than the disk: two rows say "
            "what it does when nothing is hashed. The row that is never brought to disk is not how the engine works; "
            "it shows what the page cache alone costs here (a large copy goes past it, a small one through it)."
        )
        columns = (f"{files}", "median (range)", "speed", "ratio", "target", "met")
        return Table("Ingest", columns, rows, note)

    @property
    def ratios(self) -> dict[str, float]:
        """Bare hashing time over the time of moved and of copied ingest."""
        return {name: ratio(self.seconds["hashing"], self.seconds[name]) for name in ("moved", "copied")}

    @property
    def _copied(self) -> str:
        return verdict(self.ratios["copied"] >= COPIED)

    def _share(self, name: str) -> str:
        return f"{ratio(self.seconds['hashing'], self.seconds[name]):.2f}"

    def _row(self, text: str, name: str, share: str, target: str, met: str) -> tuple[str, ...]:
        seconds = self.seconds[name]
        return (text, figures(seconds), f"{self.size / median(seconds) / 1e9:.2f} GB/s", share, target, met)


def measure(scratch: Path, rounds: int, size: int, note: Callable[[str], None]) -> Ingest:
    """Measure ingest of :data:`FILES` files of ``size`` bytes each, below ``scratch``."""
    source = scratch / "source"
    write_files(source, size)
    number = 0

    def copied() -> float:
        nonlocal number
        number += 1
        place = scratch / f"store-{number}"
        store = Store.open(place)
        seconds = stopwatch(lambda: store.ingest(source, move=False))
        discard(place)
        os.sync()
        return seconds

    def cached() -> float:
        with mock.patch.object(direct, "LARGE", 1 << 62), mock.patch.object(os, "fsync"):
            return copied()

    variants = {
        "hashing": lambda: stopwatch(lambda: hash_bare(source)),
        "moved": lambda: _moved(scratch / "moving", source),
        "copied": copied,
        "cached": cached,
        "direct": lambda: write_direct(scratch, size * FILES),
        "buffered": lambda: write_plain(scratch / "plain", size * FILES),
    }
    seconds = interleave(variants, rounds, note)
    discard(source)
    return Ingest(size * FILES, seconds)


def write_files(folder: Path, size: int) -> None:
    """Write the files to be ingested, all different, and bring them to disk."""
    folder.mkdir(parents=True)
    block = os.urandom(min(size, _CHUNK))
    for number in range(FILES):
        with open(folder / f"file-{number}", "wb") as stream:
            left = size
            while left:
                piece = (bytes([number]) + block[1:])[:left]
                stream.write(piece)
                left -= len(piece)
    os.sync()


def hash_bare(folder: Path) -> None:
    """Hash the files of ``folder`` with two threads and nothing else."""
    files = sorted(folder.iterdir())

    def work(share: list[Path]) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        for path in share:
            hasher = hashlib.sha256()
            with open(path, "rb", buffering=0) as stream:
                while count := stream.readinto(buffer):
                    hasher.update(buffer[:count])

    threads = [threading.Thread(target=work, args=(files[first::_THREADS],)) for first in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _moved(place: Path, source: Path) -> float:
    """Ingest the files by moving them, and put them back."""
    store = Store.open(place)
    with store.scratch("output") as output:
        for path in source.iterdir():
            path.rename(output / path.name)
        os.sync()
        started = time.perf_counter()
        tree = store.ingest(output, move=True)
        seconds = time.perf_counter() - started
    for file in tree.files:
        store.path(file.digest).rename(source / file.path)
    discard(place)
    os.sync()
    return seconds


def write_plain(path: Path, size: int) -> float:
    """Write ``size`` bytes to one new file through the page cache, and bring it to disk; return the seconds."""
    fd = os.open(path, _NEW, 0o600)
    seconds = stopwatch(lambda: _write(fd, size, _CHUNK))
    _remove(path, fd)
    return seconds


def write_direct(folder: Path, size: int) -> float:
    """Write ``size`` bytes past the page cache, a half each by two writers to a file each; return the seconds.

    Two writers and blocks of 1 MiB are what gave most: it stands for what the disk can do.
    """
    paths = [folder / f"plain-{number}" for number in range(_THREADS)]
    fds = [os.open(path, _NEW | getattr(os, "O_DIRECT", 0), 0o600) for path in paths]

    def work() -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda fd: _write(fd, size // _THREADS, _BLOCK), fds))

    seconds = stopwatch(work)
    for path, fd in zip(paths, fds, strict=True):
        _remove(path, fd)
    return seconds


def _write(fd: int, size: int, block: int) -> None:
    """Write ``size`` bytes in pieces of ``block``, with nothing but writes and one fsync."""
    chunk = mmap.mmap(-1, block)
    chunk.write(os.urandom(block))
    written = 0
    while written < size:
        written += os.write(fd, memoryview(chunk)[: size - written])
    os.fsync(fd)


def _remove(path: Path, fd: int) -> None:
    os.close(fd)
    path.unlink()
    os.sync()
