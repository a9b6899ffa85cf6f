"""Every escape is tried for real, beside things of the host that it would reach if it worked."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attacks.builds import escapes
from tests.box import Box

from intaglio.build.sandbox import Mount

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def bait(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """What there is to reach for: listeners, a socket, another step's output, a process, shared memory."""
    place = tmp_path_factory.mktemp("bait")
    abstract = f"intaglio-bait-{os.getpid()}"
    (place / "out").mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    key = 0x1A7A0000 | (os.getpid() & 0xFFFF)
    segment = libc.shmget(key, 4096, 0o1600)
    assert segment >= 0
    listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    named = socket.socket(socket.AF_UNIX)
    named.bind(str(place / "socket"))
    hidden = socket.socket(socket.AF_UNIX)
    hidden.bind("\0" + abstract)
    for server in (listener, named, hidden):
        server.listen(64)
        server.settimeout(0.2)
    with socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
        pass  # the bait works from here
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(("192.0.2.1", 9))
            address = way.getsockname()[0]
        except OSError:
            address = "127.0.0.2"
    try:
        yield (
            str(listener.getsockname()[1]),
            address,
            abstract,
            str(place / "socket"),
            str(place / "out"),
            str(os.getpid()),
            str(key),
        )
    finally:
        for server in (listener, named, hidden):
            server.close()
        libc.shmctl(segment, 0, None)


@pytest.mark.parametrize("name", escapes.ESCAPES)
def test_escape(name: str, tmp_path: Path, bait: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "an environment variable of the host")
    box = Box(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "x").write_text("input")
    (data / "x").chmod(0o444)
    outcome = box.python(escapes.code(name), *bait, mounts=(Mount(data, "/in/data"),))
    assert outcome.status == 0, box.said()
    assert (data / "x").read_text() == "input"
    assert sorted(path.name for path in data.iterdir()) == ["x"]


def test_the_escapes_work_outside(tmp_path: Path, bait: tuple[str, ...]) -> None:
    """A probe that fails everywhere shows nothing: some are run without walls, and get out."""
    import subprocess
    import sys

    for name in ("host loopback", "abstract Unix socket", "Unix socket in a host folder", "another step's outputs"):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", escapes.code(name), *bait], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 1, name
        assert "ESCAPED" in done.stdout


def test_its_own_loopback_works(tmp_path: Path) -> None:
    """Distributed training needs it."""
    box = Box(tmp_path)
    outcome = box.python(
        "import socket\n"
        "for family, host in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET, 'localhost')):\n"
        "    server = socket.create_server((host, 0))\n"
        "    socket.create_connection(server.getsockname()).close()\n"
    )
    assert outcome.status == 0, box.said()


_INTERFACES = """
import ctypes, ctypes.util, socket
libc = ctypes.CDLL(None, use_errno=True)
found = ctypes.c_void_p()
print("getifaddrs", libc.getifaddrs(ctypes.byref(found)), flush=True)
for family in set(range(64)) - {1, 2, 10}:
    for protocol in range(32):
        try:
            socket.socket(family, socket.SOCK_RAW, protocol)
        except OSError:
            continue
        print("socket", family, protocol, flush=True)
number = 41 if __import__("os").uname().machine == "x86_64" else 198
libc.syscall.argtypes = [ctypes.c_long] * 4
for arguments in ((16 + (1 << 32), 3, 0), (16, 3, 4), (16, 3, 1 << 32)):
    assert libc.syscall(number, *arguments) < 0, arguments
"""


@pytest.mark.parametrize("interfaces", [False, True])
def test_interfaces_are_listed_by_those_that_say_so_and_nothing_else_opens(tmp_path: Path, interfaces: bool) -> None:
    box = Box(tmp_path)
    outcome = box.python(_INTERFACES, interfaces=interfaces)
    assert outcome.status == 0, box.said()
    expected = ["getifaddrs 0", "socket 16 0"] if interfaces else ["getifaddrs -1"]
    assert box.said().splitlines() == expected


def test_who_may_list_interfaces_cannot_change_them(tmp_path: Path) -> None:
    """RTM_NEWLINK that takes the loopback down: EPERM, for want of capabilities."""
    box = Box(tmp_path)
    outcome = box.python(
        "import socket, struct\n"
        "netlink = socket.socket(16, socket.SOCK_RAW, 0)\n"
        "body = struct.pack('=BxHiII', 0, 0, 1, 0, 1)\n"
        "netlink.send(struct.pack('=IHHII', 16 + len(body), 16, 5, 1, 0) + body)\n"
        "error = struct.unpack('=i', netlink.recv(4096)[16:20])[0]\n"
        "assert error == -1, error\n",
        interfaces=True,
    )
    assert outcome.status == 0, box.said()


def test_its_own_child_processes_and_threads_work(tmp_path: Path) -> None:
    """The filter refuses namespaces, not processes."""
    box = Box(tmp_path)
    outcome = box.python(
        "import subprocess, threading\n"
        "t = threading.Thread(target=print); t.start(); t.join()\n"
        "assert subprocess.run(['/bin/echo', 'x'], capture_output=True).stdout == b'x\\n'\n"
    )
    assert outcome.status == 0, box.said()


def test_two_steps_do_not_see_each_other(tmp_path: Path) -> None:
    """Side by side: same identity, no shared process, memory, socket or folder."""
    places = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        places.append(Box(tmp_path / name))
    one, two = places
    talk = threading.Thread(
        target=one.python,
        args=(
            "import socket, time\ns = socket.socket(socket.AF_UNIX); s.bind('\\0talk'); s.listen()\n"
            "open('/tmp/secret', 'w').write('x'); open('/dev/shm/secret', 'w').write('x'); time.sleep(1.5)",
        ),
    )
    talk.start()
    outcome = two.python(
        "import os, socket, time\ntime.sleep(0.7)\n"
        "assert not os.listdir('/tmp') and not os.listdir('/dev/shm')\n"
        "try: socket.socket(socket.AF_UNIX).connect('\\0talk')\n"
        "except ConnectionRefusedError: pass\n"
        "else: raise SystemExit(1)\n"
    )
    talk.join()
    assert outcome.status == 0, two.said()
