"""A workshop: home with keys, store, step programs of one's own, and the command line run as a user runs it.

Its one toolchain is a wheel made by hand: a build takes half a second, and asks no network. The realised environment
is made once a session and hard-linked into the store of each workshop.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests import wheelhouse

from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import ExitCode

PROGRAM = Path(sys.executable).with_name("intaglio")
PREAMBLE = """\
import json, os, sys
from pathlib import Path
request = json.loads(Path("/step/request.json").read_text())
given, IN, OUT, WORK = request["parameters"], request["inputs"], Path(request["out"]), Path(request["work"])
def read(slot):
    return b"".join(path.read_bytes() for path in sorted(Path(IN[slot]).rglob("*")) if path.is_file())
def write(data, name="model.txt"):
    (OUT / name).write_bytes(data if isinstance(data, bytes) else str(data).encode())
def event(**fields):
    os.write(int(os.environ["INTAGLIO_EVENTS_FD"]), json.dumps(fields).encode() + b"\\n")
"""
"""What every step program of a workshop begins with."""
COPY = 'write(read("source"))\n'
CLOCK = """
import datetime
class Moved(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(days={days})
datetime.datetime = Moved
"""
"""A ``sitecustomize.py`` by which the clock of a command stands so many days away."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """What it answered under ``--json``."""
        lines = self.out.splitlines()
        assert len(lines) == 1, f"expected one line of JSON, found {self.out!r} (and {self.err!r})"
        answer: dict[str, Any] = json.loads(lines[0])
        return answer

    def ok(self) -> Finished:
        """Return this command, which must have ended well."""
        assert self.status == 0, f"exit status {self.status}\n{self.out}\n{self.err}"
        return self

    def failed(self, status: ExitCode | int) -> Finished:
        """Return this command, which must have ended with ``status`` and an error of ours."""
        assert self.status == status, f"expected {status}, found exit status {self.status}\n{self.out}\n{self.err}"
        assert not re.search("^Traceback", self.err, re.MULTILINE)
        assert "error: " in self.err
        return self


@dataclass(frozen=True)
class Workshop:
    """A home, a store, a folder of data and a recipe below ``root``."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def builder(self) -> Path:
        return self.data / "builder"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe"

    @property
    def store(self) -> Store:
        return Store.open(self.home / "store")

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a command: this workshop's, and an index that has nothing."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.root),
            "XDG_CACHE_HOME": str(self.root / "cache"),
            "INTAGLIO_HOME": str(self.home),
            "INTAGLIO_DATA": str(self.data),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.root / "wheels"),
            "PIP_CONFIG_FILE": os.devnull,
        }

    # --- the recipe ----------------------------------------------------------------------------------------------

    def step(
        self,
        name: str,
        code: str,
        *,
        inputs: Sequence[str] = ("source",),
        parameters: Mapping[str, str] | None = None,
        outputs: Sequence[str] = ("*",),
        shipped: bool = False,
        more: str = "",
    ) -> None:
        """Write the step program ``name``: beside the recipe, or ``shipped``; ``parameters`` are TOML defaults."""
        folder = self.builder / "steps" if shipped else self.recipe
        lines = [f'step = "{name}"', f'summary = "Does {name}."', 'toolchain = "tiny"', 'reproducible = "bit"']
        lines += [f"outputs = {json.dumps(list(outputs))}", 'memory = "256MiB"', "processes = 64", 'time = "1m"', more]
        lines += [f'[inputs.{slot}]\nsummary = "What is read."' for slot in inputs]
        for parameter, default in (parameters or {}).items():
            kind = {"true": "boolean", "false": "boolean"}.get(default) or ("string" if default[0] == '"' else "number")
            lines.append(f'[parameters.{parameter}]\ntype = "{kind}"\ndefault = {default}\nsummary = "A knob."')
        (folder / f"{name}.toml").write_text("\n".join(lines) + "\n")
        (folder / f"{name}.py").write_text(PREAMBLE + textwrap.dedent(code))

    def write(
        self, steps: str, *, source: str, inputs: str = 'data = { uri = "file:data.txt" }', more: str = ""
    ) -> None:
        """Write the recipe: TOML of its ``steps``, and the step whose output is the image."""
        self.recipe.joinpath("Modelfile.toml").write_text(
            '[model]\nname = "tests/shop"\nversion = "1.0.0"\nlicence = "Apache-2.0"\n'
            f'[inputs]\n{inputs}\n{textwrap.dedent(steps)}\n[image]\nfrom = "{source}"\n{more}'
        )

    def chain(self, *names: str) -> None:
        """Write and lock a recipe in which ``names`` are steps, each adding its name to what the one before it gave."""
        before, steps = "data", []
        for name in names:
            self.step(name, f'write(read("source") + b"{name}\\n")')
            steps.append(f'[steps.{name}]\nuses = "./{name}"\ninputs = {{ source = "{before}" }}\n')
            before = name
        self.write("".join(steps), source=before)
        self.lock()

    def one(self, code: str, *, limits: str = "", lock: bool = True, **description: object) -> None:
        """Write and lock a recipe of one step, ``make``, that runs ``code``."""
        self.step("make", code, **description)  # type: ignore[arg-type]
        end = f"limits = {limits}\n" if limits else ""
        self.write(f'[steps.make]\nuses = "./make"\ninputs = {{ source = "data" }}\n{end}', source="make")
        if lock:
            self.lock()

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace ``old``, which stands there once, in a file of the recipe."""
        path = self.recipe / name
        text = path.read_text()
        assert text.count(old) == 1, f"{name}: {old!r} stands there {text.count(old)} times"
        path.write_text(text.replace(old, new))

    # --- commands ------------------------------------------------------------------------------------------------

    def run(self, *words: str | Path, before: Sequence[str] = (), **environment: str) -> Finished:
        """Run ``intaglio`` with ``words`` in the recipe's folder; ``before`` is a program that starts it."""
        argv = [*before, str(PROGRAM), *map(str, words)]
        done = subprocess.run(
            argv,
            cwd=self.recipe,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=240,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Start ``intaglio`` with ``words`` in a process group of its own."""
        return subprocess.Popen(
            [str(PROGRAM), *map(str, words)],
            cwd=self.recipe,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            # Who runs the tests in the background ignores SIGINT, and what ignores it hands that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def lock(self) -> None:
        """Pin what is not pinned, and take the step programs as they are."""
        self.recipe.joinpath("Modelfile.lock").unlink(missing_ok=True)
        self.run("lock").ok()

    def build(self, *words: str | Path, **environment: str) -> Finished:
        """Run ``intaglio build --json`` on the recipe."""
        return self.run("build", ".", "--json", *words, **environment)

    def built(self, *words: str | Path, **environment: str) -> dict[str, Any]:
        """Build, which must end well, and return the answer."""
        return self.build(*words, **environment).ok().json

    def statuses(self, *words: str | Path, **environment: str) -> dict[str, str]:
        """Build, which must end well, and return the status of each step."""
        return {step["name"]: step["status"] for step in self.built(*words, **environment)["steps"]}

    # --- what is left --------------------------------------------------------------------------------------------

    def events(self, key: str) -> list[dict[str, Any]]:
        """Return the event log of the action's last run."""
        path = self.home / "store" / "logs" / f"{key.removeprefix('sha256:')}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def model(self, image: str, path: str = "model.txt") -> bytes:
        """Return a file of an image in the store."""
        store = self.store
        manifest = json.loads(store.read(Digest(image), what="image"))
        for layer in manifest["layers"]:
            if layer["annotations"]["org.opencontainers.image.title"] == path:
                return store.read(Digest(layer["digest"]), what=path)
        raise AssertionError(f"the image has no {path}")

    def assert_unharmed(self) -> None:
        """Check that the store is whole, that nothing has a name, and that nothing half-written is visible."""
        assert self.run("store", "verify", "--json").ok().json["damaged"] == []
        assert self.run("store", "list", "--json").ok().json == {"images": []}
        left = [path.name for path in (self.home / "store" / "tmp").iterdir()]
        assert left == [], "a command that failed cleans up behind it"


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process group, as a power cut would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@functools.cache
def _template() -> Path:
    """Return a workshop with keys and a realised environment, made once a session."""
    root = Path(tempfile.mkdtemp(prefix="intaglio-workshop-"))
    shop = Workshop(root)
    for folder in ("steps", "lib", "toolchains", "servers"):
        (shop.builder / folder).mkdir(parents=True)
    for name in ("modelfiles", "registry", "policies"):
        (shop.data / name).mkdir()
    shop.recipe.mkdir()
    shop.recipe.joinpath("data.txt").write_text("what the model is made of\n")
    wheel = wheelhouse.wheel(root / "wheels", "tiny", "1.0", {"tiny.py": b"WORD = 'tiny'\n"})
    python = "{}.{}".format(*sys.version_info)
    wheelhouse.lock(shop.builder / "toolchains" / "tiny", [wheel], python=python)
    shop.run("init").ok()
    shop.chain("warm")
    shop.built()
    for path in shop.recipe.glob("*"):
        if path.name != "data.txt":
            path.unlink()
    for name in ("blobs", "logs", "locks", "tmp", "partial"):
        shutil.rmtree(shop.home / "store" / name, ignore_errors=True)
    for path in (shop.home / "store").iterdir():
        if path.is_file():
            path.unlink()
    return root


@pytest.fixture(scope="session", autouse=True)
def _workshop_of_the_session() -> Iterator[None]:
    """Remove the template when the tests are over."""
    yield
    if _template.cache_info().currsize:
        shutil.rmtree(_template(), ignore_errors=True)
        _template.cache_clear()


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    """A workshop with keys, an empty store and a realised toolchain."""
    return furnish(tmp_path / "shop")


def furnish(root: Path) -> Workshop:
    """Make a workshop at ``root``, with keys, an empty store and a realised toolchain."""
    template = _template()
    environments = Path("home", "store", "environments")
    shutil.copytree(template / environments, root / environments, copy_function=os.link, symlinks=True)
    (root / "home" / "store" / "blobs").mkdir()
    for name in ("data", "recipe", "wheels"):
        shutil.copytree(template / name, root / name)
    shutil.copytree(template / "home" / "keys", root / "home" / "keys")
    shutil.copy(template / "home" / "policy.toml", root / "home" / "policy.toml")
    return Workshop(root)
