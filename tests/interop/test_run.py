"""Containers by real podman and real Docker: what is loaded, what a server inside can do, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests import containers as programs
from tests import runnable
from tests.containers import engine

from intaglio.build import containers, relay
from intaglio.build.containers import DockerHost, Order
from intaglio.build.engines import Engine
from intaglio.content import archive
from intaglio.content.layout import Store
from intaglio.content.runtime_image import RuntimeImage
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, Error, MachineError, NotVerifiable, PolicyRefusal, StepFailed, Untrusted

__all__ = ["engine"]
pytestmark = [pytest.mark.real, pytest.mark.containers, pytest.mark.filterwarnings("ignore::ResourceWarning")]
SERVER = r"""
import json, os, signal, socket, socketserver, sys
from http.server import BaseHTTPRequestHandler

def attempt(work):
    try:
        return repr(work())
    except OSError as error:
        return f"refused: {error.strerror}"

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return line.split()[1]

def internet():
    socket.create_connection(("192.0.2.1", 80), 2)

def about():
    return {
        "user": os.getuid(), "group": os.getgid(), "name": os.environ.get("INTAGLIO_MODEL_NAME"),
        "model": sorted(os.listdir("/model")), "bytes": open("/model/weights", "rb").read().decode(),
        "passport": os.listdir("/passport"),
        "root": attempt(lambda: open("/new", "w")),
        "change": attempt(lambda: open("/model/weights", "w")),
        "add": attempt(lambda: open("/passport/new", "w")),
        "tmp": attempt(lambda: open("/tmp/new", "w").close()),
        "shared": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
        "network": attempt(internet), "interfaces": [name for _, name in socket.if_nameindex()],
        "capabilities": [status(key) for key in ("CapEff", "CapBnd", "CapPrm")], "nnp": status("NoNewPrivs"),
        "seccomp": status("Seccomp"),
    }

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(about() if self.path == "/about" else {"data": []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return "relay"
    def log_message(self, *_):
        pass

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

if os.path.exists("/model/refuse"):
    print("what comes first", file=sys.stderr)
    print(open("/model/refuse").read(), file=sys.stderr, flush=True)
    sys.exit(int(open("/model/status").read()))
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
if os.path.exists("/model/mute"):
    signal.pause()
os.umask(0)
Server("/run/intaglio/server.sock", Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("run") / "store")


@pytest.fixture(scope="module")
def image(store: Store) -> RuntimeImage:
    return runnable.image(store, SERVER)


@pytest.fixture(scope="module")
def host(engine: Engine, store: Store, image: RuntimeImage) -> DockerHost:
    """The engine, with the image."""
    found = DockerHost(engine)
    containers.install(found, archive.ids(image), archive.stream(image, store, "localhost/intaglio/test:1"))
    return found


@pytest.fixture
def scratch(store: Store) -> Iterator[Path]:
    with store.scratch("run") as folder:
        yield folder


def order(image: RuntimeImage, scratch: Path, **files: str) -> Order:
    """Return a container over a model of ``files``."""
    scratch.chmod(0o700)
    for name in ("model", "passport"):
        (scratch / name).mkdir()
        (scratch / name).chmod(0o755)
    for name, text in {"weights": "what was verified", **files}.items():
        (scratch / "model" / name).write_text(text)
        (scratch / "model" / name).chmod(0o444)
    folders = {"/model": scratch / "model", "/passport": scratch / "passport"}
    return Order(image.config.digest, folders, scratch, 512 << 20, 64, {"INTAGLIO_MODEL_NAME": "tests/model:1"})


def ask(url: str, path: str) -> Any:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port or 0, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        return json.loads(answer.read())
    finally:
        connection.close()


def serve(host: DockerHost, wanted: Order, use: Callable[[str, str], Any], startup: float = 60.0) -> Any:
    """Serve until ``use``, called with address and container in a thread of its own, has ended; return what it gave."""
    given: list[Any] = []

    def work(url: str, container: str) -> None:
        try:
            given.append(use(url, container))
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            given.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def ready(url: str, container: str) -> None:
        threading.Thread(target=work, args=(url, container)).start()

    with relay.listen(0) as listener:
        assert containers.serve(host, wanted, listener, startup=startup, ready=ready) == 0
    if isinstance(given[0], BaseException):
        raise given[0]
    return given[0]


def left(host: DockerHost) -> list[str]:
    """Return the containers that are there."""
    return [one["Id"] for one in host._client.containers(all=True)]


# --- the image -------------------------------------------------------------------------------------------------------


def test_the_engine_knows_the_image_by_the_digest_that_was_verified(host: DockerHost, image: RuntimeImage) -> None:
    assert host.has(image.config.digest)
    assert not host.has(Digest.of(b"another"))


def test_an_image_that_is_there_is_not_sent_again(host: DockerHost, image: RuntimeImage) -> None:
    assert containers.install(host, archive.ids(image), _never()) == image.config.digest


def _never() -> Iterator[bytes]:
    raise AssertionError("the archive was read")
    yield b""


def test_what_was_loaded_under_another_id_is_refused(host: DockerHost, store: Store) -> None:
    other = runnable.image(store, "print(1)\n", python=False)
    with pytest.raises(CorruptContent, match="has no image"):
        containers.install(host, [Digest.of(b"promised")], archive.stream(other, store, "localhost/intaglio/other:1"))


def test_a_damaged_layer_does_not_reach_the_engine(host: DockerHost, store: Store) -> None:
    other = runnable.image(store, "print(2)\n", python=False)
    place = store.path(other.files[-1].digest)
    data = place.read_bytes()
    place.chmod(0o644)
    place.write_bytes(data.replace(b"print(2)", b"print(3)"))
    try:
        with pytest.raises(CorruptContent, match="found other bytes"):
            containers.install(host, archive.ids(other), archive.stream(other, store, "localhost/intaglio/damaged:1"))
    finally:
        place.unlink()
    assert not host.has(other.config.digest)
    with pytest.raises(NotVerifiable, match="is not in the store"):
        containers.install(host, archive.ids(other), archive.stream(other, store, "localhost/intaglio/damaged:1"))


def test_containerd_knows_it_by_the_digest_of_its_manifest(store: Store, tmp_path: Path) -> None:
    """Docker's containerd image store takes an archive as containerd does, and its ids are containerd's digests."""
    found = runnable.image(store, "print(4)\n", python=False)
    name = "localhost/intaglio/containerd:1"
    (tmp_path / "image.tar").write_bytes(b"".join(archive.stream(found, store, name)))
    with programs.containerd() as ask:
        ask("images", "import", "--no-unpack", str(tmp_path / "image.tar"))
        listed = ask("images", "ls")
    assert name in listed
    assert str(archive.ids(found)[1]) in listed


# --- the container ---------------------------------------------------------------------------------------------------


def test_a_server_has_its_model_and_nothing_else(host: DockerHost, image: RuntimeImage, scratch: Path) -> None:
    def use(url: str, container: str) -> Any:
        about = host._client.inspect_container(container)
        assert about["Image"].removeprefix("sha256:") == image.config.digest.hex
        assert about["HostConfig"]["NetworkMode"] == "none"
        return ask(url, "/about")

    found = serve(host, order(image, scratch), use)
    assert (found["user"], found["group"], found["name"]) == (65532, 65532, "tests/model:1")
    assert (found["model"], found["bytes"], found["passport"]) == (["weights"], "what was verified", [])
    assert {found[key].partition(":")[0] for key in ("root", "change", "add", "network")} == {"refused"}
    assert found["tmp"] == "None"
    assert found["shared"] == 1 << 30
    assert found["interfaces"] == ["lo"]
    assert set(found["capabilities"]) == {"0000000000000000"}
    assert (found["nnp"], found["seccomp"]) == ("1", "2")
    assert left(host) == []


def test_many_requests_pass_at_once(host: DockerHost, image: RuntimeImage, scratch: Path) -> None:
    def use(url: str, container: str) -> int:
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(ask(url, "/v1/models"))) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found.count({"data": []})

    assert serve(host, order(image, scratch), use) == 20


def test_nobody_else_can_reach_the_socket(host: DockerHost, image: RuntimeImage, scratch: Path) -> None:
    wanted = order(image, scratch)
    mode = serve(host, wanted, lambda url, container: os.stat(wanted.private).st_mode & 0o777)
    assert mode == 0o700


@pytest.mark.parametrize(
    ("status", "kind"),
    [(21, CorruptContent), (22, Untrusted), (23, PolicyRefusal), (25, NotVerifiable), (50, MachineError)],
)
def test_a_refusal_of_the_guard_is_passed_on(
    host: DockerHost, image: RuntimeImage, scratch: Path, status: int, kind: type[Error]
) -> None:
    line = {"verdict": "refused", "exit_code": status, "rule": "content", "detail": "other bytes", "hint": "look"}
    wanted = order(image, scratch, refuse=json.dumps(line), status=str(status))
    with pytest.raises(kind, match="the guard refused: content: other bytes") as caught:
        serve(host, wanted, lambda url, container: pytest.fail("it was served"))
    assert (caught.value.hint, left(host)) == ("look", [])


def test_a_server_that_ends_is_no_refusal(host: DockerHost, image: RuntimeImage, scratch: Path) -> None:
    """A line that claims another status than the container's is a server's, not the guard's."""
    wanted = order(image, scratch, refuse='{"exit_code": 22, "rule": "signature"}', status="3")
    with pytest.raises(StepFailed, match=r"ended by itself with status 3[\s\S]*what comes first"):
        serve(host, wanted, lambda url, container: pytest.fail("it was served"))
    assert left(host) == []


def test_a_server_that_dies_later_ends_the_command(host: DockerHost, image: RuntimeImage, scratch: Path) -> None:
    def ready(url: str, container: str) -> None:
        threading.Thread(target=host._client.kill, args=(container,)).start()

    with relay.listen(0) as listener, pytest.raises(StepFailed, match="ended by itself with status 137"):
        containers.serve(host, order(image, scratch), listener, startup=60.0, ready=ready)
    assert left(host) == []


def test_a_server_that_never_answers_is_ended(host: DockerHost, image: RuntimeImage, scratch: Path) -> None:
    wanted = order(image, scratch, mute="")
    with relay.listen(0) as listener, pytest.raises(StepFailed, match="did not answer within 1 s"):
        containers.serve(host, wanted, listener, startup=1.0, ready=lambda url, container: None)
    assert left(host) == []


def test_what_a_killed_process_left_is_removed(host: DockerHost, image: RuntimeImage, store: Store) -> None:
    with store.scratch("run") as alive, store.scratch("run") as folder:
        for place in (alive, folder):
            (place / "socket").mkdir()
        kept, gone = (host.start(order(image, place)) for place in (alive, folder))
        try:
            host.sweep(store.root)
            assert set(left(host)) == {kept, gone}, "their processes live"
            (folder.parent / ".lock").unlink()
            host.sweep(store.root / "elsewhere")
            assert set(left(host)) == {kept, gone}, "another store's are not ours"
            host.sweep(store.root)
            assert left(host) == [kept]
        finally:
            host.remove(kept)
            host.remove(gone)


def test_both_engines_are_tried() -> None:
    assert programs.KINDS == ("podman", "docker")
