"""Environments: a toolchain unpacked, once and offline, so that steps can run in it.

- An environment is a local cache and never content: the toolchain's tree and the host's digests name it.
- It is made of unpacked wheels that are shared between toolchains (hard links to read-only files), so that two
  toolchains with one torch unpack and compile it once. Interpreters share none: bytecode is its compiler's, and what
  goes into a runtime image is compiled by the root file system's own Python.
- Wheels are unpacked inside the sandbox, without network, by a program that imports nothing of them.
- Both become visible by one rename, when whole: a crash leaves at most a folder that nobody reads.
- It stands at ``/env`` in the sandbox and knows no other place: the same bytes wherever the store is.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from intaglio import strictjson
from intaglio.build import sandbox
from intaglio.build.interpreter import Interpreter
from intaglio.build.sandbox import Limits, Mount, SandboxSpec
from intaglio.build.toolchain import Distribution, Toolchain
from intaglio.content.layout import Store
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, MachineError, NotVerifiable
from intaglio.progress import Progress, Silent, Task

LAYOUT = 2
"""Number of the form below: a change of it makes environments anew."""
ROOT = "/env"
"""Where an environment stands inside the sandbox."""
_PROGRAM = Path(__file__).with_name("unpack.py")
_LIMITS = Limits(memory=4 << 30, processes=256, time=1800.0, disk=64 << 30)
_TAIL = 4000


def folder_of(toolchain: Toolchain, store: Store, interpreter: Interpreter) -> Path:
    """Return where the environment stands, whether it does or not."""
    return store.root / "environments" / f"{toolchain.tree().digest.hex}-{_identity(interpreter)}"


def _identity(interpreter: Interpreter) -> str:
    """Return what the names of everything end with that ``interpreter`` unpacks and compiles."""
    about: dict[str, strictjson.Json] = {"interpreter": interpreter.executable_inside, "host": interpreter.host}
    return Digest.of(strictjson.canonical({**about, "layout": LAYOUT})).hex[:12]


def realise(toolchain: Toolchain, store: Store, interpreter: Interpreter, *, progress: Progress | None = None) -> Path:
    """Return the folder of the toolchain's environment, made first where it is not there.

    Raises:
        NotVerifiable: a wheel is not in the store: fetch, or build, it first.
        CorruptContent: a wheel is none, or would write outside its folder.
        MachineError: the sandbox or the disk failed.
    """
    target = folder_of(toolchain, store, interpreter)
    if target.is_dir():
        return target
    if interpreter.version != toolchain.python:
        raise MachineError(f"toolchain {toolchain.name} is for Python {toolchain.requires_python}, not this one")
    # One lock for all: two toolchains made at once would unpack the wheels that they share twice.
    with store.lock("environments"):
        if target.is_dir():
            return target
        target.parent.mkdir(exist_ok=True)
        shelf = _Shelf(store.root / "environments" / "wheels", _identity(interpreter))
        wheels = toolchain.installed
        absent = [wheel for wheel in wheels if not shelf.path(wheel).is_dir()]
        if absent:
            _unpack(absent, shelf, store, interpreter, progress or Silent())
        _compose([shelf.path(wheel) for wheel in wheels], target, interpreter)
    return target


def discard(folder: Path) -> None:
    """Remove an environment, whose folders are read-only."""
    for path, _, _ in os.walk(folder):
        Path(path).chmod(0o700)
    shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class _Shelf:
    """Where unpacked wheels stand: one folder each, named by the wheel and the interpreter that compiled it."""

    root: Path
    interpreter: str

    def path(self, wheel: Distribution) -> Path:
        return self.root / f"{wheel.digest.hex}-{self.interpreter}"


def _site(interpreter: Interpreter) -> str:
    return "lib/python{}.{}/site-packages".format(*interpreter.version)


def _unpack(
    wheels: Sequence[Distribution], shelf: _Shelf, store: Store, interpreter: Interpreter, progress: Progress
) -> None:
    """Unpack ``wheels`` in one sandbox and put each onto the shelf."""
    for wheel in wheels:
        if not store.has(wheel.digest, wheel.size):
            raise NotVerifiable(f"{wheel.name}: {wheel.digest} is not in the store", hint="build without --offline")
    shelf.root.mkdir(exist_ok=True)
    with store.scratch("environment") as scratch:
        out, step, log = scratch / "out", scratch / "step", scratch / "log"
        out.mkdir()
        step.mkdir()
        shutil.copyfile(_PROGRAM, step / _PROGRAM.name)
        request = {
            "wheels": [{"file": f"/wheels/{wheel.name}", "folder": shelf.path(wheel).name} for wheel in wheels],
            "out": "/out",
            "site": _site(interpreter),
            "root": ROOT,
        }
        (step / "request.json").write_text(json.dumps(request), encoding="utf-8")
        mounts = [Mount(store.path(wheel.digest), f"/wheels/{wheel.name}") for wheel in wheels]
        with progress.task("unpacking the toolchain", sum(wheel.size for wheel in wheels)) as task:
            _run((*interpreter.mounts, *mounts, Mount(step, "/step"), Mount(out, "/out", True)), interpreter, log, task)
        for wheel in wheels:
            (out / shelf.path(wheel).name).replace(shelf.path(wheel))


def _run(mounts: tuple[Mount, ...], interpreter: Interpreter, log: Path, task: Task) -> None:
    reported = 0

    def on_event(event: strictjson.Object) -> None:
        nonlocal reported
        done = event.get("done")
        if isinstance(done, int) and done > reported:
            task.advance(done - reported)
            reported = done

    spec = SandboxSpec(
        argv=(interpreter.executable_inside, "-I", "-B", f"/step/{_PROGRAM.name}", "/step/request.json"),
        mounts=mounts,
        environment={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **interpreter.environment},
        limits=_LIMITS,
        cwd="/out",
    )
    outcome = sandbox.run(spec, log=log, on_event=on_event)
    if outcome.status == 0 and outcome.limit is None:
        return
    said = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:].strip() if log.exists() else ""
    bad = [line.removeprefix("bad wheel: ") for line in said.splitlines() if line.startswith("bad wheel: ")]
    if bad:
        raise CorruptContent("a wheel of the toolchain cannot be unpacked:\n" + "\n".join(bad))
    reason = f"it reached its {outcome.limit} limit" if outcome.limit else f"exit status {outcome.status}"
    raise MachineError(f"unpacking the toolchain failed: {reason}\n{said}", hint="is the disk full?")


def _compose(folders: Iterable[Path], target: Path, interpreter: Interpreter) -> None:
    """Make ``target`` the union of the unpacked wheels, venv-like; visible by rename."""
    partial = target.with_name(f".{target.name}")
    if partial.exists():
        discard(partial)
    partial.mkdir()
    for folder in folders:
        _link(folder, partial)
    programs = partial / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("python", "python3", "python{}.{}".format(*interpreter.version)):
        (programs / name).unlink(missing_ok=True)
        (programs / name).symlink_to(interpreter.executable_inside)
    (partial / _site(interpreter)).mkdir(parents=True, exist_ok=True)
    _write(partial / "pyvenv.cfg", _settings(interpreter))
    for path, _, _ in os.walk(partial):
        Path(path).chmod(0o555)
    os.sync()  # a cache that a power cut could leave with empty files would fail in ways nobody understands
    partial.replace(target)


def _settings(interpreter: Interpreter) -> Mapping[str, str]:
    return {
        "home": os.path.dirname(interpreter.executable_inside),
        "include-system-site-packages": "false",
        "version": "{}.{}".format(*interpreter.version),
    }


def _write(path: Path, settings: Mapping[str, str]) -> None:
    path.unlink(missing_ok=True)
    path.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()), encoding="utf-8")
    path.chmod(0o444)


def _link(source: Path, target: Path) -> None:
    """Hard-link every file below ``source``; where two wheels have one path, the later one's stands, as with pip."""
    with os.scandir(source) as entries:
        for entry in entries:
            place = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                place.mkdir(exist_ok=True)
                _link(Path(entry.path), place)
                continue
            if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                raise CorruptContent(f"{entry.path}: expected a regular file in an unpacked wheel")
            place.unlink(missing_ok=True)
            os.link(entry.path, place)
