"""Gates: what the metrics of a step must be, or its recipe gives no image.

- A gate stands on a step that measures what becomes the image, and on nothing else: a number about another model says
  nothing about this one.
- Thresholds are in no key: moving one decides anew about what was measured already, and measures nothing again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from intaglio.dataclass import dataclass
from intaglio.recipe.program import StepProgram
from intaglio.recipe.shape import Key, Mistake, Named, Number, Table, Text
from intaglio.strictjson import Object

RESULTS = "results.json"
"""The output of a step that measures: ``{"metrics": {NAME: number}, "samples": n}``."""
MODEL = "model"
"""The input of such a step that is measured."""
GATES = Named(
    Table(
        {
            "minimum": Key(Number(), "The least that it may be."),
            "maximum": Key(Number(), "The most that it may be."),
        }
    ),
    Text(r"[^\s\u0000-\u001f\u007f]{1,256}", "the name of a metric, such as qa.acc"),
)


@dataclass(frozen=True, slots=True)
class Gate:
    """What one metric must be; at least one of the two is given."""

    minimum: float | None = None
    maximum: float | None = None


def measures(program: StepProgram) -> bool:
    """Return whether ``program`` gives results about its input ``model``."""
    return RESULTS in program.outputs and MODEL in program.inputs


def read(value: Mapping[str, Object]) -> dict[str, Gate]:
    """Return the gates in ``value``, which was checked."""
    return {metric: Gate(*(_number(bounds, key) for key in ("minimum", "maximum"))) for metric, bounds in value.items()}


def _number(bounds: Object, key: str) -> float | None:
    value = bounds.get(key)
    return None if value is None else float(value)


def mistakes(
    step: str, program: StepProgram, given: Mapping[str, object], measured: object, image: object
) -> Iterator[Mistake]:
    """Yield what the shape of gates cannot say.

    Args:
        step: the step's name.
        program: what it runs.
        given: its gates, as they stand in the recipe.
        measured: what its input ``model`` is.
        image: what the image is made from.
    """
    if not given:
        return
    if not measures(program):
        text = f"{program.name} measures nothing; gates stand on a step with {RESULTS}, such as one that uses evaluate"
        yield Mistake(("steps", step, "gates"), text)
    elif isinstance(measured, str) and isinstance(image, str) and measured != image:
        text = f"{step} measures {measured!r}, but the image is made from {image!r}; give it model = {image!r}"
        yield Mistake(("steps", step, "gates"), text)
    for metric, bounds in given.items():
        if isinstance(bounds, dict):
            yield from _bounds(("steps", step, "gates", metric), bounds)


def _bounds(path: tuple[str, ...], bounds: Object) -> Iterator[Mistake]:
    minimum, maximum = bounds.get("minimum"), bounds.get("maximum")
    if minimum is None and maximum is None:
        yield Mistake(path, "expected minimum or maximum, or both")
    elif isinstance(minimum, (int, float)) and isinstance(maximum, (int, float)) and minimum > maximum:
        yield Mistake(path, f"nothing is at least {minimum} and at most {maximum}")
