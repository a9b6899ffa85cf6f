"""Measure the engine, and write the figures to ``docs/proof/benchmarks.md`` and ``.json``.

    python -m benchmarks.run [--rounds 5] [--only ingest,process,verification,…] [--demo] [--home DIR]

Without ``--home`` a home is made in scratch space and the recipes are built in it first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import guard, ingest, machine, process, sandbox, scratch, step, transport, verification
from benchmarks.program import ROOT, Program, recipe
from benchmarks.table import Report, Table

KINDS = ("ingest", "process", "sandbox", "step", "verification", "guard", "transport")
PROOF = ROOT / "docs" / "proof"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, and how long."""

    rounds: int = 5
    size: int = 512 * MIB
    """Bytes of each of the files that are ingested."""
    only: tuple[str, ...] = KINDS
    demo: bool = False
    home: Path | None = None
    scratch: Path = scratch.DEFAULT
    command: str = "python -m benchmarks.run"


def measure(options: Options) -> Report:
    """Measure what ``options`` ask for."""
    with scratch.folder(options.scratch) as place:
        about = machine.describe(place)
        tables: list[Table] = []
        data: dict[str, object] = {}
        passed = True
        if "ingest" in options.only:
            found = ingest.measure(place, options.rounds, options.size, _say("ingest"))
            tables.append(found.table())
            data["ingest"] = {"bytes": found.size, "seconds": dict(found.seconds)}
            passed &= found.ratios["moved"] >= ingest.MOVED and found.ratios["copied"] >= ingest.COPIED
        if "sandbox" in options.only:
            walls = sandbox.measure(place, options.rounds * 8, lambda _: None)
            tables.append(walls.table())
            data["sandbox"] = {"seconds": dict(walls.seconds)}
            passed &= walls.added <= sandbox.ADDED
        if "guard" in options.only:
            started = guard.measure(place / "guard", options.rounds * 3, _say("guard"))
            tables.append(started.table())
            data["guard"] = {"seconds": dict(started.seconds)}
            passed &= started.met
        if "transport" in options.only:
            moved = transport.compare(place / "transport", options.size, options.rounds, _say("transport"))
            tables.append(moved.table())
            data["transport"] = {"bytes": moved.size, "rows": moved.to_json()}
            passed &= moved.met
        if {"process", "step", "verification"} & set(options.only):
            program, recipes = _built(options, place)
            if "process" in options.only:
                whole = process.measure(program, recipes, options.rounds * 3, _say("process"))
                tables.append(whole.table())
                data["process"] = {"seconds": dict(whole.seconds)}
                passed &= whole.met
            if "step" in options.only:
                rounds = max(3, options.rounds // 2)
                steps = [
                    step.measure(program, folder, "tune", place / "step", rounds, _say(f"{folder.name} tune"))
                    for folder in recipes
                ]
                tables.append(step.table(steps))
                data["step"] = {one.title: dict(one.seconds) for one in steps}
                passed &= all(one.met for one in steps)
            if "verification" in options.only:
                image = program.build(recipes[-1])["tag"]
                judged = verification.measure(
                    program, image, place / "verification", options.rounds * 3, _say("verification")
                )
                tables.append(judged.table())
                data["verification"] = {"seconds": dict(judged.seconds)}
                passed &= judged.met
    return Report("benchmarks", "Benchmarks", options.command, about, tuple(tables), data, passed)


def _built(options: Options, place: Path) -> tuple[Program, list[Path]]:
    """Return a home in which the recipes are built, and the recipes."""
    recipes = [recipe(name) for name in (("tiny", "demo") if options.demo else ("tiny",))]
    program = Program(options.home or place / "home")
    program.run("init")
    if not (program.home / "root.json").exists():  # whom a given home trusts stays as it is
        program.trust(place / "publisher")
    for folder in recipes:
        _say("build")(folder.name)
        program.build(folder)
    return program, recipes


def _say(what: str) -> Callable[[str], None]:
    return lambda text: print(f"{what}: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the tables, and return 0, or 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which everything is measured once")
    parser.add_argument("--size", type=int, default=512, help="MiB of each of the four files that are ingested")
    parser.add_argument("--only", default=",".join(KINDS), help=f"what to measure, of {', '.join(KINDS)}")
    parser.add_argument("--demo", action="store_true", help="measure the demo's recipe too, which is built first")
    parser.add_argument("--home", type=Path, help="a home to use; what is not built there is built there")
    parser.add_argument("--scratch", type=Path, default=scratch.DEFAULT, help="where to make the scratch folder")
    parser.add_argument("--output", type=Path, default=PROOF, help="where the tables go")
    chosen = parser.parse_args(arguments)
    only = tuple(chosen.only.split(","))
    if not set(only) <= set(KINDS):
        parser.error(f"--only: expected some of {', '.join(KINDS)}, found {chosen.only}")
    given = sys.argv[1:] if arguments is None else list(arguments)
    home = chosen.home.absolute() if chosen.home else None
    report = measure(
        Options(
            chosen.rounds,
            chosen.size * MIB,
            only,
            chosen.demo,
            home,
            chosen.scratch,
            " ".join(["python -m benchmarks.run", *given]),
        )
    )
    page = report.write(chosen.output)
    print(report.markdown())
    print(f"written to {page}", file=sys.stderr)
    return 0 if report.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
