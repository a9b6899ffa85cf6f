from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attacks.registries import authority
from tests.attacks.registries.client import QUICK
from tests.attacks.registries.fake import Registry, Reply

from intaglio.content.remote_http import (
    Answer,
    Network,
    Passing,
    Request,
    Transport,
    is_loopback,
    join,
    origin,
    patiently,
    pieces,
    shown,
    speaks_tls,
)
from intaglio.dataclass import replace
from intaglio.errors import CorruptContent, MachineError, RegistryError


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport(QUICK)
    yield made
    made.close()


def read(answer: Answer) -> bytes:
    with answer:
        return answer.read(1 << 20, "body")


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://registry.example.com/", True),
        ("http://127.0.0.1:5000/", True),
        ("http://localhost/", True),
        ("http://[::1]:5000/", True),
        ("http://plain.example.com:5000/", True),
        ("http://plain.example.com/", False),
        ("http://plain.example.com.evil.example:5000/", False),
        ("http://127.0.0.1.evil.example/", False),
        ("http://localhost.evil.example/", False),
        ("ftp://registry.example.com/", False),
        ("file:///etc/passwd", False),
    ],
)
def test_what_may_be_asked(url: str, allowed: bool) -> None:
    transport = Transport(Network(plain="plain.example.com:5000"))
    if allowed:
        transport.check(url)
        return
    with pytest.raises(RegistryError, match="https"):
        transport.check(url)


def test_one_connection_serves_many_requests(registry: Registry, transport: Transport) -> None:
    for _ in range(5):
        assert read(transport.open(Request("GET", f"{registry.url}/v2/"))) == b""
    assert len(transport._idle[origin(registry.url)]) == 1


def test_a_kept_connection_that_the_server_closed_is_no_fault(registry: Registry, transport: Transport) -> None:
    read(transport.open(Request("GET", f"{registry.url}/v2/")))
    transport._idle[origin(registry.url)][0].socket.shutdown(socket.SHUT_RDWR)
    read(transport.open(Request("GET", f"{registry.url}/v2/")))
    assert len(registry.requests) == 2


def test_a_body_left_unread_is_not_taken_for_the_next_answer(registry: Registry, transport: Transport) -> None:
    registry.tamper = lambda asked, reply: Reply(200, b"HTTP/1.1 204 OK\r\n\r\n" * 10)
    for _ in range(3):
        with transport.open(Request("GET", f"{registry.url}/v2/")) as answer:
            assert answer.status == 200
    assert not transport._idle.get(origin(registry.url))


@pytest.mark.parametrize(("chunked", "connection"), [(False, "keep-alive"), (True, "keep-alive"), (False, "close")])
def test_a_large_body_comes_whole(registry: Registry, transport: Transport, chunked: bool, connection: str) -> None:
    body = bytes(range(256)) * 4096
    registry.tamper = lambda asked, reply: Reply(200, body, {"Connection": connection}, chunked=chunked)
    with transport.open(Request("GET", f"{registry.url}/v2/")) as answer:
        assert answer.length == (None if chunked else len(body))
        view = memoryview(bytearray(1000))
        found = bytearray()
        while count := answer.readinto(view):
            found += view[:count]
    assert bytes(found) == body
    assert len(transport._idle.get(origin(registry.url), [])) == (connection == "keep-alive")


def test_a_small_body_has_a_bound(registry: Registry, transport: Transport) -> None:
    registry.tamper = lambda asked, reply: Reply(200, b"x" * 101, chunked=True)
    with (
        transport.open(Request("GET", f"{registry.url}/v2/")) as answer,
        pytest.raises(CorruptContent, match="at most 100"),
    ):
        answer.read(100, "body")


@pytest.mark.parametrize(("status", "header", "wait"), [(429, "7", 7.0), (503, "soon", 0.0), (502, "", 0.0)])
def test_faults_that_may_pass_say_how_long(status: int, header: str, wait: float) -> None:
    with Registry() as registry:
        registry.tamper = lambda asked, reply: Reply(status, headers={"Retry-After": header})
        with pytest.raises(Passing) as caught:
            Transport(QUICK).open(Request("GET", f"{registry.url}/v2/"))
        assert caught.value.wait == wait


def test_a_trickle_counts_as_a_stall(registry: Registry) -> None:
    registry.tamper = lambda asked, reply: Reply(200, b"x" * 100_000)
    transport = Transport(Network(timeout=0.2, slowest=10**9))
    with transport.open(Request("GET", f"{registry.url}/v2/")) as answer, pytest.raises(Passing, match="only"):
        drain_slowly(answer)


def drain_slowly(answer: Answer) -> None:
    view = memoryview(bytearray(10))
    while answer.readinto(view):
        time.sleep(0.05)


def test_patience_ends() -> None:
    tries = []

    def fail() -> None:
        tries.append(1)
        raise Passing("busy")

    with pytest.raises(RegistryError, match=r"what: busy \(4 tries\)"):
        patiently(QUICK, "what", fail)
    assert len(tries) == QUICK.attempts


def test_patience_does_not_end_while_bytes_come() -> None:
    moved = [0]

    def work() -> str:
        moved[0] += 2 << 20
        if moved[0] < 40 << 20:
            raise Passing("broken")
        return "done"

    assert patiently(QUICK, "what", work, lambda: moved[0]) == "done"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/v2/x", "https://a.example:5000/v2/x"),
        ("?a=b", "https://a.example:5000/v2/y?a=b"),
        ("//b.example/x", "https://b.example/x"),
        ("https://b.example/x", "https://b.example/x"),
    ],
)
def test_addresses_are_joined(location: str, expected: str) -> None:
    assert join("https://a.example:5000/v2/y", location) == expected


@pytest.mark.parametrize("location", ["", "/a b", "/a\r\nHost: x", "https://a.example:port/", "https://[::1/", "/ä"])
def test_addresses_that_are_none(location: str) -> None:
    with pytest.raises(RegistryError):
        join("https://a.example/", location)


def test_only_the_same_origin_is_the_same() -> None:
    assert origin("https://A.example/x?y") == origin("https://a.example:443/") == "https://a.example:443"
    assert origin("http://a.example/") != origin("https://a.example/")
    assert origin("https://u:p@a.example:1/") == "https://a.example:1"
    assert origin("http://[::1]:5000/") == "http://[::1]:5000"


def test_nothing_secret_is_shown() -> None:
    assert shown("https://user:pass@a.example/x?X-Amz-Signature=y#z") == "https://a.example/x"


def test_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.9.10", "::1", "[::1]")))
    assert not any(map(is_loopback, ("127.0.0.1.example.com", "localhost.example.com", "10.0.0.1", "::2", "")))


def test_tls_is_found_out(tmp_path: Path) -> None:
    made = authority.make(tmp_path)
    with Registry(tls=made.server_context()) as registry:
        assert speaks_tls(registry.host, QUICK)
    with pytest.raises(RegistryError, match="nothing answers"):
        speaks_tls(registry.host, QUICK)


def test_a_file_of_authorities_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(MachineError, match="not a file of authorities"):
            Transport(Network(ca_file=tmp_path / name)).open(Request("GET", "https://127.0.0.1:1/"))


def test_the_environment_names_the_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTAGLIO_CA_FILE", str(tmp_path / "ca.pem"))
    assert Network.from_environment().ca_file == tmp_path / "ca.pem"


def tunnel(listener: socket.socket, target: int, heard: list[bytes]) -> None:
    """Be a proxy for one connection: whatever CONNECT names, it is led to ``target``."""
    client, _ = listener.accept()
    with client, client.makefile("rb") as lines, socket.create_connection(("127.0.0.1", target)) as server:
        while (line := lines.readline().strip()) != b"":
            heard.append(line)
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        there = threading.Thread(target=relay, args=(client, server, heard))
        there.start()
        relay(server, client, [])
        there.join()


def relay(source: socket.socket, sink: socket.socket, heard: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            heard.append(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_a_proxy_carries_tls_and_never_sees_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = authority.make(tmp_path, name="registry.example.com")
    heard: list[bytes] = []
    with Registry(tls=made.server_context()) as registry, socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("https_proxy", f"http://user:pass@127.0.0.1:{listener.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        port = int(registry.host.rpartition(":")[2])
        proxy = threading.Thread(target=tunnel, args=(listener, port, heard))
        proxy.start()
        transport = Transport(replace(QUICK, ca_file=made.ca))
        read(transport.open(Request("GET", "https://registry.example.com/v2/"), lambda where: "Bearer secret"))
        transport.close()
        proxy.join()
        assert registry.requests[0].headers["authorization"] == "Bearer secret"
        assert "proxy-authorization" not in registry.requests[0].headers
    assert heard[0].startswith(b"CONNECT registry.example.com:443 ")
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz" in heard
    assert b"secret" not in b"".join(heard)


def test_loopback_needs_no_proxy(registry: Registry, transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    read(transport.open(Request("GET", f"{registry.url}/v2/")))


def test_pieces_give_the_file_and_no_more(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(data + b"grown meanwhile")
    assert b"".join(map(bytes, pieces(tmp_path / "file", len(data)))) == data


def test_an_answer_before_the_body_is_through_is_heard(transport: Transport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=refuse_early, args=(listener,))
        server.start()
        pieces = [b"x" * 65536] * 64
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v2/"
        request = Request("PUT", url, {}, lambda: pieces, sum(map(len, pieces)))
        with transport.open(request) as answer:
            assert answer.status == 413
        server.join()


def refuse_early(listener: socket.socket) -> None:
    """Answer after the head of a request, then read what is under way, and hang up."""
    wire, _ = listener.accept()
    with wire:
        wire.recv(1000)
        wire.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        wire.shutdown(socket.SHUT_WR)
        wire.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while wire.recv(1 << 20):
                pass
