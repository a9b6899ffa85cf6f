"""What a TOML document may hold: one table of shapes that checks documents and writes their JSON Schema.

- Checking finds every mistake and stops at none.
- An unknown key or value is answered with the nearest valid one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from intaglio.dataclass import dataclass, field
from intaglio.recipe.positions import Path
from intaglio.strictjson import Object

MAX_INTEGER = (1 << 53) - 1
"""Largest integer that every JSON reader keeps exact (RFC 8259, section 6)."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong, where it stands, and what would be right."""

    path: Path
    message: str


class Shape(Protocol):
    """What one value may be."""

    def check(self, value: object, path: Path) -> Iterator[Mistake]:
        """Yield what is wrong with ``value``."""

    def schema(self) -> Object:
        """Return the JSON Schema (draft 2020-12) of the value."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about the unknown ``name``: the nearest of ``known``, or all of them."""
    names = sorted(set(known))
    if not names:
        return "none is known here"
    from difflib import get_close_matches

    close = get_close_matches(name, names, n=1, cutoff=0.6) or [n for n in names if n.lower() == name.lower()]
    if close:
        return f"did you mean {close[0]}?"
    return "known: " + ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


def found(value: object) -> str:
    """Say what kind of TOML value was found."""
    kinds = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "a table",
    }
    return kinds.get(type(value), "a date or time")


def _wrong_type(expected: str, value: object, path: Path) -> Mistake:
    return Mistake(path, f"expected {expected}, found {found(value)}")


@dataclass(frozen=True, slots=True)
class Text:
    """A string, of a pattern or out of a set of choices."""

    pattern: str | None = None
    """Regular expression that the whole string matches; both Python's and JSON Schema's (ECMA 262)."""
    says: str = "a string"
    """The pattern in words."""
    choices: tuple[str, ...] = ()

    def check(self, value: object, path: Path) -> Iterator[Mistake]:
        """Yield what is wrong with ``value``."""
        if not isinstance(value, str):
            yield _wrong_type(self.says, value, path)
        elif self.choices and value not in self.choices:
            end = nearest(value, self.choices)
            yield Mistake(path, f"expected one of {', '.join(self.choices)}, found {value!r}; {end}")
        elif self.pattern and not re.fullmatch(self.pattern, value):
            yield Mistake(path, f"expected {self.says}, found {value[:80]!r}")

    def schema(self) -> Object:
        """Return the JSON Schema."""
        value: Object = {"type": "string"}
        if self.choices:
            value["enum"] = list(self.choices)
        if self.pattern:
            value["pattern"] = f"^(?:{self.pattern})$"
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number, whole or not, within bounds."""

    whole: bool = False
    minimum: float | None = None
    maximum: float | None = None

    def check(self, value: object, path: Path) -> Iterator[Mistake]:
        """Yield what is wrong with ``value``."""
        expected = "an integer" if self.whole else "a number"
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            yield _wrong_type(expected, value, path)
        elif not math.isfinite(value) or abs(value) > MAX_INTEGER:  # past that, canonical JSON has two readings
            yield Mistake(path, f"expected {expected} between -(2^53-1) and 2^53-1, found {str(value)[:40]}")
        elif self.minimum is not None and value < self.minimum:
            yield Mistake(path, f"expected at least {self.minimum}, found {value}")
        elif self.maximum is not None and value > self.maximum:
            yield Mistake(path, f"expected at most {self.maximum}, found {value}")

    def schema(self) -> Object:
        """Return the JSON Schema."""
        value: Object = {"type": "integer" if self.whole else "number"}
        if self.minimum is not None:
            value["minimum"] = self.minimum
        if self.maximum is not None:
            value["maximum"] = self.maximum
        return value


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def check(self, value: object, path: Path) -> Iterator[Mistake]:
        """Yield what is wrong with ``value``."""
        if not isinstance(value, bool):
            yield _wrong_type("true or false", value, path)

    def schema(self) -> Object:
        """Return the JSON Schema."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Items:
    """An array whose elements have one shape."""

    of: Shape
    at_least: int = 0

    def check(self, value: object, path: Path) -> Iterator[Mistake]:
        """Yield what is wrong with ``value``."""
        if not isinstance(value, list):
            yield _wrong_type("an array", value, path)
            return
        if len(value) < self.at_least:
            yield Mistake(path, f"expected at least {self.at_least} element, found {len(value)}")
        for number, item in enumerate(value):
            yield from self.of.check(item, (*path, number))

    def schema(self) -> Object:
        """Return the JSON Schema."""
        value: Object = {"type": "array", "items": self.of.schema()}
        if self.at_least:
            value["minItems"] = self.at_least
        return value


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table."""

    shape: Shape
    summary: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of known keys; any other is a mistake."""

    keys: Mapping[str, Key]

    def check(self, value: object, path: Path) -> Iterator[Mistake]:
        """Yield what is wrong with ``value``."""
        if not isinstance(value, dict):
            yield _wrong_type("a table", value, path)
            return
        for name, item in value.items():
            key = self.keys.get(name)
            if key is None:
                yield Mistake((*path, name), f"unknown key; {nearest(name, self.keys)}")
            else:
                yield from key.shape.check(item, (*path, name))
        for name, key in self.keys.items():
            if key.required and name not in value:
                yield Mistake((*path, name), f"missing; {key.summary[:1].lower()}{key.summary[1:]}")

    def schema(self) -> Object:
        """Return the JSON Schema."""
        properties = {name: {"description": key.summary, **key.shape.schema()} for name, key in self.keys.items()}
        required = [name for name, key in self.keys.items() if key.required]
        value: Object = {"type": "object", "properties": properties, "additionalProperties": False}
        if required:
            value["required"] = required
        return value


@dataclass(frozen=True, slots=True)
class Named:
    """A table whose keys are the writer's own names, all of one shape."""

    of: Shape
    name: Text = field(default_factory=Text)
    at_least: int = 0

    def check(self, value: object, path: Path) -> Iterator[Mistake]:
        """Yield what is wrong with ``value``."""
        if not isinstance(value, dict):
            yield _wrong_type("a table", value, path)
            return
        if len(value) < self.at_least:
            yield Mistake(path, f"expected at least {self.at_least} entry, found none")
        for name, item in value.items():
            for mistake in self.name.check(name, (*path, name)):
                yield Mistake(mistake.path, f"bad name: {mistake.message}")
            yield from self.of.check(item, (*path, name))

    def schema(self) -> Object:
        """Return the JSON Schema."""
        value: Object = {"type": "object", "additionalProperties": self.of.schema()}
        if self.name.pattern:
            value["propertyNames"] = {"pattern": f"^(?:{self.name.pattern})$"}
        if self.at_least:
            value["minProperties"] = self.at_least
        return value


@dataclass(frozen=True, slots=True)
class Anything:
    """Any value of the given JSON types; who knows more checks it later."""

    types: tuple[str, ...] = ()

    def check(self, value: object, path: Path) -> Iterator[Mistake]:
        """Yield what is wrong with ``value``."""
        expected = {
            "object": dict,
            "array": list,
            "string": str,
            "boolean": bool,
            "integer": int,
            "number": (int, float),
        }
        if self.types and not any(isinstance(value, expected[name]) for name in self.types):  # type: ignore[arg-type]
            says = " or ".join("a table" if name == "object" else f"a {name}" for name in self.types)
            yield _wrong_type(says, value, path)

    def schema(self) -> Object:
        """Return the JSON Schema."""
        return {"type": list(self.types) if len(self.types) > 1 else self.types[0]} if self.types else {}
