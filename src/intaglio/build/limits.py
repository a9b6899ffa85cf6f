"""How much of the machine a sandbox may take, what it took, and the measure of what it wrote.

- Disk space is measured by walking the writable folders without following anything: the step may be changing them at
  this moment. What cannot be measured is over the limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from intaglio.dataclass import dataclass

_DEPTH = 64
"""Deepest folder that the disk measure follows; nothing that a step writes on purpose is deeper."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one sandbox may take."""

    memory: int
    """Bytes, of all its processes and its private file systems in memory together."""
    processes: int
    """Processes and threads alive at once."""
    time: float
    """Seconds by the wall clock."""
    disk: int
    """Bytes written below the writable mounts together, its log included."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a sandboxed program ended."""

    status: int
    """Its exit status; 128 and the number of the signal that ended it."""
    limit: str | None
    """The limit that ended it: ``memory``, ``processes``, ``time`` or ``disk``."""
    peak_memory: int | None
    """Most memory in use, in bytes: the larger of the samples taken (every quarter of a second) and of its largest
    process, which the kernel reports as no less than this process's own."""
    seconds: float
    """Wall clock from the program's start to the death of its last process."""
    enforced: str
    """How memory and processes were held: ``cgroup2``, ``cgroup1`` or ``polling``."""


def disk_usage(paths: Iterable[Path], enough: int) -> int:
    """Return the bytes allocated below ``paths``, each inode once, counting no further than ``enough``.

    What cannot be measured (a folder too deep, or closed to its owner) counts as ``enough``.
    """
    seen: set[tuple[int, int]] = set()
    total = 0
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except NotADirectoryError:
            total += path.lstat().st_blocks * 512
            continue
        except FileNotFoundError:
            continue
        total += _below(descriptor, enough - total, seen, _DEPTH)
        if total >= enough:
            return total
    return total


def _below(folder: int, enough: int, seen: set[tuple[int, int]], depth: int) -> int:
    """Measure an open folder and close it."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                total += _entry(folder, entry, enough - total, seen, depth)
                if total >= enough:
                    return total
    finally:
        os.close(folder)
    return total


def _entry(folder: int, entry: os.DirEntry[str], enough: int, seen: set[tuple[int, int]], depth: int) -> int:
    try:
        status = entry.stat(follow_symlinks=False)
        if (status.st_dev, status.st_ino) in seen:
            return 0
        if status.st_nlink > 1:
            seen.add((status.st_dev, status.st_ino))
        size = status.st_blocks * 512
        if not entry.is_dir(follow_symlinks=False):
            return size
        if depth == 0:
            return enough
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return size + _below(os.open(entry.name, flags, dir_fd=folder), enough - size, seen, depth - 1)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError:
        return enough
