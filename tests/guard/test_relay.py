"""The relay: a TCP port that leads to the server's socket, and ends with the server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from intaglio.errors import MachineError
from intaglio.guard import relay

PROGRAM = """
import sys, time
from intaglio.guard import relay
relay.start(int(sys.argv[1]), sys.argv[2])
print("started", flush=True)
time.sleep(60)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_bytes_go_both_ways_and_the_end_is_passed_on(tmp_path: Path) -> None:
    port, place = free_port(), tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen()
        thread = threading.Thread(target=_echo, args=(server,))
        thread.start()
        parent = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), str(place)], stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        try:
            assert parent.stdout.readline() == "started\n"
            assert _ask(port, b"x" * 300_000) == b"x" * 300_000
        finally:
            os.kill(parent.pid, signal.SIGKILL)
            parent.wait()
            parent.stdout.close()
        thread.join(10)
    for _ in range(100):  # the relay dies with the server
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.05)
    pytest.fail("the relay outlived the server")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MachineError, match="cannot listen"):
            relay.start(taken.getsockname()[1], str(tmp_path / "x.sock"))


COLLECTING = "import gc; gc.set_threshold(1)\n"
"""Nothing may live on by luck: asyncio itself holds tasks weakly."""


def _echo(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        data = b""
        while chunk := connection.recv(1 << 16):
            data += chunk
        connection.sendall(data)


def _ask(port: int, data: bytes) -> bytes:
    found = b""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while chunk := client.recv(1 << 16):
            found += chunk
    return found


def test_a_burst_waits_for_a_server_with_a_short_queue(tmp_path: Path) -> None:
    port, place, clients = free_port(), tmp_path / "server.sock", 12
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen(0)
        parent = subprocess.Popen(
            [sys.executable, "-c", COLLECTING + PROGRAM, str(port), str(place)], stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        answers: list[bytes] = []
        asking = [threading.Thread(target=lambda: answers.append(_ask(port, b"x"))) for _ in range(clients)]
        try:
            assert parent.stdout.readline() == "started\n"
            for one in asking:
                one.start()
            time.sleep(0.5)  # nobody is let in yet: all but the first few find the queue full
            for _ in range(clients):
                _echo(server)
            for one in asking:
                one.join(10)
        finally:
            parent.kill()
            parent.wait()
            parent.stdout.close()
    assert answers == [b"x"] * clients
