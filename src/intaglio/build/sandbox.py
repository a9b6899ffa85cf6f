"""The sandbox: a program with its declared inputs, and nothing else of this machine (bubblewrap).

- The root is empty and read-only; ``/usr`` is there read-only for the operating system's libraries; everything else is
  a declared mount. No ``/home``, no ``/sys``, of ``/etc`` only four made-up files, of ``/dev`` the harmless devices.
- No network but a loopback of its own; no process of the host is visible; no environment but the given one.
- A fixed user (1000, ``build``), group, host name and umask; no capabilities; a system-call filter
  (:mod:`intaglio.build.seccomp`).
- What it may take of the machine is bounded (:mod:`intaglio.build.limits`), and when :func:`run` returns, all of its
  processes are dead (:mod:`intaglio.build.supervisor`).
- There is no way round it: where it cannot be set up, nothing runs.

Source: bwrap(1), namespaces(7), ``docs/sandbox.md``.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.build.limits import Limits, Outcome
from intaglio.dataclass import dataclass
from intaglio.errors import MachineError
from intaglio.strictjson import Object

if TYPE_CHECKING:
    from intaglio.build.supervisor import Stop

__all__ = ["Limits", "Mount", "Outcome", "SandboxSpec", "check", "command", "run", "script", "shell"]

FIRST_DESCRIPTOR = 100
"""The number, inside, of the first of ``SandboxSpec.descriptors``."""
_ETC = Path(__file__).parent / "sandbox_etc"
_SYSTEM_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_HIDDEN = (
    "cmdline", "kallsyms", "kcore", "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount", "kpageflags",
    "sched_debug", "sysrq-trigger", "timer_list",
)  # fmt: skip
"""What ``/proc`` tells of the host beyond its processors and memory. All of ``/proc`` is read-only as well: where the
sandbox is started by root, its user owns ``/proc/sys`` and would be let in by ownership alone."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of this machine, seen inside."""

    source: Path
    target: str
    """Absolute path inside."""
    writable: bool = False


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """Everything that a sandboxed program has."""

    argv: tuple[str, ...]
    mounts: tuple[Mount, ...]
    """Made in this order."""
    environment: Mapping[str, str]
    """All of it, but for ``PWD`` and, under :func:`run`, ``INTAGLIO_EVENTS_FD``."""
    limits: Limits
    cwd: str = "/work"
    links: tuple[tuple[str, str], ...] = ()
    """Symbolic links to make inside: path and what it points to."""
    descriptors: tuple[int, ...] = ()
    """Open descriptors to hand in; inside they are ``FIRST_DESCRIPTOR`` and following, in process 1 of the sandbox."""
    grace: float = 0.0
    """Seconds that it gets between SIGTERM and SIGKILL when it is asked to stop; a limit gives none."""
    interfaces: bool = False
    """Whether it may list its network interfaces: the loopback, and nothing else."""


def run(spec: SandboxSpec, *, log: Path, on_event: Callable[[Object], None], stop: Stop | None = None) -> Outcome:
    """Run the program to its end; its standard output and error are appended to ``log``, its events are handed on.

    The calling thread must live until this returns: the sandbox dies with it.

    Raises:
        MachineError: the sandbox could not be set up.
    """
    from intaglio.build.supervisor import EVENTS_FD, GATE, SECCOMP_FD, Watch, supervise

    argv = [
        *_walls(spec), "--new-session", "--setenv", "INTAGLIO_EVENTS_FD", str(EVENTS_FD),
        "--", *GATE, *spec.argv,
    ]  # fmt: skip
    watch = Watch(
        limits=spec.limits,
        writable=tuple(mount.source for mount in spec.mounts if mount.writable),
        log=log,
        on_event=on_event,
        stop=stop,
        grace=spec.grace,
    )
    program = _filter(spec)
    try:
        extra = {FIRST_DESCRIPTOR + index: number for index, number in enumerate(spec.descriptors)}
        return supervise(argv, {SECCOMP_FD: program, **extra}, watch)
    finally:
        os.close(program)


def command(spec: SandboxSpec) -> list[str]:
    """Return bubblewrap's complete arguments; the system-call filter is expected as descriptor 4."""
    return [*_walls(spec), "--new-session", "--", *spec.argv]


def script(spec: SandboxSpec) -> str:
    """Return a shell script that runs the program again in the same walls, without limits; it needs bubblewrap only."""
    import base64

    from intaglio.build import seccomp
    from intaglio.build.supervisor import SECCOMP_FD

    encoded = base64.encodebytes(seccomp.program(interfaces=spec.interfaces)).decode()
    return (
        "#!/bin/sh\n"
        "# Runs one step again in its sandbox. Its limits are not applied; its outputs are not collected.\n"
        "umask 022\n"
        'filter=$(mktemp) && base64 -d >"$filter" <<END || exit\n'
        f"{encoded}END\n"
        f'exec {SECCOMP_FD}<"$filter"; rm "$filter"\n'
        f"exec {shlex.join(command(spec))}\n"
    )


def shell(spec: SandboxSpec) -> int:
    """Open a shell on the user's terminal in the sandbox of ``spec``; return its exit status.

    Raises:
        MachineError: bubblewrap or libseccomp is missing.
    """
    import signal

    from intaglio.build.supervisor import SECCOMP_FD, spawn

    terminal = ("--setenv", "TERM", os.environ.get("TERM", "dumb"), "--setenv", "PS1", r"sandbox:$PWD\$ ")
    program = _filter(spec)
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            argv = [*_walls(spec), *terminal, "--", "/bin/sh", "-i"]
            pid = spawn(argv, {0: 0, 1: 1, 2: 2, SECCOMP_FD: program}, own_group=False)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        finally:
            signal.signal(signal.SIGINT, before)
    finally:
        os.close(program)
    return 128 - status if status < 0 else status


def check() -> str:
    """Try the sandbox out; return how its limits were held, as in ``Outcome.enforced``.

    Raises:
        MachineError: bubblewrap or libseccomp is missing, or user namespaces are off; the hint says what to do.
    """
    import tempfile

    limits = Limits(memory=1 << 30, processes=64, time=30.0, disk=1 << 20)
    spec = SandboxSpec(argv=("/bin/true",), mounts=(), environment={}, limits=limits, cwd="/")
    with tempfile.TemporaryDirectory(prefix="intaglio-") as folder:
        outcome = run(spec, log=Path(folder, "log"), on_event=lambda _: None)
    if outcome.status != 0:
        raise MachineError(
            f"the sandbox does not work: expected /bin/true to end with 0, found {outcome.status}",
            hint="run intaglio doctor",
        )
    return outcome.enforced


def _filter(spec: SandboxSpec) -> int:
    """Return a descriptor from which bubblewrap reads the system-call filter."""
    from intaglio.build import seccomp

    program = seccomp.program(interfaces=spec.interfaces)
    descriptor = os.memfd_create("filter", os.MFD_CLOEXEC)
    os.write(descriptor, program)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _walls(spec: SandboxSpec) -> list[str]:
    """Return bubblewrap's arguments up to the program."""
    from intaglio.build.supervisor import SECCOMP_FD

    argv = [
        "bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--as-pid-1", "--cap-drop", "ALL",
        "--uid", "1000", "--gid", "1000", "--hostname", "build", "--clearenv", "--seccomp", str(SECCOMP_FD),
        "--ro-bind", "/usr", "/usr",
    ]  # fmt: skip
    for path in _SYSTEM_LINKS:
        if Path(path).is_symlink():
            argv += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).is_dir():
            argv += ["--ro-bind", path, path]
    size = ("--perms", "1777", "--size", str(spec.limits.memory))
    argv += ["--ro-bind", str(_ETC), "/etc", "--proc", "/proc", *_hide(), "--dev", "/dev"]
    argv += [*size, "--tmpfs", "/dev/shm", *size, "--tmpfs", "/tmp"]  # noqa: S108 - the sandbox's own
    for mount in spec.mounts:
        argv += ["--bind" if mount.writable else "--ro-bind", os.fspath(mount.source), mount.target]
    for path, target in spec.links:
        argv += ["--symlink", target, path]
    argv += ["--dir", spec.cwd, "--chdir", spec.cwd, "--remount-ro", "/dev", "--remount-ro", "/"]
    for name, value in sorted(spec.environment.items()):
        argv += ["--setenv", name, value]
    return argv


def _hide() -> list[str]:
    """Return the arguments that cover what ``/proc`` tells of the host, and close the rest to writing."""
    argv = []
    for name in _HIDDEN:
        if Path("/proc", name).exists():
            argv += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    return [*argv, "--remount-ro", "/proc"]
