"""Programs that run in the sandbox: steps and servers, each a file of code and a description.

- A program is data: it is read, hashed and mounted, never imported.
- The tree of a program is flat and holds what decides its behaviour, nothing more: the code, the description, and the
  shared modules that the description lists. Its digest stands in the key of every action that uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, get_args

from intaglio.content.tree import File, Tree
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import RecipeError
from intaglio.recipe import document, limits
from intaglio.recipe.data import data_folder
from intaglio.recipe.limits import Limits
from intaglio.recipe.positions import Path as KeyPath
from intaglio.recipe.shape import Anything, Flag, Items, Key, Mistake, Named, Number, Shape, Table, Text, nearest
from intaglio.strictjson import Json, Object

Reproducible: TypeAlias = Literal["bit", "platform", "statistical"]
"""Reproducibility classes, strongest promise first."""
CLASSES: tuple[str, ...] = get_args(Reproducible)
T = TypeVar("T")
_NAME = Text(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", "lower-case words with dashes between")
_WORD = Text(r"[a-z][a-z0-9_]{0,63}", "a lower-case word with underscores")
_TYPES = ("string", "integer", "number", "boolean", "array")
_MODULE = Text(r"[a-z][a-z0-9_]*", "the name of a module of lib/, without .py")
_GLOB = Text(r"[^/\\]+(/[^/\\]+)*", "a relative path or glob pattern")
_ITEM: dict[str, Shape] = {"string": Text(), "integer": Number(whole=True), "number": Number()}

_PARAMETER = Table(
    {
        "type": Key(Text(choices=_TYPES), "Type of the value.", required=True),
        "items": Key(Text(choices=tuple(_ITEM)), "Type of an array's elements."),
        "default": Key(Anything(), "Value when the recipe gives none; a parameter without one must be given."),
        "nullable": Key(Flag(), "Whether it may be absent; it is null then."),
        "minimum": Key(Number(), "Smallest number allowed."),
        "maximum": Key(Number(), "Largest number allowed."),
        "choices": Key(Items(Anything(("string", "integer", "number")), at_least=1), "The only values allowed."),
        "summary": Key(Text(), "What it does, in one line.", required=True),
    }
)
_VALUE = ("string", "integer", "number", "boolean")
_WHEN = Named(Items(Anything(_VALUE), at_least=1), _WORD, at_least=1)
_INPUT = Table(
    {
        "summary": Key(Text(), "What it is, in one line.", required=True),
        "optional": Key(Flag(), "Whether a recipe may leave it out."),
        "needed": Key(_WHEN, "Parameters' values with which an optional input must be given."),
    }
)
_TOOLCHAIN = Table(
    {
        "name": Key(_NAME, "The toolchain that it runs in then.", required=True),
        "when": Key(_WHEN, "Parameters, and the values that each of them may have.", required=True),
    }
)
_CLASS = Table(
    {
        "reproducible": Key(Text(choices=CLASSES), "What a second run gives again then.", required=True),
        "when": Key(_WHEN, "Parameters, and the values that each of them may have.", required=True),
    }
)
_COMMON = {
    "summary": Key(Text(), "What the program does, in one line.", required=True),
    "toolchain": Key(_NAME, "The toolchain that it runs in.", required=True),
    "lib": Key(Items(_MODULE), "Shared modules that it imports, sorted."),
    "interfaces": Key(Flag(), "Whether it may list its network interfaces: the loopback alone. Gloo asks for them."),
    **limits.KEYS,
}
STEP_DESCRIPTION = Table(
    {
        "step": Key(_NAME, "Name of the step program; the file's own.", required=True),
        **_COMMON,
        "reproducible": Key(Text(choices=CLASSES), "What a second run gives again.", required=True),
        "outputs": Key(Items(_GLOB, at_least=1), "Patterns that each match at least one output file.", required=True),
        "checkpoint": Key(Flag(), "Whether a folder is kept for it from which it goes on after a kill."),
        "inputs": Key(Named(_INPUT, _WORD), "What it reads, by the name that it sees."),
        "parameters": Key(Named(_PARAMETER, _WORD), "What a recipe may set."),
        "toolchains": Key(Items(_TOOLCHAIN, at_least=1), "Toolchains for some parameters; the first that fits counts."),
        "classes": Key(Items(_CLASS, at_least=1), "Promises for some parameters; the first that fits counts."),
    }
)
"""What ``steps/NAME.toml`` may hold."""
_NEED = Table(
    {
        "quantizations": Key(Items(_NAME, at_least=1), "Quantisations that need it.", required=True),
        "processor": Key(Items(_WORD, at_least=1), "Flags of the processor, as /proc/cpuinfo has them.", required=True),
    }
)
SERVER_DESCRIPTION = Table(
    {
        "server": Key(_NAME, "Name of the server program; the file's own.", required=True),
        **_COMMON,
        "rootfs": Key(_NAME, "The root file system of its runtime images.", required=True),
        "formats": Key(Items(_WORD, at_least=1), "Model formats that it serves.", required=True),
        "quantizations": Key(Items(_NAME, at_least=1), "Quantisations that it serves; default: none."),
        "needs": Key(Items(_NEED, at_least=1), "What a processor must have for some of them."),
    }
)
"""What ``servers/NAME.toml`` may hold."""


class UnknownProgram(RecipeError):
    """There is no program of that name; ``known`` are those that are there."""

    def __init__(self, message: str, known: tuple[str, ...]) -> None:
        super().__init__(message)
        self.known = known


@dataclass(frozen=True, slots=True)
class Parameter:
    """One thing a recipe may set."""

    name: str
    type: str
    items: str | None
    default: Json
    """``None``: there is no default."""
    nullable: bool
    minimum: float | None
    maximum: float | None
    choices: tuple[str | int | float, ...]
    summary: str

    @property
    def required(self) -> bool:
        """Whether a recipe must give it."""
        return self.default is None and not self.nullable

    def check(self, value: object, path: KeyPath) -> Iterator[Mistake]:
        """Yield what is wrong with ``value``."""
        mistakes = list(self._shape().check(value, path))
        yield from mistakes
        for item in (value if isinstance(value, list) else [value]) if self.choices and not mistakes else ():
            if item not in self.choices:
                names = ", ".join(map(str, self.choices))
                end = f"; {nearest(item, map(str, self.choices))}" if isinstance(item, str) else ""
                yield Mistake(path, f"expected one of {names}, found {item!r}{end}")

    def resolve(self, value: Json) -> Json:
        """Return ``value``, already checked, as the step gets it: whole numbers become floats where numbers are due."""
        if self.type == "number" and isinstance(value, int):
            return float(value)
        if self.type == "array" and self.items == "number" and isinstance(value, list):
            return [float(item) for item in value]
        return value

    def _shape(self) -> Shape:
        if self.type == "array":
            return Items(_ITEM[self.items or "string"])
        if self.type in ("integer", "number"):
            return Number(whole=self.type == "integer", minimum=self.minimum, maximum=self.maximum)
        return Flag() if self.type == "boolean" else Text()


@dataclass(frozen=True, slots=True)
class When:
    """Holds where each of its parameters has one of the values that stand there for it."""

    values: Mapping[str, tuple[Json, ...]]

    def holds(self, parameters: Mapping[str, object]) -> bool:
        """Whether it holds for ``parameters``."""
        return all(parameters.get(name) in allowed for name, allowed in self.values.items())


@dataclass(frozen=True, slots=True)
class InputSlot:
    """One thing a step reads."""

    name: str
    summary: str
    optional: bool
    needed: When | None = None
    """When an optional one must be given all the same."""


@dataclass(frozen=True)
class Program:
    """What steps and servers have in common."""

    name: str
    summary: str
    toolchain: str
    lib: tuple[str, ...]
    limits: Limits
    interfaces: bool
    """Whether it may list its network interfaces."""
    files: Mapping[str, bytes]
    """The flat tree that stands at ``/step/program``: path to bytes."""

    def tree(self) -> Tree:
        """Return the program's tree; its blobs are :attr:`files`."""
        return Tree.of(File(path, Digest.of(data), len(data)) for path, data in self.files.items())


@dataclass(frozen=True)
class StepProgram(Program):
    """A step: what it reads, what it may be told, and what it promises."""

    reproducible: Reproducible
    """The promise where no entry of :attr:`classes` fits."""
    outputs: tuple[str, ...]
    """Glob patterns, each of which matches at least one file of a good output."""
    inputs: Mapping[str, InputSlot]
    parameters: Mapping[str, Parameter]
    toolchains: tuple[tuple[str, When], ...] = ()
    """Toolchains for some parameters; :attr:`toolchain` where none fits."""
    classes: tuple[tuple[Reproducible, When], ...] = ()
    checkpoint: bool = False
    """Whether a folder is kept for it, by action, from which it goes on after a kill."""

    def toolchain_for(self, parameters: Mapping[str, object]) -> str:
        """Return the name of the toolchain that the step runs in with ``parameters``; what is not given is default."""
        return self._first(self.toolchains, parameters) or self.toolchain

    def class_for(self, parameters: Mapping[str, object]) -> Reproducible:
        """Return what a second run with ``parameters`` gives again; what is not given is default."""
        return self._first(self.classes, parameters) or self.reproducible

    def missing(self, inputs: Iterable[str], parameters: Mapping[str, object]) -> Iterator[InputSlot]:
        """Yield the slots that must be filled with ``parameters`` and are not among ``inputs``."""
        given = set(inputs)
        for name, slot in self.inputs.items():
            needed = not slot.optional or (slot.needed is not None and slot.needed.holds(self._filled(parameters)))
            if needed and name not in given:
                yield slot

    def _first(self, choices: Iterable[tuple[T, When]], given: Mapping[str, object]) -> T | None:
        parameters = self._filled(given)
        return next((choice for choice, when in choices if when.holds(parameters)), None)

    def _filled(self, given: Mapping[str, object]) -> dict[str, object]:
        return {name: given.get(name, slot.default) for name, slot in self.parameters.items()}

    def check(self, given: Mapping[str, object], path: KeyPath = ()) -> list[Mistake]:
        """Return every mistake in the parameters ``given``; ``path`` is where they stand."""
        mistakes: list[Mistake] = []
        for name, value in given.items():
            parameter = self.parameters.get(name)
            if parameter is None:
                mistakes.append(Mistake((*path, name), f"unknown parameter; {nearest(name, self.parameters)}"))
            else:
                mistakes.extend(parameter.check(value, (*path, name)))
        for name, parameter in self.parameters.items():
            if parameter.required and name not in given:
                mistakes.append(Mistake((*path, name), f"missing parameter of {self.name}; {parameter.summary}"))
        return mistakes

    def resolve(self, given: Mapping[str, Json]) -> Object:
        """Return the value of every declared parameter: given, default or null.

        Raises:
            RecipeError: the parameters ``given`` do not fit; all mistakes are in the message.
        """
        mistakes = self.check(given, ("with",))
        if mistakes:
            raise RecipeError("\n".join(f"{m.path[-1]}: {m.message}" for m in mistakes))
        return {name: slot.resolve(given.get(name, slot.default)) for name, slot in self.parameters.items()}


@dataclass(frozen=True)
class ServerProgram(Program):
    """A server: it loads verified files and answers on a Unix socket."""

    rootfs: str
    """Name of the root file system that its runtime images stand on."""
    formats: tuple[str, ...]
    quantizations: tuple[str, ...] = ("none",)
    """Words of ``docs/serving.md`` for what a model's configuration says; ``none`` where it says nothing."""
    needs: tuple[tuple[frozenset[str], frozenset[str]], ...] = ()
    """Quantisations and the processor flags, as ``/proc/cpuinfo`` has them, without which they are not served."""


class Steps:
    """Finds the step programs of a recipe: the builder's by name, the recipe's own by ``./path``."""

    def __init__(self, recipe: Path, builder: Path | None = None) -> None:
        """Look in the folder ``recipe`` for its own programs, in ``builder`` (default: the one shipped) for others."""
        self._recipe = recipe
        self._builder = builder or data_folder("builder")

    def __call__(self, name: str) -> StepProgram:
        """Return the program that a recipe names in ``uses``.

        Raises:
            UnknownProgram: there is none of that name.
            RecipeError: its description is wrong.
        """
        if not name.startswith("./"):
            return load(name, self._builder)
        if not re.fullmatch(r"\./([A-Za-z0-9_-]+/)*[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
            raise UnknownProgram(f"expected ./ and a path within the recipe's folder, found {name!r}", ())
        stem = self._recipe / name[2:]
        if not stem.with_name(stem.name + ".toml").is_file():
            raise UnknownProgram(f"no step program {name}.toml beside the recipe", ())
        return _step(stem, (stem.parent / "lib", self._builder / "lib"))


def load(name: str, builder: Path) -> StepProgram:
    """Return the step program ``name`` of the folder ``builder``.

    Raises:
        UnknownProgram: there is none of that name.
        RecipeError: its description is wrong; every mistake with its line.
    """
    _require(name, builder / "steps", "step")
    return _step(builder / "steps" / name, (builder / "lib",))


def load_server(name: str, builder: Path) -> ServerProgram:
    """Return the server program ``name`` of the folder ``builder``.

    Raises:
        UnknownProgram: there is none of that name.
        RecipeError: its description is wrong; every mistake with its line.
    """
    _require(name, builder / "servers", "server")
    stem = builder / "servers" / name
    description = _describe(stem, SERVER_DESCRIPTION, "server")
    values = description.values
    return ServerProgram(
        **_common(name, values),
        files=_files(description, stem, (builder / "lib",), "server"),
        rootfs=values["rootfs"],
        formats=tuple(values["formats"]),
        quantizations=tuple(values.get("quantizations", ("none",))),
        needs=tuple(
            (frozenset(need["quantizations"]), frozenset(need["processor"])) for need in values.get("needs", ())
        ),
    )


def names(folder: Path) -> tuple[str, ...]:
    """Return the names of the programs described in ``folder`` (``builder/steps`` or ``builder/servers``), sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.toml")))


def _require(name: str, folder: Path, kind: str) -> None:
    if not re.fullmatch(_NAME.pattern or "", name) or not (folder / f"{name}.toml").is_file():
        known = names(folder)
        raise UnknownProgram(f"unknown {kind} program {name!r}; {nearest(name, known)}", known)


def _step(stem: Path, libraries: tuple[Path, ...]) -> StepProgram:
    description = _describe(stem, STEP_DESCRIPTION, "step")
    values = description.values
    parameters = {name: _parameter(name, value) for name, value in values.get("parameters", {}).items()}
    wrong = [
        mistake
        for name, value in values.get("parameters", {}).items()
        for mistake in _contradictions(parameters[name], value)
    ]
    wrong += _conditions(parameters, values)
    if wrong:
        raise description.refuse(wrong)
    slots = values.get("inputs", {})
    return StepProgram(
        **_common(stem.name, values),
        files=_files(description, stem, libraries, "step"),
        reproducible=values["reproducible"],
        outputs=tuple(values["outputs"]),
        inputs={name: _slot(name, slot) for name, slot in slots.items()},
        parameters=parameters,
        toolchains=tuple((entry["name"], _when(entry["when"])) for entry in values.get("toolchains", ())),
        classes=tuple((entry["reproducible"], _when(entry["when"])) for entry in values.get("classes", ())),
        checkpoint=values.get("checkpoint", False),
    )


def _describe(stem: Path, shape: Table, kind: str) -> document.Document:
    description = document.read(stem.with_name(stem.name + ".toml"))
    mistakes = list(shape.check(description.values, ()))
    values = description.values
    if not mistakes and values[kind] != stem.name:
        mistakes.append(Mistake((kind,), f"expected the file's own name {stem.name!r}, found {values[kind]!r}"))
    if not mistakes and values.get("lib", []) != sorted(set(values.get("lib", []))):
        mistakes.append(Mistake(("lib",), "expected sorted names, each once"))
    if mistakes:
        raise description.refuse(mistakes)
    return description


def _common(name: str, values: Object) -> Object:
    return {
        "name": name,
        "summary": values["summary"],
        "toolchain": values["toolchain"],
        "lib": tuple(values.get("lib", ())),
        "limits": Limits().override({key: values[key] for key in limits.KEYS if key in values}),
        "interfaces": values.get("interfaces", False),
    }


def _slot(name: str, value: Object) -> InputSlot:
    needed = _when(value["needed"]) if "needed" in value else None
    return InputSlot(name, value["summary"], value.get("optional", False), needed)


def _when(value: Object) -> When:
    return When({name: tuple(allowed) for name, allowed in value.items()})


def _parameter(name: str, value: Object) -> Parameter:
    return Parameter(
        name=name,
        type=value["type"],
        items=value.get("items"),
        default=value.get("default"),
        nullable=value.get("nullable", False),
        minimum=value.get("minimum"),
        maximum=value.get("maximum"),
        choices=tuple(value.get("choices", ())),
        summary=value["summary"],
    )


def _contradictions(parameter: Parameter, value: Object) -> Iterator[Mistake]:
    """Yield what the keys of one parameter say against each other."""
    path: KeyPath = ("parameters", parameter.name)
    if (parameter.type == "array") != ("items" in value):
        yield Mistake((*path, "items"), "an array needs items, nothing else has them")
    for bound in ("minimum", "maximum"):
        if bound in value and parameter.type not in ("integer", "number"):
            yield Mistake((*path, bound), f"only numbers have a {bound}, this is {parameter.type}")
    if "default" in value:
        yield from parameter.check(value["default"], (*path, "default"))


def _conditions(parameters: Mapping[str, Parameter], values: Object) -> Iterator[Mistake]:
    """Yield what is wrong with the conditions of a description: they name parameters, and values allowed for them."""
    places: list[tuple[KeyPath, Object]] = [
        ((section, number, "when"), entry["when"])
        for section in ("toolchains", "classes")
        for number, entry in enumerate(values.get(section, ()))
    ]
    for name, slot in values.get("inputs", {}).items():
        if "needed" in slot:
            places.append((("inputs", name, "needed"), slot["needed"]))
            if not slot.get("optional"):
                yield Mistake(("inputs", name, "needed"), "only an optional input is needed at times")
    for path, when in places:
        for name, allowed in when.items():
            parameter = parameters.get(name)
            if parameter is None:
                yield Mistake((*path, name), f"no such parameter; {nearest(name, parameters)}")
            elif parameter.type == "array":
                yield Mistake((*path, name), "expected a parameter of one value, found an array")
            else:
                for number, value in enumerate(allowed):
                    yield from parameter.check(value, (*path, name, number))


def _files(description: document.Document, stem: Path, libraries: tuple[Path, ...], kind: str) -> dict[str, bytes]:
    code = stem.with_name(stem.name + ".py")
    files = {f"{kind}.toml": description.text.encode("utf-8")}
    try:
        files[f"{kind}.py"] = code.read_bytes()
    except OSError as error:
        raise RecipeError(f"{code}: cannot be read: {error.strerror}") from None
    for number, module in enumerate(description.values.get("lib", ())):
        for library in libraries:
            path = library / f"{module}.py"
            if path.is_file():
                files[f"lib/{module}.py"] = path.read_bytes()
                break
        else:
            known = [path.stem for library in libraries for path in library.glob("*.py")]
            raise description.refuse([Mistake(("lib", number), f"no module {module}.py; {nearest(module, known)}")])
    return files
