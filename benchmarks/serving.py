"""Ready times of every server, behind the guard and through the engine: builds what they serve, and measures.

    python -m benchmarks.proof serving [--recipe demo] [--runtime vllm]

- Tiny models by default: one in GGUF for llama.cpp, one in safetensors for the others. ``--recipe demo`` takes the
  shipped SmolLM2 recipes, built from a trusted source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import serve_ready
from benchmarks.program import DEMO, Program, recipe
from benchmarks.serve_ready import Ready
from benchmarks.servers import write_recipe

RUNTIMES = ("llama-cpp", "transformers", "vllm")


def prove(
    home: Program, place: Path, name: str, runtimes: Sequence[str], rounds: int, note: Callable[[str], None]
) -> list[Ready]:
    """Measure ``runtimes`` in ``home``, which is empty yet, over tiny models or, as ``demo``, the shipped ones."""
    home.run("init")
    shipped = name == "demo"
    if shipped:
        home.trust(place / "publisher")
    built: dict[Path, str] = {}
    measured = []
    for runtime in runtimes:
        folder = _recipe(place, runtime == "llama-cpp", shipped)
        if folder not in built:
            note(f"building {folder.name}")
            if not (folder / "Modelfile.lock").exists():
                home.run("lock", folder)
            built[folder] = home.build(folder)["tag"]
        note(f"{runtime}: {built[folder]}")
        measured.append(serve_ready.measure(home, built[folder], runtime, rounds))
    return measured


def _recipe(place: Path, gguf: bool, shipped: bool) -> Path:
    """Return the recipe whose image is served."""
    if gguf:
        return recipe(DEMO if shipped else "tiny")
    return recipe(f"{DEMO}-vllm") if shipped else write_recipe(place / "dense")
