"""Exports: copies, whole or not at all, in the forms that other tools read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from tests.images import Draft

from intaglio import strictjson
from intaglio.content.attestations import derive
from intaglio.content.export import export_files, export_layout
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, MachineError, NotVerifiable, UsageError


@pytest.fixture
def draft() -> Draft:
    return Draft().sign()


@pytest.fixture
def store(draft: Draft, tmp_path: Path) -> Store:
    return draft.store(tmp_path / "store")


def test_a_layout_holds_the_image_first_and_every_blob_once(draft: Draft, store: Store, tmp_path: Path) -> None:
    export_layout(store, draft.image.digest, tmp_path / "out", name="examples/demo:1.0.0")
    found = {path.name for path in (tmp_path / "out" / "blobs" / "sha256").iterdir()}
    attested = derive(store, draft.image.digest)
    assert attested is not None
    derived = {Digest.of(blob).hex for blob in (attested.manifest, *attested.blobs)}
    assert found == {digest.hex for digest in draft.blobs()} | derived
    index = strictjson.parse_object((tmp_path / "out" / "index.json").read_bytes(), what="index")
    first, second, third, *others = index["manifests"]
    assert first["digest"] == str(draft.image.digest)
    assert first["annotations"] == {
        "kind": "dev.cosignproject.cosign/image",
        "org.opencontainers.image.ref.name": "examples/demo:1.0.0",
    }
    assert second["digest"] == str(draft.referrers[1].digest)
    assert second["annotations"] == {"kind": "dev.cosignproject.cosign/sigs"}
    assert third["digest"] == str(Digest.of(attested.manifest))
    assert third["annotations"] == {"kind": "dev.cosignproject.cosign/atts"}
    assert {one["digest"] for one in others} == {str(one.digest) for one in draft.referrers} - {second["digest"]}
    assert strictjson.parse_object((tmp_path / "out" / "oci-layout").read_bytes(), what="") == {
        "imageLayoutVersion": "1.0.0"
    }


def test_an_image_that_nothing_attests_has_no_attestations(draft: Draft, tmp_path: Path) -> None:
    del draft.referrers[3]
    export_layout(draft.store(tmp_path / "store"), draft.image.digest, tmp_path / "out")
    assert b"cosign/atts" not in (tmp_path / "out" / "index.json").read_bytes()


def test_the_same_export_twice_is_the_same_bytes(draft: Draft, store: Store, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_layout(store, draft.image.digest, tmp_path / name)
    assert (tmp_path / "one" / "index.json").read_bytes() == (tmp_path / "two" / "index.json").read_bytes()


def test_a_folder_holds_the_files_and_the_signature(draft: Draft, store: Store, tmp_path: Path) -> None:
    bundle = draft.referrers[2].blobs[1]
    export_files(store, draft.image.digest, tmp_path / "deep" / "out", bundle)
    folder = tmp_path / "deep" / "out"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {**draft.files, "model.sig": bundle}
    assert all(path.stat().st_nlink == 1 for path in folder.rglob("*") if path.is_file())


def test_no_later_edit_reaches_the_store(draft: Draft, store: Store, tmp_path: Path) -> None:
    export_files(store, draft.image.digest, tmp_path / "files", b"x")
    export_layout(store, draft.image.digest, tmp_path / "layout")
    for path in [*(tmp_path / "files").rglob("*"), *(tmp_path / "layout").rglob("*")]:
        if path.is_file():
            assert path.stat().st_mode & stat.S_IWUSR
            path.write_bytes(b"edited")
    assert store.verify()[1] == ()


def test_nothing_is_written_over(draft: Draft, store: Store, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file", "link"):
        with pytest.raises(UsageError):
            export_layout(store, draft.image.digest, tmp_path / name)
    assert (tmp_path / "full" / "mine").read_bytes() == b"mine"
    export_layout(store, draft.image.digest, tmp_path / "empty")
    assert (tmp_path / "empty" / "index.json").exists()


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_store_leaves_nothing(draft: Draft, store: Store, tmp_path: Path, damage: str) -> None:
    place = store.path(draft.entries[2].digest)
    data = place.read_bytes()
    place.unlink()
    if damage == "flipped":
        place.write_bytes(data[:-1] + b"\xff")
    expected = CorruptContent if damage == "flipped" else NotVerifiable
    with pytest.raises(expected):
        export_layout(store, draft.image.digest, tmp_path / "layout")
    with pytest.raises(expected):
        export_files(store, draft.image.digest, tmp_path / "files", b"")
    assert sorted(os.listdir(tmp_path)) == ["store"]


def test_an_image_with_a_signature_of_its_own(tmp_path: Path) -> None:
    draft = Draft(files={"model.sig": b"x", "LICENSE": b"x"}).sign()
    store = draft.store(tmp_path / "store")
    with pytest.raises(UsageError, match=r"model\.sig"):
        export_files(store, draft.image.digest, tmp_path / "out", b"")


def test_a_place_that_cannot_be_written(draft: Draft, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MachineError):
        export_layout(store, draft.image.digest, tmp_path / "file" / "out")
