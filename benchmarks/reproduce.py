"""One recipe built twice as two strangers would: the same image, claims and signatures, byte for byte.

- Both begin with an empty store and an empty download cache; they share the keys, the trusted source, the bytes of the
  recipe and an engine that is installed from this checkout as a wheel, where any user can read it.
- What differs: directories, ``PYTHONHASHSEED``, and, as root, user (:data:`USER`) and host name.
- The anchor, which a runnable image contains, is the same on both sides: both homes are copies of one.
- Compared are all blobs of both stores; a blob is named by its digest, and both stores are verified first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.program import ROOT, Program
from benchmarks.scratch import discard
from benchmarks.table import Table, verdict
from intaglio.content.runtime_image import IMAGE_CONFIG_TYPE

USER = 12345
"""A user that no machine has."""
_HOST = "elsewhere"
_OTHER = "files of models and toolchains, configs, preimages of keys"
_RUNTIME = "runtime image"
_AS_OTHER = 'hostname "$1" && shift && exec "$@"'


@dataclass(frozen=True, slots=True)
class Built:
    """One of the two builds."""

    answer: Mapping[str, Any]
    """What ``intaglio build --json`` said."""
    kinds: Mapping[str, str]
    """Every blob of the store: digest and what it is."""
    bytes: int
    """Of all blobs together."""
    seconds: float
    what: tuple[str, str, str, str]
    """Directory, ``PYTHONHASHSEED``, user and host name, in words."""

    @property
    def runtime(self) -> str:
        """The digest of the runnable image; empty where the recipe asks for none."""
        made = self.answer.get("runtime")
        return str(made["image"]) if made else ""


@dataclass(frozen=True, slots=True)
class Pair:
    """Both builds."""

    recipe: str
    first: Built
    second: Built

    @property
    def same(self) -> bool:
        """Whether image, outputs and every blob are the same, and nothing was taken from a cache."""
        answers = [self._outputs(built) for built in (self.first, self.second)]
        fresh = all(step["status"] == "built" for built in (self.first, self.second) for step in built.answer["steps"])
        return answers[0] == answers[1] and dict(self.first.kinds) == dict(self.second.kinds) and fresh

    @staticmethod
    def _outputs(built: Built) -> list[tuple[str, str, str]]:
        steps = [(step["name"], step["key"], step["output"]) for step in built.answer["steps"]]
        return [*steps, ("image", "", built.answer["image"]), ("runtime image", "", built.runtime)]

    def tables(self) -> tuple[Table, ...]:
        """Return what differed and what came out."""
        names = ("directory", "PYTHONHASHSEED", "user", "host name")
        circumstances = [
            (name, ours, theirs) for name, ours, theirs in zip(names, self.first.what, self.second.what, strict=True)
        ]
        circumstances.append(("seconds", f"{self.first.seconds:.0f}", f"{self.second.seconds:.0f}"))
        rows = []
        for ours, theirs in zip(self.first.answer["steps"], self.second.answer["steps"], strict=True):
            rows.append((f"output of `{ours['name']}`", *self._compared(ours["output"], theirs["output"])))
        rows.append(("image", *self._compared(self.first.answer["image"], self.second.answer["image"])))
        if self.first.runtime or self.second.runtime:
            rows.append(("runtime image", *self._compared(self.first.runtime, self.second.runtime)))
        ours_by, theirs_by = Counter(self.first.kinds.values()), Counter(self.second.kinds.values())
        for kind in sorted({*ours_by, *theirs_by}):
            mine = {digest for digest, found in self.first.kinds.items() if found == kind}
            other = {digest for digest, found in self.second.kinds.items() if found == kind}
            rows.append((f"blobs: {kind}", str(len(mine)), str(len(other)), verdict(mine == other)))
        rows.append(("blobs, bytes", f"{self.first.bytes:,}", f"{self.second.bytes:,}", verdict(self.same)))
        return (
            Table(f"{self.recipe}: what differed", ("", "first", "second"), tuple(circumstances)),
            Table(f"{self.recipe}: what came out", ("", "first", "second", "the same"), tuple(rows)),
        )

    @staticmethod
    def _compared(ours: str, theirs: str) -> tuple[str, str, str]:
        return f"`{ours[:19]}…`", f"`{theirs[:19]}…`", verdict(ours == theirs)


def prove(recipe: Path, scratch: Path, note: Callable[[str], None]) -> Pair:
    """Build ``recipe`` twice below ``scratch`` and return both."""
    return Strangers(scratch, note).build(recipe)


class Strangers:
    """The engine, installed, and the home that each of the two gets a copy of."""

    def __init__(self, scratch: Path, note: Callable[[str], None]) -> None:
        """Install the engine below ``scratch``, make keys, and publish what both trust."""
        self._scratch = scratch
        self._note = note
        scratch.chmod(0o755)
        note("installing the engine from this checkout")
        self._executable = install(scratch / "engine")
        self._home = _Side(scratch / "origin", "1", self._executable, None)
        self._home.prepare()
        self._home.program.run("init")
        note("publishing a trusted source that both read")
        self._home.program.trust(scratch / "publisher")

    def build(self, recipe: Path) -> Pair:
        """Build ``recipe`` twice and return both; recipes beside it, whose files it may read, are copied, too."""
        place = Path(tempfile.mkdtemp(dir=self._scratch))
        place.chmod(0o755)
        sides = (
            _Side(place / "a", "1", self._executable, None),
            _Side(place / "b" / "another place", "2", self._executable, _other_prefix()),
        )
        for side in sides:
            side.prepare()
            side.take(recipe, self._home.program.home)
            side.hand_over()
        built = []
        for side, word in zip(sides, ("first", "second"), strict=True):
            self._note(f"building {recipe.name} the {word} time")
            built.append(side.build())
        discard(place)
        return Pair(recipe.name, *built)


def install(place: Path) -> Path:
    """Install the engine into a virtual environment that every user can read; return its program."""
    python = _public_python()
    for argv in ([python, "-m", "venv", str(place)], [str(place / "bin/pip"), "install", "-qq", str(ROOT)]):
        subprocess.run(argv, check=True, stdout=sys.stderr, cwd="/", umask=0o022)
    return place / "bin" / "intaglio"


def _public_python() -> str:
    """Return the system's Python where its version is this one's, which every user can run; else our own."""
    ask = "import sys; print(sys.version_info[:2] == tuple(map(int, sys.argv[1:])))"
    for name in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if Path(name).exists():
            argv = [name, "-c", ask, *map(str, sys.version_info[:2])]
            if subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip() == "True":
                return name
    return getattr(sys, "_base_executable", sys.executable)


def _other_prefix() -> tuple[str, ...]:
    """Return what runs a program as another user on a host of another name; nothing where that needs root."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "hostname"))):
        return ()
    user = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    return ("unshare", "--uts", "sh", "-c", _AS_OTHER, "sh", _HOST, *user)


class _Side:
    """One of the two strangers."""

    def __init__(self, place: Path, seed: str, executable: Path, prefix: tuple[str, ...] | None) -> None:
        self._place = place
        self._seed = seed
        self._other = bool(prefix)
        variables = {
            "HOME": str(place / "user"),
            "XDG_CACHE_HOME": str(place / "user" / "cache"),
            "TMPDIR": str(place / "tmp"),
            "PYTHONHASHSEED": seed,
        }
        self.program = Program(place / "home", executable, variables, prefix or ())

    def prepare(self) -> None:
        """Make its folders."""
        for name in ("user", "tmp"):
            (self._place / name).mkdir(parents=True)

    def take(self, recipe: Path, home: Path) -> None:
        """Copy ``recipe`` with all that stands beside it, and ``home``."""
        shutil.copytree(recipe.parent, self._place / "modelfiles")
        self._recipe = self._place / "modelfiles" / recipe.name
        shutil.copytree(home, self.program.home)

    def hand_over(self) -> None:
        """Give everything to the other user, if there is one."""
        if self._other:
            for path, names, files in os.walk(self._place):
                for name in (".", *names, *files):
                    os.chown(f"{path}/{name}", USER, USER)

    def build(self) -> Built:
        """Build, verify the store, and list it."""
        started = time.monotonic()
        answer = self.program.build(self._recipe)
        seconds = time.monotonic() - started
        self.program.run("store", "verify")
        kinds, size = inventory(self.program.store)
        user = f"{USER}" if self._other else f"{os.geteuid()}"
        host = f"`{_HOST}`" if self._other else "this machine's"
        return Built(answer, kinds, size, seconds, (f"`{self._place.name}/`", self._seed, user, host))


def inventory(store: Path) -> tuple[dict[str, str], int]:
    """Return what each blob of a store is, by its digest, and the bytes of all."""
    manifests: dict[str, dict[str, Any]] = {}
    kinds: dict[str, str] = {}
    size = 0
    for path in (store / "blobs" / "sha256").iterdir():
        length = path.stat().st_size
        size += length
        kinds[path.name] = _OTHER
        if length < 1 << 22:
            found = _manifest(path.read_bytes())
            if found is not None:
                manifests[path.name] = found
    for name, manifest in manifests.items():
        kind = _kind(manifest)
        kinds[name] = f"{kind} manifests"
        if kind == _RUNTIME:
            for layer in manifest["layers"]:
                kinds[layer["digest"].removeprefix("sha256:")] = "layers of runtime images"
        if kind in ("claim", "signature"):  # a lineage holds claims again
            for layer in manifest["layers"]:
                kinds[layer["digest"].removeprefix("sha256:")] = f"signed statements of {kind}s"
    return kinds, size


def _manifest(data: bytes) -> dict[str, Any] | None:
    if not data.startswith(b"{"):
        return None
    try:
        document = json.loads(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) and isinstance(document.get("layers"), list) else None


def _kind(manifest: Mapping[str, Any]) -> str:
    if "dev.intaglio.action" in manifest.get("annotations", {}):
        return "claim"
    kind = str(manifest.get("artifactType", ""))
    if "lineage" in kind:
        return "lineage"
    if "subject" in manifest:
        return "signature"
    if manifest.get("config", {}).get("mediaType") == IMAGE_CONFIG_TYPE:
        return _RUNTIME
    return "tree" if "tree" in kind else "image"
