"""The system-call filter of the sandbox: what namespaces leave open is closed here.

- Everything is allowed that is not named: the namespaces are the wall, this is the second one.
- No new namespaces or mounts, no tracing of other processes, no kernel modules, programs or keys, no setting of clocks.
- Sockets are Unix and internet ones only (the sandbox has its own, empty network): no vsock, netlink or packet sockets.
  A program that says so may ask the kernel for its network interfaces (there is the loopback, and nothing else):
  routing netlink alone. Without capabilities it can read there, and change nothing.
- No typing into the terminal (``TIOCSTI``, ``TIOCLINUX``): it may be shared when a person opens a shell in there.

Source: the escapes tried in ``tests/attacks/builds``; seccomp(2), ioctl_tty(2), clone(2), rtnetlink(7).
"""

from __future__ import annotations

import errno
import functools
import os

from intaglio.errors import MachineError

_REFUSED = (
    "unshare", "setns", "mount", "umount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount",
    "fsopen", "fsmount", "fsconfig", "fspick", "mount_setattr", "ptrace", "process_vm_readv",
    "process_vm_writev", "process_madvise", "process_mrelease", "pidfd_getfd", "kcmp", "kexec_load",
    "kexec_file_load", "bpf", "perf_event_open", "userfaultfd", "fanotify_init", "lookup_dcookie", "keyctl",
    "add_key", "request_key", "init_module", "finit_module", "delete_module", "create_module", "query_module",
    "open_by_handle_at", "name_to_handle_at", "quotactl", "quotactl_fd", "acct", "swapon", "swapoff", "reboot",
    "settimeofday", "stime", "clock_settime", "clock_settime64", "adjtimex", "clock_adjtime", "clock_adjtime64",
    "personality", "sethostname", "setdomainname", "syslog", "iopl", "ioperm", "vhangup", "vm86", "vm86old",
    "modify_ldt", "nfsservctl", "uselib", "ustat", "sysfs", "_sysctl",
)  # fmt: skip
"""Answered with EPERM. Names that this machine's libseccomp or architecture lacks are left out."""
_ABSENT = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")
"""Answered with ENOSYS, so that the C library falls back (``clone3`` hides its flags from a filter)."""
_NAMESPACE_FLAGS = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (``clone`` cannot make time namespaces)."""
_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6."""
_NETLINK = 16
_ROUTE = 0
"""AF_NETLINK, NETLINK_ROUTE: what getifaddrs(3) needs."""
_TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI, TIOCLINUX."""


@functools.cache
def program(*, interfaces: bool = False) -> bytes:
    """Return the filter as compiled BPF for this machine's architecture; ``interfaces`` may be asked for.

    Raises:
        MachineError: libseccomp is not installed.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as error:
        raise MachineError(
            f"the sandbox needs libseccomp, which does not load: {error}",
            hint="install it (on Debian and Ubuntu: apt install libseccomp2)",
        ) from None
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    refuse = pyseccomp.ERRNO(errno.EPERM)
    for names, action in ((_REFUSED, refuse), (_ABSENT, pyseccomp.ERRNO(errno.ENOSYS))):
        for name in names:
            number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
            if number >= 0:
                rules.add_rule(action, number)
    for flag in _NAMESPACE_FLAGS:
        rules.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    for request in _TERMINAL_INPUT:
        rules.add_rule(refuse, "ioctl", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, request))
    no_family = pyseccomp.ERRNO(errno.EAFNOSUPPORT)
    families = {*_FAMILIES, _NETLINK} if interfaces else {*_FAMILIES}
    highest = max(families)
    for family in range(highest):
        if family not in families:
            rules.add_rule(no_family, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
    rules.add_rule(no_family, "socket", pyseccomp.Arg(0, pyseccomp.GT, highest))
    if interfaces:
        other = pyseccomp.Arg(2, pyseccomp.NE, _ROUTE)
        rules.add_rule(no_family, "socket", pyseccomp.Arg(0, pyseccomp.EQ, _NETLINK), other)
    with open(os.memfd_create("filter", os.MFD_CLOEXEC), "w+b") as stream:
        rules.export_bpf(stream)
        stream.seek(0)
        return stream.read()
