"""How long work shows itself: a small interface that every room may call and only the edge implements."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol


class Task(Protocol):
    """One piece of work under way; a context manager that ends it."""

    def advance(self, amount: int) -> None:
        """Report ``amount`` more units done. Safe to call from any thread."""

    def say(self, text: str) -> None:
        """Show ``text`` beside the work, in place of what was said before."""

    def total(self, amount: int, unit: str) -> None:
        """Correct how many units there are, once that is known."""

    def __enter__(self) -> Task: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Progress(Protocol):
    """Where work under way is reported."""

    def task(self, what: str, total: int | None = None, unit: str = "B") -> Task:
        """Begin a piece of work of ``total`` units (``None``: unknown); ``unit`` ``B`` is bytes."""

    def note(self, text: str) -> None:
        """Say one line that stands by itself."""


class _SilentTask:
    def advance(self, amount: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def total(self, amount: int, unit: str) -> None:
        pass

    def __enter__(self) -> _SilentTask:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Silent:
    """A progress that says nothing."""

    def task(self, what: str, total: int | None = None, unit: str = "B") -> Task:  # noqa: ARG002 - the interface
        """Return a task that reports nowhere."""
        return _SilentTask()

    def note(self, text: str) -> None:
        """Say nothing."""
