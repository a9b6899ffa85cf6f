"""``kill -9`` of a build's whole process group at random moments, and two builds at once.

- Every build begins with realised environments and nothing else: no outputs, no claims.
- Afterwards nothing of it runs any more, ``store verify`` finds nothing wrong, and the next build, which runs only what
  has no claim yet, ends with the digest of a build that nobody disturbed.
- Half of the moments are spread over the whole build; the other half follow a step's end by a fifth of a second at
  most, where outputs are collected and claims and signatures are written, which is little of a build's time.
- A build that had ended before its moment came is no kill: another moment is drawn.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.program import Program, ProgramFailed
from benchmarks.scratch import discard
from benchmarks.table import Table, verdict

_NEAR = 0.2
"""Most seconds after a step's end."""
_POLL = 0.002
"""Seconds between two looks whether a step has ended."""
_GONE = 5.0
"""Seconds that the kernel gets to take down what was killed."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A build that nobody disturbed."""

    image: str
    keys: Mapping[str, str]
    """Step → action key."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Moment:
    """When to kill."""

    after: str | None
    """The step whose end is waited for; none: the build's start."""
    delay: float
    """Seconds after that."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill, and what stood afterwards."""

    seconds: float
    """From the build's start."""
    phase: str
    """What the build was doing, as its store and logs tell."""
    clean: bool
    """Whether ``store verify`` was clean."""
    alone: bool
    """Whether nothing of the build was left running."""
    image: str
    """Of the next build."""
    cached: int
    """Steps that the next build did not have to run again."""
    fault: str = ""
    """What went wrong, in the program's words."""


@dataclass(frozen=True, slots=True)
class Kills:
    """All of them."""

    reference: Reference
    kills: tuple[Kill, ...]

    def good(self, kill: Kill) -> bool:
        """Whether everything after ``kill`` was as it must be."""
        return kill.clean and kill.alone and kill.image == self.reference.image and not kill.fault

    @property
    def passed(self) -> bool:
        """Whether everything was, every time."""
        return all(self.good(kill) for kill in self.kills)

    def tables(self) -> tuple[Table, ...]:
        """Return the kills by phase, and those after which something was wrong."""
        phases = Counter(kill.phase for kill in self.kills)
        rows = [self._row(phase, [kill for kill in self.kills if kill.phase == phase]) for phase in sorted(phases)]
        rows.append(self._row("all", list(self.kills)))
        columns = ("killed while", "kills", "store clean", "nothing left running", "next build: right image", "cached")
        note = (
            f"An undisturbed build takes {self.reference.seconds:.1f} s and ends with `{self.reference.image[:19]}…`. "
            "The last column counts the steps that the next build did not have to run again."
        )
        tables = [Table("Kills by phase", columns, tuple(rows), note)]
        wrong = [kill for kill in self.kills if not self.good(kill)]
        if wrong:
            faults = tuple((f"{kill.seconds:.3f} s", kill.phase, kill.fault or kill.image) for kill in wrong)
            tables.append(Table("What went wrong", ("moment", "killed while", "fault"), faults))
        return tuple(tables)

    def _row(self, phase: str, kills: list[Kill]) -> tuple[str, ...]:
        def share(good: Iterable[bool]) -> str:
            count = sum(good)
            return str(count) if count == len(kills) else f"**{count}**"

        return (
            phase,
            str(len(kills)),
            share(kill.clean for kill in kills),
            share(kill.alone for kill in kills),
            share(kill.image == self.reference.image for kill in kills),
            str(sum(kill.cached for kill in kills)),
        )


def reference(program: Program, recipe: Path) -> Reference:
    """Build ``recipe`` undisturbed, in a store that has nothing but environments."""
    started = time.time()
    answer = program.build(recipe, "--offline")
    seconds = time.time() - started
    steps = answer["steps"]
    if any(step["status"] != "built" for step in steps):
        raise AssertionError(f"expected every step built, found {steps}")
    return Reference(answer["image"], {step["name"]: step["key"] for step in steps}, seconds)


def moments(known: Reference, chance: random.Random) -> Iterator[Moment]:
    """Yield moments without end: by turns anywhere in a build, and soon after a step's end."""
    steps = [name for name in known.keys if name != "image"]  # which is assembled in no sandbox, and has no log
    while True:
        yield Moment(None, chance.uniform(0.0, known.seconds))
        yield Moment(chance.choice(steps), chance.uniform(0.0, _NEAR))


def prove(
    program: Program, recipe: Path, scratch: Path, count: int, chance: random.Random, note: Callable[[str], None]
) -> Kills:
    """Kill ``count`` builds of ``recipe``, whose environments stand in the store of ``program``."""
    scratch.mkdir()
    known = reference(fresh(program, scratch / "reference"), recipe)
    found: list[Kill] = []
    for number, moment in enumerate(moments(known, chance), 1):
        place = scratch / f"home-{number}"
        one = kill(fresh(program, place), recipe, moment, known)
        discard(place)
        if one is None:
            continue
        found.append(one)
        note(f"kill {len(found)} of {count}: at {one.seconds:.2f} s, {one.phase} {one.fault}".rstrip())
        if len(found) == count:
            break
    discard(scratch)
    return Kills(known, tuple(found))


def fresh(program: Program, home: Path) -> Program:
    """Return a program with a new home: the same keys and policy, and a store that has environments alone."""
    home.mkdir()
    (home / "keys").symlink_to(program.home / "keys")
    (home / "policy.toml").symlink_to(program.home / "policy.toml")
    (home / "store" / "blobs" / "sha256").mkdir(parents=True)
    (home / "store" / "environments").symlink_to((program.store / "environments").resolve())
    return Program(home, program.executable, program.variables, program.prefix)


def kill(program: Program, recipe: Path, moment: Moment, known: Reference) -> Kill | None:
    """Start a build, kill its process group at ``moment``, and see what stands; none: it had ended before."""
    argv = program.argv("build", recipe, "--offline", "--json", "--progress", "none")
    started = time.monotonic()
    with open(program.home / "build.log", "wb") as log:
        build = subprocess.Popen(
            argv, env=program.environment(), stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
        if moment.after is not None:
            await_end(build, program.store, known.keys[moment.after])
        try:
            build.wait(moment.delay)
            return None
        except subprocess.TimeoutExpired:
            os.killpg(build.pid, signal.SIGKILL)
            build.wait()
    seconds = time.monotonic() - started
    alone = vanished(program.home)
    phase = phase_of(program.store, known)
    clean, fault, image, cached = True, "", "", 0
    try:
        program.run("store", "verify")
    except ProgramFailed as error:
        clean, fault = False, str(error)
    try:
        answer = program.build(recipe, "--offline")
        image, cached = answer["image"], sum(step["status"] == "cached" for step in answer["steps"])
        program.run("store", "verify")
    except ProgramFailed as error:
        fault = f"{fault} {error}".strip()
    return Kill(seconds, phase, clean, alone, image, cached, fault)


def await_end(build: subprocess.Popen[bytes], store: Path, key: str) -> None:
    """Wait until the program of the action has ended, or the build has."""
    while build.poll() is None and _logged(store, key, "ended") is None:
        time.sleep(_POLL)


def phase_of(store: Path, known: Reference) -> str:
    """Return what a killed build was doing: the first step without a claim, and how far its log came."""
    claimed = _claimed(store)
    last = "before its first step"
    for name, key in known.keys.items():
        if key in claimed:
            last = f"after {name}"
            continue
        if _logged(store, key, "ended") is not None:
            return f"collecting and claiming {name}"
        if _logged(store, key, "started") is not None:
            return f"running {name}"
        return "assembling the image" if name == "image" else last
    return "signing and tagging"


def _claimed(store: Path) -> set[str]:
    """Return the action keys about which a claim stands among the blobs."""
    found = set()
    for path in (store / "blobs" / "sha256").iterdir():
        if path.stat().st_size < 1 << 16:
            data = path.read_bytes()
            if b'"dev.intaglio.action"' in data and data.startswith(b"{"):
                found.add(str(json.loads(data)["annotations"]["dev.intaglio.action"]))
    return found


def _logged(store: Path, key: str, event: str) -> float | None:
    """Return when ``event`` was logged about the action, if it was."""
    path = store / "logs" / f"{key.removeprefix('sha256:')}.jsonl"
    if not path.exists():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # the kill came while this line was written
        if entry.get("event") == event:
            return float(entry["at"])
    return None


def vanished(home: Path) -> bool:
    """Wait until no process sees anything of ``home`` any more; return whether that came about."""
    deadline = time.monotonic() + _GONE
    while processes(home):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def processes(home: Path) -> list[int]:
    """Return the processes that were started with ``home`` in their environment or arguments, or have it mounted."""
    needle = str(home).encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        for name in ("environ", "cmdline", "mountinfo"):
            try:
                if needle in (folder / name).read_bytes():
                    found.append(int(folder.name))
                    break
            except OSError:
                break  # it ended, or is another user's
    return found


@dataclass(frozen=True, slots=True)
class Twins:
    """Two builds of one recipe in one store, at once."""

    reference: Reference
    answers: tuple[Mapping[str, Any], ...]

    @property
    def runs(self) -> Mapping[str, int]:
        """How many of the builds ran each step."""
        counts = Counter[str]()
        for answer in self.answers:
            counts.update({step["name"]: int(step["status"] == "built") for step in answer["steps"]})
        return counts

    @property
    def passed(self) -> bool:
        """Whether each step was run once, and both ended with the right image."""
        right = all(answer["image"] == self.reference.image for answer in self.answers)
        return right and all(count == 1 for count in self.runs.values())

    def table(self) -> Table:
        """Return it as rows."""
        rows = [(f"`{name}` was run", f"{count} ×", verdict(count == 1)) for name, count in self.runs.items()]
        for number, answer in enumerate(self.answers, 1):
            right = answer["image"] == self.reference.image
            rows.append((f"image of build {number}", f"`{answer['image'][:19]}…`", verdict(right)))
        return Table("Two builds at once, in one store", ("", "found", "as it must be"), tuple(rows))


def at_once(program: Program, recipe: Path, scratch: Path, known: Reference) -> Twins:
    """Start two builds of ``recipe`` together in one fresh store, and wait for both."""
    one = fresh(program, scratch)
    argv = one.argv("build", recipe, "--offline", "--json", "--progress", "none")
    builds = [
        subprocess.Popen(argv, env=one.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/")
        for _ in range(2)
    ]
    answers = []
    for build in builds:
        out, said = build.communicate()
        if build.returncode != 0:
            raise ProgramFailed(f"intaglio build: exit status {build.returncode}\n{said.decode(errors='replace')}")
        answers.append(json.loads(out))
    discard(scratch)
    return Twins(known, tuple(answers))
