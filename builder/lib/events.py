"""What a step says while it runs: JSON lines on a pipe that the engine opened, or on standard error without one.

* One event is one line; a line is written whole by one call, so that threads cannot mix theirs.
* Events are for people. Nothing in them reaches ``/out``: they may hold rates and times.
"""

from __future__ import annotations

import json
import math
import os


def _descriptor() -> int:
    return int(os.environ.get("INTAGLIO_EVENTS_FD", "2"))


def _emit(kind: str, fields: dict[str, object]) -> None:
    line = json.dumps({"event": kind, **fields}, ensure_ascii=False, allow_nan=False) + "\n"
    os.write(_descriptor(), line.encode("utf-8"))


def progress(done: int, total: int, unit: str) -> None:
    """``done`` of ``total`` ``unit`` are behind us."""
    _emit("progress", {"done": done, "total": total, "unit": unit})


def metric(name: str, value: float, step: int | None = None) -> None:
    """A number worth plotting. JSON has no NaN: a value that is not finite is left out, the check of it speaks."""
    if math.isfinite(value):
        _emit(
            "metric", {"name": name, "value": value} if step is None else {"name": name, "value": value, "step": step}
        )


def message(text: str) -> None:
    """One line for the person who waits."""
    _emit("message", {"text": text})


def resumed(done: int, total: int) -> None:
    """The work goes on from a checkpoint, with ``done`` of ``total`` steps behind us."""
    _emit("resumed", {"done": done, "total": total})


def error(text: str, hint: str = "") -> None:
    """Why the step is about to fail: what was expected, what was found, where; and what to do next."""
    _emit("error", {"message": text, "hint": hint} if hint else {"message": text})
