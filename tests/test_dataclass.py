"""Our dataclasses beside the standard library's: one definition, made by both, has to do the same."""

# mypy: disable-error-code="call-arg, operator, type-var"
# (A class decorated by something of type Any keeps its own signature for the type checker.)

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import intaglio.dataclass as ours
from intaglio.digest import Digest

LIBRARIES: tuple[Any, ...] = (dataclasses, ours)


def made(library: Any, **options: bool) -> Any:
    """A class of three fields, the last two with defaults."""

    class Sample:
        """A class."""

        name: str
        size: int = 3
        marks: dict[str, int] = library.field(default_factory=dict, repr=False)

        @property
        def twice(self) -> int:
            """A property."""
            return self.size * 2

    return library.dataclass(**options)(Sample)


def frozen(library: Any) -> Any:
    return made(library, frozen=True, slots=True)


def outcome(work: Callable[[], Any]) -> Any:
    """What ``work`` gives, or the kind of its error."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - compared
        return AttributeError if isinstance(error, AttributeError) else type(error)


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "by position": lambda c, _: vars_of(c("a", 4, {"x": 1})),
    "by name": lambda c, _: vars_of(c(marks={"x": 1}, size=4, name="a")),
    "defaults": lambda c, _: vars_of(c("a")),
    "both": lambda c, _: vars_of(c("a", marks={"y": 2})),
    "missing": lambda c, _: c(),
    "missing, others given": lambda c, _: c(size=1),
    "too many": lambda c, _: c("a", 1, {}, 2),
    "given twice": lambda c, _: c("a", name="b"),
    "unknown": lambda c, _: c("a", colour=1),
    "text": lambda c, _: repr(c("a", 4, {"x": 1})).rpartition(".")[2],
    "equal": lambda c, _: (c("a") == c("a"), c("a") == c("b"), c("a") != c("b"), c("a") == ("a", 3, {})),
    "no order": lambda c, _: c("a") < c("b"),
    "hash of what has none": lambda c, _: hash(c("a")),
    "assigned": lambda c, _: setattr(c("a"), "name", "b"),
    "deleted": lambda c, _: delattr(c("a"), "name"),
    "replaced": lambda c, library: vars_of(library.replace(c("a", 4), name="b")),
    "replaced, unknown": lambda c, library: library.replace(c("a", 4), colour="b"),
    "copied": lambda c, _: vars_of(copy.copy(c("a", 4))),
    "copied deep": lambda c, _: vars_of(copy.deepcopy(c("a", 4, {"x": 1}))),
    "a default of its own": lambda c, _: c("a").marks is c("a").marks,
    "property": lambda c, _: c("a").twice,
    "matched": lambda c, _: c.__match_args__,
    "documented": lambda c, _: c.__doc__,
}


def vars_of(instance: Any) -> dict[str, Any]:
    return {name: getattr(instance, name) for name in ("name", "size", "marks")}


@pytest.mark.parametrize("options", [{"frozen": True, "slots": True}, {"frozen": True}, {"slots": True}, {}], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_a_class_does_what_the_standard_librarys_does(call: str, options: dict[str, bool]) -> None:
    theirs, mine = (outcome(lambda one=one: CALLS[call](made(one, **options), one)) for one in LIBRARIES)  # type: ignore[misc]
    assert mine == theirs


def test_the_calls_tell_good_from_bad() -> None:
    bad = {call for call in CALLS if isinstance(outcome(lambda call=call: CALLS[call](frozen(ours), ours)), type)}  # type: ignore[misc]
    assert bad == {
        "missing", "missing, others given", "too many", "given twice", "unknown", "no order", "hash of what has none",
        "assigned", "deleted", "replaced, unknown",
    }  # fmt: skip


@pytest.mark.parametrize("library", LIBRARIES)
def test_fields_of_a_base_come_first_and_what_follows_is_run(library: Any) -> None:
    @library.dataclass(frozen=True)
    class Base:
        name: str

        def __post_init__(self) -> None:
            if not self.name:
                raise ValueError("empty")

    @library.dataclass(frozen=True)
    class Child(Base):
        size: int = 1

    assert (Child("a").name, Child("a").size, Child(size=2, name="b")) == ("a", 1, Child("b", 2))
    assert Base("a") != Child("a")
    assert hash(Child("a")) == hash(Child("a", 1))
    assert Child.size == 1
    with pytest.raises(ValueError, match="empty"):
        Child("")
    with pytest.raises(ValueError, match="empty"):
        library.replace(Child("a"), name="")


@pytest.mark.parametrize("library", LIBRARIES)
def test_fields_of_several_bases(library: Any) -> None:
    @library.dataclass(frozen=True)
    class Left:
        name: str

    @library.dataclass(frozen=True)
    class Right:
        size: int

    @library.dataclass(frozen=True)
    class Both(Left, Right):
        mark: str

        def text(self) -> str:
            return super().__repr__().partition("(")[2]

    assert vars(Both)["__match_args__"] == ("size", "name", "mark")
    assert Both(1, "a", "x").text() == "name='a')"
    assert Left.__subclasses__() == [Both]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("slots", [True, False])
def test_names_of_classes_inside_others(library: Any, slots: bool) -> None:
    class Outer:
        @library.dataclass(slots=slots)
        class Inner:
            name: str

    assert repr(Outer.Inner("a")).endswith("Outer.Inner(name='a')")
    with pytest.raises(TypeError, match="unhashable"):
        hash(Outer.Inner("a"))


@pytest.mark.parametrize("library", LIBRARIES)
def test_order_is_that_of_the_fields_and_of_one_class_only(library: Any) -> None:
    @library.dataclass(frozen=True, slots=True, order=True)
    class Pair:
        a: int
        b: int

    assert sorted([Pair(2, 1), Pair(1, 2), Pair(1, 1)]) == [Pair(1, 1), Pair(1, 2), Pair(2, 1)]
    assert (Pair(1, 1) <= Pair(1, 1), Pair(1, 1) < Pair(1, 1), Pair(1, 2) > Pair(1, 1), Pair(0, 9) >= Pair(1, 0)) == (
        True, False, True, False,
    )  # fmt: skip
    with pytest.raises(TypeError):
        assert Pair(1, 1) < (1, 2)


@pytest.mark.parametrize("library", LIBRARIES)
def test_methods_of_the_class_itself_stay(library: Any) -> None:
    @library.dataclass(frozen=True, slots=True)
    class Same:
        name: str

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Same) and self.name.lower() == other.name.lower()

        def __hash__(self) -> int:
            return hash(self.name.lower())

        def __repr__(self) -> str:
            return "same"

    assert Same("A") == Same("a")
    assert len({Same("A"), Same("a")}) == 1
    assert repr(Same("a")) == "same"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_class_that_could_not_be_called_is_refused(library: Any) -> None:
    class Late:
        size: int = 1
        name: str

    with pytest.raises(TypeError, match="name"):
        library.dataclass(frozen=True)(Late)

    class Shared:
        names: list[str] = []  # noqa: RUF012 - what is refused

    with pytest.raises((TypeError, ValueError), match="default_factory"):
        library.dataclass(frozen=True)(Shared)


@pytest.mark.parametrize("kind", ["ClassVar[int]", "dataclasses.InitVar[int]", "dataclasses.KW_ONLY"])
def test_kinds_of_fields_that_are_not_there_are_refused(kind: str) -> None:
    with pytest.raises(TypeError, match="expected a plain field"):
        ours.dataclass(type("Odd", (), {"__annotations__": {"odd": kind}}))


def test_a_digest_travels_between_processes_and_is_checked_again() -> None:
    digest = Digest.of(b"x")
    assert pickle.loads(pickle.dumps(digest)) == digest  # noqa: S301 - our own bytes
    spoilt = pickle.dumps(digest).replace(digest.hex.encode(), b"X" * 64)
    with pytest.raises(Exception, match="not a digest"):
        pickle.loads(spoilt)  # noqa: S301 - our own bytes


def test_what_is_frozen_gets_no_other_attributes() -> None:
    """The standard library's raises TypeError here where there are slots, a slip of its own."""
    for options in ({"frozen": True}, {"frozen": True, "slots": True}):
        with pytest.raises(AttributeError, match="never changes"):
            made(ours, **options)("a").colour = "b"


def test_slots_leave_no_room() -> None:
    assert not hasattr(frozen(ours)("a"), "__dict__")
    assert hasattr(made(ours, frozen=True)("a"), "__dict__")


def test_the_standard_librarys_is_not_imported() -> None:
    code = "import sys, intaglio.verify, intaglio.guard.main; print({'dataclasses', 'inspect'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
