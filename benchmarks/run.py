"""Measure the engine, and write the figures to a page for each kind: ``docs/proof/ingest.md``, ``step.md`` and so on.

    python -m benchmarks.run [--rounds 5] [--only ingest,process,step,…] [--step NAME]… [--demo] [--home DIR]

Without ``--home`` a home is made in scratch space and the recipes are built in it first. ``--step`` measures steps of
that name alone; their rows take the place of those that the page has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks import guard, ingest, machine, process, sandbox, scratch, step, steps, transport, verification
from benchmarks.program import ROOT, Program, recipe
from benchmarks.step import Steps
from benchmarks.table import Report, Table, earlier

KINDS = ("ingest", "process", "sandbox", "step", "verification", "guard", "transport")
PROOF = ROOT / "docs" / "proof"
MIB = 1 << 20
_PLACES = ("--home", "--scratch", "--output")
TUNE = "tune"
"""The step ``tune`` of the tiny recipe, and with ``--demo`` of the demo's: full fine-tuning as it is shipped."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, and how long."""

    rounds: int = 5
    size: int = 512 * MIB
    """Bytes of each of the files that are ingested."""
    only: tuple[str, ...] = KINDS
    steps: tuple[str, ...] = (*steps.SAMPLES, TUNE)
    demo: bool = False
    home: Path | None = None
    scratch: Path = scratch.DEFAULT
    command: str = "python -m benchmarks.run"
    output: Path = PROOF
    """Where the page of the steps is, whose other rows are kept."""


def measure(options: Options) -> Iterator[Report]:
    """Measure what ``options`` ask for, and yield a page for each kind as soon as it is measured."""
    with scratch.folder(options.scratch) as place:
        bench = _Bench(options, place)
        for kind in KINDS:
            if kind in options.only:
                yield from _MEASURES[kind](bench)


class _Bench:
    """What the measurements share."""

    def __init__(self, options: Options, place: Path) -> None:
        self.options = options
        self.place = place
        self.rounds = options.rounds
        self.machine = machine.describe(place)

    @cached_property
    def program(self) -> Program:
        """A home with keys."""
        program = Program(self.options.home or self.place / "home")
        program.run("init")
        return program

    @cached_property
    def recipes(self) -> list[Path]:
        """The shipped recipes, which are built in the home; it trusts a source that lists what they are made of."""
        recipes = [recipe(name) for name in (("tiny", "demo") if self.options.demo else ("tiny",))]
        if not (self.program.home / "root.json").exists():  # whom a given home trusts stays as it is
            self.program.trust(self.place / "publisher")
        for folder in recipes:
            _say("build")(folder.name)
            self.program.build(folder)
        return recipes

    def report(self, kind: str, title: str, table: Table, data: Mapping[str, object], *, passed: bool) -> Report:
        """Return the page of a kind."""
        return Report(kind, title, self.options.command, self.machine, (table,), data, passed)


def _ingest(bench: _Bench) -> Iterator[Report]:
    found = ingest.measure(bench.place, bench.rounds, bench.options.size, _say("ingest"))
    met = found.ratios["moved"] >= ingest.MOVED and found.ratios["copied"] >= ingest.COPIED
    data = {"bytes": found.size, "seconds": dict(found.seconds)}
    yield bench.report("ingest", "How fast bytes enter the store", found.table(), data, passed=met)


def _process(bench: _Bench) -> Iterator[Report]:
    recipes = bench.recipes
    found = process.measure(bench.program, recipes, bench.rounds * 3, _say("process"))
    data = {"seconds": dict(found.seconds)}
    yield bench.report("process", "Whole processes", found.table(), data, passed=found.met)


def _sandbox(bench: _Bench) -> Iterator[Report]:
    found = sandbox.measure(bench.place, bench.rounds * 8, lambda _: None)
    data = {"seconds": dict(found.seconds)}
    yield bench.report("sandbox", "What the sandbox costs", found.table(), data, passed=found.added <= sandbox.ADDED)


def _step(bench: _Bench) -> Iterator[Report]:
    """Yield the page anew after each step, so that what was measured is not lost with the next."""
    done: list[Steps] = []
    order = [sample.title for sample in steps.SAMPLES.values()]
    for title, folder, name in _cases(bench):
        rounds = max(3, bench.rounds // 2)
        seconds = step.measure(bench.program, folder, name, bench.place / "step", rounds, _say(title))
        done.append(Steps(title, seconds, bench.machine["date"], bench.machine["processor"]))
        rows = step.kept(earlier(bench.options.output, "step"), done, order)
        data = {"rows": [row.to_json() for row in rows]}
        met = all(row.met for row in rows)
        yield bench.report("step", "Every step through the engine", step.table(rows), data, passed=met)


def _cases(bench: _Bench) -> Iterator[tuple[str, Path, str]]:
    """Yield title, recipe and name of each step that is to be measured."""
    for name, sample in steps.SAMPLES.items():
        if name in bench.options.steps:
            folder = steps.write(name, bench.place / "steps")
            bench.program.run("lock", folder)
            yield sample.title, folder, name
    if TUNE in bench.options.steps:
        for folder in bench.recipes:
            yield f"finetune, as in {folder.name}", folder, TUNE


def _verification(bench: _Bench) -> Iterator[Report]:
    image = bench.program.build(bench.recipes[-1])["tag"]
    place = bench.place / "verification"
    found = verification.measure(bench.program, image, place, bench.rounds * 3, _say("verification"))
    data = {"seconds": dict(found.seconds)}
    yield bench.report("verification", "Verification", found.table(), data, passed=found.met)


def _transport(bench: _Bench) -> Iterator[Report]:
    found = transport.compare(bench.place / "transport", bench.options.size, bench.rounds, _say("transport"))
    data = {"bytes": found.size, "rows": found.to_json()}
    yield bench.report("transport", "Push and pull", found.table(), data, passed=found.met)


def _guard(bench: _Bench) -> Iterator[Report]:
    found = guard.measure(bench.place / "guard", bench.rounds * 3, _say("guard"))
    data = {"seconds": dict(found.seconds)}
    yield bench.report("guard", "The guard's own start", found.table(), data, passed=found.met)


_MEASURES: dict[str, Callable[[_Bench], Iterator[Report]]] = {
    "ingest": _ingest,
    "process": _process,
    "sandbox": _sandbox,
    "step": _step,
    "verification": _verification,
    "guard": _guard,
    "transport": _transport,
}


def _say(what: str) -> Callable[[str], None]:
    return lambda text: print(f"{what}: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the pages, and return 0, or 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (*steps.SAMPLES, TUNE)
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which everything is measured once")
    parser.add_argument("--size", type=int, default=512, help="MiB of each of the four files that are ingested")
    parser.add_argument("--only", default=",".join(KINDS), help=f"what to measure, of {', '.join(KINDS)}")
    parser.add_argument("--step", action="append", choices=known, metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--demo", action="store_true", help="measure the demo's recipe too, which is built first")
    parser.add_argument("--home", type=Path, help="a home to use; what is not built there is built there")
    parser.add_argument("--scratch", type=Path, default=scratch.DEFAULT, help="where to make the scratch folder")
    parser.add_argument("--output", type=Path, default=PROOF, help="where the pages go")
    chosen = parser.parse_args(arguments)
    only = tuple(chosen.only.split(","))
    if not set(only) <= set(KINDS):
        parser.error(f"--only: expected some of {', '.join(KINDS)}, found {chosen.only}")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = Options(
        rounds=chosen.rounds,
        size=chosen.size * MIB,
        only=only,
        steps=tuple(chosen.step or known),
        demo=chosen.demo,
        home=chosen.home.absolute() if chosen.home else None,
        scratch=chosen.scratch,
        command=" ".join(["python -m benchmarks.run", *_without_places(given)]),
        output=chosen.output,
    )
    pages = write(measure(options), chosen.output)
    return 0 if all(page.passed for page in pages) else 1


def _without_places(given: Sequence[str]) -> Iterator[str]:
    """Yield the arguments but those that name places of this machine."""
    kept = iter(given)
    for argument in kept:
        if argument in _PLACES:
            next(kept, None)
        elif not argument.startswith(tuple(f"{name}=" for name in _PLACES)):
            yield argument


def write(reports: Iterable[Report], folder: Path) -> list[Report]:
    """Write each page as it comes, print the last of each name, and return those."""
    last: dict[str, Report] = {}
    for report in reports:
        report.write(folder)
        last[report.name] = report
    for report in last.values():
        print(report.markdown())
        said = "passed" if report.passed else "FAILED"
        print(f"{report.name}: {said}, written to {folder / report.name}.md", file=sys.stderr, flush=True)
    return list(last.values())


if __name__ == "__main__":
    raise SystemExit(main())
