"""Reading a TOML document strictly: every mistake is remembered with its place, and none ends the reading.

- An unknown key or word is a mistake, and is answered with the nearest valid one.
- What is missing or wrong reads as empty, so that whatever depends on it is not reported a second time.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeAlias

from intaglio.errors import NotVerifiable

Table: TypeAlias = Mapping[str, Any]
"""A TOML table as it was read; a :class:`Reader` takes its values out."""
MAX_BYTES = 1 << 20
"""Largest document read."""
_SPAN = re.compile(r"([1-9][0-9]{0,3})(h|d|w)")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def toml(data: bytes, what: str) -> Table:
    """Return the TOML document in ``data``; ``what`` names it in errors.

    Raises:
        NotVerifiable: it is too large, or no TOML.
    """
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES} bytes, found more")
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NotVerifiable(f"{what}: not TOML: {error}") from None


class Reader:
    """Takes values out of tables; every mistake becomes one line of ``faults``."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def fault(self, where: str, text: str) -> None:
        """Remember that something is wrong at ``where``."""
        self.faults.append(f"{where}: {text}")

    def close(self, what: str, hint: str) -> None:
        """End the reading of the document that ``what`` names.

        Raises:
            NotVerifiable: there were mistakes; the message lists them all.
        """
        if self.faults:
            listed = "\n".join(f"  {fault}" for fault in self.faults)
            raise NotVerifiable(f"{what}:\n{listed}", hint=hint)

    def table(self, value: object, where: str, known: Collection[str] | None = None) -> Table:
        """Return ``value`` if it is a table, of ``known`` keys alone where they are given; nothing stands for empty."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fault(where, f"expected a table, found {show(value)}")
            return {}
        if known is not None:
            for key in value:
                if key not in known:
                    self.fault(f"{where}.{key}" if where else key, f"unknown key{nearest(key, known)}")
        return value

    def text(self, table: Table, key: str, where: str = "", *, default: str | None = None) -> str:
        """Return a string that is not empty; a missing one is a mistake unless there is a default."""
        value = table.get(key, default)
        if not isinstance(value, str) or not value.strip():
            self.fault(_at(where, key), f"expected a string, found {show(value)}")
            return ""
        return value

    def flag(self, table: Table, key: str, where: str = "", *, default: bool = False) -> bool:
        """Return true or false."""
        value = table.get(key, default)
        if not isinstance(value, bool):
            self.fault(_at(where, key), f"expected true or false, found {show(value)}")
            return default
        return value

    def number(self, table: Table, key: str, where: str) -> float | None:
        """Return a finite number, or nothing where there is none."""
        value = table.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            self.fault(_at(where, key), f"expected a number, found {show(value)}")
            return None
        return float(value)

    def span(self, table: Table, key: str, where: str) -> timedelta | None:
        """Return a span of time such as ``12h``, ``30d``, ``2w``; a missing one is a mistake."""
        value = table.get(key)
        found = _SPAN.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            self.fault(_at(where, key), f"expected a span such as 12h, 30d or 2w, found {show(value)}")
            return None
        return int(found[1]) * _UNITS[found[2]]

    def words(self, value: object, where: str, what: str, *, empty: bool = False) -> tuple[str, ...]:
        """Return an array of strings, called ``what`` in errors; an empty one is a mistake unless it may be."""
        if not isinstance(value, list) or not (value or empty) or not all(isinstance(item, str) for item in value):
            self.fault(where, f"expected an array of {what}, found {show(value)}")
            return ()
        return tuple(value)

    def choices(self, value: object, where: str, known: Collection[str]) -> frozenset[str]:
        """Return an array of some of the ``known`` words, at least one."""
        found = self.words(value, where, f"some of {', '.join(sorted(known))}")
        for item in found:
            if item not in known:
                self.fault(where, f"unknown {item!r}{nearest(item, known)}")
        return frozenset(found)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about the unknown ``word``: the nearest known one, if any is near."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def show(value: object) -> str:
    """Return ``value`` for an error, cut short."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
