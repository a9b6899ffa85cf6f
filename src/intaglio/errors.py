"""The error root and the exit codes: one table, documented in ``docs/exit-codes.md`` and tested.

::

    Error
    ├── UsageError               2
    ├── RecipeError             10
    ├── LockError               11
    ├── SourceUnreachable       20
    ├── VerificationError       (only its children leave a verify function)
    │   ├── CorruptContent      21
    │   ├── Untrusted           22
    │   ├── PolicyRefusal       23
    │   ├── Stale               24
    │   └── NotVerifiable       25
    ├── StepFailed              30
    │   ├── LimitReached        31
    │   └── NotReproducible     32
    ├── RegistryError           40
    ├── MachineError            50
    └── InternalError           70
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process says to the shell; an interface, never renumbered."""

    OK = 0
    USAGE = 2
    RECIPE = 10
    LOCK = 11
    SOURCE = 20
    CORRUPT = 21
    UNTRUSTED = 22
    POLICY = 23
    STALE = 24
    NOT_VERIFIABLE = 25
    STEP = 30
    LIMIT = 31
    NOT_REPRODUCIBLE = 32
    REGISTRY = 40
    MACHINE = 50
    BUG = 70


EXIT_MEANING: dict[ExitCode, str] = {
    ExitCode.OK: "done; for `verify`: verified",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.RECIPE: "the recipe (Modelfile.toml) is wrong",
    ExitCode.LOCK: "the lock (Modelfile.lock) is missing, incomplete or out of date",
    ExitCode.SOURCE: "a source could not be reached, or does not hold what was asked for",
    ExitCode.CORRUPT: "bytes do not have the promised digest, or content is malformed",
    ExitCode.UNTRUSTED: "a signature or key is not trusted",
    ExitCode.POLICY: "refused by policy, or by a gate of the recipe",
    ExitCode.STALE: "trusted, but older than the policy allows",
    ExitCode.NOT_VERIFIABLE: "could not be checked (no anchor, nothing under that name)",
    ExitCode.STEP: "a step failed",
    ExitCode.LIMIT: "a step reached a limit (memory, processes, time, disk)",
    ExitCode.NOT_REPRODUCIBLE: "the bytes differ where they must not",
    ExitCode.REGISTRY: "a registry refused or failed",
    ExitCode.MACHINE: "this machine lacks something (disk, sandbox, permission)",
    ExitCode.BUG: "a bug of Intaglio's; please report it",
}
"""The meaning of each exit code, one line each: printed in the documentation."""


MAX_MESSAGE = 4000
"""Longest message, in characters, about what was not to be trusted."""


class Error(Exception):
    """Root of every error that Intaglio raises on purpose.

    ``message`` says what was expected, what was found and where; ``hint`` says what to do next.
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.answer: Mapping[str, object] = {}
        """What a command answers under ``--json`` beside the error, where its answer has a form of its own."""


def _printable(text: str) -> str:
    """Return ``text`` with what is neither printable nor an end of line as Python escapes it, cut if it is too long."""
    short = text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}…"
    if short.isprintable():
        return short
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in short)


class UsageError(Error):
    """The command line asks for something that does not exist or does not go together."""

    exit_code = ExitCode.USAGE


class RecipeError(Error):
    """The recipe is wrong; the message lists every mistake found."""

    exit_code = ExitCode.RECIPE


class LockError(Error):
    """The lock is missing, unreadable, or does not pin what the recipe names."""

    exit_code = ExitCode.LOCK


class SourceUnreachable(Error):
    """A source could not be reached or does not hold what was asked for."""

    exit_code = ExitCode.SOURCE


class VerificationError(Error):
    """Root of everything that may leave a verify function.

    Its message may quote what was not to be trusted, so it has no control characters but ends of lines, and an end.
    """

    exit_code = ExitCode.NOT_VERIFIABLE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(_printable(message), hint=hint)


class CorruptContent(VerificationError):
    """Bytes do not have the digest or the form that was promised."""

    exit_code = ExitCode.CORRUPT


class Untrusted(VerificationError):
    """A signature, key or certificate is not one that the anchor names."""

    exit_code = ExitCode.UNTRUSTED


class PolicyRefusal(VerificationError):
    """Everything could be checked, and the policy says no."""

    exit_code = ExitCode.POLICY


class Stale(VerificationError):
    """Trusted once, but older than the policy's bound."""

    exit_code = ExitCode.STALE


class NotVerifiable(VerificationError):
    """There is nothing to check, or nothing to check it against."""

    exit_code = ExitCode.NOT_VERIFIABLE


class StepFailed(Error):
    """A step ended with an error of its own."""

    exit_code = ExitCode.STEP


class LimitReached(StepFailed):
    """A step reached its memory, process, time or disk limit."""

    exit_code = ExitCode.LIMIT


class NotReproducible(StepFailed):
    """Two runs of one action gave different bytes where its class forbids it."""

    exit_code = ExitCode.NOT_REPRODUCIBLE


class RegistryError(Error):
    """A registry refused or failed."""

    exit_code = ExitCode.REGISTRY


class MachineError(Error):
    """This machine lacks something: disk, sandbox, permission, keys."""

    exit_code = ExitCode.MACHINE


class InternalError(Error):
    """A bug of ours."""

    exit_code = ExitCode.BUG
