"""Gates in recipes: what they may say, and on which steps they may stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.recipe.bench import builder, recipe

from intaglio.errors import RecipeError
from intaglio.recipe import modelfile
from intaglio.recipe.gates import Gate
from intaglio.recipe.modelfile import Recipe
from intaglio.recipe.program import Steps

MEASURE = """\
step = "measure"
summary = "Measure a model."
toolchain = "convert"
reproducible = "platform"
outputs = ["results.json"]
[inputs.model]
summary = "The model."
"""
RECIPE = """\
[model]
name = "examples/gated"
version = "1.0.0"
licence = "Apache-2.0"

[inputs.base]
uri = "file:data/base.bin"

[steps.make]
uses = "stamp"
inputs = { model = "base" }
with = { count = 1 }

[steps.check]
uses = "measure"
inputs = { model = "make" }

[steps.check.gates]
"qa.acc" = { minimum = 0.6 }
"text.perplexity" = { minimum = 1, maximum = 40.0 }

[image]
from = "make"
"""


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Recipe]:
    shop = builder(tmp_path / "builder")
    (shop / "steps" / "measure.toml").write_text(MEASURE)
    (shop / "steps" / "measure.py").write_text("")

    def reader(old: str = "", new: str = "") -> Recipe:
        assert old in RECIPE
        folder = recipe(tmp_path / "recipe", RECIPE.replace(old, new, 1))
        return modelfile.read(folder, Steps(folder, shop))

    return reader


def test_gates_are_read(read: Callable[..., Recipe]) -> None:
    found = read()
    assert found.steps["check"].gates == {"qa.acc": Gate(0.6, None), "text.perplexity": Gate(1.0, 40.0)}
    assert found.steps["make"].gates == {}
    assert found.evaluations == ("check",)


def test_a_step_that_measures_the_image_counts_without_gates_and_one_that_measures_something_else_does_not(
    read: Callable[..., Recipe],
) -> None:
    gates = RECIPE[RECIPE.index("[steps.check.gates]") : RECIPE.index("[image]")]
    assert read(gates, "").evaluations == ("check",)
    other = gates + '[steps.before]\nuses = "measure"\ninputs = { model = "base" }\n'
    assert read(gates, other).evaluations == ("check",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"qa.acc" = { minimum = 0.6 }', '"qa.acc" = {}', "gates.'qa.acc'|expected minimum or maximum, or both"),
        ("minimum = 1,", "minimum = 50,", "nothing is at least 50 and at most 40.0"),
        ("minimum = 0.6", 'minimum = "0.6"', "expected a number, found a string"),
        ("minimum = 0.6", "minimum = nan", "expected a number between"),
        ("minimum = 0.6", "minimum = 0.6, least = 1", "unknown key"),
        ('"qa.acc" =', '"qa acc" =', "bad name: expected the name of a metric"),
        ('model = "make" }\n\n', 'model = "base" }\n\n', "check measures 'base', but the image is made from 'make'"),
        (
            'uses = "measure"',
            'uses = "stamp"\nwith = { count = 1 }',
            "stamp measures nothing; gates stand on a step with",
        ),
    ],
)
def test_mistakes(read: Callable[..., Recipe], old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(old, new)
    assert message.rpartition("|")[2] in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
