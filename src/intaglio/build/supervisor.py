"""One sandboxed program from its start to the death of everything in it.

- The program starts only once its processes are in their control group and bound to this process's life: it waits at
  a gate for one line, and where that line cannot come any more it exits. Killing this process (or ending the thread
  that called :func:`supervise`) at any instant ends the sandbox.
- Nothing waits by sleeping: the end, an event, a limit and a request to stop each wake it.
- When :func:`supervise` returns, every process of the sandbox is dead: process 1 of its process namespace has been
  reaped, which the kernel allows only after all others are gone (pid_namespaces(7)).
- Events are untrusted: a line is bounded, and what is not a JSON object becomes a note in the log.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import select
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from intaglio import strictjson
from intaglio.build.control_group import Group, open_group
from intaglio.build.limits import Limits, Outcome, disk_usage
from intaglio.dataclass import dataclass
from intaglio.errors import CorruptContent, MachineError
from intaglio.strictjson import Object

__all__ = ["EVENTS_FD", "GATE", "SECCOMP_FD", "Outcome", "Stop", "Watch", "spawn", "supervise"]

GATE = ("/bin/sh", "-c", 'umask 022; echo >&3; read -r _ || exit 1; exec "$@" </dev/null', "gate")
"""What runs first inside, in front of the program's own arguments."""
EVENTS_FD = 3
"""Where the program finds the pipe for its events."""
SECCOMP_FD = 4
"""Where bubblewrap finds the system-call filter."""
_MAX_LINE = 64 << 10
_MAX_NOTES = 100
_SETUP_SECONDS = 60.0
_DISK_SECONDS = 0.25
_RESERVE = 64 << 20
"""Bytes that a step must leave free on a file system that it writes to, unless that is small."""
_SLACK = 256 << 20
"""Bytes that one process may reserve past the limit where memory is polled: it counts what is used, which is less."""
_PATIENCE = 5.0
"""Seconds that a sandbox being set up gets to give up by itself, which bubblewrap does better than being killed."""
_DEFAULT_SIGNALS = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ
)  # fmt: skip


class Stop:
    """A flag that ends running sandboxes from another thread, at once."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC)

    def set(self) -> None:
        """End every sandbox that was given this flag, now or later."""
        os.eventfd_write(self._descriptor, 1)

    def fileno(self) -> int:
        """Return the descriptor that is readable once the flag is set."""
        return self._descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class Watch:
    """What a sandbox is held to, and where it reports."""

    limits: Limits
    writable: tuple[Path, ...]
    """Folders whose content counts as disk use."""
    log: Path
    on_event: Callable[[Object], None]
    stop: Stop | None
    grace: float
    """Seconds between SIGTERM and SIGKILL when asked to stop; 0: SIGKILL at once. A limit gives none."""


def supervise(argv: list[str], descriptors: Mapping[int, int], watch: Watch) -> Outcome:
    """Run bubblewrap's ``argv``, in which :data:`GATE` runs first, and wait for its end.

    ``descriptors`` are given on to it: number inside to number here.

    Raises:
        MachineError: the sandbox could not be set up.
    """
    with contextlib.ExitStack() as stack:
        run = _Run(watch, stack)
        run.start(argv, descriptors)
        run.wait()
        return run.outcome()


def spawn(argv: list[str], descriptors: Mapping[int, int], *, own_group: bool) -> int:
    """Start a program with an empty environment, default signals and the ``descriptors`` alone; return its process id.

    ``own_group`` keeps the terminal's signals from it.
    """
    program = shutil.which(argv[0])
    if program is None:
        raise MachineError(
            f"the sandbox needs {argv[0]}, which is not on PATH",
            hint="install bubblewrap (on Debian and Ubuntu: apt install bubblewrap)",
        )
    with contextlib.ExitStack() as stack:
        above = max(descriptors, default=0) + 1
        actions: list[tuple[int, int] | tuple[int, int, int]] = [
            (os.POSIX_SPAWN_CLOSE, number) for number in _inheritable() if number not in descriptors
        ]
        for inside, ours in descriptors.items():
            copy = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, above)
            stack.callback(os.close, copy)
            actions.append((os.POSIX_SPAWN_DUP2, copy, inside))
        if own_group:
            return os.posix_spawn(
                program, argv, {}, file_actions=actions, setsigmask=(), setsigdef=_DEFAULT_SIGNALS, setpgroup=0
            )
        return os.posix_spawn(program, argv, {}, file_actions=actions, setsigmask=(), setsigdef=_DEFAULT_SIGNALS)


class _Run:
    """One run; everything that it opens is closed by ``stack``."""

    def __init__(self, watch: Watch, stack: contextlib.ExitStack) -> None:
        self._watch = watch
        self._stack = stack
        self._log = os.open(watch.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        stack.callback(os.close, self._log)
        self._log_start = os.fstat(self._log).st_size
        self._events = _Events(watch.on_event, self._log)
        self._group = open_group(watch.limits)
        stack.callback(lambda: self._group.close())
        self._pid: int | None = None
        """Bubblewrap's process, which waits for the first one inside."""
        self._monitor: int | None = None
        self._first: int | None = None
        """Descriptors of both; the first one inside is known once it has reached the gate."""
        self._gate: int | None = None
        self._limit: str | None = None
        self._stopped = False
        self._started: float | None = None
        self._seconds = 0.0
        self._status = 0
        self._largest = 0
        self._deadline = time.monotonic() + _SETUP_SECONDS
        self._next_disk = time.monotonic() + _DISK_SECONDS

    def start(self, argv: list[str], descriptors: Mapping[int, int]) -> None:
        """Start it, in its control group."""
        self._stack.callback(self._end)
        gate, self._gate = os.pipe2(os.O_CLOEXEC)
        events, theirs = os.pipe2(os.O_CLOEXEC)
        self._pipe = events
        self._stack.callback(os.close, events)
        try:
            given = {0: gate, 1: self._log, 2: self._log, EVENTS_FD: theirs, **descriptors}
            self._pid = spawn(argv, given, own_group=True)
        finally:
            os.close(gate)
            os.close(theirs)
        self._monitor = os.pidfd_open(self._pid)
        # The kernel takes some 10 ms for the first move, which bubblewrap spends on its own setup.
        self._join(self._pid, first=False)

    def _join(self, pid: int, *, first: bool) -> None:
        """Take a process into the control group; where that is refused, watch it instead."""
        try:
            self._group.add(pid, first=first)
        except ProcessLookupError:
            return  # it ended already; the log says why
        except OSError:
            self._group.close()
            self._group = Group(self._watch.limits)
            self._group.add(pid, first=first)

    def _release(self) -> None:
        """Open the gate: the program's first process is there; bind it to its limits and let it go on."""
        pid = None if self._pid is None else _child(self._pid)
        if pid is None or self._gate is None:
            return  # it has ended meanwhile
        self._first = os.pidfd_open(pid)
        self._join(pid, first=True)
        self._bind(pid)
        self._started = time.monotonic()
        self._deadline = self._started + self._watch.limits.time
        os.write(self._gate, b"\n")

    def _bind(self, pid: int) -> None:
        """Set the limits that go with a process: the backstops."""
        limits = self._watch.limits
        bounds = {resource.RLIMIT_FSIZE: limits.disk, resource.RLIMIT_CORE: 0}
        if self._group.interval is not None:
            bounds |= {resource.RLIMIT_DATA: limits.memory + _SLACK, resource.RLIMIT_NPROC: limits.processes + 1}
        for kind, bound in bounds.items():
            hard = resource.getrlimit(kind)[1]
            value = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, kind, (value, value))

    def wait(self) -> None:
        """Let the program run, and come back when all of it is dead."""
        stop = self._watch.stop
        with select.epoll() as epoll:
            epoll.register(_present(self._monitor), select.EPOLLIN)
            epoll.register(self._pipe, select.EPOLLIN)
            for descriptor, mask in self._group.watch():
                epoll.register(descriptor, mask)
            if stop is not None:
                epoll.register(stop.fileno(), select.EPOLLIN)
            while True:
                ready = {descriptor for descriptor, _ in epoll.poll(max(0.0, self._wake() - time.monotonic()))}
                if self._pipe in ready and not self._receive():
                    epoll.unregister(self._pipe)
                if self._monitor in ready:
                    break
                if stop is not None and stop.fileno() in ready:
                    epoll.unregister(stop.fileno())
                    self._ask_to_stop()
                self._check()
        self._end()
        while self._receive():
            pass

    def _wake(self) -> float:
        """When, on the monotonic clock, the next check is due."""
        due = min(self._deadline, self._next_disk)
        interval = self._group.interval
        return due if interval is None else min(due, time.monotonic() + interval)

    def _receive(self) -> bool:
        """Take what stands in the event pipe; return whether more may come."""
        chunk = os.read(self._pipe, 1 << 16)
        if chunk and self._started is None:
            chunk = chunk[1:]  # the gate's own line
            self._release()
            return True
        self._events.feed(chunk)
        return bool(chunk)

    def _ask_to_stop(self) -> None:
        self._stopped = True
        if self._watch.grace > 0 and self._first is not None:
            signal.pidfd_send_signal(self._first, signal.SIGTERM)
            self._deadline = min(self._deadline, time.monotonic() + self._watch.grace)
        else:
            self._kill()

    def _check(self) -> None:
        """End it where a limit has been reached."""
        now = time.monotonic()
        reached = self._group.poll()
        if now >= self._next_disk and reached is None:
            if self._over_disk_limit() or self._disk_full():
                reached = "disk"
            self._next_disk = time.monotonic() + max(_DISK_SECONDS, 20 * (time.monotonic() - now))
        if now >= self._deadline and reached is None:
            reached = "time"
            self._deadline = now + _SETUP_SECONDS
        if reached is not None:
            self._limit = self._limit or reached
            self._kill()

    def _over_disk_limit(self) -> bool:
        limit = self._watch.limits.disk
        return disk_usage((*self._watch.writable, self._watch.log), limit) >= limit

    def _disk_full(self) -> bool:
        """Return whether hardly anything is left where it writes; what it deleted but keeps open counts here too."""
        for path in self._watch.writable:
            space = os.statvfs(path)
            reserve = min(_RESERVE, space.f_blocks * space.f_frsize // 100)
            if space.f_bavail * space.f_frsize < reserve:
                return True
        return False

    def _kill(self) -> None:
        """Kill process 1 inside, and with it all others; where it is not there yet, close the gate before it."""
        if self._first is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first, signal.SIGKILL)
        elif self._gate is not None:
            os.close(self._gate)
            self._gate = None
            self._deadline = time.monotonic() + _PATIENCE
        elif self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)

    def _end(self) -> None:
        """Make sure that all of it is dead, and reap it."""
        if self._pid is not None:
            monitor = self._monitor if self._monitor is not None else os.pidfd_open(self._pid)
            if not select.select([monitor], [], [], 0)[0]:
                self._kill()
                if not select.select([monitor], [], [], _PATIENCE)[0]:
                    os.kill(self._pid, signal.SIGKILL)
            _, status, usage = os.wait4(self._pid, 0)
            self._pid = None
            self._status = os.waitstatus_to_exitcode(status)
            self._largest = usage.ru_maxrss * 1024
            os.close(monitor)
            if self._first is not None:
                select.select([self._first], [], [])
                os.close(self._first)
            self._seconds = time.monotonic() - (self._started or time.monotonic())
        if self._gate is not None:
            os.close(self._gate)
            self._gate = None

    def outcome(self) -> Outcome:
        """Return how it ended.

        Raises:
            MachineError: it never came to its gate.
        """
        limit = self._limit or self._group.poll()
        if self._started is None:
            if self._stopped:
                self._status = -signal.SIGKILL
            else:
                raise _no_sandbox(_tail(self._watch.log, self._log_start))
        if limit is None and (self._over_disk_limit() or (self._status != 0 and self._disk_full())):
            limit = "disk"
        return Outcome(
            status=128 - self._status if self._status < 0 else self._status,
            limit=limit,
            peak_memory=max(self._group.peak, self._largest),
            seconds=self._seconds,
            enforced=self._group.enforced,
        )


class _Events:
    """The reader of a program's events."""

    def __init__(self, on_event: Callable[[Object], None], log: int) -> None:
        self._on_event = on_event
        self._log = log
        self._rest = b""
        self._skipping = False
        self._notes = 0

    def feed(self, chunk: bytes) -> None:
        """Take bytes as they come; an empty chunk is the end."""
        *lines, self._rest = (self._rest + chunk).split(b"\n") if chunk else (self._rest, b"")
        for line in lines:
            if not self._skipping:
                self._line(line)
            self._skipping = False
        if len(self._rest) > _MAX_LINE:
            if not self._skipping:
                self._note(f"longer than {_MAX_LINE} bytes")
            self._rest = b""
            self._skipping = True

    def _line(self, line: bytes) -> None:
        if not line:
            return
        if not line.startswith(b"{"):
            self._note("not a JSON object")
            return
        try:
            event = strictjson.parse_object(line, what="event", max_bytes=_MAX_LINE, max_depth=8)
        except CorruptContent as error:
            self._note(error.message)
            return
        self._on_event(event)

    def _note(self, why: str) -> None:
        self._notes += 1
        if self._notes <= _MAX_NOTES:
            os.write(self._log, f"intaglio: an event was ignored: {why}\n".encode(errors="replace"))


def _no_sandbox(said: str) -> MachineError:
    """Return the error for a sandbox that did not come up, with the hint that fits what bubblewrap ``said``."""
    if re.search(r"user namespace|namespace.*(permission|not permitted)|permissions? to creat", said, re.IGNORECASE):
        hint = (
            "allow user namespaces for this user: sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces>0"
        )
    elif "Operation not permitted" in said or "Permission denied" in said:
        hint = "inside a container, allow user namespaces and unmasked /proc, or build outside it"
    else:
        hint = "run intaglio doctor"
    return MachineError(f"the sandbox could not be set up: {said or 'bubblewrap said nothing'}", hint=hint)


def _tail(path: Path, start: int) -> str:
    with open(path, "rb") as stream:
        stream.seek(start)
        return stream.read(4096).decode(errors="replace").strip()


def _inheritable() -> list[int]:
    """Return the open descriptors that a new program would be given: what our own caller left open, a folder maybe."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists the folder is closed by now
            if os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def _child(pid: int) -> int | None:
    """Return the one child of a process."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # a kernel without it, or a process that has ended
        children = [name for name in os.listdir("/proc") if name.isdigit() and _parent(name) == pid]
    return int(children[0]) if children else None


def _parent(name: str) -> int | None:
    try:
        return int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _present(descriptor: int | None) -> int:
    if descriptor is None:
        raise ValueError("not started")
    return descriptor
