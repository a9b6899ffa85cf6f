"""Bare layouts: read without following links, and without believing the index."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.images import Draft

from intaglio import strictjson
from intaglio.content.bare import MAX_MANIFESTS, BareLayout, open_regular
from intaglio.content.descriptor import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, VerificationError


def index(entries: list[Descriptor]) -> bytes:
    return strictjson.canonical({"schemaVersion": 2, "manifests": [entry.to_json() for entry in entries]})


def put(folder: Path, data: bytes, kind: str = MANIFEST_TYPE) -> Descriptor:
    (folder / "blobs" / "sha256" / Digest.of(data).hex).write_bytes(data)
    return Descriptor(kind, Digest.of(data), len(data))


def test_finds_images_and_referrers_through_nested_indexes(tmp_path: Path) -> None:
    draft = Draft().sign()
    draft.write(tmp_path)
    inner = put(tmp_path, (tmp_path / "index.json").read_bytes(), INDEX_TYPE)
    (tmp_path / "index.json").write_bytes(index([inner, inner]))
    layout = BareLayout(tmp_path)
    assert [image.digest for image in layout.images()] == [draft.image.digest]
    expected = {referrer.digest for referrer in draft.referrers}
    assert {one.digest for one in layout.referrers(draft.image.digest)} == expected
    assert layout.referrers(Digest.of(b"other")) == ()


def test_an_index_that_holds_itself_many_times_ends(tmp_path: Path) -> None:
    Draft().sign().write(tmp_path)
    level = [put(tmp_path, b"{}")]
    for _ in range(4):
        level = [put(tmp_path, index(level * 20), INDEX_TYPE)]
    (tmp_path / "index.json").write_bytes(index(level * 20))
    with pytest.raises(CorruptContent, match=f"more than {MAX_MANIFESTS}"):
        BareLayout(tmp_path).images()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"manifests":{}}',
        b'{"manifests":[1]}',
        b'{"manifests":[],"layers":[]}',
        b'{"manifests":[],"mediaType":"application/vnd.oci.image.manifest.v1+json"}',
        b'{"manifests":[{"mediaType":"x","digest":"sha256:../../../etc/passwd","size":1}]}',
    ],
)
def test_malformed_indexes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "index.json").write_bytes(data)
    with pytest.raises(CorruptContent):
        BareLayout(tmp_path).images()


def test_an_entry_whose_size_lies(tmp_path: Path) -> None:
    draft = Draft().sign()
    draft.write(tmp_path)
    (tmp_path / "index.json").write_bytes(index([Descriptor(MANIFEST_TYPE, draft.image.digest, 1)]))
    with pytest.raises(CorruptContent, match="its entry says 1"):
        BareLayout(tmp_path).images()


def test_blobs_are_re_hashed_and_bounded(tmp_path: Path) -> None:
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    blob = put(tmp_path, b"12345")
    layout = BareLayout(tmp_path)
    assert layout.read(blob.digest, what="blob", max_bytes=5) == b"12345"
    with pytest.raises(CorruptContent, match="at most 4"):
        layout.read(blob.digest, what="blob", max_bytes=4)
    layout.path(blob.digest).write_bytes(b"12346")
    with pytest.raises(CorruptContent, match="does not have its digest"):
        layout.read(blob.digest, what="blob")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with open_regular(tmp_path / "file", "file") as stream:
        assert stream.read() == b"x"
    for name in ("link", "folder", "pipe", "missing", "file/below"):
        with pytest.raises(VerificationError):
            open_regular(tmp_path / name, name)
