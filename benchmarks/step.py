"""A step through the engine, against the same program run bare in the same environment.

- Through the engine: ``intaglio build`` of a store in which everything but this step's claim stands; what counts are
  the seconds that it reports for the step: key, staging, sandbox, hashing of the output, claim.
- Bare: a virtual environment of links to the realised packages and the base interpreter (what stands at ``/env`` in
  the sandbox knows no other place), the same request with plain paths, the same determinism; nothing is hashed,
  nothing is brought to disk. ``PYTHONPATH`` instead would cost it a second of failed look-ups.
- Both have a session of their own: by those the kernel shares out a busy machine (``autogroup``, sched(7)).
- Both must give the same bytes, or the comparison is void.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.program import Program
from benchmarks.scratch import discard
from benchmarks.table import Table, figures, verdict
from benchmarks.timing import interleave, ratio, stopwatch
from intaglio.build import plan
from intaglio.build.interpreter import Interpreter
from intaglio.build.plan import PlannedStep
from intaglio.build.runner import Runner
from intaglio.content.layout import Store
from intaglio.content.tree import Tree
from intaglio.digest import ActionKey, Digest
from intaglio.progress import Silent
from intaglio.recipe import lock, modelfile

RATIO, MORE = 1.05, 0.5
"""The engine may take this many times the bare program's time, or this many seconds more: the larger counts."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Seconds of one step through the engine and bare."""

    title: str
    seconds: Mapping[str, list[float]]
    date: str = ""
    """When it was measured: a page may hold rows of several runs."""
    processor: str = ""
    """On what it was measured."""

    @property
    def ratio(self) -> float:
        """The engine's time over the bare program's, the median of the rounds' ratios."""
        return ratio(self.seconds["engine"], self.seconds["bare"])

    @property
    def more(self) -> float:
        """Seconds, median over the rounds, that the engine takes more."""
        pairs = zip(self.seconds["engine"], self.seconds["bare"], strict=True)
        return median(engine - bare for engine, bare in pairs)

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.ratio <= RATIO or self.more <= MORE

    def row(self) -> tuple[str, ...]:
        """Return it as a row of :func:`table`."""
        bare, engine = (figures(self.seconds[name]) for name in ("bare", "engine"))
        found = (f"{self.ratio:.3f}", f"{self.more:+.2f} s", verdict(self.met))
        return (self.title, bare, engine, *found, self.date, self.processor)

    def to_json(self) -> dict[str, object]:
        """Return it for programs; :func:`kept` reads it."""
        return {"title": self.title, "date": self.date, "processor": self.processor, "seconds": dict(self.seconds)}


def kept(page: Mapping[str, object], measured: Sequence[Steps], order: Sequence[str]) -> list[Steps]:
    """Return the steps of an earlier ``page``, with what was ``measured`` now instead of or beside them.

    They stand by their titles as in ``order``, others after them.
    """
    rows = page.get("rows", [])
    listed = rows if isinstance(rows, list) else []
    earlier = [Steps(row["title"], row["seconds"], row["date"], row["processor"]) for row in listed]
    found = {one.title: one for one in (*earlier, *measured)}
    known = [title for title in order if title in found]
    return [found[title] for title in (*known, *(title for title in found if title not in known))]


def table(measured: Iterable[Steps]) -> Table:
    """Return the steps that were measured as rows."""
    target = f"≤ {RATIO} × or ≤ {MORE} s more"
    columns = ("step", "bare", "through the engine", "ratio", "more", target, "date", "processor")
    note = (
        "Both gave the same bytes in every round. Ratio and difference are medians of the rounds' own. The facts above "
        "are those of the last run."
    )
    return Table("A step through the engine", columns, tuple(step.row() for step in measured), note)


class Case:
    """One step of a recipe that was built in the home of ``program``, laid out to be run both ways."""

    def __init__(self, program: Program, recipe: Path, name: str, scratch: Path) -> None:
        self._program = program
        self._recipe = recipe
        self._name = name
        self._scratch = scratch
        original = Store.open(program.store)
        answer = {step["name"]: step for step in program.build(recipe)["steps"]}
        self.expected = Digest(answer[name]["output"])
        self._key = ActionKey(answer[name]["key"])
        parsed = modelfile.read(recipe)
        planned = plan.make(parsed, lock.read(recipe / lock.FILE), original, strict=False, note=lambda _: None)
        self._planned: PlannedStep = planned.steps[name]
        digests = {slot: answer.get(source) for slot, source in self._planned.upstream.items()}
        self._inputs: dict[str, Tree] = {}
        for slot, source in self._planned.upstream.items():
            found = digests[slot]
            self._inputs[slot] = original.tree(Digest(found["output"]) if found else planned.origins[source].tree)
        self.store = clone(original, scratch / "clone")
        self._runner = Runner(self.store, Silent(), offline=True)

    def engine(self) -> float:
        """Run the step through the engine; return the seconds that it reports."""
        for claim in self.store.claims(self._key):
            self.store.path(claim).unlink()
        answer = self._program.build(self._recipe, "--offline", "--store", str(self.store.root))
        step = next(entry for entry in answer["steps"] if entry["name"] == self._name)
        if step["status"] != "built" or Digest(step["output"]) != self.expected:
            raise AssertionError(f"{self._name}: expected it built as {self.expected}, found {step}")
        return float(step["seconds"])

    def bare(self) -> float:
        """Run the program bare; return its seconds, and check its output outside of them."""
        folder = self._scratch / "bare"
        folder.mkdir()
        room = self._runner.room(self._planned)
        staged = self._runner.stage(folder, self._planned, self._inputs, room)
        request = {
            "protocol": 1,
            "parameters": self._planned.step.parameters,
            "inputs": {slot: str(folder / "in" / slot) for slot in self._inputs},
            "out": str(staged.output),
            "work": str(folder / "work"),
        }
        (folder / "step" / "request.json").write_text(json.dumps(request), encoding="utf-8")
        python = self._planned.interpreter
        programs = link_environment(folder / "env", room.environment, python)
        environment = {
            **staged.spec.environment,
            **{name: outside(python, path) for name, path in python.environment.items()},
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(folder / "work"),
            "TMPDIR": str(folder / "work"),
            "HF_HOME": str(folder / "work" / "hf"),
        }
        program = [str(programs / "python"), "-B", "-s", "-P", str(folder / "step/program/step.py")]
        argv = [*program, str(folder / "step/request.json")]
        with open(self._scratch / "bare.log", "wb") as log:
            seconds = stopwatch(
                lambda: subprocess.run(
                    argv,
                    env=environment,
                    cwd=folder / "work",
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    check=True,
                    start_new_session=True,
                )
            )
        found = self.store.ingest(staged.output, move=True).digest
        if found != self.expected:
            raise AssertionError(f"{self._name}, bare: expected {self.expected}, found {found}")
        discard(folder)
        return seconds


def measure(
    program: Program, recipe: Path, name: str, scratch: Path, rounds: int, note: Callable[[str], None]
) -> Mapping[str, list[float]]:
    """Return the seconds of the step ``name`` of a locked recipe, which is built in the home of ``program`` first."""
    scratch.mkdir()
    case = Case(program, recipe, name, scratch)
    seconds = interleave({"bare": case.bare, "engine": case.engine}, rounds, note)
    discard(scratch)
    return seconds


def link_environment(place: Path, environment: Path, python: Interpreter) -> Path:
    """Make ``place`` a virtual environment of links to the realised ``environment``; return its folder of programs."""
    programs = place / "bin"
    programs.mkdir(parents=True)
    executable = Path(outside(python, python.executable_inside))
    (programs / "python").symlink_to(executable)
    packages = "lib/python{}.{}/site-packages".format(*python.version)
    (place / packages).parent.mkdir(parents=True)
    (place / packages).symlink_to(environment / packages)
    (place / "pyvenv.cfg").write_text(f"home = {executable.parent}\ninclude-system-site-packages = false\n")
    return programs


def outside(python: Interpreter, path: str) -> str:
    """Return where the machine has what the sandbox sees at ``path``."""
    for mount in python.mounts:
        if Path(path).is_relative_to(mount.target):
            return str(mount.source / Path(path).relative_to(mount.target))
    return path


def clone(store: Store, place: Path) -> Store:
    """Return a new store with the same blobs (hard links where it can) and environments, and an index of its own."""
    copy = Store.open(place)
    for path in (store.root / "blobs" / "sha256").iterdir():
        target = copy.root / "blobs" / "sha256" / path.name
        try:
            os.link(path, target)
        except OSError:
            target.write_bytes(path.read_bytes())
            target.chmod(0o444)
    (place / "environments").symlink_to(store.root / "environments")
    return copy
