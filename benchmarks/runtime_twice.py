"""Runtime images built twice as two strangers would (:mod:`benchmarks.reproduce`), with the model inside and without.

- The recipe is the tiny one with a runtime named in it; what the runtime serves decides which of its steps becomes the
  image.
- Both sides begin with nothing: Debian packages, wheels and sources are fetched by each, every layer is made by each.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.program import Program
from benchmarks.program import recipe as shipped
from benchmarks.reproduce import Pair, Strangers

RUNTIMES = ("llama.cpp", "vllm", "transformers")
_SOURCES = {"llama.cpp": "gguf"}
"""The step of the tiny recipe that a runtime serves, where it is not the fine-tuned model."""


def write(runtime: str, place: Path, *, embed: bool) -> Path:
    """Write the tiny recipe with ``runtime`` below ``place``; return its folder."""
    folder = place / (f"{runtime} embed" if embed else runtime)
    (folder / "data").mkdir(parents=True)
    tiny = shipped("tiny")
    for path in (tiny / "data").iterdir():
        (folder / "data" / path.name).write_bytes(path.read_bytes())
    text = (tiny / "Modelfile.toml").read_text(encoding="utf-8")
    kept, _, image = text.partition("[image]\n")
    if tomllib.loads(image) != {"from": "gguf"}:
        raise AssertionError(f"{tiny}: expected an image from gguf and nothing else, found {image!r}")
    made = f'[image]\nfrom = "{_SOURCES.get(runtime, "tune")}"\nruntime = "{runtime}"\n'
    made += "embed = true\n" if embed else ""
    (folder / "Modelfile.toml").write_text(kept + made, encoding="utf-8")
    return folder


def prove(scratch: Path, runtimes: Sequence[str], note: Callable[[str], None]) -> Iterator[Pair]:
    """Build each of ``runtimes`` below ``scratch``, without the model and with it, and yield each pair."""
    strangers = Strangers(scratch, note)
    locker = Program(scratch / "locker")
    for runtime in runtimes:
        for embed in (False, True):
            recipe = write(runtime, scratch / f"recipes-{runtime}-{embed}", embed=embed)
            locker.run("lock", recipe)
            yield strangers.build(recipe)
