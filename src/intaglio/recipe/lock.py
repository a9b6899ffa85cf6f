"""The lock: what a ``Modelfile.lock`` says, generated and meant to be reviewed.

- Every input's tree, every step program and every toolchain, by digest. A build takes nothing that is not pinned here.
- Adding pins never moves one; moving is asked for by name and tells old and new.
- The text is a function of the pins alone: sorted, no times, the same bytes twice.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from intaglio.content.tree import LAYOUT
from intaglio.dataclass import dataclass, field, replace
from intaglio.digest import Digest
from intaglio.errors import LockError, MachineError, RecipeError, UsageError
from intaglio.recipe import document
from intaglio.recipe.modelfile import Recipe
from intaglio.recipe.shape import Key, Named, Number, Table, Text, nearest
from intaglio.recipe.sources.interface import Pin

FILE = "Modelfile.lock"
_HEADER = """\
# What this recipe's inputs, step programs and toolchains are, by digest.
# Generated: review and commit it, do not edit it.
# `intaglio lock` adds what is missing and never moves a pin; `intaglio update NAME` moves one.
"""
_DIGEST = Text(r"sha256:[0-9a-f]{64}", "sha256: and 64 lower-case hex digits")
_COUNT = Number(whole=True, minimum=0)
_TREE = Table({"tree": Key(_DIGEST, "Digest of the tree.", required=True)})
LOCKFILE = Table(
    {
        "layout": Key(
            Number(whole=True, minimum=1), "Number of the tree layout that the digests belong to.", required=True
        ),
        "inputs": Key(
            Named(
                Table(
                    {
                        "uri": Key(Text(), "The address that is pinned.", required=True),
                        "tree": Key(_DIGEST, "Digest of the tree.", required=True),
                        "size": Key(_COUNT, "Bytes of all files together.", required=True),
                        "files": Key(_COUNT, "How many files.", required=True),
                    }
                )
            ),
            "Inputs by name.",
        ),
        "trust": Key(
            Named(Number(whole=True, minimum=1)), "Versions of the trusted source's roles, as they were read."
        ),
        "programs": Key(Named(_TREE), "Step programs by name."),
        "toolchains": Key(Named(_TREE), "Toolchains by name."),
    }
)
"""What a ``Modelfile.lock`` may hold."""


@dataclass(frozen=True, slots=True)
class InputPin:
    """One input: the address, and what it gave."""

    uri: str
    pin: Pin


@dataclass(frozen=True, slots=True)
class Lock:
    """All pins of one recipe."""

    inputs: Mapping[str, InputPin] = field(default_factory=dict)
    programs: Mapping[str, Digest] = field(default_factory=dict)
    toolchains: Mapping[str, Digest] = field(default_factory=dict)
    trust: Mapping[str, int] = field(default_factory=dict)
    """Versions of the trusted source's roles when a name of it was last pinned; empty where none is used."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a recipe needs pinned, as it is now."""

    inputs: Mapping[str, str]
    """Name to address."""
    programs: Mapping[str, Digest]
    toolchains: Mapping[str, Digest]

    @classmethod
    def of(cls, recipe: Recipe, toolchains: Mapping[str, Digest]) -> Wanted:
        """Return what ``recipe`` needs; ``toolchains`` are the trees of those its programs name."""
        return cls(
            {name: entry.uri for name, entry in recipe.inputs.items()},
            {step.uses: step.program.tree().digest for step in recipe.steps.values()},
            dict(toolchains),
        )


@dataclass(frozen=True, slots=True)
class Move:
    """A pin that changed."""

    kind: str
    """``input``, ``program`` or ``toolchain``."""
    name: str
    old: Digest | None
    """``None``: it was not pinned."""
    new: Digest | None
    """``None``: nothing needs it any more."""


def to_fetch(wanted: Wanted, lock: Lock) -> tuple[str, ...]:
    """Return the inputs that have no pin, or one for another address: what ``lock`` must fetch."""
    return tuple(name for name, uri in wanted.inputs.items() if name not in lock.inputs or lock.inputs[name].uri != uri)


def complete(wanted: Wanted, lock: Lock, pins: Mapping[str, Pin]) -> Lock:
    """Return ``lock`` with what is missing and without what is no longer wanted; no pin that counts is moved.

    Args:
        wanted: what the recipe needs.
        lock: the lock so far.
        pins: what fetching the inputs of :func:`to_fetch` gave.
    """
    fresh = {name: InputPin(wanted.inputs[name], pins[name]) for name in to_fetch(wanted, lock)}
    return Lock(
        {name: fresh.get(name) or lock.inputs[name] for name in wanted.inputs},
        {name: lock.programs.get(name, digest) for name, digest in wanted.programs.items()},
        {name: lock.toolchains.get(name, digest) for name, digest in wanted.toolchains.items()},
        lock.trust,
    )


def update(wanted: Wanted, lock: Lock, names: Iterable[str], pins: Mapping[str, Pin]) -> Lock:
    """Return ``lock`` with the pins of ``names`` moved to what they are now; the rest as :func:`complete` leaves it.

    Args:
        wanted: what the recipe needs.
        lock: the lock so far.
        names: inputs, programs, toolchains (see :func:`check_names`).
        pins: what fetching gave: for each input among ``names``, and each of :func:`to_fetch`.
    """
    chosen = set(names)
    inputs = {name: InputPin(wanted.inputs[name], pins[name]) for name in wanted.inputs if name in chosen}
    base = complete(wanted, replace(lock, inputs={**lock.inputs, **inputs}), pins)
    return Lock(
        base.inputs,
        {name: wanted.programs[name] if name in chosen else digest for name, digest in base.programs.items()},
        {name: wanted.toolchains[name] if name in chosen else digest for name, digest in base.toolchains.items()},
        lock.trust,
    )


def check_names(wanted: Wanted, names: Iterable[str]) -> None:
    """Check that every one of ``names`` is something that can be pinned.

    Raises:
        UsageError: one is not; with the nearest that is.
    """
    known = {*wanted.inputs, *wanted.programs, *wanted.toolchains}
    for name in names:
        if name not in known:
            raise UsageError(f"nothing called {name!r} is pinned by this recipe; {nearest(name, known)}")


def moves(old: Lock, new: Lock) -> tuple[Move, ...]:
    """Return what differs between two locks, for people to read."""
    pairs = (
        ("input", {n: p.pin.tree for n, p in old.inputs.items()}, {n: p.pin.tree for n, p in new.inputs.items()}),
        ("program", old.programs, new.programs),
        ("toolchain", old.toolchains, new.toolchains),
    )
    return tuple(
        Move(kind, name, before.get(name), after.get(name))
        for kind, before, after in pairs
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    )


def unpinned(wanted: Wanted, lock: Lock) -> tuple[str, ...]:
    """Return a line for everything that the recipe needs and the lock does not pin: a build refuses to go on."""
    lines = []
    for name, uri in wanted.inputs.items():
        if name not in lock.inputs:
            lines.append(f"input {name} ({uri}) is not pinned")
        elif lock.inputs[name].uri != uri:
            lines.append(f"input {name} is pinned for {lock.inputs[name].uri}, the recipe names {uri}")
    lines += [f"program {name} is not pinned" for name in wanted.programs if name not in lock.programs]
    lines += [f"toolchain {name} is not pinned" for name in wanted.toolchains if name not in lock.toolchains]
    return tuple(lines)


def outdated(wanted: Wanted, lock: Lock) -> tuple[Move, ...]:
    """Return the programs and toolchains that are pinned, but are something else now (pinned → now)."""
    pairs = (("program", lock.programs, wanted.programs), ("toolchain", lock.toolchains, wanted.toolchains))
    return tuple(
        Move(kind, name, pinned[name], now[name])
        for kind, pinned, now in pairs
        for name in sorted(now)
        if name in pinned and pinned[name] != now[name]
    )


def require(wanted: Wanted, lock: Lock, path: Path) -> None:
    """Check that ``lock``, read from ``path``, pins everything that the recipe needs.

    Raises:
        LockError: it does not; every gap is in the message.
    """
    lines = unpinned(wanted, lock)
    if lines:
        raise LockError("\n".join(f"{path}: {line}" for line in lines), hint=f"intaglio lock {path.parent}")


def render(lock: Lock) -> str:
    """Return the text of the lock: the same for the same pins, whoever writes it."""
    lines = [_HEADER, f"layout = {LAYOUT}"]
    for name, entry in sorted(lock.inputs.items()):
        lines += ["", f"[inputs.{_key(name)}]", f"uri = {_text(entry.uri)}", f'tree = "{entry.pin.tree}"']
        lines += [f"size = {entry.pin.size}", f"files = {entry.pin.files}"]
    if lock.trust:
        lines += ["", "[trust]", *(f"{role} = {version}" for role, version in sorted(lock.trust.items()))]
    for title, trees in (("programs", lock.programs), ("toolchains", lock.toolchains)):
        for name, digest in sorted(trees.items()):
            lines += ["", f"[{title}.{_key(name)}]", f'tree = "{digest}"']
    return "\n".join(lines) + "\n"


def parse(text: str, path: Path) -> Lock:
    """Return what the lock's ``text`` says; ``path`` stands in messages.

    Raises:
        LockError: not TOML, an unknown or missing key, a wrong type, or another layout.
    """
    try:
        values = document.parse(text, path)
        mistakes = list(LOCKFILE.check(values, ()))
        if mistakes:
            raise document.Document(path, text, values).refuse(mistakes)
    except RecipeError as error:
        raise LockError(error.message, hint=_REMAKE) from None
    if values["layout"] != LAYOUT:
        raise LockError(f"{path}: expected layout {LAYOUT}, found {values['layout']}", hint=_REMAKE)
    inputs = {
        name: InputPin(entry["uri"], Pin(Digest.parse(entry["tree"]), entry["size"], entry["files"]))
        for name, entry in values.get("inputs", {}).items()
    }
    programs, toolchains = (
        {name: Digest.parse(entry["tree"]) for name, entry in values.get(section, {}).items()}
        for section in ("programs", "toolchains")
    )
    return Lock(inputs, programs, toolchains, values.get("trust", {}))


_REMAKE = "the lock is generated: take it from version control, or remove it and run intaglio lock"


def read(path: Path) -> Lock | None:
    """Return the lock at ``path`` (the file); nothing if there is none.

    Raises:
        LockError: it is there and wrong.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise LockError(f"{path}: not UTF-8 at byte {error.start}", hint=_REMAKE) from None
    except OSError as error:
        raise LockError(f"{path}: cannot be read: {error.strerror}") from None


def write(path: Path, lock: Lock) -> None:
    """Write ``lock`` to ``path``: the old text or the new, never a part.

    Raises:
        MachineError: the folder cannot be written, or the disk is full.
    """
    name = None
    try:
        fd, name = tempfile.mkstemp(prefix=".Modelfile.lock-", dir=path.parent)
        with os.fdopen(fd, "wb") as stream:
            stream.write(render(lock).encode("utf-8"))
            stream.flush()
            os.fchmod(fd, 0o644)
            os.fsync(fd)
        os.rename(name, path)
    except OSError as error:
        if name is not None:
            with suppress(FileNotFoundError):
                os.unlink(name)
        raise MachineError(f"{path}: cannot be written: {error.strerror}") from None


def _key(name: str) -> str:
    return name if name and all(char.isascii() and (char.isalnum() or char in "-_") for char in name) else _text(name)


def _text(value: str) -> str:
    """Return ``value`` as a basic string (TOML 1.0.0, "String")."""
    return '"' + "".join(_escaped(value)) + '"'


def _escaped(value: str) -> Iterator[str]:
    for char in value:
        if char in '"\\':
            yield "\\" + char
        elif ord(char) < 0x20 or ord(char) == 0x7F:
            yield f"\\u{ord(char):04x}"
        else:
            yield char
