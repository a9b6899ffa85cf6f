"""The published JSON Schema of policies and the reader: of one mind about every change to a document."""

from __future__ import annotations

import copy
import json
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.images import policy_text
from tests.policy.full import TEXT

from intaglio.content.formats.inspect import FORMATS
from intaglio.errors import NotVerifiable
from intaglio.policy.document import EVIDENCE, MANDATORY, ROLES, TOP, interpret

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "schema" / "policy.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
GOOD = tomllib.loads(TEXT)
BEYOND = ("no key", "names no key", "expected keys of roles.release", "nothing is", "PEM public key", "P-256")
"""What only a reader that knows the whole document can find."""


def faults(found: Any) -> list[str]:
    """Return what the reader says about a document."""
    try:
        interpret(found)
    except NotVerifiable as error:
        return error.message.splitlines()[1:]
    return []


def agree(found: Any) -> None:
    said = faults(found)
    valid = VALIDATOR.is_valid(found)
    assert not valid or all(any(words in line for words in BEYOND) for line in said), said
    assert valid or said


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_what_is_good_is_good_to_both() -> None:
    for text in (TEXT, policy_text()):
        VALIDATOR.validate(tomllib.loads(text))
        assert faults(tomllib.loads(text)) == []


def test_the_words_are_the_engines() -> None:
    properties = SCHEMA["properties"]
    assert set(properties) == set(TOP)
    assert set(properties["require"]["items"]["enum"]) == set(EVIDENCE)
    assert [one["contains"]["const"] for one in properties["require"]["allOf"]] == list(MANDATORY)
    assert set(properties["formats"]["items"]["enum"]) == FORMATS
    assert set(properties["roles"]["properties"]) == set(ROLES)
    assert set(properties["attestations"]["additionalProperties"]["enum"]) == set(ROLES)


def test_every_key_is_described() -> None:
    def walk(schema: Any, place: str) -> Iterator[str]:
        for name, inner in schema.get("properties", {}).items():
            if "description" not in inner and place != ".evaluation":
                yield f"{place}.{name}"
            yield from walk(inner, f"{place}.{name}")

    assert list(walk(SCHEMA, "")) == []


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value of a document."""
    yield place
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*place, key))


PLACES = [place for place in places(GOOD) if place]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: not value.is_integer()),
    st.sampled_from(["", " ", "release", "evaluator", "30d", "0d", "MIT", "a/b", "https://x", "signature", "json"]),
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.just([]),
    st.just({}),
    st.lists(st.sampled_from(["release", "builder", "MIT", "json", "x y"]), max_size=2),
    st.dictionaries(
        st.sampled_from(["minimum", "maximum", "pem", "allow", "required", "x"]), st.integers(), max_size=2
    ),
)


@settings(deadline=None)
@given(st.sampled_from(PLACES), st.sampled_from(["replace", "remove", "add", "rename"]), VALUES, st.text(max_size=5))
def test_any_change_is_judged_alike(place: tuple[Any, ...], what: str, value: Any, name: str) -> None:
    changed = copy.deepcopy(GOOD)
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    if what == "replace" and value is not None:
        parent[place[-1]] = value
    elif what == "remove":
        del parent[place[-1]]
    elif what == "add" and isinstance(parent, dict) and value is not None:
        parent[name] = value
    elif what == "rename" and isinstance(parent, dict):
        parent[name] = parent.pop(place[-1])
    agree(changed)


@pytest.mark.parametrize("value", [math.nan, math.inf, True])
def test_numbers_that_are_none(value: float) -> None:
    changed = copy.deepcopy(GOOD)
    changed["evaluation"]["accuracy"]["minimum"] = value
    assert faults(changed)


def test_a_check_that_looks_for_disagreement_sees_it() -> None:
    changed = copy.deepcopy(GOOD)
    changed["version"] = 1.0  # an integer to JSON Schema, a float to TOML
    with pytest.raises(AssertionError):
        agree(changed)
