"""The request a step is started with, and the one way a step ends.

Protocol 1: ``{"protocol": 1, "parameters": {…}, "inputs": {"base": "/in/base"}, "out": "/out", "work": "/work"}``;
``"checkpoint": "/checkpoint"`` as well for a step whose description asks for it.
The engine has checked the parameters against the step's description and filled in every default, so a step reads them
by name. Run bare, a step takes the path of its request as first argument.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import events

T = TypeVar("T")


class Fault(Exception):
    """The user's input is at fault: said through an ``error`` event, exit status 1, no traceback."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Request:
    """What to do, with what, and where to leave it."""

    parameters: dict[str, object]
    inputs: dict[str, Path]
    """Read-only folders, by the names of the description."""
    out: Path
    work: Path
    """Private scratch folder; what is left there is thrown away."""
    checkpoint: Path | None = None
    """Folder that outlives a killed run of the same step on the same inputs, where the engine keeps one."""

    @classmethod
    def load(cls, path: Path) -> Request:
        """Read a request file.

        Raises:
            Fault: the file speaks another protocol.
        """
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("protocol") != 1:
            raise Fault(f"{path}: expected protocol 1, found {document.get('protocol')!r}")
        inputs = {name: Path(folder) for name, folder in document["inputs"].items()}
        kept = document.get("checkpoint")
        out, work = Path(document["out"]), Path(document["work"])
        return cls(document["parameters"], inputs, out, work, Path(kept) if kept else None)

    def text(self, name: str) -> str:
        """A parameter that is a string."""
        return self._typed(name, str)

    def optional_text(self, name: str) -> str | None:
        """A parameter that is a string or null."""
        return None if self.parameters[name] is None else self.text(name)

    def integer(self, name: str) -> int:
        """A parameter that is an integer."""
        return self._typed(name, int)

    def optional_integer(self, name: str) -> int | None:
        """A parameter that is an integer or null."""
        return None if self.parameters[name] is None else self.integer(name)

    def number(self, name: str) -> float:
        """A parameter that is a number; whole numbers are numbers too."""
        value = self.parameters[name]
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else self._typed(name, float)

    def optional_number(self, name: str) -> float | None:
        """A parameter that is a number or null."""
        return None if self.parameters[name] is None else self.number(name)

    def boolean(self, name: str) -> bool:
        """A parameter that is true or false."""
        return self._typed(name, bool)

    def optional_boolean(self, name: str) -> bool | None:
        """A parameter that is true, false or null."""
        return None if self.parameters[name] is None else self.boolean(name)

    def texts(self, name: str) -> list[str]:
        """A parameter that is an array of strings."""
        return cast("list[str]", self._typed(name, list))

    def _typed(self, name: str, kind: type[T]) -> T:
        value = self.parameters[name]
        if type(value) is not kind:
            raise Fault(f"parameter {name!r}: expected {kind.__name__}, found {value!r}")
        return value


def run(step: Callable[[Request], None]) -> int:
    """Carry out ``step`` with the request named on the command line; return the exit status.

    A :class:`Fault` becomes an ``error`` event. Any other exception is a defect: its traceback goes to the log.
    """
    os.umask(0o022)
    # Idle threads sleep: spinning gains a few per cent on a quiet machine and costs twice the time on a busy one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "/step/request.json")
    try:
        step(Request.load(path))
    except Fault as fault:
        events.error(str(fault), fault.hint)
        return 1
    return 0
