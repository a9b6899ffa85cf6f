"""Ready time: from a command's start until the server lists its model, through the engine and without it.

    python -m benchmarks.serve_ready --home HOME REF [--runtime vllm] [--rounds 5]

- Through the engine: ``intaglio serve`` of an image that stands in the home: it verifies, copies, seals and relays.
- Behind the guard: ``intaglio-guard`` over the image's files and passport, and an anchor: those of the home.
- Without: the same server program over plain files, in the same environment, its socket asked directly.
- The seconds that both spend on hashing are the machine's own and are shown beside it: the bytes of the model, hashed
  once by as many threads as they take.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, scratch
from benchmarks.program import Program
from benchmarks.run import PROOF
from benchmarks.step import link_environment
from benchmarks.table import Report, Table, figures, verdict
from benchmarks.timing import Variant, interleave, ratio, stopwatch
from intaglio.build import environment, interpreter, passport, servers, serving, toolchain
from intaglio.build.plan import toolchain_folder
from intaglio.build.runtime import anchor_of
from intaglio.content.layout import Store
from intaglio.content.modelpack import ModelImage
from intaglio.content.tree import Tree
from intaglio.digest import CHUNK, Digest, hash_stream
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


@dataclass(frozen=True, slots=True)
class Papers:
    """What a guard is given, made from an image in a home as ``intaglio run`` and ``build`` make it."""

    anchor: Path
    passport: Path
    model: Path

    @classmethod
    def of(cls, home: Path, store: Store, image: Digest, place: Path) -> Papers:
        """Lay out anchor, passport and model of ``image`` in ``place``; the model's files are links to its blobs."""
        made = cls(place / "anchor", place / "passport", place / "model")
        made.anchor.mkdir(parents=True)
        made.model.mkdir()
        for name, data in anchor_of(home).items():
            (made.anchor / name).write_bytes(data)
        passport.write(store, image, made.passport, home, datetime.now(UTC))
        what = f"image {image.short}"
        store.link_tree(Tree.of(ModelImage.parse(store.read(image, what=what), what).files), made.model)
        return made


@contextlib.contextmanager
def bare(program: ServerProgram, python: Path, model: Mapping[str, Path], name: str) -> Iterator[Served]:
    """Serve the files of ``model`` without engine or sandbox, once they are answered for.

    Raises:
        NotServed: it ended, or did not answer in time; the message is the end of what it said.
    """
    with _place(program, python) as (place, variables, server):
        links = place / "model"
        for path, source in model.items():
            (links / path).parent.mkdir(parents=True, exist_ok=True)
            (links / path).symlink_to(source)
        files = {path: str(links / path) for path in model}
        request = {"protocol": 1, "name": name, "socket": str(place / "server.sock"), "context": None}
        (place / "request.json").write_text(json.dumps({**request, "model": {"files": files, "folder": str(links)}}))
        with _running([*server, str(place / "request.json")], variables, place) as served:
            yield served


@contextlib.contextmanager
def guarded(program: ServerProgram, python: Path, papers: Papers, name: str) -> Iterator[Served]:
    """Serve the same with the same environment behind ``intaglio-guard``, as it stands in a runtime image.

    Raises:
        NotServed: as :func:`bare` does; what the guard refused is its message.
    """
    with _place(program, python) as (place, variables, server):
        given = {"root": papers.anchor, "passport": papers.passport, "model": papers.model}
        options = [word for option, path in given.items() for word in (f"--{option}", str(path))]
        argv = [sys.executable, "-I", "-m", "intaglio.guard.main", *options, "--", *server, "{request}"]
        own = {"INTAGLIO_SOCKET": str(place / "server.sock"), "INTAGLIO_MODEL_NAME": name, "TMPDIR": str(place)}
        with _running(argv, {**variables, **own}, place) as served:
            yield served


@contextlib.contextmanager
def _place(program: ServerProgram, python: Path) -> Iterator[tuple[Path, dict[str, str], list[str]]]:
    """Yield a folder with the server program, the variables that it runs with, and its command but the request."""
    with tempfile.TemporaryDirectory(prefix="intaglio-bare-") as folder:
        place = Path(folder)
        for path, data in program.files.items():
            (place / path).parent.mkdir(exist_ok=True)
            (place / path).write_bytes(data)
        variables = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": folder, "HF_HOME": f"{folder}/hf"}
        variables["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
        yield place, variables, [str(python), "-B", "-s", "-P", str(place / "server.py")]


@contextlib.contextmanager
def _running(argv: Sequence[str], variables: Mapping[str, str], place: Path) -> Iterator[Served]:
    """Run a server that listens on ``server.sock`` in ``place`` while the context lasts; yield it once it answers."""
    with open(place / "log", "wb") as log:
        process = subprocess.Popen(argv, env=variables, cwd=place, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        served = Served(place / "server.sock")
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


@dataclass(frozen=True, slots=True)
class Ready:
    """Seconds until one server was ready, bare and otherwise, round by round."""

    server: str
    image: str
    size: int
    """Bytes of the model."""
    seconds: Mapping[str, list[float]]
    """Of ``bare``, ``guard``, ``engine``, and of ``hashing`` the model's files."""

    @property
    def met(self) -> bool:
        """Whether the guard keeps the server's target, which lets every byte be hashed once."""
        if self.server in TIMES:
            return self._ratio("guard") <= TIMES[self.server]
        return self._more("guard") <= MORE[self.server] + median(self.seconds["hashing"])

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """Return it as rows of :data:`COLUMNS`."""
        if self.server in TIMES:
            target = f"≤ {TIMES[self.server]} ×"
        else:
            target = f"≤ {MORE[self.server]} s more, and the hashing once"
        plain = (figures(self.seconds["bare"]), "", "", figures(self.seconds["hashing"]), "")
        rows = [(self.server, self.image, str(self.size), "bare", *plain)]
        for variant, name in (("guard", "`intaglio-guard`"), ("engine", "`intaglio serve`")):
            shown = (figures(self.seconds[variant]), f"{self._ratio(variant):.3f}", f"{self._more(variant):+.2f} s")
            asked = f"{target}: {verdict(self.met)}" if variant == "guard" else ""
            rows.append((self.server, "", "", name, *shown, "", asked))
        return tuple(rows)

    def _ratio(self, variant: str) -> float:
        return ratio(self.seconds[variant], self.seconds["bare"])

    def _more(self, variant: str) -> float:
        return median(more - plain for more, plain in zip(self.seconds[variant], self.seconds["bare"], strict=True))


COLUMNS = ("server", "image", "bytes", "through", "ready", "ratio", "more", "hashing", "target")
_NOTE = (
    "From the command's start until the model is listed. *bare*: the same program and environment over plain files. "
    "The guard verifies against the home's own anchor with the image's passport, and copies while it hashes; `serve` "
    "does the same in the sandbox and behind its relay, and has no target. *hashing*: the model's files, once, with a "
    "thread a core."
)


def measure(home: Program, reference: str, runtime: str | None, rounds: int) -> Ready:
    """Measure one image that stands in ``home``; its server's environment is realised first."""
    store = Store.open(home.store)
    digest = store.resolve(reference)
    image = ModelImage.parse(store.read(digest, what=reference), reference)
    program = load_server(servers.choose(serving.form(store, image.files), runtime).name, data_folder("builder"))
    home.run("serve", reference, "--runtime", program.name, "--prepare")
    model = {file.path: store.path(file.digest) for file in image.files}
    place = Path(tempfile.mkdtemp(prefix="intaglio-ready-", dir=home.home))
    try:
        python = python_of(program, store, place / "env")
        papers = Papers.of(home.home, store, digest, place / "papers")

        def ready(server: contextlib.AbstractContextManager[Served]) -> float:
            started = time.perf_counter()
            with server:
                return time.perf_counter() - started

        def hashing() -> float:
            with ThreadPoolExecutor() as pool:
                return stopwatch(lambda: list(pool.map(_hash, model.values())))

        variants: dict[str, Variant] = {
            "bare": lambda: ready(bare(program, python, model, reference)),
            "hashing": hashing,
            "guard": lambda: ready(guarded(program, python, papers, reference)),
            "engine": lambda: through_engine(home, reference, program.name),
        }
        variants["bare"]()  # once, so that everybody finds the same files in the page cache
        seconds = interleave(variants, rounds, lambda text: print(text, file=sys.stderr, flush=True))
    finally:
        scratch.discard(place)
    return Ready(program.name, reference, sum(file.size for file in image.files), seconds)


def report(measured: Sequence[Ready], name: str, command: str, about: Mapping[str, str]) -> Report:
    """Return the page ``name`` about what was measured."""
    table = Table("Ready time", COLUMNS, tuple(row for one in measured for row in one.rows()), _NOTE)
    data = {one.server: {"image": one.image, "bytes": one.size, "seconds": dict(one.seconds)} for one in measured}
    met = all(one.met for one in measured)
    return Report(name, "Ready time", command, about, (table,), data, met)


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
    found = measure(Program(chosen.home.absolute()), chosen.reference, chosen.runtime, chosen.rounds)
    command = f"python -m benchmarks.serve_ready {found.image} --runtime {found.server} --rounds {chosen.rounds}"
    page = report([found], f"serve-ready-{found.server}", command, machine.describe(chosen.home))
    print(f"{page.markdown()}\nwritten to {page.write(chosen.output)}")
    return 0 if page.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
