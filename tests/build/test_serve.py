"""Serving for real: a process that serves, a server in the sandbox, a client on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

_SERVING = """
import os, sys
from dataclasses import dataclass
from pathlib import Path
sys.path.insert(0, ".")
from tests.box import MIB, Box
from intaglio.build import relay, serve
from intaglio.build.sandbox import Limits
from intaglio.digest import Digest
from intaglio.errors import Error
from intaglio.guard.memory import hold

@dataclass(frozen=True)
class Verified:
    path: str
    digest: Digest
    size: int
    source: Path

place, port, mode, *names = sys.argv[1:]
place = Path(place)
(place / "box").mkdir()
box = Box(place / "box")
files = []
for name in names:
    source = place / "blobs" / name.replace("/", "_")
    files.append(Verified(name, Digest.of(source.read_bytes()), source.stat().st_size, source))
if os.environ.get("SWAP_EARLY"):
    files[0].source.write_bytes(b"E" * files[0].size)
service = serve.Service(
    program=place / "program",
    python=box.python_inside.executable_inside,
    mounts=box.python_inside.mounts,
    environment={"PATH": "/usr/bin", "TOY": mode, "TARGET": str(place / "victim"), **box.python_inside.environment},
    limits=Limits(memory=256 * MIB, processes=64, time=600, disk=MIB),
    context=128,
    startup=float(os.environ.get("STARTUP", "30")),
)
try:
    with relay.listen(int(port)) as listener, hold(files) as held:
        status = serve.serve(
            held=held, service=service, name="examples/toy:1.0.0", listener=listener, log=place / "log",
            ready=lambda address: print(address, flush=True),
        )
except Error as error:
    print(type(error).__name__, error.message, "HINT", error.hint, flush=True)
    sys.exit(int(error.exit_code))
sys.exit(status)
"""


class Serving:
    """A serving process and its client."""

    def __init__(self, process: subprocess.Popen[str], place: Path) -> None:
        self.process = process
        self.place = place
        self.port = 0

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        self.port = int(line.rsplit(":", 1)[1].split("/")[0])

    def get(self, path: str) -> object:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)

    def rest(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read()


@contextlib.contextmanager
def serving(
    place: Path, *, mode: str = "", port: int = 0, data: dict[str, bytes] | None = None, **environment: str
) -> Iterator[Serving]:
    (place / "program").mkdir()
    shutil.copy(Path(__file__).with_name("toy_server.py"), place / "program" / "server.py")
    (place / "blobs").mkdir()
    data = data if data is not None else {"toy.gguf": b"V" * 100_000}
    for name, content in data.items():
        (place / "blobs" / name.replace("/", "_")).write_bytes(content)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _SERVING, str(place), str(port), mode, *data],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield Serving(process, place)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_it_serves_the_model_and_ends_clean(tmp_path: Path) -> None:
    data = {"toy.gguf": b"V" * 100_000, "config/deep/tokenizer.json": b"{}"}
    with serving(tmp_path, data=data) as toy:
        toy.wait_ready()
        models = toy.get("/v1/models")
        assert isinstance(models, dict)
        assert models["data"] == [{"id": "examples/toy:1.0.0"}]
        assert models["request"] == {
            "protocol": 1,
            "name": "examples/toy:1.0.0",
            "socket": "/run/intaglio/server.sock",
            "context": 128,
            "model": {"files": {name: f"/model/{name}" for name in data}, "folder": "/model"},
        }
        assert toy.get("/digests") == {name: hashlib.sha256(content).hexdigest() for name, content in data.items()}
        assert toy.end() == 0
        assert "ended by signal 15" in (tmp_path / "log").read_text()
        with pytest.raises(OSError):
            toy.get("/v1/models")


def test_interrupt_ends_it_clean(tmp_path: Path) -> None:
    with serving(tmp_path) as toy:
        toy.wait_ready()
        assert toy.end(signal.SIGINT) == 0


def test_bytes_swapped_by_the_stores_owner_are_not_served(tmp_path: Path) -> None:
    """Between verification and load, in place and by replacing the file; and while it serves."""
    expected = {"toy.gguf": hashlib.sha256(b"V" * 100_000).hexdigest()}
    with serving(tmp_path) as toy:
        toy.wait_ready()
        blob = tmp_path / "blobs" / "toy.gguf"
        with open(blob, "r+b") as stream:
            stream.write(b"EVIL" * 1000)
            stream.flush()
            assert toy.get("/digests") == expected
        blob.unlink()
        blob.write_bytes(b"E" * 100_000)
        assert toy.get("/digests") == expected
        assert toy.get("/write") == [1]
        assert toy.get("/digests") == expected


def test_bytes_swapped_before_the_load_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path, SWAP_EARLY="1") as toy:
        assert toy.process.wait(20) == 21
        assert "CorruptContent toy.gguf: expected sha256" in toy.rest()


def test_the_server_has_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, serving(tmp_path) as toy:
        toy.wait_ready()
        assert "refused" in str(toy.get(f"/reach/{listener.getsockname()[1]}"))
        assert "refused" in str(toy.get(f"/reach/{toy.port}"))


def test_it_streams(tmp_path: Path) -> None:
    with serving(tmp_path) as toy:
        toy.wait_ready()
        connection = http.client.HTTPConnection("127.0.0.1", toy.port, timeout=20)
        connection.request("GET", "/stream")
        response = connection.getresponse()
        arrived = []
        while line := response.readline():
            if line.startswith(b"data"):
                arrived.append(time.monotonic())
        connection.close()
        assert len(arrived) == 5
        assert arrived[-1] - arrived[0] > 0.5


def test_half_closed_connections_and_large_bodies(tmp_path: Path) -> None:
    body = os.urandom(5_000_000)
    with serving(tmp_path) as toy:
        toy.wait_ready()
        with socket.create_connection(("127.0.0.1", toy.port), timeout=20) as client:
            client.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\n\r\n" + body)
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := client.recv(1 << 16):
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(body)


def test_clients_that_go_away_and_many_at_once_do_no_harm(tmp_path: Path) -> None:
    with serving(tmp_path) as toy:
        toy.wait_ready()
        for _ in range(20):
            client = socket.create_connection(("127.0.0.1", toy.port))
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        clients = [socket.create_connection(("127.0.0.1", toy.port), timeout=20) for _ in range(40)]
        for client in clients:
            client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
            client.close()
        assert toy.end() == 0
        assert toy.rest() == ""


def test_a_server_that_fails_is_explained(tmp_path: Path) -> None:
    with serving(tmp_path, mode="fail") as toy:
        assert toy.process.wait(20) == 30
        said = toy.rest()
        assert "status 7" in said
        assert "cannot load the model: some reason" in said
        assert f"HINT its whole log: {tmp_path / 'log'}" in said


def test_a_server_that_dies_later_is_explained(tmp_path: Path) -> None:
    with serving(tmp_path) as toy:
        toy.wait_ready()
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            toy.get("/die")
        assert toy.process.wait(20) == 30
        assert "about to die: a reason" in toy.rest()


def test_a_server_that_never_answers_is_ended(tmp_path: Path) -> None:
    with serving(tmp_path, mode="mute", STARTUP="1") as toy:
        assert toy.process.wait(30) == 30
        assert "did not answer within 1 s" in toy.rest()


def test_a_server_cannot_lead_the_relay_to_another_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as victim:
        victim.bind(str(tmp_path / "victim"))
        victim.listen()
        victim.settimeout(0.1)
        with serving(tmp_path, mode="redirect", STARTUP="1") as toy:
            assert toy.process.wait(30) == 30
        with pytest.raises(TimeoutError):
            victim.accept()


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with serving(tmp_path, port=listener.getsockname()[1]) as toy:
            assert toy.process.wait(20) == 50
            assert "--port" in toy.rest()
        assert not (tmp_path / "log").exists()


def test_killing_it_kills_the_server(tmp_path: Path) -> None:
    with serving(tmp_path) as toy:
        toy.wait_ready()
        inside = [name for name in os.listdir("/proc") if name.isdigit() and _is_server_of(name, toy.process.pid)]
        assert len(inside) == 1
        server = os.pidfd_open(int(inside[0]))
        try:
            toy.process.kill()
            assert select.select([server], [], [], 10)[0]
        finally:
            os.close(server)


def _is_server_of(name: str, serving: int) -> bool:
    """Return whether a process is the grandchild of the serving one: process 1 of its sandbox."""
    try:
        parent = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
        return int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1]) == serving
    except (OSError, ValueError, IndexError):
        return False
