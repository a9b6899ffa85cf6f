"""Progress on standard error: bars on a terminal, plain lines elsewhere, JSON lines on request.

Data goes to standard output and never through here. ``NO_COLOR`` is honoured, and nothing is said by colour alone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from intaglio.progress import Progress, Silent, Task

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

EVERY = 5.0
"""Seconds between two plain lines about one piece of work."""
STYLES = ("auto", "bars", "plain", "json", "none")


def progress(style: str) -> Progress:
    """Return the progress of that ``style``; ``auto`` is bars on a terminal and plain lines elsewhere."""
    if style == "auto":
        style = "bars" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "plain"
    if style == "none":
        return Silent()
    kinds: dict[str, type[_Terminal] | type[_Plain] | type[_JsonLines]] = {
        "bars": _Terminal,
        "plain": _Plain,
        "json": _JsonLines,
    }
    return kinds[style]()


def amount(count: float, unit: str) -> str:
    """Return ``count`` of ``unit`` for people; bytes in powers of ten, as disks and networks are sold."""
    if unit != "B":
        return f"{count:.0f} {unit}"
    for prefix in ("", "k", "M"):
        if count < 1000:
            return f"{count:.0f} {prefix}B"
        count /= 1000
    return f"{count:.2f} GB"


class _PlainTask:
    """Says a line when work begins to take long, then every few seconds, then how it ended."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit, self._text = what, total, unit, ""
        self._done = 0
        self._started = self._said = time.monotonic()
        self._guard = threading.Lock()

    def advance(self, more: int) -> None:
        with self._guard:
            self._done += more
            due = time.monotonic() - self._said >= EVERY
            if due:
                self._said = time.monotonic()
        if due:
            self._report()

    def say(self, text: str) -> None:
        self._text = text
        self.advance(0)

    def total(self, amount: int, unit: str) -> None:
        self._total, self._unit = amount, unit

    def _report(self) -> None:
        seconds = max(time.monotonic() - self._started, 1e-6)
        rate = self._done / seconds
        line = f"{self._what}: {amount(self._done, self._unit)}"
        if self._total:
            left = (self._total - self._done) / rate if rate else 0
            line += f" of {amount(self._total, self._unit)} ({100 * self._done // self._total} %), {left:.0f} s left"
        line += f", {amount(rate, self._unit)}/s" if self._unit == "B" else f", {seconds:.0f} s"
        print(line + (f" · {self._text}" if self._text else ""), file=sys.stderr, flush=True)  # noqa: T201

    def __enter__(self) -> _PlainTask:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._said != self._started:
            self._report()


class _Plain:
    def task(self, what: str, total: int | None = None, unit: str = "B") -> Task:
        return _PlainTask(what, total, unit)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201


class _JsonTask:
    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._about = {"work": what, "total": total, "unit": unit}
        self._done = 0
        self._said = 0.0
        self._guard = threading.Lock()
        _emit({"event": "begin", **self._about})

    def advance(self, more: int) -> None:
        with self._guard:
            self._done += more
            due = time.monotonic() - self._said >= 1
            if due:
                self._said = time.monotonic()
        if due:
            _emit({"event": "progress", "done": self._done, **self._about})

    def say(self, text: str) -> None:
        _emit({"event": "say", "work": self._about["work"], "text": text})

    def total(self, amount: int, unit: str) -> None:
        self._about.update(total=amount, unit=unit)

    def __enter__(self) -> _JsonTask:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _emit({"event": "end", "done": self._done, "failed": kind is not None, **self._about})


class _JsonLines:
    def task(self, what: str, total: int | None = None, unit: str = "B") -> Task:
        return _JsonTask(what, total, unit)

    def note(self, text: str) -> None:
        _emit({"event": "note", "text": text})


def _emit(event: dict[str, object]) -> None:
    sys.stderr.write(json.dumps(event, ensure_ascii=False) + "\n")
    sys.stderr.flush()


class _Terminal:
    """Bars: one a piece of work, while there is any; rich is imported with the first of them."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._open = 0
        self._guard = threading.Lock()

    def task(self, what: str, total: int | None = None, unit: str = "B") -> Task:
        return _Bar(self, what, total, unit)

    def note(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def enter(self) -> Bars:
        """Return the bars, shown from the first piece of work on."""
        with self._guard:
            self._open += 1
            if self._bars is None:
                self._bars = _bars()
                self._bars.start()
            return self._bars

    def leave(self) -> None:
        """Take the bars away with the last piece of work."""
        with self._guard:
            self._open -= 1
            if self._open == 0 and self._bars is not None:
                self._bars.stop()
                self._bars = None


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


class _Bar:
    """One bar; it appears when its work has begun."""

    def __init__(self, terminal: _Terminal, what: str, total: int | None, unit: str) -> None:
        self._terminal, self._unit = terminal, unit
        self._bars = terminal.enter()
        self._id = self._bars.add_task(what, total=total, amount="", text="")

    def advance(self, more: int) -> None:
        self._bars.advance(self._id, more)
        task = self._bars.tasks[self._bars.task_ids.index(self._id)]
        whole = f" of {amount(task.total, self._unit)}" if task.total else ""
        rate = f", {amount(task.speed, self._unit)}/s" if task.speed and self._unit == "B" else ""
        self._bars.update(self._id, amount=f"{amount(task.completed, self._unit)}{whole}{rate}")

    def say(self, text: str) -> None:
        self._bars.update(self._id, text=text)

    def total(self, amount: int, unit: str) -> None:
        self._unit = unit
        self._bars.update(self._id, total=amount)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.remove_task(self._id)
        self._terminal.leave()
