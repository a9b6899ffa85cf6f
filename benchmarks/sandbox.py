"""What the sandbox costs: ``/bin/true`` in it, in a plain bubblewrap, and started plainly."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.table import Table, figures, verdict
from benchmarks.timing import interleave, stopwatch
from intaglio.build import sandbox
from intaglio.build.sandbox import Limits, SandboxSpec

ADDED = 0.015
"""Most seconds that the sandbox may add to an empty step."""
_BWRAP = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Seconds by how ``/bin/true`` was run."""

    seconds: Mapping[str, list[float]]

    @property
    def added(self) -> float:
        """Seconds, median, that the sandbox adds to a plain start."""
        plain, walled = self.seconds["plain"], self.seconds["sandbox"]
        return median(ours - theirs for ours, theirs in zip(walled, plain, strict=True))

    def table(self) -> Table:
        """Return it as rows."""
        base = self.seconds["plain"]
        bare = median(ours - theirs for ours, theirs in zip(self.seconds["bubblewrap"], base, strict=True))
        rows = (
            ("started plainly", self._figures("plain"), "", "", ""),
            ("plain bubblewrap", self._figures("bubblewrap"), f"{bare * 1e3:.1f} ms", "", ""),
            (
                "the sandbox of a step, with its limits",
                self._figures("sandbox"),
                f"{self.added * 1e3:.1f} ms",
                f"≤ {ADDED * 1e3:.0f} ms",
                verdict(self.added <= ADDED),
            ),
        )
        return Table("Sandbox", ("`/bin/true`", "median (range)", "adds", "target", "met"), rows)

    def _figures(self, name: str) -> str:
        return figures([value * 1e3 for value in self.seconds[name]], "ms", 1)


def measure(scratch: Path, rounds: int, note: Callable[[str], None]) -> Sandbox:
    """Run each way ``rounds`` times, in turn."""
    limits = Limits(memory=1 << 30, processes=64, time=30.0, disk=1 << 20)
    spec = SandboxSpec(argv=("/bin/true",), mounts=(), environment={}, limits=limits, cwd="/")

    def walled() -> None:
        outcome = sandbox.run(spec, log=scratch / "log", on_event=lambda _: None)
        if outcome.status != 0:
            raise AssertionError(f"/bin/true ended with {outcome.status}")

    def start(argv: list[str]) -> float:
        return stopwatch(lambda: subprocess.run(argv, check=True))

    variants = {
        "plain": lambda: start(["/bin/true"]),
        "bubblewrap": lambda: start([*_BWRAP, "/bin/true"]),
        "sandbox": lambda: stopwatch(walled),
    }
    interleave(variants, 2)  # imports and caches are paid once a process
    return Sandbox(interleave(variants, rounds, note))
