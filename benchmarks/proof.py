"""Prove at length what the tests show in small, and write the tables to ``docs/proof/``.

    python -m benchmarks.proof [PART]… [--recipe tiny] [--runtime vllm]… [--kills 50]

Without names all of them run. Each writes its page as soon as it is done, those of many rows after each row; the exit
status is 1 where one failed.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import (
    gate,
    kills,
    machine,
    reproduce,
    run,
    runtime_twice,
    scratch,
    serve_ready,
    servers,
    serving,
    variants,
)
from benchmarks.program import Program, recipe, snapshot
from benchmarks.reproduce import Pair
from benchmarks.table import Report

PARTS = ("reproduce", "runtime", "kills", "variants", "gate", "servers", "serving", "benchmarks")


@dataclass(frozen=True, slots=True)
class Options:
    """What to prove, and how thoroughly."""

    recipe: str = "demo"
    runtimes: tuple[str, ...] = ()
    """Those whose images are built twice (none: llama.cpp), and whose ready time is measured (none: all)."""
    kills: int = 50
    seed: int = 1
    rounds: int = 7
    scratch: Path = scratch.DEFAULT
    shipped: bool = False
    """Whether ready times are those of the shipped models: only where a recipe was asked for by name."""
    output: Path = run.PROOF
    """Where the pages go."""


def _reproduce(options: Options) -> Report:
    command = f"python -m benchmarks.proof reproduce --recipe {options.recipe}"
    with scratch.folder(options.scratch) as place:
        about = machine.describe(place)
        pair = reproduce.prove(recipe(options.recipe), place, _say("reproduce"))
    data = {"first": dict(pair.first.answer), "second": dict(pair.second.answer)}
    return Report("reproduce", "One recipe, two strangers", command, about, pair.tables(), data, pair.same)


def _runtime(options: Options) -> Iterator[Report]:
    """Yield the page anew after each runtime image."""
    command = f"python -m benchmarks.proof runtime{''.join(f' --runtime {name}' for name in options.runtimes)}"
    with scratch.folder(options.scratch) as place:
        about = machine.describe(place)
        pairs: list[Pair] = []
        for pair in runtime_twice.prove(place, options.runtimes or ("llama.cpp",), _say("runtime")):
            pairs.append(pair)
            data = {
                "images": {
                    one.recipe: {"first": dict(one.first.answer), "second": dict(one.second.answer)} for one in pairs
                }
            }
            tables = tuple(table for one in pairs for table in one.tables())
            same = all(one.same and bool(one.first.runtime) for one in pairs)
            yield Report("runtime", "Runtime images, two strangers", command, about, tables, data, same)


def _kills(options: Options) -> Report:
    command = f"python -m benchmarks.proof kills --kills {options.kills} --seed {options.seed}"
    note = _say("kills")
    with scratch.folder(options.scratch) as place:
        about = machine.describe(place)
        data = snapshot(place / "data")
        tiny = recipe("tiny", data)
        program = Program(place / "home", variables={"INTAGLIO_DATA": str(data)})
        program.run("init")
        note("building once, so that the environments are there")
        program.build(tiny)
        found = kills.prove(program, tiny, place / "kills", options.kills, random.Random(options.seed), note)
        note("two builds at once")
        twins = kills.at_once(program, tiny, place / "twins", found.reference)
    each = [
        {"seconds": kill.seconds, "phase": kill.phase, "good": found.good(kill), "cached": kill.cached}
        for kill in found.kills
    ]
    tables = (*found.tables(), twins.table())
    measured = {"kills": each, "twins": [dict(answer) for answer in twins.answers]}
    return Report("kills", "Killed builds", command, about, tables, measured, found.passed and twins.passed)


def _gate(options: Options) -> Report:
    with scratch.folder(options.scratch) as place:
        about = machine.describe(place)
        found = gate.prove(place, _say("gate"))
    data = {"image": found.image, "metrics": dict(found.metrics), "refusal": dict(found.refusal)}
    command = "python -m benchmarks.proof gate"
    return Report(
        "gate", "A gate that keeps and a gate that refuses", command, about, (found.table(),), data, found.passed
    )


def _servers(options: Options) -> Report:
    with scratch.folder(options.scratch) as place:
        home = Program(place / "home")
        home.run("init")
        return servers.prove(home, place / "forms")


def _serving(options: Options) -> Report:
    command = "python -m benchmarks.proof serving"
    if options.shipped:
        command += " --recipe demo"
    command += "".join(f" --runtime {name}" for name in options.runtimes)
    names = tuple(name.replace(".", "-") for name in options.runtimes) or serving.RUNTIMES
    with scratch.folder(options.scratch) as place:
        about = machine.describe(place)
        home = Program(place / "home")
        recipe_name = "demo" if options.shipped else "tiny"
        measured = serving.prove(home, place, recipe_name, names, options.rounds, _say("serving"))
    return serve_ready.report(measured, "serving", command, about)


def _variants(options: Options) -> Iterator[Report]:
    tiny = recipe(options.recipe).name == recipe("tiny").name
    with scratch.folder(options.scratch) as place:
        base = variants.TINY if tiny else variants.SMOLLM2
        yield from variants.reports(place, options.output, base, (), serving=True, note=_say("variants"))


def _benchmarks(options: Options) -> Iterator[Report]:
    demo = recipe(options.recipe).name == recipe("demo").name
    command = f"python -m benchmarks.run --rounds {options.rounds}{' --demo' if demo else ''}"
    given = run.Options(options.rounds, demo=demo, scratch=options.scratch, command=command, output=options.output)
    return run.measure(given)


def _say(what: str) -> Callable[[str], None]:
    return lambda text: print(f"{what}: {text}", file=sys.stderr, flush=True)


_WORK: dict[str, Callable[[Options], Report | Iterable[Report]]] = {
    "reproduce": _reproduce,
    "runtime": _runtime,
    "kills": _kills,
    "variants": _variants,
    "gate": _gate,
    "servers": _servers,
    "serving": _serving,
    "benchmarks": _benchmarks,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prove what is asked for, write the pages, and return 0, or 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--recipe", help="recipe to build twice and to measure: demo, tiny, or a name")
    parser.add_argument(
        "--runtime",
        action="append",
        default=[],
        choices=runtime_twice.RUNTIMES,
        help="runtime whose image is built twice (none: llama.cpp), or whose ready time is measured (none: all)",
    )
    parser.add_argument("--kills", type=int, default=50, help="how many builds to kill")
    parser.add_argument("--seed", type=int, default=1, help="where the random moments come from")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the benchmarks")
    parser.add_argument("--scratch", type=Path, default=scratch.DEFAULT, help="where to make the scratch folders")
    parser.add_argument("--output", type=Path, default=run.PROOF, help="where the pages go")
    chosen = parser.parse_args(arguments)
    if not set(chosen.parts) <= set(PARTS):
        parser.error(f"expected some of {', '.join(PARTS)}, found {' '.join(chosen.parts)}")
    options = Options(
        recipe=chosen.recipe or "demo",
        runtimes=tuple(chosen.runtime),
        shipped=chosen.recipe == "demo",
        kills=chosen.kills,
        seed=chosen.seed,
        rounds=chosen.rounds,
        scratch=chosen.scratch,
        output=chosen.output,
    )
    passed = True
    for part in chosen.parts or PARTS:
        found = _WORK[part](options)
        pages = run.write([found] if isinstance(found, Report) else found, chosen.output)
        passed &= all(page.passed for page in pages)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
