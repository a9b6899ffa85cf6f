"""The gate at work: one recipe, quantized in two ways; what keeps the answers becomes an image, the other does not.

- The recipe is the shipped one, ``smollm2-gated``. The second build changes the method to GPTQ and nothing else: with
  so few samples to calibrate with, it forgets what AWQ keeps.
- Both measure the same tree that would become the image, and the same gates stand on both.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.program import ROOT, Program, ProgramFailed
from benchmarks.table import Table, verdict

RECIPE = "smollm2-gated"
_KEPT, _LOST = 'method = "awq"', 'method = "gptq"'


@dataclass(frozen=True, slots=True)
class Gated:
    """Both builds."""

    image: str
    """Digest of the image that the first made."""
    metrics: Mapping[str, float]
    """What is attested about it."""
    refusal: Mapping[str, Any]
    """The error of the second, as ``--json`` tells it."""
    tagged: bool
    """Whether the second left a name behind."""

    @property
    def passed(self) -> bool:
        """Whether the first became an image, and the second was refused by a gate and left nothing."""
        return bool(self.image) and self.refusal.get("exit_code") == 23 and not self.tagged

    def table(self) -> Table:
        """Return what both came to."""
        rows = [("awq", f"image `{self.image[:19]}…`, {self._measured()}", verdict(bool(self.image)))]
        missed = str(self.refusal.get("message", "no refusal")).replace("\n", "; ")
        rows.append(("gptq", missed, verdict(self.refusal.get("exit_code") == 23 and not self.tagged)))
        return Table("The same recipe and gates", ("method", "what came of it", "as it should be"), tuple(rows))

    def _measured(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in sorted(self.metrics.items()))


def prove(scratch: Path, note: Callable[[str], None]) -> Gated:
    """Build the shipped recipe, then the same with GPTQ, in a home below ``scratch``."""
    program = Program(scratch / "home")
    program.run("init")
    models = scratch / "modelfiles"
    shutil.copytree(ROOT / "modelfiles", models)
    recipe = models / RECIPE / "Modelfile.toml"
    note("building with AWQ")
    image = json.loads(program.run("build", recipe.parent, "--json", "--tag", "proof/awq:1"))["image"]
    compared = json.loads(program.run("eval", "compare", image, image, "--json"))["metrics"]
    text = recipe.read_text(encoding="utf-8")
    if text.count(_KEPT) != 1:
        raise ProgramFailed(f"{recipe}: expected {_KEPT} once")
    recipe.write_text(text.replace(_KEPT, _LOST), encoding="utf-8")
    note("building with GPTQ")
    argv = program.argv("build", recipe.parent, "--json", "--tag", "proof/gptq:1")
    done = subprocess.run(argv, env=program.environment(), capture_output=True, text=True, check=False, cwd="/")
    refusal = json.loads(done.stdout).get("error", {"message": "it became an image"})
    tags = {one["tag"] for one in json.loads(program.run("store", "list", "--json"))["images"]}
    metrics = {name: pair["a"] for name, pair in compared.items()}
    return Gated(image, metrics, refusal, "proof/gptq:1" in tags)
