"""Classes of named fields: :mod:`dataclasses`, as much of it as this package uses, made without generating code.

- A type checker sees the standard library's own names, and checks the same things.
- ``dataclasses`` compiles some six methods a class, at each start, and imports the compiler's tools to do it. Here the
  methods are written once, and a class gets those that know its fields: ``docs/adr/0054``.
- The same hold of an instance: how it is made, defaults, equality, hash, order and text; fields of bases come first.
- Not there: ``ClassVar``, ``InitVar``, and fields by keyword only; each is an error when the class is made. What is
  frozen stays so in its subclasses; a copy of it is made as an instance is, ``__post_init__`` included.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

_T = TypeVar("_T")
_Method = Callable[..., Any]
_FIELDS = "__fields__"
_MISSING = object()
_ORDER = ("lt", "le", "gt", "ge")


class _Field:
    """What is said of a field beside its name and type."""

    __slots__ = ("factory", "shown", "value")

    def __init__(
        self,
        *,
        default: object = _MISSING,
        default_factory: Callable[[], object] | None = None,
        repr: bool = True,  # noqa: A002 - the standard library's name
    ) -> None:
        self.value = default
        self.factory = default_factory
        self.shown = repr

    @property
    def required(self) -> bool:
        """Whether the field has no default."""
        return self.value is _MISSING and self.factory is None


def _dataclass(
    cls: type | None = None, /, *, frozen: bool = False, slots: bool = False, order: bool = False
) -> type | Callable[[type], type]:
    """Return a class of annotated names made one of fields; without ``cls``, what does that to a class.

    Raises:
        TypeError: its fields are of a kind that is not there (see above), or could not be told apart in a call.
    """
    return _made(cls, frozen, slots, order) if cls is not None else lambda cls: _made(cls, frozen, slots, order)


def _replace(instance: _T, /, **changes: object) -> _T:
    """Return a copy of ``instance`` with other values in the fields that ``changes`` names."""
    known = {name: getattr(instance, name) for name in getattr(type(instance), _FIELDS)}
    return type(instance)(**{**known, **changes})


if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace
else:
    dataclass, field, replace = _dataclass, _Field, _replace

__all__ = ("dataclass", "field", "replace")


def _made(cls: type, frozen: bool, slots: bool, order: bool) -> type:
    """Return ``cls`` with its fields; with slots it is made anew, as they cannot be given to a class that is there."""
    own = {name: _field(cls, name, str(said)) for name, said in cls.__annotations__.items()}
    inherited = {name: one for base in cls.__mro__[:0:-1] for name, one in vars(base).get(_FIELDS, {}).items()}
    known: dict[str, _Field] = {**inherited, **own}
    optional = ""
    for name, one in known.items():
        if optional and one.required:
            raise TypeError(f"{cls.__qualname__}: {name} has no default, and follows {optional}, which has one")
        optional = optional if one.required else name
    added: dict[str, object] = {_FIELDS: known, "__match_args__": tuple(known)}
    methods = _methods(known, hasattr(cls, "__post_init__"), frozen, order)
    # Python puts None for the hash of a class that says what is equal.
    added |= {name: method for name, method in methods.items() if vars(cls).get(name) is None}
    if slots:
        body = {name: one for name, one in vars(cls).items() if name not in {"__dict__", "__weakref__", *own}}
        again: Callable[..., type] = type(cls)
        made = again(cls.__name__, cls.__bases__, {**body, **added, "__slots__": tuple(own)})
        made.__qualname__ = cls.__qualname__
        return made
    for name, one in own.items():
        if one.value is not _MISSING:
            added[name] = one.value
        elif name in vars(cls):
            delattr(cls, name)
    for name, value in added.items():
        setattr(cls, name, value)
    return cls


def _field(cls: type, name: str, kind: str) -> _Field:
    if any(other in kind for other in ("ClassVar", "InitVar", "KW_ONLY")):
        raise TypeError(f"{cls.__qualname__}.{name}: expected a plain field, found {kind}")
    said = vars(cls).get(name, _MISSING)
    found = said if isinstance(said, _Field) else _Field(default=said)
    if type(found.value).__hash__ is None:
        raise TypeError(f"{cls.__qualname__}.{name}: expected an immutable default, or default_factory")
    return found


def _methods(known: Mapping[str, _Field], post: bool, frozen: bool, order: bool) -> dict[str, _Method | None]:
    """Return the methods of a class with these fields, by name."""
    names = tuple(known)
    values = _reader(names)
    put = object.__setattr__
    items = tuple(known.items())

    def construct(self: Any, *args: object, **given: object) -> None:
        bound = _bound(type(self), items, args, given) if given or len(args) != len(names) else args
        for name, value in zip(names, bound, strict=True):
            put(self, name, value)
        if post:
            self.__post_init__()

    def text(self: object) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name, one in known.items() if one.shown)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    methods: dict[str, _Method | None] = {
        "__init__": construct,
        "__repr__": text,
        "__eq__": _comparison(operator.eq, values),
        "__hash__": None,
    }
    if frozen:
        methods |= {
            "__hash__": lambda self: hash(values(self)),
            "__setattr__": _refuse,
            "__delattr__": _refuse,
            "__reduce__": lambda self: (type(self), values(self)),
        }
    if order:
        methods |= {f"__{name}__": _comparison(getattr(operator, name), values) for name in _ORDER}
    return methods


def _reader(names: tuple[str, ...]) -> Callable[[object], tuple[object, ...]]:
    """Return what reads the fields ``names`` of an instance as a tuple."""
    if not names:
        return lambda _: ()
    read: Callable[[object], Any] = operator.attrgetter(*names)
    return read if len(names) > 1 else lambda self: (read(self),)


def _comparison(compare: Callable[[object, object], object], values: Callable[[object], tuple[object, ...]]) -> _Method:
    return lambda self, other: compare(values(self), values(other)) if type(other) is type(self) else NotImplemented


def _refuse(self: object, name: str, *_: object) -> None:
    raise AttributeError(f"{type(self).__qualname__}.{name}: an instance never changes")


def _bound(
    cls: type, fields: tuple[tuple[str, _Field], ...], args: tuple[object, ...], given: dict[str, object]
) -> list[object]:
    """Return a value for each field, in order.

    Raises:
        TypeError: too many values, none for a field that needs one, or names of no field.
    """
    if len(args) > len(fields):
        raise TypeError(f"{cls.__qualname__}: expected at most {len(fields)} values, found {len(args)}")
    bound = list(args)
    missing = []
    for name, one in fields[len(args) :]:
        if name in given:
            bound.append(given.pop(name))
        elif one.factory is not None:
            bound.append(one.factory())
        elif one.value is not _MISSING:
            bound.append(one.value)
        else:
            missing.append(name)
    if missing or given:
        wrong = [f"no value for {', '.join(missing)}"] if missing else []
        wrong += [f"unknown, or given twice: {', '.join(given)}"] if given else []
        raise TypeError(f"{cls.__qualname__}: {'; '.join(wrong)}")
    return bound
