"""Descriptors: what names a blob."""

from __future__ import annotations

from typing import Any

import pytest

from intaglio.content.descriptor import EMPTY, Descriptor, parse_annotations
from intaglio.digest import Digest
from intaglio.errors import CorruptContent

DIGEST = Digest.of(b"x")
VALUE = {"mediaType": "a/b", "digest": str(DIGEST), "size": 1}


def test_absent_parts_are_left_out() -> None:
    assert Descriptor("a/b", DIGEST, 1).to_json() == VALUE
    full = Descriptor("a/b", DIGEST, 1, "c/d", {"k": "v"})
    assert full.to_json() == {**VALUE, "artifactType": "c/d", "annotations": {"k": "v"}}


@pytest.mark.parametrize("more", [{}, {"artifactType": "c/d"}, {"annotations": {"k": "v", "l": ""}}])
def test_what_is_written_is_read_back(more: dict[str, Any]) -> None:
    assert Descriptor.parse({**VALUE, **more}, "x").to_json() == {**VALUE, **more}


def test_the_form_of_an_image_index_entry_with_empty_annotations_is_read() -> None:
    assert Descriptor.parse({**VALUE, "annotations": {}}, "x") == Descriptor("a/b", DIGEST, 1)


@pytest.mark.parametrize(
    "value",
    [
        None, [], "x", 1, {},
        {**VALUE, "mediaType": ""}, {**VALUE, "mediaType": None}, {**VALUE, "mediaType": 1},
        {**VALUE, "size": -1}, {**VALUE, "size": 1.0}, {**VALUE, "size": "1"}, {**VALUE, "size": True},
        {**VALUE, "size": None},
        {**VALUE, "digest": "sha256:x"}, {**VALUE, "digest": DIGEST.hex}, {**VALUE, "digest": None},
        {**VALUE, "digest": "sha512:" + "0" * 128},
        {**VALUE, "artifactType": 1}, {**VALUE, "annotations": []}, {**VALUE, "annotations": {"a": 1}},
        {**VALUE, "annotations": {"a": None}}, {**VALUE, "urls": ["https://example.org"]}, {**VALUE, "data": "eA=="},
        {**VALUE, "platform": {}}, {**VALUE, "Size": 1},
        {"mediaType": "a/b", "digest": str(DIGEST)}, {"digest": str(DIGEST), "size": 1},
    ],
)  # fmt: skip
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(CorruptContent):
        Descriptor.parse(value, "the entry")


def test_annotations_are_strings_or_absent() -> None:
    assert parse_annotations(None, "x") == {}
    assert parse_annotations({"a": "b"}, "x") == {"a": "b"}
    with pytest.raises(CorruptContent, match="x: annotations"):
        parse_annotations({"a": 1}, "x")


def test_the_empty_blob() -> None:
    """OCI image specification 1.1, "Guidance for an Empty Descriptor"."""
    assert str(Digest.of(EMPTY)) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
