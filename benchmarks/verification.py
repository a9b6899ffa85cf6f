"""What a trusted source adds to ``intaglio verify``: one image by the default policy, and by one that asks for it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.program import Program
from benchmarks.table import Table, figures, verdict
from benchmarks.timing import Variant, interleave, stopwatch

ADDED = 0.3
"""Most seconds that metadata, listing and age may add, median."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Seconds of whole processes, ``without`` and ``with`` a trusted source."""

    image: str
    seconds: Mapping[str, list[float]]

    @property
    def added(self) -> float:
        """Median over the rounds of what the source adds, in seconds."""
        pairs = zip(self.seconds["with"], self.seconds["without"], strict=True)
        return median(above - below for above, below in pairs)

    @property
    def met(self) -> bool:
        """Whether it adds no more than it may."""
        return self.added <= ADDED

    def table(self) -> Table:
        """Return it as rows."""
        rows = (
            ("default policy, no trusted source", figures(self.seconds["without"], digits=3), "", ""),
            ("`air-gap`: every input listed, and the source's age", figures(self.seconds["with"], digits=3), "", ""),
            ("added, median of the rounds", f"{self.added:.3f} s", f"≤ {ADDED} s", verdict(self.met)),
        )
        note = f"Whole process, every byte of {self.image} re-hashed each time."
        return Table("Verification with a trusted source", ("", "median (range)", "target", "met"), rows, note)


def measure(program: Program, image: str, place: Path, rounds: int, note: Callable[[str], None]) -> Verification:
    """Measure ``intaglio verify`` of ``image`` in the home of ``program``, which has a trusted source that lists it."""
    place.mkdir()
    alone = replace(program, home=place)
    for name in ("default", "air-gap"):
        text = json.loads(program.run("policy", "new", name, "--json"))["policy"]
        (place / f"{name}.toml").write_text(text, encoding="utf-8")

    def process(of: Program, policy: str) -> Variant:
        argv: Sequence[str] = of.argv("verify", image, "--store", program.store, "--policy", place / f"{policy}.toml")
        return lambda: stopwatch(
            lambda: subprocess.run(argv, env=of.environment(), check=True, capture_output=True, cwd=place)
        )

    variants = {"without": process(alone, "default"), "with": process(program, "air-gap")}
    return Verification(image, interleave(variants, rounds, note))
