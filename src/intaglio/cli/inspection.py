"""What the commands that look into a build share: its plan, with the keys as far as they are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from intaglio.build import claim
from intaglio.build.action import Action
from intaglio.build.plan import Plan, PlannedStep, make
from intaglio.cli.setting import Setting
from intaglio.content.tree import Tree
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import UsageError
from intaglio.recipe import lock
from intaglio.recipe.sources.interface import resolve
from intaglio.trust.key import PublicKey


@dataclass(frozen=True, slots=True)
class StepState:
    """A step as a build would find it."""

    planned: PlannedStep
    action: Action | None
    """``None`` while a step before it has no output."""
    output: Digest | None
    """The output that a trusted claim gives, if it is in the store."""
    waits_for: str | None
    """The first step before it that has no output."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """A plan, and each of its steps as a build would find it; nothing is run or fetched."""

    plan: Plan
    states: Mapping[str, StepState]

    def state(self, step: str) -> StepState:
        """Return the state of ``step``.

        Raises:
            UsageError: the recipe has no such step.
        """
        if step not in self.states:
            from intaglio.recipe.shape import nearest

            raise UsageError(f"no step {step!r} in {self.plan.recipe.path}; {nearest(step, self.states)}")
        return self.states[step]


def inspect(setting: Setting, recipe: str, trusted: tuple[PublicKey, ...] | None = None) -> Inspection:
    """Return the plan of the recipe at ``recipe`` with what the store knows about it."""
    parsed = setting.recipe(recipe)
    pins = lock.read(parsed.folder / lock.FILE)
    plan = make(parsed, pins, setting.store, strict=False, note=setting.progress.note)
    believed = setting.policy().builders if trusted is None else trusted
    outputs: dict[str, Digest] = {name: pin.tree for name, pin in plan.origins.items()}
    states: dict[str, StepState] = {}
    for name, planned in plan.steps.items():
        missing = next((source for source in planned.upstream.values() if source not in outputs), None)
        action = output = None
        if missing is None:
            action = planned.action({slot: outputs[source] for slot, source in planned.upstream.items()})
            for found in claim.find(setting.store, action.key, believed):
                if setting.store.has_tree(found.subject):
                    output = outputs[name] = found.subject
                    break
        states[name] = StepState(planned, action, output, missing)
    return Inspection(plan, states)


def inputs_of(setting: Setting, inspection: Inspection, step: str) -> dict[str, Tree]:
    """Return the trees that ``step`` reads; inputs are fetched, but no other step is run.

    Raises:
        UsageError: a step before it has no output yet.
    """
    state = inspection.state(step)
    if state.waits_for is not None:
        raise UsageError(
            f"step {step!r} reads the output of {state.waits_for!r}, which is not built",
            hint=f"intaglio build {inspection.plan.recipe.folder}",
        )
    trees = {}
    recipe = inspection.plan.recipe
    for slot, source in state.planned.upstream.items():
        output = inspection.states[source].output if source in inspection.states else None
        if output is not None:
            trees[slot] = setting.store.tree(output)
            continue
        item, pin = recipe.inputs[source], inspection.plan.origins[source]
        origin = resolve(item.uri, recipe.folder, name=source, digest=item.digest, trusted=setting.trusted)
        trees[slot] = origin.fetch(setting.store, expected=pin.tree, progress=setting.progress, offline=False)
    return trees


def step_argument(words: tuple[str, ...]) -> tuple[str, str]:
    """Return recipe and step of the arguments ``[RECIPE] STEP``.

    Raises:
        UsageError: neither one nor two words.
    """
    if len(words) == 1:
        return ".", words[0]
    if len(words) == 2:
        recipe, step = words
        if not Path(recipe).exists() and Path(step).exists():
            recipe, step = step, recipe
        return recipe, step
    raise UsageError("expected [RECIPE] STEP", hint="for example: intaglio explain modelfiles/smollm2-helpdesk tune")
