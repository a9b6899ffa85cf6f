"""Recipes in which each step program runs once, on a tiny model made from a seed: what :mod:`benchmarks.step` measures.

- Each recipe holds one measured step and those that it reads from; one home builds them all, so each runs once there.
- Nothing is downloaded for them but toolchains: texts and questions are the shipped recipes', the sdist is made here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import wheelhouse

from benchmarks.program import recipe as shipped

_TUNING = "steps = 8, batch_size = 2, max_length = 128, learning_rate = 1e-3"


@dataclass(frozen=True, slots=True)
class Sample:
    """One step of the recipes."""

    title: str
    uses: str
    inputs: Mapping[str, str]
    """The program's input → an input or a step of :data:`SAMPLES`."""
    given: str = ""
    """TOML of its parameters."""
    image: str = ""
    """The step that becomes the image, where it is another one: what is measured by it."""


INPUTS = {
    "corpus": "file:data/capitals.jsonl",
    "questions": "file:evaluation/tasks",
    "text": "file:evaluation/text",
    "sdist": "file:sdist",
}
"""Inputs of the recipes, by name."""
SAMPLES = {
    "scratch": Sample("scratch", "scratch", {"corpus": "corpus"}, "seed = 7"),
    "convert": Sample("convert", "convert", {"model": "scratch"}, 'type = "bf16", pre_tokenizer = "gpt-2"'),
    "import": Sample("import, of a GGUF file", "import", {"source": "convert"}, 'dtype = "float32"'),
    "lora": Sample("finetune, LoRA", "finetune", {"base": "scratch", "data": "corpus"}, f'method = "lora", {_TUNING}'),
    "ddp": Sample(
        "finetune, DDP × 2",
        "finetune",
        {"base": "scratch", "data": "corpus"},
        f'method = "full", parallel = "ddp", processes = 2, {_TUNING}',
    ),
    "merge": Sample("merge", "merge", {"base": "scratch", "adapter": "lora"}),
    "awq": Sample(
        "quantize, AWQ",
        "quantize",
        {"model": "scratch", "calibration": "corpus"},
        'method = "awq", group_size = 64, samples = 8, max_length = 128',
    ),
    "nf4": Sample("quantize, NF4", "quantize", {"model": "scratch"}, 'method = "nf4"'),
    "q4_k_m": Sample("quantize, Q4_K_M", "quantize", {"model": "convert"}, 'method = "q4_k_m"'),
    "evaluate": Sample(
        "evaluate",
        "evaluate",
        {"model": "scratch", "tasks": "questions", "text": "text"},
        "limit = 8",
        image="scratch",
    ),
    "wheel": Sample("wheel", "wheel", {"source": "sdist"}),
}
"""Every step program, and the ways of it that differ in what the engine has to do."""


def write(name: str, place: Path) -> Path:
    """Write the recipe that measures the step ``name`` below ``place``; return its folder."""
    folder = place / name
    (folder / "data").mkdir(parents=True)
    shutil.copy(shipped("tiny") / "data" / "capitals.jsonl", folder / "data")
    shutil.copytree(shipped("smollm2-gated") / "evaluation", folder / "evaluation")
    sources = place / "sdist"
    if not sources.exists():
        setup = 'from setuptools import setup\nsetup(name="plate", version="1.0", py_modules=[])\n'
        wheelhouse.sdist(sources, "plate", "1.0", setup)
    shutil.copytree(sources, folder / "sdist")
    (folder / "Modelfile.toml").write_text(recipe(name), encoding="utf-8")
    return folder


def recipe(name: str) -> str:
    """Return the recipe of the step ``name`` and of what it reads from."""
    wanted = _before(name)
    inputs = {source for step in wanted for source in SAMPLES[step].inputs.values()} & set(INPUTS)
    lines = [f'[model]\nname = "proof/{name.replace("_", "-")}"\nversion = "1"\nlicence = "Apache-2.0"']
    lines += [f'[inputs.{one}]\nuri = "{uri}"' for one, uri in INPUTS.items() if one in inputs]
    for step in wanted:
        sample = SAMPLES[step]
        slots = ", ".join(f'{slot} = "{source}"' for slot, source in sample.inputs.items())
        lines.append(f'[steps.{step}]\nuses = "{sample.uses}"\ninputs = {{ {slots} }}')
        lines += [f"with = {{ {sample.given} }}"] if sample.given else []
    return "\n".join([*lines, f'[image]\nfrom = "{SAMPLES[name].image or name}"', ""])


def _before(name: str) -> list[str]:
    """Return the step ``name`` after every step that it reads from."""
    found: list[str] = []
    for source in SAMPLES[name].inputs.values():
        if source in SAMPLES:
            found += [step for step in _before(source) if step not in found]
    return [*found, name]
