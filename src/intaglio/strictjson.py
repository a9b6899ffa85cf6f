"""JSON with one reading and one writing.

- Writing is canonical (RFC 8785): the same value is the same bytes on any machine.
- Reading refuses what two readers could read differently: duplicate keys, NaN and infinities, invalid UTF-8,
  a byte-order mark, lone surrogates, integers past 2^53, and documents too large or too deep.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import rfc8785

from intaglio.errors import CorruptContent

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""Any JSON value."""
Object: TypeAlias = dict[str, Any]
"""A JSON object as it was read; its values are checked where they are used."""

MAX_BYTES = 4 << 20
"""Largest document read unless the caller says otherwise: what common registries accept as a manifest."""
MAX_DEPTH = 32
"""Deepest nesting read unless the caller says otherwise."""
_MAX_INTEGER = (1 << 53) - 1
_SURROGATE = re.compile("[\ud800-\udfff]")


def canonical(value: Json) -> bytes:
    """Return ``value`` as canonical JSON (RFC 8785)."""
    return rfc8785.dumps(value)


def parse(data: bytes, *, what: str, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Return the JSON value in ``data``; ``what`` names the document in errors.

    Raises:
        CorruptContent: for anything that is not one strict JSON document within the limits.
    """
    if len(data) > max_bytes:
        raise CorruptContent(f"{what}: expected at most {max_bytes} bytes of JSON, found {len(data)}")
    if data.startswith(b"\xef\xbb\xbf"):
        raise CorruptContent(f"{what}: starts with a byte-order mark")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptContent(f"{what}: not valid UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: _object(pairs, what),
            parse_constant=lambda name: _refuse(what, f"{name} is not JSON"),
            parse_int=lambda digits: _integer(digits, what),
            parse_float=lambda digits: _number(digits, what),
        )
    except json.JSONDecodeError as error:
        raise CorruptContent(f"{what}: not JSON at line {error.lineno} column {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise CorruptContent(f"{what}: not JSON: {error}") from None
    _walk(value, what, max_depth)
    return value


def parse_object(data: bytes, *, what: str, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Object:
    """Return the JSON object in ``data``; anything but an object is refused as in :func:`parse`."""
    value = parse(data, what=what, max_bytes=max_bytes, max_depth=max_depth)
    if not isinstance(value, dict):
        raise CorruptContent(f"{what}: expected a JSON object, found {type(value).__name__}")
    return value


def _refuse(what: str, why: str) -> NoReturn:
    raise CorruptContent(f"{what}: {why}")


def _object(pairs: list[tuple[str, Any]], what: str) -> Object:
    result: Object = {}
    for key, value in pairs:
        if key in result:
            _refuse(what, f"duplicate key {key!r}")
        result[key] = value
    return result


def _integer(digits: str, what: str) -> int:
    if len(digits) > 17 or abs(int(digits)) > _MAX_INTEGER:
        _refuse(what, f"integer outside ±(2^53-1): {digits[:24]}")
    return int(digits)


def _number(digits: str, what: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        _refuse(what, f"number too large: {digits[:24]}")
    return value


def _walk(value: Any, what: str, depth: int) -> None:
    """Refuse deep nesting, and lone surrogates, which escapes can smuggle past the UTF-8 check."""
    if isinstance(value, str):
        if _SURROGATE.search(value):
            _refuse(what, "a lone surrogate in a string")
        return
    if not isinstance(value, (dict, list)):
        return
    if depth == 0:
        _refuse(what, "nested too deep")
    if isinstance(value, dict):
        for key in value:
            _walk(key, what, depth)
    for item in value.values() if isinstance(value, dict) else value:
        _walk(item, what, depth - 1)
