"""Locks: adding never moves, moving is said, the text is a function of the pins."""

from __future__ import annotations

import errno
import os
import tomllib
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recipe.bench import builder, recipe

from intaglio.digest import Digest
from intaglio.errors import ExitCode, LockError, MachineError, UsageError
from intaglio.recipe import lock, modelfile
from intaglio.recipe.lock import InputPin, Lock, Move, Wanted
from intaglio.recipe.program import Steps
from intaglio.recipe.sources.interface import Pin

VECTORS = Path(__file__).parents[1] / "vectors" / "recipe"
PATH = Path("Modelfile.lock")


def digest(number: object) -> Digest:
    return Digest.of(str(number).encode())


def pin(number: int) -> Pin:
    return Pin(digest(number), number, 1)


WANTED = Wanted({"a": "file:a", "b": "pypi:b==1"}, {"merge": digest("m")}, {"train-cpu": digest("t")})
FULL = Lock(
    {"a": InputPin("file:a", pin(1)), "b": InputPin("pypi:b==1", pin(2))},
    {"merge": digest("m")},
    {"train-cpu": digest("t")},
)


def test_an_empty_lock_needs_everything() -> None:
    assert lock.to_fetch(WANTED, Lock()) == ("a", "b")
    assert lock.complete(WANTED, Lock(), {"a": pin(1), "b": pin(2)}) == FULL


def test_locking_adds_what_is_missing_and_moves_nothing() -> None:
    old = Lock({"a": InputPin("file:a", pin(7))}, {"merge": digest("old")}, {})
    assert lock.to_fetch(WANTED, old) == ("b",)
    new = lock.complete(WANTED, old, {"b": pin(2)})
    assert new.inputs["a"].pin == pin(7)
    assert new.programs == {"merge": digest("old")}
    assert new.toolchains == {"train-cpu": digest("t")}


def test_locking_drops_what_is_no_longer_wanted() -> None:
    old = Lock({**FULL.inputs, "x": InputPin("file:x", pin(9))}, {"gone": digest(1)}, {"gone": digest(2)})
    assert lock.complete(WANTED, old, {}) == FULL


def test_a_pin_for_another_address_does_not_count() -> None:
    old = Lock({"a": InputPin("file:other", pin(7)), "b": FULL.inputs["b"]}, FULL.programs, FULL.toolchains)
    assert lock.to_fetch(WANTED, old) == ("a",)
    assert lock.unpinned(WANTED, old) == ("input a is pinned for file:other, the recipe names file:a",)
    assert lock.complete(WANTED, old, {"a": pin(1)}) == FULL


def test_updating_moves_what_is_named_and_nothing_else() -> None:
    old = Lock(
        {"a": InputPin("file:a", pin(7)), "b": InputPin("pypi:b==1", pin(8))},
        {"merge": digest("old")},
        {"train-cpu": digest("old")},
    )
    new = lock.update(WANTED, old, ["a"], {"a": pin(1)})
    assert new.inputs == {"a": InputPin("file:a", pin(1)), "b": InputPin("pypi:b==1", pin(8))}
    assert (new.programs, new.toolchains) == (old.programs, old.toolchains)
    assert lock.moves(old, new) == (Move("input", "a", digest(7), digest(1)),)
    new = lock.update(WANTED, old, ["merge"], {})
    assert lock.moves(old, new) == (Move("program", "merge", digest("old"), digest("m")),)
    everything = [*WANTED.inputs, *WANTED.programs, *WANTED.toolchains]
    assert lock.update(WANTED, old, everything, {"a": pin(1), "b": pin(2)}) == FULL


def test_updating_also_completes() -> None:
    new = lock.update(WANTED, Lock(), ["a"], {"a": pin(1), "b": pin(2)})
    assert new == FULL


def test_moves_tell_what_came_and_went() -> None:
    assert lock.moves(Lock(), Lock({}, {"p": digest(1)}, {})) == (Move("program", "p", None, digest(1)),)
    assert lock.moves(Lock({}, {}, {"t": digest(1)}), Lock()) == (Move("toolchain", "t", digest(1), None),)


def test_only_what_is_pinned_can_be_updated() -> None:
    lock.check_names(WANTED, ["a", "merge", "train-cpu"])
    with pytest.raises(UsageError) as caught:
        lock.check_names(WANTED, ["mereg"])
    assert "did you mean merge?" in caught.value.message


def test_every_gap_is_named() -> None:
    lock.require(WANTED, FULL, PATH)
    with pytest.raises(LockError) as caught:
        lock.require(WANTED, Lock(), PATH)
    assert caught.value.exit_code == ExitCode.LOCK
    assert caught.value.message.splitlines() == [
        "Modelfile.lock: input a (file:a) is not pinned",
        "Modelfile.lock: input b (pypi:b==1) is not pinned",
        "Modelfile.lock: program merge is not pinned",
        "Modelfile.lock: toolchain train-cpu is not pinned",
    ]
    assert "intaglio lock" in (caught.value.hint or "")


def test_programs_and_toolchains_that_changed() -> None:
    old = Lock(FULL.inputs, {"merge": digest("old")}, FULL.toolchains)
    assert lock.outdated(WANTED, old) == (Move("program", "merge", digest("old"), digest("m")),)
    assert lock.outdated(WANTED, FULL) == ()


def test_what_a_recipe_wants(tmp_path: Path) -> None:
    shop = builder(tmp_path / "builder")
    folder = recipe(tmp_path / "recipe")
    found = modelfile.read(folder, Steps(folder, shop))
    wanted = Wanted.of(found, {"convert": digest("c")})
    program = found.steps["first"].program
    assert wanted == Wanted({"base": "file:data/base.bin"}, {"stamp": program.tree().digest}, {"convert": digest("c")})


def test_golden_text() -> None:
    assert lock.render(FULL) == (VECTORS / "Modelfile.lock").read_text(encoding="utf-8")
    assert lock.parse((VECTORS / "Modelfile.lock").read_text(encoding="utf-8"), PATH) == FULL


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
DIGESTS = st.integers().map(digest)
PINS = st.builds(Pin, DIGESTS, st.integers(0, 2**53 - 1), st.integers(0, 5000))
LOCKS = st.builds(
    Lock,
    st.dictionaries(NAMES, st.builds(InputPin, NAMES, PINS), max_size=4),
    st.dictionaries(NAMES, DIGESTS, max_size=3),
    st.dictionaries(NAMES, DIGESTS, max_size=3),
)


@given(LOCKS)
def test_reading_gives_back_what_was_written(value: Lock) -> None:
    text = lock.render(value)
    assert lock.parse(text, PATH) == value
    shuffled = Lock(
        dict(reversed(list(value.inputs.items()))),
        dict(reversed(list(value.programs.items()))),
        dict(reversed(list(value.toolchains.items()))),
    )
    assert lock.render(shuffled) == text
    tomllib.loads(text)


GOOD = lock.render(FULL)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("layout = 1", "layout = 2", "expected layout 1, found 2"),
        ("layout = 1\n", "", "1: layout: missing"),
        ("size = 1", 'size = "1"', "10: inputs.a.size: expected an integer, found a string"),
        ("size = 1", "size = -1", "10: inputs.a.size: expected at least 0"),
        ("size = 1", "sizes = 1", "unknown key; did you mean size?"),
        ("[programs.merge]", "[program.merge]", "program: unknown key; did you mean programs?"),
        ("sha256:", "sha512:", "inputs.a.tree: expected sha256: and 64 lower-case hex digits"),
        ("[inputs.a]", "[inputs.b]", "not TOML"),
        ("layout = 1", "<<<<<<< HEAD\nlayout = 1", "not TOML"),
    ],
)
def test_a_wrong_lock_is_refused(old: str, new: str, part: str) -> None:
    assert old in GOOD
    with pytest.raises(LockError) as caught:
        lock.parse(GOOD.replace(old, new, 1), PATH)
    assert part in caught.value.message
    assert caught.value.hint


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "Modelfile.lock"
    assert lock.read(path) is None
    lock.write(path, FULL)
    assert lock.read(path) == FULL
    assert (path.stat().st_mode & 0o777) == 0o644
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(b"\xff")
    with pytest.raises(LockError):
        lock.read(path)


def test_a_failed_write_leaves_the_old_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "Modelfile.lock"
    lock.write(path, FULL)

    def full(fd: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError) as caught:
        lock.write(path, Lock())
    assert "No space left" in caught.value.message
    assert lock.read(path) == FULL
    assert list(tmp_path.iterdir()) == [path]
