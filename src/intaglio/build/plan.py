"""The plan: every step of a locked recipe with its program, toolchain and interpreter pinned.

- Everything is pinned by the lock, or the plan is refused: an input that is not pinned is no warning.
- An input by name is listed by the trusted source as it is pinned, or the plan is refused.
- An action is complete once the outputs of the steps before it are known: keys use content, not names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.build import interpreter, toolchain
from intaglio.build.action import Action, determinism, platform_class
from intaglio.build.interpreter import Interpreter
from intaglio.build.toolchain import Toolchain
from intaglio.content.layout import Store
from intaglio.dataclass import dataclass, field
from intaglio.digest import Digest
from intaglio.errors import LockError
from intaglio.recipe.data import data_folder
from intaglio.recipe.lock import FILE, Lock, Wanted, outdated, require
from intaglio.recipe.modelfile import Recipe, Step
from intaglio.recipe.sources.interface import Pin, is_name

if TYPE_CHECKING:
    from intaglio.trust.tuf import TrustedSource


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step with all that it needs but the content of its inputs."""

    step: Step
    program: Digest
    toolchain: Toolchain
    interpreter: Interpreter
    platform: str

    @property
    def upstream(self) -> Mapping[str, str]:
        """Input name → the recipe's input or step that it comes from."""
        return self.step.inputs

    def action(self, inputs: Mapping[str, Digest]) -> Action:
        """Return the action, given the trees of the inputs by their names in the program."""
        return Action(
            program=str(self.program),
            toolchain=self.toolchain.tree().digest,
            parameters=self.step.parameters,
            inputs=inputs,
            outputs=self.step.program.outputs,
            platform=self.platform,
            host=self.interpreter.host,
            environment=determinism(self.step.limits.threads),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe, ready to be built."""

    recipe: Recipe
    origins: Mapping[str, Pin]
    steps: Mapping[str, PlannedStep]
    """Each stands after those that it reads."""
    trust: Mapping[str, int] = field(default_factory=dict)
    """Versions of the trusted source's roles that the lock records."""

    def needed(self) -> tuple[str, ...]:
        """Return the steps that the image needs, in order: those that it is made of, and those that measure it."""
        wanted = {self.recipe.image.source, *self.recipe.evaluations}
        for name in reversed(tuple(self.steps)):
            if name in wanted:
                wanted.update(self.steps[name].upstream.values())
        return tuple(name for name in self.steps if name in wanted)

    def inputs(self) -> tuple[str, ...]:
        """Return the recipe's inputs that the needed steps read."""
        read = {source for step in self.needed() for source in self.steps[step].upstream.values()}
        return tuple(name for name in self.recipe.inputs if name in read)

    def require_listed(self, trusted: Callable[[], TrustedSource] | None) -> None:
        """Refuse inputs by name that the trusted source does not list as they are pinned, whatever the store holds.

        Raises:
            PolicyRefusal, CorruptContent, NotVerifiable: see :meth:`TrustedInput.require`.
        """
        for name in self.inputs():
            uri = self.recipe.inputs[name].uri
            if is_name(uri):
                from intaglio.recipe.sources.trusted import TrustedInput

                TrustedInput.parse(uri, self.recipe.folder, name, trusted).require(self.origins[name].tree)


def make(recipe: Recipe, lock: Lock | None, store: Store, *, strict: bool, note: Callable[[str], None]) -> Plan:
    """Return the plan for ``recipe`` as ``lock`` pins it.

    ``strict`` refuses a step program or toolchain that is not the one in the lock; else ``note`` tells of it, so that
    whoever writes a step need not record every change of it.

    Raises:
        RecipeError: the runtime cannot serve what the recipe makes.
        LockError: an input, program or toolchain is not pinned, or (``strict``) pinned to something else.
        MachineError: no interpreter here fits a toolchain.
    """
    pins = lock or Lock()
    planner = _Planner(store)
    steps = {name: planner.step(step) for name, step in recipe.steps.items()}
    chains = {step.toolchain.name: step.toolchain.tree().digest for step in steps.values()}
    wanted = Wanted.of(recipe, chains | _runtime(recipe))
    require(wanted, pins, recipe.folder / FILE)
    moved = outdated(wanted, pins)
    lines = [f"{move.kind} {move.name}: the lock pins {move.old}, here is {move.new}" for move in moved]
    if lines and strict:
        raise LockError(
            "\n".join(f"{recipe.folder / FILE}: {line}" for line in lines),
            hint=f"intaglio update {recipe.folder} {' '.join(move.name for move in moved)}   (moves these pins)",
        )
    for line in lines:
        note(f"{line}; building with what is here (`intaglio update` records it, --locked refuses it)")
    return Plan(recipe, {name: pins.inputs[name].pin for name in recipe.inputs}, steps, pins.trust)


def toolchains(recipe: Recipe) -> dict[str, Digest]:
    """Return the trees of the toolchains that the steps of ``recipe`` run in, and its runtime, by name."""
    names = sorted({step.toolchain for step in recipe.steps.values()})
    return {name: toolchain.load(toolchain_folder(name)).tree().digest for name in names} | _runtime(recipe)


def _runtime(recipe: Recipe) -> dict[str, Digest]:
    """Return what the runnable image is made of and a lock pins, by name.

    Raises:
        RecipeError: its server cannot serve what the recipe makes.
    """
    if recipe.image.runtime is None:
        return {}
    from intaglio.build import runtime, servers

    servers.check_outputs(recipe.steps[recipe.image.source].program.outputs, recipe.image.runtime)
    return runtime.parts(recipe.image.runtime).toolchains()


class _Planner:
    """Loads each toolchain and finds each interpreter once."""

    def __init__(self, store: Store) -> None:
        self._cache = store.root / "host.json"
        self._toolchains: dict[str, Toolchain] = {}
        self._interpreters: dict[str, Interpreter] = {}

    def step(self, step: Step) -> PlannedStep:
        chain = self._toolchain(step.toolchain)
        python = chain.requires_python
        if python not in self._interpreters:
            self._interpreters[python] = interpreter.find(python, cache=self._cache)
        program = step.program.tree().digest
        promised = step.program.class_for(step.parameters)
        return PlannedStep(step, program, chain, self._interpreters[python], platform_class(promised))

    def _toolchain(self, name: str) -> Toolchain:
        if name not in self._toolchains:
            self._toolchains[name] = toolchain.load(toolchain_folder(name))
        return self._toolchains[name]


def toolchain_folder(name: str) -> Path:
    """Return where the toolchain ``name`` is described."""
    return data_folder("builder") / "toolchains" / name
