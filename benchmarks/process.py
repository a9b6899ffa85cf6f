"""How long whole processes take: what a person waits for after pressing return."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.program import Program
from benchmarks.table import Table, figures, verdict
from benchmarks.timing import Variant, interleave, stopwatch

CACHED, HELP = 0.6, 0.15
"""Most seconds wanted, median: a fully cached build, and ``--help``."""


@dataclass(frozen=True, slots=True)
class Process:
    """Seconds by what was run."""

    seconds: Mapping[str, list[float]]

    @property
    def met(self) -> bool:
        """Whether every command that has a target keeps it."""
        targets = ((target_of(name), values) for name, values in self.seconds.items())
        return all(target is None or median(values) <= target for target, values in targets)

    def table(self) -> Table:
        """Return it as rows."""
        rows = []
        for name, values in self.seconds.items():
            target = target_of(name)
            met = "" if target is None else verdict(median(values) <= target)
            rows.append((f"`{name}`", figures(values, digits=3), "" if target is None else f"≤ {target} s", met))
        note = "Whole process, from start to exit; every step of the builds is cached."
        return Table("Processes", ("command", "median (range)", "target", "met"), tuple(rows), note)


def target_of(name: str) -> float | None:
    """Return the most seconds that are wanted of a command, if any."""
    if name.startswith("intaglio build"):
        return CACHED
    return HELP if name == "intaglio --help" else None


def measure(program: Program, recipes: Sequence[Path], rounds: int, note: Callable[[str], None]) -> Process:
    """Measure with a home in which ``recipes`` have been built."""
    environment = program.environment()

    def process(argv: Sequence[str]) -> Variant:
        def once() -> float:
            return stopwatch(
                lambda: subprocess.run(argv, env=environment, check=True, capture_output=True, cwd=program.home)
            )

        return once

    variants = {
        "python -c pass": process([sys.executable, "-c", "pass"]),
        "python -c 'import intaglio'": process([sys.executable, "-c", "import intaglio"]),
        "intaglio --help": process(program.argv("--help")),
    }
    for folder in recipes:
        answer = program.build(folder)
        if any(step["status"] != "cached" for step in answer["steps"]):
            raise AssertionError(f"{folder.name}: expected every step cached, found {answer['steps']}")
        variants[f"intaglio build modelfiles/{folder.name}"] = process(program.argv("build", folder))
    return Process(interleave(variants, rounds, note))
