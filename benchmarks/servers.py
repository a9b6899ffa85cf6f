"""What serves what: every server program over every form, against what it says of itself.

    python -m benchmarks.servers [--home HOME] [--only vllm]

- A tiny model is made from a seed, and of it every form that the libraries here can write (``tests/builder/forms.py``),
  GGUF among them.
- Each server program is run bare over each form, also over those that it does not declare: one that it serves all the
  same is a mistake of the table as well as one that it does not serve though it says so.
- A form is served when a chat is answered with four tokens. What the tokens say is the affair of evaluations.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.builder import forms

from benchmarks import machine, scratch
from benchmarks.program import ROOT, Program
from benchmarks.run import PROOF
from benchmarks.serve_ready import NotServed, bare, python_of
from benchmarks.table import Report, Table, verdict
from intaglio.build import servers
from intaglio.build.action import processor_flags
from intaglio.build.servers import Form
from intaglio.content.layout import Store
from intaglio.content.modelpack import ModelImage
from intaglio.recipe.program import ServerProgram

NAME = "proof/{}:1.0.0"
RECIPE = """
[model]
name = "proof/{name}"
version = "1.0.0"
licence = "Apache-2.0"
[inputs.text]
uri = "file:text/capitals.jsonl"
[steps.none]
uses = "scratch"
inputs = {{ corpus = "text" }}
[steps.gguf]
uses = "convert"
inputs = {{ model = "none" }}
with = {{ type = "q8_0", pre_tokenizer = "gpt-2" }}
[image]
from = "{name}"
"""
DENSE, GGUF = "none", "gguf"
"""What the engine makes; the first is a word for a quantisation, as the others are that are made of it."""
FORMS = (GGUF, DENSE, *forms.FORMS)
"""What every server is tried over."""
_QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}


def prove(home: Program, place: Path, only: Sequence[str] = ()) -> Report:
    """Try every server over every form; build and realise in ``home`` what that needs."""
    models = place / "models"
    store = Store.open(home.store)
    for name in (DENSE, GGUF):
        _build(home, name, place / f"recipe-{name}")
        image = ModelImage.parse(store.read(store.resolve(NAME.format(name)), what=name), name)
        (models / name).mkdir(parents=True)
        for file in image.files:
            (models / name / file.path).symlink_to(store.path(file.digest))
    able = [one for one in servers.programs() if not only or one.name in only]
    pythons = {}
    for program in {one.name: one for one in servers.programs() if one in able or one.name == "transformers"}.values():
        _say(f"realising {program.name}")
        served = NAME.format(DENSE if "safetensors" in program.formats else GGUF)
        home.run("serve", served, "--runtime", program.name, "--prepare")
        pythons[program.name] = python_of(program, store, place / "environments" / program.name)
    _say("quantising")
    make = [str(pythons["transformers"]), "-B", "-s", "-P", forms.__file__, str(models / DENSE), str(models)]
    subprocess.run([*make, *forms.FORMS], check=True, capture_output=True)
    rows = [
        _try(program, pythons[program.name], models, word) for word in (GGUF, DENSE, *forms.FORMS) for program in able
    ]
    table = Table(
        "What serves what",
        ("form", "server", "declared", "found", "seconds", "verdict"),
        tuple(row for _, row in rows),
        "From the same tiny model, quantised to nearest; seconds until the first answer has ended, or the server.",
    )
    command = f"python -m benchmarks.servers{''.join(f' --only {name}' for name in only)}"
    return Report(
        "servers", "What serves what", command, machine.describe(place), (table,), passed=all(met for met, _ in rows)
    )


def write_recipe(place: Path, name: str = DENSE) -> Path:
    """Write the recipe of the tiny model into ``place``, unless it is there, and return that; ``name`` is its form."""
    (place / "text").mkdir(parents=True, exist_ok=True)
    text = ROOT / "modelfiles" / "tiny-from-scratch" / "data" / "capitals.jsonl"
    (place / "text" / text.name).write_bytes(text.read_bytes())
    (place / "Modelfile.toml").write_text(RECIPE.format(name=name), encoding="utf-8")
    return place


def _build(home: Program, name: str, place: Path) -> None:
    """Build the image ``name`` in ``home``."""
    recipe = write_recipe(place, name)
    home.run("lock", recipe)
    home.build(recipe)


def _form(word: str) -> Form:
    """Return the form that a row is about."""
    return Form(GGUF) if word == GGUF else Form("safetensors", word)


def _try(program: ServerProgram, python: Path, models: Path, word: str) -> tuple[bool, tuple[str, ...]]:
    folder = models / word
    files = {path.name: path.resolve() for path in folder.iterdir()}
    config = folder / servers.CONFIG
    found = servers.form_of(files, config.read_bytes() if config.exists() else None)
    if found != _form(word):
        raise AssertionError(f"{word}: its files read as {found}")
    lacking = servers.missing(program, found, processor_flags())
    declared = servers.serves(program, found) and not lacking
    started = time.perf_counter()
    try:
        name = NAME.format(word)
        with bare(program, python, files, name) as served:
            status, text = served.ask("POST", "/v1/chat/completions", {**_QUESTION, "model": name})
            if status != 200:
                raise NotServed(text[:300])
        said = "served"
    except NotServed as reason:
        said = f"not served: {reason}"
    seconds = time.perf_counter() - started
    met = declared == (said == "served")
    _say(f"{program.name} {word}: {said}, {'as declared' if met else 'NOT AS DECLARED'}")
    return met, (
        word,
        program.name,
        "yes" if declared else " ".join(["—", *lacking]),
        said,
        f"{seconds:.1f}",
        verdict(met),
    )


def _say(text: str) -> None:
    print(f"servers: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Try what the command line names, write the page, and return 0, or 1 where the table is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="a home to use; what is not realised there is realised there")
    parser.add_argument("--only", action="append", default=[], help="this server alone; may be repeated")
    parser.add_argument("--output", type=Path, default=PROOF)
    chosen = parser.parse_args()
    with scratch.folder() as place:
        home = Program(chosen.home.absolute() if chosen.home else place / "home")
        if not (home.home / "policy.toml").exists():
            home.run("init")
        report = prove(home, Path(tempfile.mkdtemp(dir=place)), chosen.only)
    print(f"{report.markdown()}\nwritten to {report.write(chosen.output)}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
