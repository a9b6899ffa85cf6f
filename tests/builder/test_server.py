"""Server programs for real: they answer on their Unix socket, under the image's name, and end when told to.

vLLM's is tried by ``benchmarks/servers.py``: its environment is large, and it takes long to start.
"""

from __future__ import annotations

import http.client
import importlib.util
import itertools
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.builder import forms
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


Served = tuple[Path, subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, environment: Callable[[str], str]) -> Path:
    """A tiny model as safetensors."""
    out = tmp_path_factory.mktemp("model") / "dense"
    result = run_step("scratch", {"corpus": TINY / "data"}, out, {}, python=environment("train-cpu"))
    assert result.status == 0, result.log
    return out


@pytest.fixture(scope="module")
def gguf(dense: Path, environment: Callable[[str], str]) -> Path:
    """The same as GGUF."""
    out = dense.with_name("gguf")
    given = {"pre_tokenizer": "gpt-2"}
    result = run_step("convert", {"model": dense}, out, given, python=environment("convert"))
    assert result.status == 0, result.log
    return out


def start(
    program: str, python: str, folder: Path, files: dict[str, str], path: Path, model: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a server program, whose request is left in ``folder``."""
    about = {"files": files, "folder": str(model or folder)}
    request = {"protocol": 1, "model": about, "name": NAME, "socket": str(path), "context": 256}
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    argv = [python, "-B", "-s", "-P", str(BUILDER / "servers" / f"{program}.py"), str(folder / "request.json")]
    return subprocess.Popen(argv, stderr=subprocess.PIPE)


def serve(program: str, python: str, model: Path) -> Iterator[Served]:
    """Serve a model's folder, laid out as links; wait until it answers."""
    with tempfile.TemporaryDirectory() as short:  # a socket's path holds at most 107 bytes
        links = Path(short) / "model"
        links.mkdir()
        for file in model.iterdir():
            (links / file.name).symlink_to(file)
        path = Path(short) / "s.sock"
        files = {file.name: str(links / file.name) for file in model.iterdir()}
        process = start(program, python, Path(short), files, path, links)
        try:
            limit = time.monotonic() + 240
            while not path.exists() or call(path, "GET", "/health")[0] != 200:
                assert process.poll() is None, process.communicate()[1].decode()
                assert time.monotonic() < limit
                time.sleep(0.05)
            yield path, process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(params=["llama-cpp", "transformers"])
def served(
    request: pytest.FixtureRequest, gguf: Path, dense: Path, environment: Callable[[str], str]
) -> Iterator[Served]:
    """A server of its own, which the test may end."""
    model = {"llama-cpp": gguf, "transformers": dense}[request.param]
    yield from serve(request.param, environment(f"serve-{request.param}"), model)


@pytest.fixture(scope="module")
def transformers(dense: Path, environment: Callable[[str], str]) -> Iterator[Path]:
    """The socket of one server for all tests that only ask."""
    for path, _ in serve("transformers", environment("serve-transformers"), dense):
        yield path


def test_it_answers_on_its_socket_and_ends_when_told(served: Served) -> None:
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
    process = start("llama-cpp", environment("serve-llama-cpp"), tmp_path, files, tmp_path / "s.sock")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"error: " in said


def test_its_toolchain_is_one_package() -> None:
    lock = BUILDER / "toolchains" / "serve-llama-cpp" / "pylock.toml"
    assert [package["name"] for package in tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]] == ["xllamacpp"]


# --- transformers -----------------------------------------------------------------------------------------------------


def ask(path: Path, /, target: str = "/v1/chat/completions", **more: Any) -> tuple[int, dict[str, Any]]:
    """Ask for a greedy answer of four tokens, unless ``more`` says otherwise."""
    content: dict[str, object] = {"prompt": "The capital"}
    if target == "/v1/chat/completions":
        content = {"messages": [{"role": "user", "content": "Hello"}]}
    status, text = call(path, "POST", target, {**content, "temperature": 0, "max_tokens": 4, **more})
    return status, json.loads(text)


def stream(path: Path, **more: object) -> list[Any]:
    """Ask for a chat as a stream; return its events, the last of which ends it."""
    question = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 4, "stream": True}
    status, text = call(path, "POST", "/v1/chat/completions", {**question, **more})
    assert status == 200, text
    *events, last = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert last == "[DONE]"
    return [json.loads(event) for event in events]


def test_a_stream_says_what_the_whole_answer_says(transformers: Path) -> None:
    _, whole = ask(transformers)
    (choice,) = whole["choices"]
    events = stream(transformers, stream_options={"include_usage": True})
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    *parts, end = events
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == choice["message"]["content"]
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert parts[-1]["choices"][0]["finish_reason"] == choice["finish_reason"] == "length"
    assert end["choices"] == []
    assert end["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens"] == 4
    assert "usage" not in stream(transformers)[-1]


def test_text_is_completed_as_well(transformers: Path) -> None:
    status, answer = ask(transformers, "/v1/completions")
    assert (status, answer["object"]) == (200, "text_completion")
    assert answer["choices"][0]["text"]


def test_what_is_sampled_depends_on_the_seed(transformers: Path) -> None:
    def said(seed: int) -> str:
        _, answer = ask(transformers, temperature=2, seed=seed, max_tokens=32)
        return str(answer["choices"][0]["message"]["content"])

    assert said(1) == said(1)
    assert said(1) != said(2)


def test_a_text_ends_before_what_stops_it(transformers: Path) -> None:
    _, answer = ask(transformers, max_tokens=24)
    whole = answer["choices"][0]["message"]["content"]
    stop = whole[5:8]
    _, answer = ask(transformers, max_tokens=24, stop=stop)
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({"model": "examples/another:1.0.0"}, 404, NAME),
        ({"tools": [{"type": "function"}]}, 400, "tools: not supported"),
        ({"n": 2}, 400, "n: not supported"),
        ({"logprobs": True}, 400, "logprobs: not supported"),
        ({"something": 1}, 400, "something: not supported"),
        ({"temperature": 3}, 400, "temperature: expected a number from 0 to 2, found 3"),
        ({"temperature": True}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 1.5}, 400, "max_tokens"),
        ({"max_tokens": 257}, 400, "of 256"),
        ({"messages": []}, 400, "messages: expected at least one"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text alone"),
        ({"messages": [{"role": "user", "content": "a " * 600}]}, 400, "1 to 255 tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop: expected at most 4"),
        ({"stream_options": 1}, 400, "stream_options"),
    ],
)
def test_what_cannot_be_had_is_refused(transformers: Path, more: dict[str, Any], status: int, said: str) -> None:
    found, answer = ask(transformers, **more)
    assert found == status
    assert said in answer["error"]["message"]


def test_what_means_nothing_is_passed_over(transformers: Path) -> None:
    content = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    nothing: dict[str, Any] = {"n": 1, "logprobs": False, "tools": [], "presence_penalty": 0, "user": "x", "stop": None}
    status, answer = ask(transformers, model=NAME, messages=[{"role": "user", "content": content}], **nothing)
    assert status == 200
    assert answer["choices"] == ask(transformers)[1]["choices"]


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("GET", "/v1/nothing", None, 404),
        ("POST", "/v1/nothing", {}, 404),
        ("POST", "/v1/chat/completions", [], 400),
        ("POST", "/v1/chat/completions", None, 400),
    ],
)
def test_other_requests_are_refused(transformers: Path, method: str, target: str, body: object, status: int) -> None:
    assert call(transformers, method, target, body)[0] == status


def test_many_at_once_are_served_in_turn(transformers: Path) -> None:
    answers: list[tuple[int, dict[str, Any]]] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(transformers))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [200] * 6
    assert len({answer["choices"][0]["message"]["content"] for _, answer in answers}) == 1


def test_who_goes_away_ends_the_generation(transformers: Path) -> None:
    connection = Connection(transformers)
    question = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 240, "stream": True, "temperature": 2}
    connection.request("POST", "/v1/chat/completions", json.dumps(question))
    connection.getresponse().read(1)
    connection.close()
    begun = time.monotonic()
    assert ask(transformers)[0] == 200
    assert time.monotonic() - begun < 20


def test_a_quantised_form_is_served(dense: Path, environment: Callable[[str], str], tmp_path: Path) -> None:
    """One of them; ``benchmarks/servers.py`` tries all."""
    python = environment("serve-transformers")
    program = [python, "-B", "-s", "-P", forms.__file__, str(dense), str(tmp_path), "int4"]
    subprocess.run(program, check=True, capture_output=True)
    for path, _ in serve("transformers", python, tmp_path / "int4"):
        assert ask(path)[0] == 200


def test_a_model_without_safetensors_is_refused(dense: Path, environment: Callable[[str], str], tmp_path: Path) -> None:
    for file in dense.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).symlink_to(file)
    process = start("transformers", environment("serve-transformers"), tmp_path, {}, tmp_path / "s.sock")
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    assert b"error: model: " in said


# --- without a model --------------------------------------------------------------------------------------------------


def module(name: str) -> Any:
    """A server program as a module: what it imports of others it imports where it needs it."""
    spec = importlib.util.spec_from_file_location(f"server_{name}", BUILDER / "servers" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        ((), ["a", "b"], ["a", "b", ""]),
        (("stop",), ["a st", "op b"], ["a ", "", ""]),
        (("stop",), ["a st", "ill"], ["a ", "still", ""]),
        (("stop",), ["a st"], ["a ", "st"]),
        (("b", "ab"), ["xab"], ["x", ""]),
        (("END", "two"), ["one E", "N", "E"], ["one ", "", "EN", "E"]),
    ],
)
def test_the_beginning_of_a_stop_is_held_back(stops: tuple[str, ...], pieces: list[str], expected: list[str]) -> None:
    cutter = module("transformers").Cutter(stops)
    given = [cutter.add(piece) for piece in pieces]
    assert [*given, cutter.rest()] == expected


def test_vllm_gets_room_for_the_context() -> None:
    vllm = module("vllm")
    config = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    assert vllm.cache_size(config, None) == vllm.CACHE_GIB
    assert vllm.cache_size(config, 1024) == vllm.CACHE_GIB
    assert vllm.cache_size(config, 131072) == 18
    assert vllm.cache_size({"text_config": config}, 131072) == 18
    assert vllm.cache_size({}, 131072) == vllm.CACHE_GIB


def test_vllm_reads_safetensors_alone_and_runs_no_code_of_the_model(tmp_path: Path) -> None:
    vllm = module("vllm")
    arguments = vllm.arguments(vllm.Request({}, tmp_path, NAME, "/run/s.sock", None))
    given = dict(itertools.pairwise(arguments))
    assert (given["--load-format"], given["--max-model-len"], given["--uds"]) == ("safetensors", "-1", "/run/s.sock")
    assert "--no-trust-remote-code" in arguments
