"""A small recipe with a step program of its own, and ways to spoil it."""

from __future__ import annotations

from pathlib import Path

STEP = """\
step = "stamp"
summary = "Copy a model and stamp it."
toolchain = "convert"
reproducible = "platform"
lib = ["events"]
outputs = ["*.bin"]
memory = "1GiB"
processes = 64
time = "10m"

[inputs.model]
summary = "The model."

[inputs.notes]
summary = "Notes to add."
optional = true

[parameters.rate]
type = "number"
default = 1e-3
minimum = 0.0
maximum = 1.0
summary = "How much."

[parameters.count]
type = "integer"
minimum = 1
summary = "How often."

[parameters.mode]
type = "string"
default = "slow"
choices = ["slow", "fast"]
summary = "Which way."

[parameters.bits]
type = "integer"
default = 8
choices = [4, 8]
summary = "How wide."

[parameters.loud]
type = "boolean"
default = false
summary = "Whether to say it."

[parameters.tags]
type = "array"
items = "string"
default = []
summary = "Words."

[parameters.weights]
type = "array"
items = "number"
default = [1]
summary = "Numbers."

[parameters.limit]
type = "integer"
nullable = true
summary = "Where to end."
"""

RECIPE = """\
# A recipe.
[model]
name = "examples/stamped"
version = "1.0.0"
licence = "Apache-2.0"

[inputs.base]
uri = "file:data/base.bin"

[steps.first]
uses = "stamp"
inputs = { model = "base" }
with = { count = 2 }

[steps.second]
uses = "stamp"
inputs = { model = "first" }

[steps.second.with]
count = 3
rate = 0.5

[image]
from = "second"
"""


def builder(folder: Path) -> Path:
    """Make a builder folder with the one step program ``stamp``."""
    (folder / "steps").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "steps" / "stamp.toml").write_text(STEP)
    (folder / "steps" / "stamp.py").write_text("print('stamp')\n")
    (folder / "lib" / "events.py").write_text("def say(): ...\n")
    (folder / "lib" / "other.py").write_text("")
    return folder


def recipe(folder: Path, text: str = RECIPE) -> Path:
    """Make a recipe folder with its data."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "base.bin").write_bytes(b"base")
    (folder / "Modelfile.toml").write_text(text)
    return folder
