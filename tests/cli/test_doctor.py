"""``intaglio doctor`` on this machine, and on it with something taken away."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.registries import distribution
from tests.attacks.registries.fake import Registry
from tests.workshop import Finished, Workshop

from intaglio.build import engines
from intaglio.errors import ExitCode, MachineError

pytestmark = pytest.mark.real


def found(done: Finished) -> dict[str, dict[str, Any]]:
    """Return the findings by name; of several with one name, the last."""
    return {one["name"]: one for one in done.json["findings"]}


def test_a_machine_that_builds_is_ready(shop: Workshop) -> None:
    done = shop.run("doctor", "--json").ok()
    assert done.json["ready"] is True
    by_name = found(done)
    assert by_name["sandbox"]["detail"].startswith("bubblewrap ")
    assert {by_name[name]["status"] for name in ("system", "python", "sandbox", "disk", "keys", "policy")} == {"ok"}
    shop.chain("first")
    shop.built()


def test_nothing_is_changed(shop: Workshop) -> None:
    before = {path: path.lstat().st_mtime_ns for path in shop.root.rglob("*")}
    shop.run("doctor").ok()
    fresh = shop.root / "fresh"
    assert shop.run("doctor", INTAGLIO_HOME=str(fresh)).status == ExitCode.MACHINE
    assert {path: path.lstat().st_mtime_ns for path in shop.root.rglob("*")} == before


def test_a_home_without_keys_cannot_build(shop: Workshop) -> None:
    done = shop.run("doctor", "--json", INTAGLIO_HOME=str(shop.root / "fresh"))
    assert done.status == ExitCode.MACHINE
    assert done.json["ready"] is False
    assert {name for name, one in found(done).items() if one["status"] == "missing"} == {"keys", "policy"}
    assert found(done)["keys"]["hint"] == "intaglio init"
    text = shop.run("doctor", INTAGLIO_HOME=str(shop.root / "fresh")).out
    assert "missing  keys" in text
    assert text.endswith("builds are not possible: see what is missing\n")


def test_a_machine_without_bubblewrap_cannot_build(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = shop.run("doctor", "--json", PATH=str(tmp_path / "bin"))
    assert done.status == ExitCode.MACHINE
    assert found(done)["sandbox"] == {
        "name": "sandbox",
        "status": "missing",
        "detail": "no bwrap on PATH",
        "hint": "install bubblewrap (on Debian and Ubuntu: apt install bubblewrap)",
    }


def test_a_sandbox_that_does_not_come_up_says_why(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    done = shop.run("doctor", "--json", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.status == ExitCode.MACHINE
    assert "No permissions to create new namespace" in found(done)["sandbox"]["detail"]
    assert found(done)["sandbox"]["hint"]


def test_a_python_that_is_not_here_is_named(shop: Workshop) -> None:
    lock = shop.builder / "toolchains" / "tiny" / "pylock.toml"
    old = next(line for line in lock.read_text().splitlines() if line.startswith("requires-python"))
    lock.write_text(lock.read_text().replace(old, 'requires-python = "==3.99.*"'))
    done = shop.run("doctor", "--json")
    assert done.status == ExitCode.MACHINE
    assert "no python3.99 on PATH" in found(done)["python"]["detail"]
    assert "tiny" in found(done)["python"]["detail"]


# --- registries ------------------------------------------------------------------------------------------------------


def test_a_registry_without_the_referrers_api(shop: Workshop, tmp_path: Path) -> None:
    with distribution.running(tmp_path / "registry") as registry:
        done = shop.run("doctor", "--json", "--registry", registry.host).ok()
    assert found(done)["registry"]["detail"] == f"{registry.host} has no referrers API: tags stand in for it"


def test_a_registry_with_the_referrers_api(shop: Workshop) -> None:
    with Registry(referrers_api=True) as registry:
        host = registry.reference().partition("/")[0]
        done = shop.run("doctor", "--json", "--registry", f"{host}/models/demo").ok()
    assert found(done)["registry"]["detail"] == f"{host} lists referrers itself (OCI 1.1)"


def test_a_registry_that_is_not_there_is_a_warning(shop: Workshop) -> None:
    done = shop.run("doctor", "--json", "--registry", "127.0.0.1:1").ok()
    assert found(done)["registry"]["status"] == "warning"
    assert "nothing answers" in found(done)["registry"]["detail"]


def test_what_is_no_registry_is_a_mistake(shop: Workshop) -> None:
    shop.run("doctor", "--registry", "not a host").failed(ExitCode.USAGE)


# --- container engines -----------------------------------------------------------------------------------------------


class _Handler(http.server.BaseHTTPRequestHandler):
    answer: object = None

    def do_GET(self) -> None:
        body = json.dumps(self.answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "test"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def socket_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Give a socket on which an engine gives that answer."""
    running: list[socketserver.UnixStreamServer] = []

    def make(answer: object) -> Path:
        place = tmp_path_factory.mktemp("e") / "s"
        handler = type("Handler", (_Handler,), {"answer": answer})
        server = socketserver.UnixStreamServer(str(place), handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return place

    yield make
    for server in running:
        server.shutdown()
        server.server_close()


DOCKER = {"Version": "27.1", "Components": [{"Name": "Engine"}]}
PODMAN = {"Version": "5.2", "Components": [{"Name": "Podman Engine"}]}


@pytest.mark.parametrize(("answer", "name"), [(DOCKER, "docker"), (PODMAN, "podman")])
def test_an_engine_is_found_by_docker_host(shop: Workshop, socket_of: Any, answer: object, name: str) -> None:
    place = socket_of(answer)
    one = found(shop.run("doctor", "--json", DOCKER_HOST=f"unix://{place}").ok())["containers"]
    assert one["status"] == "ok"
    assert one["detail"].startswith(f"{name} ")
    assert one["detail"].endswith(str(place))


def test_an_engine_is_found_in_the_users_own_place(socket_of: Any, tmp_path: Path) -> None:
    place = socket_of(PODMAN)
    runtime = tmp_path / "runtime"
    (runtime / "podman").mkdir(parents=True)
    (runtime / "podman" / "podman.sock").symlink_to(place)
    assert engines.find({"XDG_RUNTIME_DIR": str(runtime)}).name == "podman"
    assert engines.find({"DOCKER_HOST": "unix:///nowhere"}, str(place)).socket == place, "what is named wins"


def test_what_is_no_engine_is_refused(socket_of: Any, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"no container engine answers: .*is no container engine"):
        engines.find({}, str(socket_of(["not", "one"])))
    with pytest.raises(MachineError, match="no socket"):
        engines.find({}, str(tmp_path / "nothing"))
    with pytest.raises(MachineError, match="expected the engine's Unix socket"):
        engines.find({"DOCKER_HOST": "tcp://10.0.0.1:2375"})


def test_a_far_engine_is_told(shop: Workshop) -> None:
    one = found(shop.run("doctor", "--json", DOCKER_HOST="tcp://10.0.0.1:2375").ok())["containers"]
    assert (one["status"], "expected the engine's Unix socket" in one["detail"]) == ("warning", True)


# --- graphics processors ---------------------------------------------------------------------------------------------


def test_a_gpu_is_told_by_its_drivers_program(shop: Workshop, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 550.54.15'\n")
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    one = found(shop.run("doctor", "--json", PATH=path).ok())["gpu"]
    assert one["detail"].startswith("NVIDIA H100 80GB HBM3, driver 550.54.15, kernel ")
    assert shutil.which("nvidia-smi", path=path) == str(program)
