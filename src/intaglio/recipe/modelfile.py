"""The recipe: what a ``Modelfile.toml`` says, checked as a whole.

- Every mistake is reported at once, with its line, its key and the nearest valid name.
- What is read is values only: no input is opened, no program run, no network asked.
- Inputs and steps share one set of names; steps come in an order in which each stands after what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

from intaglio.dataclass import dataclass, field
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, RecipeError
from intaglio.recipe import document, gates, limits, secrets
from intaglio.recipe.limits import Limits
from intaglio.recipe.program import CLASSES, Reproducible, StepProgram, Steps, UnknownProgram
from intaglio.recipe.shape import Anything, Flag, Items, Key, Mistake, Named, Table, Text, nearest
from intaglio.strictjson import Object

FILE = "Modelfile.toml"
RUNTIMES = ("llama.cpp", "transformers", "vllm")
"""What a runnable image can serve with."""
_NAME = Text(r"[A-Za-z][A-Za-z0-9_-]{0,63}", "a letter, then letters, digits, - and _ (at most 64)")
_MODEL_NAME = Text(
    r"[a-z0-9]+([._-][a-z0-9]+)*(/[a-z0-9]+([._-][a-z0-9]+)*)*", "a name such as examples/my-model, in lower case"
)
_VERSION = Text(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", "a version such as 1.0.0 (letters, digits, . _ -)")
_LICENCE = Text(r"[A-Za-z0-9.+() :-]{1,256}", "an SPDX licence expression such as Apache-2.0")
_LINE = Text(r"[^\u0000-\u001f\u007f]{0,1024}", "one line of at most 1024 characters")

MODELFILE = Table(
    {
        "model": Key(
            Table(
                {
                    "name": Key(_MODEL_NAME, "Name of the image, as in examples/my-model.", required=True),
                    "version": Key(_VERSION, "Version of the image; its tag.", required=True),
                    "licence": Key(_LICENCE, "Licence of the model, an SPDX expression.", required=True),
                    "family": Key(_LINE, "Family of models that it belongs to."),
                    "description": Key(_LINE, "What it is for, in one line."),
                    "authors": Key(Items(_LINE), "Who made it."),
                }
            ),
            "What the image is called.",
            required=True,
        ),
        "inputs": Key(
            Named(
                Table(
                    {
                        "uri": Key(Text(), "Where it comes from: file:, https:, pypi: or hf:.", required=True),
                        "digest": Key(
                            Text(r"sha256:[0-9a-f]{64}", "sha256: and 64 lower-case hex digits"),
                            "What it must be: of the file for https: (required there), of the tree otherwise.",
                        ),
                        "licence": Key(_LICENCE, "Licence of the input, an SPDX expression."),
                    }
                ),
                _NAME,
            ),
            "What goes in, by a name of your own.",
        ),
        "steps": Key(
            Named(
                Table(
                    {
                        "uses": Key(Text(), "The step program: a name, or ./path beside the recipe.", required=True),
                        "inputs": Key(Named(Text()), "For each input of the program, an input or a step."),
                        "with": Key(Anything(("object",)), "Parameters of the program."),
                        "reproducible": Key(Text(choices=CLASSES), "A weaker promise than the program's own."),
                        "limits": Key(Table(limits.KEYS), "How much of the machine it may take."),
                        "gates": Key(gates.GATES, "What its metrics must be, or there is no image."),
                    }
                ),
                _NAME,
                at_least=1,
            ),
            "What is done, by a name of your own.",
            required=True,
        ),
        "image": Key(
            Table(
                {
                    "from": Key(Text(), "The step whose output becomes the image.", required=True),
                    "labels": Key(
                        Named(_LINE, Text(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,255}", "letters, digits, . _ / and -")),
                        "Labels of the image; they change no action.",
                    ),
                    "runtime": Key(Text(choices=RUNTIMES), "Make a runnable image that serves it with this, too."),
                    "embed": Key(Flag(), "Whether the model is inside the runnable image; default: it is mounted."),
                }
            ),
            "What comes out.",
            required=True,
        ),
    }
)
"""What a ``Modelfile.toml`` may hold; ``docs/schema/modelfile.schema.json`` is made from it."""


@dataclass(frozen=True, slots=True)
class Model:
    """What the image is called."""

    name: str
    version: str
    licence: str
    family: str | None = None
    description: str | None = None
    authors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Input:
    """Something that goes in."""

    name: str
    uri: str
    digest: Digest | None = None
    """What the recipe promises: of the file for ``https:``, of the tree otherwise."""
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Something that is done."""

    name: str
    uses: str
    program: StepProgram
    inputs: Mapping[str, str]
    """For each input of the program that is given: the name of an input or a step."""
    parameters: Object
    """Every parameter that the program declares, resolved."""
    reproducible: Reproducible
    limits: Limits
    gates: Mapping[str, gates.Gate] = field(default_factory=dict)
    """For each metric that is gated: what it must be. In no key."""

    @property
    def toolchain(self) -> str:
        """Name of the toolchain that it runs in."""
        return self.program.toolchain_for(self.parameters)


@dataclass(frozen=True, slots=True)
class Image:
    """What comes out."""

    source: str
    """The step whose output it is (``from`` in the file)."""
    labels: Mapping[str, str]
    runtime: str | None = None
    """What a runnable image is to serve it with; ``None``: there is none."""
    embed: bool = False
    """Whether the model is inside the runnable image."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe, without mistakes."""

    path: Path
    model: Model
    inputs: Mapping[str, Input]
    steps: Mapping[str, Step]
    """In an order in which each step stands after those it reads."""
    image: Image

    @property
    def folder(self) -> Path:
        """The recipe's folder, from which ``file:`` counts."""
        return self.path.parent

    @property
    def evaluations(self) -> tuple[str, ...]:
        """The steps that measure what becomes the image, with gates or without."""
        found = (step for step in self.steps.values() if gates.measures(step.program))
        return tuple(step.name for step in found if step.inputs.get(gates.MODEL) == self.image.source)


def read(
    path: Path,
    programs: Callable[[str], StepProgram] | None = None,
    *,
    revision: Callable[[str], str | None] | None = None,
) -> Recipe:
    """Read the recipe at ``path``: its folder, or the file itself.

    Args:
        path: where it is; stands in messages as it is given.
        programs: finds a step program by what ``uses`` says; default :class:`~intaglio.recipe.program.Steps`.
        revision: asks what commit a branch means now, for the message that refuses it; only ``lock`` and ``update``,
            which use the network, give :func:`intaglio.recipe.sources.hf.current_revision`.

    Raises:
        RecipeError: the message lists every mistake as ``file:line: key: what is wrong``.
    """
    file = path / FILE if path.is_dir() else path
    try:
        text = document.read(file)
    except RecipeError as error:
        hint = f"a recipe is a folder with a {FILE}" if not file.exists() else None
        raise RecipeError(error.message, hint=error.hint or hint) from None
    found = list(secrets.mistakes(text.values))
    hidden = {mistake.path for mistake in found}
    found += [mistake for mistake in MODELFILE.check(text.values, ()) if mistake.path not in hidden]
    known = hidden | {mistake.path for mistake in found}
    reader = _Reader(file, text.values, programs or Steps(file.parent), revision, known)
    found += reader.mistakes()
    if found:
        raise text.refuse(found, hint="docs/modelfile.md lists every key")
    return reader.recipe()


def _table(value: object) -> Object:
    """Return ``value`` if it is a table, else an empty one: its own mistake has been said elsewhere."""
    return value if isinstance(value, dict) else {}


class _Reader:
    """Checks what the shape of the file cannot say, and builds the recipe."""

    def __init__(
        self,
        file: Path,
        values: Object,
        programs: Callable[[str], StepProgram],
        revision: Callable[[str], str | None] | None,
        known: set[tuple[str | int, ...]],
    ) -> None:
        self._file = file
        self._revision = revision
        self._values = values
        self._known = known
        """Where mistakes have been found already."""
        self._inputs = {name: _table(value) for name, value in _table(values.get("inputs")).items()}
        self._steps = {name: _table(value) for name, value in _table(values.get("steps")).items()}
        self._programs: dict[str, StepProgram | RecipeError] = {}
        for step in self._steps.values():
            uses = step.get("uses")
            if isinstance(uses, str) and uses not in self._programs:
                try:
                    self._programs[uses] = programs(uses)
                except RecipeError as error:
                    self._programs[uses] = error

    def mistakes(self) -> list[Mistake]:
        found = [*self._names(), *self._addresses()]
        for name, step in self._steps.items():
            found.extend(self._step(name, step))
        found.extend(self._cycles())
        found.extend(self._image())
        return [mistake for mistake in found if mistake.path not in self._known]

    def _names(self) -> Iterator[Mistake]:
        for name in self._steps:
            if name in self._inputs:
                yield Mistake(("steps", name), f"{name!r} is an input already; inputs and steps share their names")

    def _addresses(self) -> Iterator[Mistake]:
        from intaglio.recipe.sources.file import FileSource
        from intaglio.recipe.sources.interface import BadUri, FloatingRevision, resolve

        for name, value in self._inputs.items():
            uri, path = value.get("uri"), ("inputs", name, "uri")
            if not isinstance(uri, str) or path in self._known:
                continue
            try:
                source = resolve(uri, self._file.parent, name=name, digest=_digest(value))
            except BadUri as error:
                now = self._revision(uri) if self._revision and isinstance(error, FloatingRevision) else None
                yield Mistake(path, error.message + (f"; it means {now} now" if now else ""))
                continue
            if isinstance(source, FileSource) and not source.path.exists():
                yield Mistake(path, f"missing file: expected {source.path}, found none")

    def _step(self, name: str, step: Object) -> Iterator[Mistake]:
        uses = step.get("uses")
        program = self._programs.get(uses) if isinstance(uses, str) else None
        yield from self._references(name, _table(step.get("inputs")))
        if isinstance(program, UnknownProgram):
            yield Mistake(("steps", name, "uses"), program.message)
        elif isinstance(program, RecipeError):
            yield Mistake(("steps", name, "uses"), f"the step program {uses} is wrong:\n{program.message}")
        if not isinstance(program, StepProgram):
            return
        given = _table(step.get("inputs"))
        for slot in given:
            if slot not in program.inputs:
                end = nearest(slot, program.inputs)
                yield Mistake(("steps", name, "inputs", slot), f"{program.name} has no such input; {end}")
        parameters = _table(step.get("with"))
        for wanted in program.missing(given, parameters):
            yield Mistake(("steps", name, "inputs", wanted.name), f"missing input of {program.name}; {wanted.summary}")
        yield from program.check(parameters, ("steps", name, "with"))
        claimed, promised = step.get("reproducible"), program.class_for(parameters)
        if claimed in CLASSES and CLASSES.index(claimed) < CLASSES.index(promised):
            says = f"{program.name} promises {promised}; a recipe may only promise less, found {claimed}"
            yield Mistake(("steps", name, "reproducible"), says)
        source = _table(self._values.get("image")).get("from")
        yield from gates.mistakes(name, program, _table(step.get("gates")), given.get(gates.MODEL), source)

    def _references(self, name: str, given: Object) -> Iterator[Mistake]:
        valid = [*self._inputs, *self._steps]
        for slot, target in given.items():
            if isinstance(target, str) and target not in valid:
                end = nearest(target, [other for other in valid if other != name])
                yield Mistake(("steps", name, "inputs", slot), f"{target!r} is neither an input nor a step; {end}")

    def _upstream(self, name: str) -> list[str]:
        """Return the steps that the step ``name`` reads, in the order of the file."""
        targets = _table(self._steps[name].get("inputs")).values()
        return [t for t in targets if isinstance(t, str) and t in self._steps and t not in self._inputs]

    def _cycles(self) -> Iterator[Mistake]:
        done: set[str] = set()
        for name in self._steps:
            cycle = _cycle(name, self._upstream, done)
            if cycle:
                yield Mistake(("steps", cycle[0], "inputs"), f"a cycle: {' → '.join(cycle)}; a step cannot need itself")

    def _image(self) -> Iterator[Mistake]:
        source = _table(self._values.get("image")).get("from")
        if isinstance(source, str) and source not in self._steps:
            what = "an input, not a step" if source in self._inputs else "not a step"
            yield Mistake(("image", "from"), f"{source!r} is {what}; {nearest(source, self._steps)}")
        if "embed" in _table(self._values.get("image")) and "runtime" not in _table(self._values.get("image")):
            yield Mistake(("image", "embed"), "there is nothing to embed into; name a runtime")

    def recipe(self) -> Recipe:
        model = dict(self._values["model"])
        image = self._values["image"]
        return Recipe(
            path=self._file,
            model=Model(**{**model, "authors": tuple(model.get("authors", ()))}),
            inputs={
                name: Input(name, value["uri"], _digest(value), value.get("licence"))
                for name, value in self._inputs.items()
            },
            steps={name: self._build(name) for name in _ordered(self._steps, self._upstream)},
            image=Image(image["from"], dict(image.get("labels", {})), image.get("runtime"), image.get("embed", False)),
        )

    def _build(self, name: str) -> Step:
        step = self._steps[name]
        program = cast("StepProgram", self._programs[step["uses"]])
        return Step(
            name=name,
            uses=step["uses"],
            program=program,
            inputs=dict(step.get("inputs", {})),
            parameters=program.resolve(step.get("with", {})),
            reproducible=step.get("reproducible", program.class_for(step.get("with", {}))),
            limits=program.limits.override(step.get("limits", {})),
            gates=gates.read(step.get("gates", {})),
        )


def _digest(value: Object) -> Digest | None:
    text = value.get("digest")
    if text is None:
        return None
    try:
        return Digest.parse(text)
    except CorruptContent:
        return Digest.of(b"")  # its own mistake has been said; this one only keeps "missing" from being said too


def _cycle(start: str, upstream: Callable[[str], list[str]], done: set[str]) -> list[str]:
    """Return a cycle reachable from ``start``, as names with the first repeated at the end; ``done`` gains names."""
    trail: list[str] = []
    pending: list[tuple[str, bool]] = [(start, False)]
    while pending:
        name, leaving = pending.pop()
        if leaving:
            trail.pop()
            done.add(name)
        elif name in trail:
            cycle = [*trail[trail.index(name) :], name]
            done.update(cycle)
            return cycle
        elif name not in done:
            trail.append(name)
            pending.append((name, True))
            pending.extend((other, False) for other in reversed(upstream(name)))
    return []


def _ordered(names: Mapping[str, object], upstream: Callable[[str], list[str]]) -> list[str]:
    """Return ``names`` so that each stands after what it needs, else in the order of the file; there is no cycle."""
    ordered: dict[str, None] = {}
    pending = list(names)[::-1]
    while pending:
        missing = [other for other in upstream(pending[-1]) if other not in ordered]
        if missing:
            pending.extend(reversed(missing))
        else:
            ordered.setdefault(pending.pop())
    return list(ordered)
