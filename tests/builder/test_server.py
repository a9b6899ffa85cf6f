"""The llama.cpp server for real: it answers on its Unix socket, under the image's name, and ends when told to."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.builder.bare import BUILDER, run_step

NAME = "examples/tiny-from-scratch:1.0.0"
TINY = BUILDER.parent / "modelfiles" / "tiny-from-scratch"

pytestmark = [pytest.mark.slow, pytest.mark.real]


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def call(path: Path, method: str, target: str, body: object = None) -> tuple[int, str]:
    connection = Connection(path)
    try:
        connection.request(method, target, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, environment: Callable[[str], str]) -> Path:
    root = tmp_path_factory.mktemp("model")
    for step, toolchain, inputs, given in (
        ("scratch", "train-cpu", {"corpus": TINY / "data"}, {}),
        ("convert", "convert", {"model": root / "scratch"}, {"pre_tokenizer": "gpt-2"}),
    ):
        result = run_step(step, inputs, root / step, given, python=environment(toolchain))
        assert result.status == 0, result.log
    return root / "convert" / "model.gguf"


def start(python: str, folder: Path, files: dict[str, str], path: Path) -> subprocess.Popen[bytes]:
    request = {"protocol": 1, "model": {"files": files}, "name": NAME, "socket": str(path), "context": 256}
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    program = [python, "-B", "-s", "-P", str(BUILDER / "servers" / "llama-cpp.py"), str(folder / "request.json")]
    return subprocess.Popen(program, stderr=subprocess.PIPE)


@pytest.fixture
def served(gguf: Path, environment: Callable[[str], str]) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    with tempfile.TemporaryDirectory() as short:  # a socket's path holds at most 107 bytes
        link = Path(short) / "model.gguf"
        link.symlink_to(gguf)
        path = Path(short) / "s.sock"
        process = start(environment("serve-llama-cpp"), Path(short), {"model.gguf": str(link)}, path)
        try:
            limit = time.monotonic() + 60
            while not path.exists() or call(path, "GET", "/health")[0] != 200:
                assert process.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.05)
            yield path, process
        finally:
            process.kill()
            process.communicate()


def test_it_answers_on_its_socket_and_ends_when_told(served: tuple[Path, subprocess.Popen[bytes]]) -> None:
    path, process = served
    status, text = call(path, "GET", "/v1/models")
    assert status == 200
    assert [model["id"] for model in json.loads(text)["data"]] == [NAME]
    question = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 4}
    status, text = call(path, "POST", "/v1/chat/completions", question)
    assert status == 200
    assert json.loads(text)["usage"]["completion_tokens"] >= 1
    status, text = call(path, "POST", "/v1/chat/completions", {**question, "stream": True})
    assert status == 200
    assert text.rstrip().endswith("data: [DONE]")
    listening = [line for name in ("tcp", "tcp6") for line in listeners(process.pid, name)]
    assert listening == [], "only the socket may listen"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert not path.exists()


def listeners(pid: int, name: str) -> list[str]:
    """TCP sockets on which a process listens."""
    own = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/{name}").read_text(encoding="utf-8").splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]


@pytest.mark.parametrize("files", [{}, {"a.gguf": "/x/a.gguf", "b.gguf": "/x/b.gguf"}, {"a.gguf": "/x/a.gguf"}])
def test_what_is_no_model_is_refused(tmp_path: Path, environment: Callable[[str], str], files: dict[str, str]) -> None:
    process = start(environment("serve-llama-cpp"), tmp_path, files, tmp_path / "s.sock")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"error: " in said


def test_its_toolchain_is_one_package() -> None:
    lock = BUILDER / "toolchains" / "serve-llama-cpp" / "pylock.toml"
    assert [package["name"] for package in tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]] == ["xllamacpp"]
