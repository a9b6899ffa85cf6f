"""One container from its start to its end, in an engine that is made up; real ones: tests/interop/test_run.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from intaglio.build import containers, relay
from intaglio.build.containers import Ended, Order
from intaglio.build.engines import Engine
from intaglio.dataclass import replace
from intaglio.digest import Digest
from intaglio.errors import (
    CorruptContent,
    Error,
    InternalError,
    MachineError,
    NotVerifiable,
    PolicyRefusal,
    Stale,
    StepFailed,
    Untrusted,
    UsageError,
)

IMAGE = Digest.of(b"config")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Host:
    """An engine in memory, whose one container answers every request, or ends at once."""

    def __init__(
        self, *, images: Iterable[Digest] = (), reads: Digest | None = None, ends: Ended | None = None
    ) -> None:
        self.images = set(images)
        self.calls: list[str] = []
        self._reads = reads
        self._ends = ends
        self._over = threading.Event()
        self._socket: socket.socket | None = None

    def has(self, image: Digest) -> bool:
        return image in self.images

    def load(self, archive: Iterable[bytes]) -> None:
        self.calls.append("load")
        for _ in archive:
            pass
        if self._reads is not None:
            self.images.add(self._reads)

    def sweep(self, below: Path) -> None:
        self.calls.append("sweep")

    def start(self, order: Order) -> str:
        self.calls.append("start")
        if self._ends is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(str(order.private / "socket" / containers.SOCKET))
            self._socket.listen()
            threading.Thread(target=self._answer, daemon=True).start()
        else:
            self._over.set()
        return "c1"

    def _answer(self) -> None:
        assert self._socket is not None
        while not self._over.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(ANSWER)

    def wait(self, container: str) -> Ended:
        self._over.wait(20)
        return self._ends or Ended(137, "")

    def stop(self, container: str) -> None:
        self.calls.append("stop")
        self._over.set()
        if self._socket is not None:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def remove(self, container: str) -> None:
        self.calls.append("remove")


@pytest.fixture
def order(tmp_path: Path) -> Order:
    return Order(IMAGE, {}, tmp_path, 1 << 20, 8)


def serve(host: Host, order: Order, ready: Any = lambda url, container: None) -> int:
    with relay.listen(0) as listener:
        return containers.serve(host, order, listener, startup=20.0, ready=ready)


# --- the image -------------------------------------------------------------------------------------------------------


IDS = (IMAGE, Digest.of(b"manifest"))


@pytest.mark.parametrize("known", IDS)
def test_an_image_is_loaded_once_and_started_by_the_id_that_the_engine_has(known: Digest) -> None:
    host = Host(reads=known)
    assert containers.install(host, IDS, iter([b"archive"])) == known
    assert containers.install(host, IDS, iter([b"archive"])) == known
    assert host.calls == ["load"]


def test_an_engine_that_read_another_image_is_refused() -> None:
    with pytest.raises(CorruptContent, match="has no image"):
        containers.install(Host(reads=Digest.of(b"another")), IDS, iter([b"archive"]))


class Client:
    """The SDK's client of an engine that keeps images by config, as Docker and podman do, or by manifest, as over
    containerd; it finds one by its id or any name, and answers with its id.
    """

    def __init__(self, by: Digest) -> None:
        self.by = by
        self.images: dict[str, Digest] = {}
        self.made: list[str] = []

    def inspect_image(self, name: str) -> dict[str, str]:
        import docker

        if name not in self.images:
            raise docker.errors.ImageNotFound(name)
        return {"Id": str(self.images[name])}

    def load_image(self, archive: Iterable[bytes]) -> Iterable[dict[str, str]]:
        assert b"".join(archive)
        self.images |= {str(self.by): self.by, "localhost/intaglio/runtime:1": self.by}
        return ()

    def create_container(self, image: str, **_: object) -> dict[str, str]:
        self.made.append(image)
        return {"Id": "c1"}

    def create_host_config(self, **_: object) -> None:
        pass

    def start(self, container: str) -> None:
        pass


def docker_host(client: Client) -> containers.DockerHost:
    pytest.importorskip("docker")
    host = object.__new__(containers.DockerHost)
    host.engine, host._client, host._can = Engine("docker", "29", Path("/run/docker.sock")), client, {}
    return host


@pytest.mark.parametrize("by", IDS)
def test_docker_keeps_images_by_config_or_by_manifest(order: Order, by: Digest) -> None:
    client = Client(by)
    host = docker_host(client)
    found = containers.install(host, IDS, iter([b"archive"]))
    assert found == by
    host.start(replace(order, image=found))
    assert client.made == [str(by)]


def test_a_foreign_image_under_our_tag_or_id_is_refused() -> None:
    client = Client(Digest.of(b"foreign"))
    client.images |= {str(one): client.by for one in IDS}
    with pytest.raises(CorruptContent, match="has no image"):
        containers.install(docker_host(client), IDS, iter([b"archive"]))


# --- from start to end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_ended(order: Order, number: int) -> None:
    host, heard = Host(), []

    def ready(url: str, container: str) -> None:
        heard.append((url.startswith("http://127.0.0.1:"), container))
        os.kill(os.getpid(), number)

    assert serve(host, order, ready) == 0
    assert heard == [(True, "c1")]
    assert host.calls == ["start", "stop", "remove"]


REFUSALS = [
    (2, UsageError),
    (21, CorruptContent),
    (22, Untrusted),
    (23, PolicyRefusal),
    (24, Stale),
    (25, NotVerifiable),
    (50, MachineError),
    (70, InternalError),
]


@pytest.mark.parametrize(("status", "kind"), REFUSALS)
def test_a_refusal_is_the_error_that_it_says(order: Order, status: int, kind: type[Error]) -> None:
    line = {"verdict": "refused", "exit_code": status, "rule": "content", "detail": "other bytes", "hint": None}
    host = Host(ends=Ended(status, f"a warning\n{json.dumps(line)}\n"))
    with pytest.raises(kind, match=r"^the guard refused: content: other bytes$") as caught:
        serve(host, order, lambda url, container: pytest.fail("it was served"))
    assert type(caught.value) is kind
    assert host.calls[-1] == "remove"


def test_the_guards_own_fault_is_no_servers(order: Order) -> None:
    line = {"verdict": "refused", "exit_code": 70, "rule": "guard", "detail": "the guard itself failed", "hint": None}
    with pytest.raises(InternalError, match="the guard itself failed") as caught:
        serve(Host(ends=Ended(70, f"{json.dumps(line)}\n")), order, lambda url, container: pytest.fail("it was served"))
    assert caught.value.exit_code == 70


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (22, ""),
        (22, "no JSON"),
        (22, '{"exit_code": 23, "rule": "signature"}'),
        (22, '["exit_code", 22]'),
        (3, '{"exit_code": 3, "rule": "signature"}'),
        (0, '{"exit_code": 0, "verdict": "verified"}'),
        (137, '{"exit_code": 22, "rule": "signature"}'),
    ],
)
def test_all_else_is_a_server_that_failed(order: Order, status: int, said: str) -> None:
    with pytest.raises(StepFailed, match=f"ended by itself with status {status}") as caught:
        serve(Host(ends=Ended(status, said)), order)
    assert (said or "it wrote nothing") in caught.value.message


def test_a_container_that_cannot_be_started_leaves_nothing(order: Order) -> None:
    class Refusing(Host):
        def start(self, order: Order) -> str:
            raise MachineError("no")

    host = Refusing()
    with pytest.raises(MachineError, match="no"):
        serve(host, order)
    assert host.calls == []


def test_one_that_cannot_be_stopped_is_removed_all_the_same(order: Order) -> None:
    class Stubborn(Host):
        def stop(self, container: str) -> None:
            super().stop(container)
            raise MachineError("it does not stop")

    host = Stubborn()
    assert serve(host, order, lambda url, container: os.kill(os.getpid(), signal.SIGINT)) == 0
    assert host.calls[-1] == "remove"


def test_only_this_user_comes_to_the_socket(order: Order) -> None:
    order.private.chmod(0o700)
    modes = []

    def ready(url: str, container: str) -> None:
        modes.append(os.stat(order.private / "socket").st_mode & 0o777)
        os.kill(os.getpid(), signal.SIGINT)

    serve(Host(), order, ready)
    assert modes == [0o777], "whoever the server is on this side"
    assert os.stat(order.private).st_mode & 0o777 == 0o700


# --- the relay -------------------------------------------------------------------------------------------------------


def test_a_connection_that_is_open_at_the_end_is_cut_without_a_word(
    order: Order, caplog: pytest.LogCaptureFixture
) -> None:
    opened = []

    def ready(url: str, container: str) -> None:
        place = urlsplit(url)
        opened.append(socket.create_connection((place.hostname or "", place.port or 0)))
        # It is relayed once a byte has passed; the end is asked for after that.
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    class Silent(Host):
        def _answer(self) -> None:
            assert self._socket is not None
            connection, _ = self._socket.accept()
            connection.recv(65536)
            connection.sendall(ANSWER)
            connection.close()
            held, _ = self._socket.accept()
            self._over.wait(20)
            held.close()

    assert serve(Silent(), order, ready) == 0
    with opened[0] as client:
        client.settimeout(5)
        assert client.recv(1) == b""
    assert [record.message for record in caplog.records] == []


def test_a_burst_waits_for_a_server_with_a_short_queue(order: Order) -> None:
    class Slow(Host):
        def start(self, order: Order) -> str:
            super().start(order)
            assert self._socket is not None
            self._socket.listen(0)
            return "c1"

    answers: list[bytes] = []

    def ask(url: str) -> None:
        place = urlsplit(url)
        with socket.create_connection((place.hostname or "", place.port or 0), timeout=20) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            answers.append(client.recv(4096))

    def burst(url: str) -> None:
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.kill(os.getpid(), signal.SIGINT)

    assert serve(Slow(), order, lambda url, container: threading.Thread(target=burst, args=(url,)).start()) == 0
    assert answers == [ANSWER] * 40


def test_a_port_that_is_taken(order: Order) -> None:
    with relay.listen(0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(MachineError, match=f"cannot listen on 127.0.0.1:{port}"):
            relay.listen(port)


def test_a_link_in_place_of_the_socket_is_not_followed(order: Order, tmp_path: Path) -> None:
    class Linking(Host):
        def start(self, order: Order) -> str:
            super().start(order)
            place = order.private / "socket" / containers.SOCKET
            place.rename(tmp_path / "another.sock")
            place.symlink_to(tmp_path / "another.sock")
            return "c1"

    with relay.listen(0) as listener, pytest.raises(StepFailed, match="did not answer"):
        containers.serve(Linking(), order, listener, startup=0.5, ready=lambda url, container: None)
