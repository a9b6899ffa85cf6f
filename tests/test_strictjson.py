"""JSON with one reading and one writing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio import strictjson
from intaglio.errors import CorruptContent
from intaglio.strictjson import MAX_BYTES, MAX_DEPTH, Json, canonical, parse, parse_object

SAFE = (1 << 53) - 1
NUMBERS = st.floats(min_value=-SAFE, max_value=SAFE) | st.floats(min_value=1e21, allow_infinity=False)
"""From 2^53 up to 1e21 a number is written without a point (RFC 8785, 3.2.2.3), and no longer read back."""
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-SAFE, SAFE) | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_the_sample_of_the_specification() -> None:
    """RFC 8785, section 3.2.2 and 3.2.3."""
    value: Any = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"\u002f",
        "literals": [None, True, False],
    }
    assert (
        canonical(value)
        == (
            '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
            '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
        ).encode()
    )


def test_keys_are_sorted_by_utf_16() -> None:
    """RFC 8785, section 3.2.3: the dancer of the supplementary planes stands before U+FB33."""
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\u00f6"]
    assert list(json.loads(canonical(dict.fromkeys(keys, 0)))) == [
        "\r", "1", "\x80", "\u00f6", "\u20ac", "\U0001f600", "\ufb33",
    ]  # fmt: skip


@settings(deadline=None)
@given(VALUES)
def test_what_is_written_is_read_back(value: Json) -> None:
    data = canonical(value)
    assert parse(data, what="x") == value
    assert json.loads(data) == value
    assert canonical(parse(data, what="x")) == data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": float("-inf")}, 1 << 53, {1: 2}, {"a": {1}}])
def test_what_has_no_canonical_form_is_not_written(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical(value)  # type: ignore[arg-type] # what it refuses is no JSON


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a":1,"a":2}', "duplicate key 'a'"),
        (b'[{"b":{"a":1,"a":1}}]', "duplicate key 'a'"),
        (b'{"a":1,"\\u0061":2}', "duplicate key 'a'"),
        (b"NaN", "NaN is not JSON"),
        (b'{"a":Infinity}', "Infinity is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"1e400", "number too large"),
        (b"-1e400", "number too large"),
        (b"9007199254740992", "integer outside"),
        (b"-9007199254740992", "integer outside"),
        (b"1" * 5000, "integer outside"),
        (b'"\xff"', "not valid UTF-8 at byte 1"),
        (b'"\xed\xa0\x80"', "not valid UTF-8"),
        (b'"\xc0\xaf"', "not valid UTF-8"),
        (b"\xef\xbb\xbf{}", "byte-order mark"),
        (b"\xff\xfe{\0}\0", "not valid UTF-8"),
        (b'"\\ud800"', "lone surrogate"),
        (b'{"\\udfff":1}', "lone surrogate"),
        (b'["\\ude00\\ud83d"]', "lone surrogate"),
        (b"", "not JSON"),
        (b"{}{}", "not JSON"),
        (b"{} x", "not JSON"),
        (b"{'a':1}", "not JSON"),
        (b'{"a":1,}', "not JSON"),
        (b"[1,]", "not JSON"),
        (b"// x\n{}", "not JSON"),
        (b'"a\nb"', "not JSON"),
        (b'"a\x00b"', "not JSON"),
        (b"01", "not JSON"),
        (b"+1", "not JSON"),
        (b".5", "not JSON"),
        (b"0x10", "not JSON"),
        (b"tru", "not JSON"),
        (b"\x0b{}", "not JSON"),
        ("\u00a0{}".encode(), "not JSON"),
        (b"[" * 100_000, "not JSON|too deep"),
        (b"[" * 100_000 + b"]" * 100_000, "not JSON|too deep"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested too deep"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(CorruptContent, match=why) as found:
        parse(data, what="the document")
    assert found.value.message.startswith("the document: ")
    assert len(found.value.message) < 400


def test_a_true_pair_of_surrogates_is_one_character() -> None:
    assert parse(b'"\\ud83d\\ude00"', what="x") == "\U0001f600"


def test_the_size_is_bounded() -> None:
    data = b'"' + b"x" * 10 + b'"'
    assert parse(data, what="x", max_bytes=12) == "x" * 10
    with pytest.raises(CorruptContent, match="at most 11 bytes of JSON, found 12"):
        parse(data, what="x", max_bytes=11)
    assert parse(b" " * (MAX_BYTES - 1) + b"1", what="x") == 1
    with pytest.raises(CorruptContent):
        parse(b" " * MAX_BYTES + b"1", what="x")


@pytest.mark.parametrize("pair", [b"[]", b'{"":}'])
def test_the_depth_is_bounded(pair: bytes) -> None:
    opening, closing = pair[:-1], pair[-1:]

    def nested(depth: int) -> bytes:
        return b"".join([opening * (depth - 1), pair.replace(b":", b":1"), closing * (depth - 1)])

    assert parse(nested(MAX_DEPTH), what="x")
    with pytest.raises(CorruptContent, match="nested too deep"):
        parse(nested(MAX_DEPTH + 1), what="x")
    with pytest.raises(CorruptContent, match="nested too deep"):
        parse(nested(3), what="x", max_depth=2)


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"{}"', b"true"])
def test_an_object_is_asked_for_and_anything_else_refused(data: bytes) -> None:
    with pytest.raises(CorruptContent, match="expected a JSON object"):
        parse_object(data, what="x")
    assert parse_object(b'{"a":[]}', what="x") == {"a": []}


@settings(deadline=None)
@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_whatever_the_bytes_reading_gives_a_value_or_one_error(data: bytes) -> None:
    try:
        value = parse(data, what="x")
    except CorruptContent:
        return
    assert json.loads(data) == value
    assert strictjson.canonical(value)
