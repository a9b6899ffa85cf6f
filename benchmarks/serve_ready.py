"""Ready time: from a command's start until the server lists its model, through the engine and without it.

    python -m benchmarks.serve_ready --home HOME REF [--runtime vllm] [--rounds 5]

- Through the engine: ``intaglio serve`` of an image that stands in the home: it verifies, copies, seals and relays.
- Without: the same server program over plain files, in the same environment, its socket asked directly.
- The seconds that the engine spends on hashing and copying are the machine's own and are shown beside it: the bytes of
  the model, hashed once by as many threads as the engine takes.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.program import Program
from benchmarks.run import PROOF
from benchmarks.step import link_environment
from benchmarks.table import Report, Table, figures, verdict
from benchmarks.timing import interleave, ratio, stopwatch
from intaglio.build import environment, interpreter, servers, toolchain
from intaglio.build.plan import toolchain_folder
from intaglio.content.layout import Store
from intaglio.content.modelpack import ModelImage
from intaglio.digest import CHUNK, hash_stream
from intaglio.recipe.data import data_folder
from intaglio.recipe.program import ServerProgram, load_server

TIMES = {"vllm": 1.15, "transformers": 1.15}
"""Ready time with the engine may be this many times the time without it."""
MORE = {"llama-cpp": 0.35}
"""Or this many seconds more, and the hashing."""
PATIENCE = 900.0
"""Seconds within which a server must answer."""


class NotServed(Exception):
    """A server ended by itself, or never answered."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers on its socket."""

    path: Path

    def ask(self, method: str, target: str, body: object = None) -> tuple[int, str]:
        """Return the status and the text of an answer."""
        connection = _Connection(self.path)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, target, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def python_of(program: ServerProgram, store: Store, place: Path) -> Path:
    """Return the Python of the server's environment, which has been realised in ``store``, linked into ``place``."""
    chain = toolchain.load(toolchain_folder(program.toolchain))
    python = interpreter.find(chain.requires_python)
    folder = environment.folder_of(chain, store, python)
    if not folder.is_dir():
        raise NotServed(f"{program.name}: its environment is not there; run intaglio serve --prepare first")
    return link_environment(place, folder, python) / "python"


@contextlib.contextmanager
def bare(program: ServerProgram, python: Path, model: Mapping[str, Path], name: str) -> Iterator[Served]:
    """Serve the files of ``model`` without engine or sandbox, once they are answered for.

    Raises:
        NotServed: it ended, or did not answer in time; the message is the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="intaglio-bare-") as folder:
        place = Path(folder)
        for path, data in program.files.items():
            (place / path).parent.mkdir(exist_ok=True)
            (place / path).write_bytes(data)
        links = place / "model"
        for path, source in model.items():
            (links / path).parent.mkdir(parents=True, exist_ok=True)
            (links / path).symlink_to(source)
        files = {path: str(links / path) for path in model}
        socket_path = place / "server.sock"
        request = {"protocol": 1, "name": name, "socket": str(socket_path), "context": None}
        (place / "request.json").write_text(json.dumps({**request, "model": {"files": files, "folder": str(links)}}))
        variables = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": folder, "HF_HOME": f"{folder}/hf"}
        variables["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
        with open(place / "log", "wb") as log:
            argv = [str(python), "-B", "-s", "-P", str(place / "server.py"), str(place / "request.json")]
            process = subprocess.Popen(argv, env=variables, cwd=place, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            served = Served(socket_path)
            _wait(process, served, place / "log")
            yield served
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], served: Served, log: Path) -> None:
    limit = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if served.ask("GET", "/v1/models")[0] == 200:
                return
        if process.poll() is not None or time.monotonic() > limit:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            errors = [line for line in lines if "Error" in line or line.startswith("error:")]
            raise NotServed((errors or lines or ["it said nothing"])[-1][-300:])
        time.sleep(0.02)


def through_engine(home: Program, reference: str, runtime: str) -> float:
    """Return the seconds until ``intaglio serve`` says that it serves."""
    argv = home.argv(
        "serve", reference, "--runtime", runtime, "--port", "0", "--offline", "--json", "--progress", "none"
    )
    started = time.perf_counter()
    process = subprocess.Popen(argv, env=home.environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        seconds = time.perf_counter() - started
        if "url" not in answer:
            raise NotServed(answer["error"]["message"])
        return seconds
    finally:
        process.terminate()
        process.communicate()


def measure(home: Program, reference: str, runtime: str | None, rounds: int) -> Report:
    """Measure one image that stands in ``home``; its server's environment is realised first."""
    store = Store.open(home.store)
    image = ModelImage.parse(store.read(store.resolve(reference), what=reference), reference)
    config = next((file for file in image.files if file.path == servers.CONFIG), None)
    form = servers.form_of(
        (file.path for file in image.files), None if config is None else store.read(config.digest, what=config.path)
    )
    program = load_server(servers.choose(form, runtime).name, data_folder("builder"))
    home.run("serve", reference, "--runtime", program.name, "--prepare")
    model = {file.path: store.path(file.digest) for file in image.files}
    place = Path(tempfile.mkdtemp(prefix="intaglio-ready-"))
    try:
        python = python_of(program, store, place / "env")

        def without() -> float:
            started = time.perf_counter()
            with bare(program, python, model, reference):
                return time.perf_counter() - started

        def hashing() -> float:
            with ThreadPoolExecutor() as pool:
                return stopwatch(lambda: list(pool.map(_hash, model.values())))

        variants = {"bare": without, "hashing": hashing}
        variants["engine"] = lambda: through_engine(home, reference, program.name)
        seconds = interleave(variants, rounds, lambda text: print(text, file=sys.stderr, flush=True))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    met, cells = row(program.name, reference, seconds, sum(file.size for file in image.files))
    table = Table(
        "Ready time", ("server", "image", "bytes", "bare", "engine", "ratio", "more", "hashing", "target"), (cells,)
    )
    command = f"python -m benchmarks.serve_ready {reference} --runtime {program.name} --rounds {rounds}"
    about = machine.describe(home.home)
    return Report(f"serve-ready-{program.name}", "Ready time", command, about, (table,), {"seconds": seconds}, met)


def row(name: str, reference: str, seconds: Mapping[str, list[float]], size: int) -> tuple[bool, tuple[str, ...]]:
    """Return whether the server's target is met, and what was measured as cells of a table."""
    times = ratio(seconds["engine"], seconds["bare"])
    pairs = zip(seconds["engine"], seconds["bare"], seconds["hashing"], strict=True)
    extra = sorted(engine - plain for engine, plain, _ in pairs)[len(seconds["engine"]) // 2]
    hashed = sorted(seconds["hashing"])[len(seconds["hashing"]) // 2]
    # The engine reads every byte twice: to verify it, and while it copies it where nobody can change it.
    met = times <= TIMES[name] if name in TIMES else extra <= MORE[name] + 2 * hashed
    target = f"≤ {TIMES[name]} ×" if name in TIMES else f"≤ {MORE[name]} s more, and the hashing"
    shown = (figures(seconds["bare"]), figures(seconds["engine"]), f"{times:.3f}", f"{extra:+.2f} s")
    return met, (name, reference, str(size), *shown, figures(seconds["hashing"]), f"{target}: {verdict(met)}")


def _hash(path: Path) -> None:
    with open(path, "rb", buffering=CHUNK) as stream:
        hash_stream(stream)


def main() -> int:
    """Measure what the command line names, write the page, and return 0, or 1 where the target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--runtime")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=PROOF)
    chosen = parser.parse_args()
    report = measure(Program(chosen.home.absolute()), chosen.reference, chosen.runtime, chosen.rounds)
    print(f"{report.markdown()}\nwritten to {report.write(chosen.output)}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
