"""How much memory this process may still take: what the machine has left, and what its control groups allow.

- A container sees the whole machine's memory, and is killed at its own limit: every group on the way up counts.
- Pages of files are given back when memory is short: a full page cache is no memory that is missing.

Source: cgroups(7); kernel documentation ``admin-guide/cgroup-v2.rst``, ``admin-guide/cgroup-v1/memory.rst``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

_CACHE = ("inactive_file", "active_file", "slab_reclaimable")
"""Fields of ``memory.stat`` that are given back; pages of in-memory files are in none of them."""


def available(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that can be taken before something is refused or killed; 0 and more.

    Args:
        proc: where proc(5) is mounted.
        groups: where the control groups are mounted.
    """
    machine = _fields((proc / "meminfo").read_text(encoding="ascii"))["MemAvailable:"] * 1024
    return max(0, min([machine, *_left(proc, groups)]))


def _left(proc: Path, groups: Path) -> Iterator[int]:
    """Yield what each group with a limit has left."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            for root in (groups, groups / "unified"):
                yield from _way_up(root, path, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            root = groups / "memory"
            yield from _way_up(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _way_up(root: Path, path: str, limit: str, usage: str, prefix: str) -> Iterator[int]:
    """Yield what is left of the group at ``path`` and of every one above it, as far as they can be seen here.

    Without a namespace of its own a container has the machine's path and, at ``root``, its own group: then that is all.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        folder = root.joinpath(*parts[:depth])
        try:
            limited = (folder / limit).read_text().strip()
            most, used = None if limited == "max" else int(limited), int((folder / usage).read_text())
            stat = _fields((folder / "memory.stat").read_text())
        except (OSError, ValueError):
            continue
        if most is not None:
            yield most - used + sum(stat.get(prefix + name, 0) for name in _CACHE)


def _fields(text: str) -> Mapping[str, int]:
    """Return the numbers that stand behind names, a line each."""
    return {words[0]: int(words[1]) for words in map(str.split, text.splitlines()) if len(words) > 1}
