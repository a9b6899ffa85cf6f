"""What holds the memory and the processes of one sandbox: a control group of its own, or else polling.

- Version 2 where this process may make a group, else version 1. Without either, memory and processes are watched by
  polling, and ``Outcome.enforced`` says so.
- A control group is locked by the process that made it; one that nobody holds is a dead engine's, and is emptied
  and removed by the next run.

Source: cgroups(7); kernel documentation ``admin-guide/cgroup-v1/memory.rst``, ``admin-guide/cgroup-v2.rst``.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from intaglio.build.limits import Limits

_PREFIX = "intaglio-"
_EVENT = select.EPOLLPRI | select.EPOLLERR
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Group:
    """What holds memory and processes of one sandbox; this base only watches, by polling."""

    enforced = "polling"
    """How the limits are held: ``cgroup2``, ``cgroup1`` or ``polling``."""
    interval: float | None = 0.05
    """Seconds between two calls of :meth:`poll` that the limits need; ``None``: the kernel holds them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.peak = 0
        """Largest memory seen in use, in bytes, without the page cache."""
        self._namespace = 0

    def add(self, pid: int, *, first: bool) -> None:
        """Take the process in; ``first`` is the first one inside (the other is the one that waits for it)."""
        if first:
            self._namespace = _namespace(pid)

    def watch(self) -> Iterable[tuple[int, int]]:
        """Descriptors, each with its epoll events, on which :meth:`poll` is worth calling."""
        return ()

    def poll(self) -> str | None:
        """Return the limit that has been reached, if one has."""
        members = [pid for pid in _processes() if _namespace(pid) == self._namespace] if self._namespace else []
        used, tasks = _usage(members)
        self.peak = max(self.peak, used)
        if used >= self.limits.memory:
            return "memory"
        return "processes" if tasks > self.limits.processes else None

    def close(self) -> None:
        """Give back what the group held; every process in it has ended."""


class ControlGroup1(Group):
    """Version 1: one folder in the ``memory`` hierarchy and one in ``pids``."""

    enforced = "cgroup1"
    interval = None

    def __init__(self, limits: Limits, memory: Path, pids: Path) -> None:
        super().__init__(limits)
        self._memory = _Folder(memory)
        try:
            self._pids = _Folder(pids)
        except OSError:
            self._memory.remove()
            raise
        try:
            self._memory.write("memory.limit_in_bytes", limits.memory)
            if (self._memory.path / "memory.memsw.limit_in_bytes").exists():
                self._memory.write("memory.memsw.limit_in_bytes", limits.memory)
            self._pids.write("pids.max", limits.processes + 1)
            self._oom = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._control = os.open(self._memory.path / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            self._memory.write("cgroup.event_control", f"{self._oom} {self._control}")
            self._events = self._pids.watch("pids.events")
        except OSError:
            self.close()
            raise

    def add(self, pid: int, *, first: bool) -> None:
        """Move the process into both folders."""
        del first
        self._memory.write("cgroup.procs", pid)
        self._pids.write("cgroup.procs", pid)

    def watch(self) -> Iterable[tuple[int, int]]:
        """The out-of-memory notice and the count of refused forks."""
        return ((self._oom, select.EPOLLIN), (self._events, _EVENT))

    def poll(self) -> str | None:
        """Return the limit that has been reached, by the kernel's own counts."""
        stat = _counts(self._memory.read("memory.stat"))
        self.peak = max(self.peak, stat.get("rss", 0) + stat.get("shmem", 0))
        if _signalled(self._oom) or _counts(self._memory.read("memory.oom_control")).get("oom_kill"):
            return "memory"
        return "processes" if _counts(_reread(self._events)).get("max") else None

    def close(self) -> None:
        """Remove both folders."""
        for name in ("_oom", "_control", "_events"):
            if (descriptor := getattr(self, name, None)) is not None:
                os.close(descriptor)
        self._memory.remove()
        self._pids.remove()


class ControlGroup2(Group):
    """Version 2: one folder with both controllers."""

    enforced = "cgroup2"
    interval = None

    def __init__(self, limits: Limits, parent: Path) -> None:
        super().__init__(limits)
        self._folder = _Folder(parent)
        try:
            self._folder.write("memory.max", limits.memory)
            if (self._folder.path / "memory.swap.max").exists():
                self._folder.write("memory.swap.max", 0)
            self._folder.write("memory.oom.group", 1)
            self._folder.write("pids.max", limits.processes + 1)
            self._memory = self._folder.watch("memory.events")
            self._pids = self._folder.watch("pids.events")
        except OSError:
            self.close()
            raise

    def add(self, pid: int, *, first: bool) -> None:
        """Move the process into the folder."""
        del first
        self._folder.write("cgroup.procs", pid)

    def watch(self) -> Iterable[tuple[int, int]]:
        """The event files of both controllers."""
        return ((self._memory, _EVENT), (self._pids, _EVENT))

    def poll(self) -> str | None:
        """Return the limit that has been reached, by the kernel's own counts."""
        stat = _counts(self._folder.read("memory.stat"))
        self.peak = max(self.peak, stat.get("anon", 0) + stat.get("shmem", 0))
        events = _counts(_reread(self._memory))
        if events.get("oom") or events.get("oom_kill"):
            return "memory"
        return "processes" if _counts(_reread(self._pids)).get("max") else None

    def close(self) -> None:
        """Remove the folder."""
        for name in ("_memory", "_pids"):
            if (descriptor := getattr(self, name, None)) is not None:
                os.close(descriptor)
        self._folder.remove()


def open_group(limits: Limits) -> Group:
    """Return what holds ``limits`` on this machine: the strongest that this process may use."""
    hierarchies = _hierarchies()
    for parent in _candidates2(hierarchies.get("")):
        try:
            return ControlGroup2(limits, parent)
        except OSError:
            continue
    memory, pids = hierarchies.get("memory"), hierarchies.get("pids")
    if memory and pids:
        try:
            return ControlGroup1(limits, memory, pids)
        except OSError:
            pass
    return Group(limits)


class _Folder:
    """A control group's folder, locked while this process lives."""

    def __init__(self, parent: Path) -> None:
        _sweep(parent)
        for _ in range(8):
            self.path = parent / (_PREFIX + os.urandom(8).hex())  # visible inside: it must tell nothing
            self.path.mkdir(0o755)
            if (lock := _lock(self.path)) is not None:
                self._lock = lock
                return
        raise OSError(f"{parent}: could not keep a control group")

    def write(self, name: str, value: int | str) -> None:
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, str(value).encode())
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def watch(self, name: str) -> int:
        """Open an event file and read it once, so that a later change is an event."""
        descriptor = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
        _reread(descriptor)
        return descriptor

    def remove(self) -> None:
        _empty(self.path)
        os.close(self._lock)


def _lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock on the folder; ``None`` where another has it or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _sweep(parent: Path) -> None:
    """Empty and remove the control groups whose engine is dead."""
    with os.scandir(parent) as entries:
        left = [Path(entry.path) for entry in entries if entry.name.startswith(_PREFIX)]
    for path in left:
        if (descriptor := _lock(path)) is not None:
            _empty(path)
            os.close(descriptor)


def _empty(path: Path) -> None:
    """End whatever is left in a control group and remove it; what the kernel still holds is left for the next run."""
    for attempt in range(20):
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            for pid in _members(path):
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    continue
            time.sleep(0.001 * (attempt + 1))
        else:
            return


def _members(path: Path) -> list[int]:
    try:
        return [int(pid) for pid in (path / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _hierarchies() -> dict[str, Path]:
    """Return where this process's own control group stands in each hierarchy: by controller, version 2 under ``""``."""
    own: dict[str, str] = {}
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own |= dict.fromkeys(controllers.split(","), path)
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, Path] = {}
    for line in mounts:
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        names = {"cgroup": set(options.split(",")) & own.keys(), "cgroup2": {""} & own.keys()}.get(kind, set())
        for name in names:
            inside = own[name].removeprefix(root.rstrip("/")) if own[name].startswith(root) else ""
            found[name] = Path(point + "/" + inside.strip("/"))
    return found


def _candidates2(own: Path | None) -> Iterable[Path]:
    """Yield folders of version 2 that hand both controllers to their children: our own, then the one above.

    A folder with processes in it cannot hand controllers down (the "no internal processes" rule), so it is mostly
    the one above, where that is delegated to this user.
    """
    for folder in (own, own.parent) if own else ():
        try:
            handed = (folder / "cgroup.subtree_control").read_text().split()
        except OSError:
            continue
        if {"memory", "pids"} <= set(handed):
            yield folder


def _counts(text: bytes) -> dict[str, int]:
    """Read a flat-keyed file: a name and a number a line."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0].decode(): int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _signalled(descriptor: int) -> bool:
    try:
        return os.eventfd_read(descriptor) > 0
    except BlockingIOError:
        return False


def _reread(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 4096)


def _processes() -> Iterable[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _namespace(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return 0


def _usage(pids: Iterable[int]) -> tuple[int, int]:
    """Return memory in bytes (what is shared counted once) and the number of threads of the processes."""
    private = shared = threads = 0
    for pid in pids:
        try:
            resident, common = (int(field) for field in Path(f"/proc/{pid}/statm").read_text().split()[1:3])
            threads += int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[17])
        except (OSError, ValueError, IndexError):
            continue
        private += resident - common
        shared = max(shared, common)
    return (private + shared) * _PAGE, threads
