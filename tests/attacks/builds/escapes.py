"""What a step tries in order to get out: each is Python code to run inside, which ends with 0 where it was refused.

``tried`` is called with what the step reaches for; where that works, the code ends with 1 and says what it got.
"""

from __future__ import annotations

import textwrap

PREAMBLE = textwrap.dedent("""
    import ctypes, ctypes.util, errno, os, socket, sys, time
    libc = ctypes.CDLL(None, use_errno=True)
    NUMBERS = dict(
        x86_64=dict(ptrace=101, mount=165, sethostname=170, keyctl=250, unshare=272, perf=298, setns=308, bpf=321,
                    userfaultfd=323, io_uring_setup=425, clone3=435, open_tree=428, clone=56, chroot=161, reboot=169,
                    init_module=175, process_vm_readv=310, name_to_handle_at=303, open_by_handle_at=304, mknod=133,
                    personality=135, settimeofday=164, adjtimex=159, quotactl=179, syslog=103, add_key=248),
        aarch64=dict(ptrace=117, mount=40, sethostname=161, keyctl=219, unshare=97, perf=241, setns=268, bpf=280,
                     userfaultfd=282, io_uring_setup=425, clone3=435, open_tree=428, clone=220, chroot=51, reboot=142,
                     init_module=105, process_vm_readv=270, name_to_handle_at=264, open_by_handle_at=265,
                     personality=92, settimeofday=170, adjtimex=171, quotactl=60, syslog=116, add_key=217),
    )[os.uname().machine]

    def call(name, *arguments):
        result = libc.syscall(NUMBERS[name], *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), name)
        return result

    def tried(what, function):
        try:
            got = function()
        except OSError as error:
            print(what, "refused:", error, flush=True)
        else:
            print(what, "ESCAPED:", got, flush=True)
            os._exit(1)

    def connect(address, family=socket.AF_INET):
        with socket.socket(family, socket.SOCK_STREAM) as end:
            end.settimeout(2)
            end.connect(address)
            return "connected"
""")

ESCAPES: dict[str, str] = {
    "host loopback": 'tried("loopback", lambda: connect(("127.0.0.1", int(sys.argv[1]))))',
    "host loopback, version 6": 'tried("loopback", lambda: connect(("::1", int(sys.argv[1])), socket.AF_INET6))',
    "another host": 'tried("network", lambda: connect(("192.0.2.1", 80)))',
    "host's own address": 'tried("network", lambda: connect((sys.argv[2], int(sys.argv[1]))))',
    "name service": 'tried("dns", lambda: socket.gethostbyname("example.com"))',
    "interfaces": """
        names = [line.split(":")[0].strip() for line in open("/proc/self/net/dev").readlines()[2:]]
        assert names == ["lo"], names
    """,
    "abstract Unix socket": """
        tried("abstract", lambda: connect("\\0" + sys.argv[3], socket.AF_UNIX))
    """,
    "Unix socket in a host folder": 'tried("socket", lambda: connect(sys.argv[4], socket.AF_UNIX))',
    "vsock": 'tried("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))',
    "netlink": 'tried("netlink", lambda: socket.socket(16, socket.SOCK_RAW, 0))',
    "packet socket": 'tried("packet", lambda: socket.socket(17, socket.SOCK_RAW))',
    "raw internet socket": 'tried("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))',
    "every other socket family": """
        for family in set(range(64)) - {1, 2, 10}:
            tried(f"family {family}", lambda: socket.socket(family, socket.SOCK_STREAM))
            tried(f"family {family}", lambda: socket.socket(family, socket.SOCK_RAW))
    """,
    "a family hidden behind high bits": """
        libc.socket.argtypes = [ctypes.c_long] * 3
        number = 41 if os.uname().machine == "x86_64" else 198
        for family in (16, 17, 40):
            arguments = (number, family + (1 << 32), 3, 0)
            assert libc.syscall(*(ctypes.c_long(argument) for argument in arguments)) < 0, family
    """,
    "write to inputs and system": """
        for path in ("/in/data/x", "/in/data/new", "/usr/x", "/usr/bin/env", "/etc/passwd", "/etc/x", "/x", "/dev/x",
                     "/lib/x", "/bin/x", "/proc/x", "/run", "/proc/1/root/x"):
            tried(path, lambda: open(path, "w"))
        tried("chmod", lambda: os.chmod("/in/data/x", 0o777))
        tried("unlink", lambda: os.unlink("/in/data/x"))
        tried("utime", lambda: os.utime("/in/data/x"))
        tried("link", lambda: os.link("/in/data/x", "/out/x"))
        tried("through /proc", lambda: os.open(f"/proc/self/fd/{os.open('/in/data/x', os.O_RDONLY)}", os.O_RDWR))
    """,
    "host folders and files": """
        for path in ("/home", "/root", "/sys", "/var", "/srv", "/boot", "/mnt", "/run", "/etc/shadow", "/etc/hostname",
                     "/etc/resolv.conf", "/etc/machine-id", sys.argv[5]):
            tried(path, lambda: os.stat(path))
    """,
    "another step's outputs": 'tried("other", lambda: os.listdir(sys.argv[5]))',
    "out of the root": """
        tried("above", lambda: os.stat("/../../../../../.." + sys.argv[5]))
        tried("root of 1", lambda: os.stat("/proc/1/root" + sys.argv[5]))
        tried("cwd of 1", lambda: os.stat("/proc/1/cwd/.." + sys.argv[5]))
        tried("chroot", lambda: os.chroot("/tmp"))
    """,
    "kernel settings": """
        found = []
        for folder, folders, files in os.walk("/proc"):
            if folder == "/proc":
                folders[:] = [name for name in folders if not name.isdigit() and name not in ("self", "thread-self")]
            for name in files:
                path = os.path.join(folder, name)
                try:
                    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                except OSError:
                    continue
                found.append(path)
        assert not found, found
    """,
    "kernel memory and messages": """
        for name in ("kcore", "kmsg", "kallsyms", "keys", "kpageflags", "cmdline", "sysrq-trigger"):
            if os.path.exists("/proc/" + name):
                tried(name, lambda: open("/proc/" + name, "rb").read(1))
        for name in ("/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/fuse", "/dev/vda", "/dev/sda", "/dev/net/tun"):
            tried(name, lambda: open(name, "rb"))
    """,
    "devices": """
        expected = {"core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
                    "urandom", "zero", "console"}
        assert set(os.listdir("/dev")) <= expected, os.listdir("/dev")
        import stat
        for path in ("/out/disk", "/work/disk", "/tmp/disk", "/dev/shm/disk"):
            tried(path, lambda: os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(8, 0)))
            tried(path, lambda: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 1)))
        tried("terminal", lambda: open("/dev/tty"))
    """,
    "other processes": """
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        assert pids == [os.getpid()] == [1], pids
        assert os.getppid() == 0
        # -1 means every process but this one: there is none.
        tried("kill all", lambda: os.kill(-1, 0))
        tried("kill", lambda: os.kill(int(sys.argv[6]), 0))
    """,
    "process 1 is the step itself": """
        assert b"NUMBERS" in open("/proc/1/cmdline", "rb").read()
        assert sys.argv[6] not in open("/proc/1/cgroup").read()
    """,
    "environment": """
        left = set(os.environ) - {"PATH", "PWD", "LC_CTYPE", "INTAGLIO_EVENTS_FD", "LD_LIBRARY_PATH"}
        assert not left, left
        assert b"CANARY" not in open("/proc/1/environ", "rb").read()
    """,
    "open descriptors": """
        names = sorted(int(name) for name in os.listdir("/proc/self/fd"))
        assert names[:4] == [0, 1, 2, 3] and len(names) == 5, names  # the fifth lists the folder
        assert os.readlink("/proc/self/fd/0") == "/dev/null"
        assert os.readlink("/proc/self/fd/3").startswith("pipe:")
    """,
    "rights": """
        status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2", status
        assert all(int(status[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")), status
        tried("setuid", lambda: os.setuid(0))
        tried("setgroups", lambda: os.setgroups([0]))
        tried("chown", lambda: (open("/out/mine", "w"), os.chown("/out/mine", 0, 0)))
        os.nice(5)
        tried("priority", lambda: os.nice(-5))
    """,
    "set-user-id": """
        for path in ("/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount"):
            if os.path.exists(path):
                assert os.statvfs(path).f_flag & os.ST_NOSUID
        assert os.statvfs("/out").f_flag & os.ST_NOSUID and os.statvfs("/work").f_flag & os.ST_NODEV
    """,
    "namespaces": """
        for name, flag in dict(user=0x10000000, mount=0x20000, net=0x40000000, pid=0x20000000, ipc=0x8000000,
                               uts=0x4000000, cgroup=0x2000000, time=0x80).items():
            tried("unshare " + name, lambda: call("unshare", flag))
            if name != "time":
                tried("clone " + name, lambda: call("clone", flag | 17, 0, 0, 0, 0) or os._exit(1))
        tried("clone3", lambda: call("clone3", ctypes.create_string_buffer(88), 88))
        tried("setns", lambda: call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0))
    """,
    "mounts": """
        tried("tmpfs", lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, 0))
        tried("remount", lambda: call("mount", b"none", b"/usr", b"", 0x1020, 0))
        tried("bind", lambda: call("mount", b"/work", b"/in", b"", 0x1000, 0))
        tried("open_tree", lambda: call("open_tree", -100, b"/", 1))
        assert libc.umount2(b"/in/data", 2) == -1
    """,
    "names and clocks": """
        tried("hostname", lambda: call("sethostname", b"evil", 4))
        tried("clock", lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))
        tried("settimeofday", lambda: call("settimeofday", ctypes.create_string_buffer(16), 0))
        tried("adjtimex", lambda: call("adjtimex", ctypes.create_string_buffer(bytes([1]) + bytes(300))))
    """,
    "kernel interfaces": """
        buffer = ctypes.create_string_buffer(256)
        tried("ptrace", lambda: call("ptrace", 0, 0, 0, 0))
        tried("process memory", lambda: call("process_vm_readv", 1, buffer, 1, buffer, 1, 0))
        tried("bpf", lambda: call("bpf", 0, 0, 0))
        tried("perf", lambda: call("perf", 0, 0, -1, -1, 0))
        tried("io_uring", lambda: call("io_uring_setup", 1, buffer))
        tried("keyctl", lambda: call("keyctl", 0, -3, 0, 0, 0))
        tried("add_key", lambda: call("add_key", b"user", b"x", b"y", 1, -3))
        tried("userfaultfd", lambda: call("userfaultfd", 0))
        tried("module", lambda: call("init_module", buffer, 0, b""))
        tried("reboot", lambda: call("reboot", 0xfee1dead, 672274793, 0, 0))
        tried("handle", lambda: call("name_to_handle_at", -100, b"/", buffer, buffer, 0))
        tried("handle", lambda: call("open_by_handle_at", -100, buffer, 0))
        tried("personality", lambda: call("personality", 0x0040000))
        tried("quota", lambda: call("quotactl", 0, 0, 0, 0))
        tried("syslog", lambda: call("syslog", 3, buffer, 256))
    """,
    "typing into the terminal": """
        import fcntl
        for request in (0x5412, 0x541C, 0x5412 + (1 << 32)):
            tried(hex(request), lambda: libc.ioctl(0, ctypes.c_ulong(request), b"x") and
                  (_ for _ in ()).throw(OSError(ctypes.get_errno(), "ioctl")))
        assert ctypes.get_errno() == errno.EPERM, ctypes.get_errno()
    """,
    "system calls of the other word size": """
        import mmap, platform, signal
        if platform.machine() == "x86_64":
            # mov eax, 20 (getpid of i386); int 0x80; ret
            page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            page.write(bytes.fromhex("b814000000cd80c3"))
            child = os.fork()
            if child == 0:
                ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
                os._exit(0)
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert ended == -signal.SIGSYS or ended == -signal.SIGSEGV, ended
            # x32: the number with bit 30 set
            child = os.fork()
            if child == 0:
                libc.syscall(ctypes.c_long(0x40000000 + 39))
                os._exit(0)
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert ended == -signal.SIGSYS, ended
    """,
    "shared memory of the host": """
        IPC_RMID, key = 0, int(sys.argv[7])
        got = libc.shmget(key, 0, 0)
        assert got < 0, got
    """,
}


def code(name: str) -> str:
    """Return the complete program of one escape."""
    return PREAMBLE + textwrap.dedent(ESCAPES[name])
