"""Archives of runtime images: what engines read of them, and what stops one half-way."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from tests import runnable

from intaglio.content import archive
from intaglio.content.layout import Store
from intaglio.content.runtime_image import RuntimeImage
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable

NAME = "localhost/intaglio/test:1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def image(store: Store) -> RuntimeImage:
    return runnable.image(store, "print(1)\n" * 300_000, python=False)


def read(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        return {member.name: found.extractfile(member).read() for member in found}  # type: ignore[union-attr]


def test_it_holds_config_layers_and_a_manifest_that_names_them(store: Store, image: RuntimeImage) -> None:
    members = read(b"".join(archive.stream(image, store, NAME)))
    config, layer = (f"blobs/sha256/{digest.hex}" for digest in (image.config.digest, image.files[0].digest))
    assert json.loads(members["manifest.json"]) == [{"Config": config, "RepoTags": [NAME], "Layers": [layer]}]
    blobs = {name: data for name, data in members.items() if name.startswith("blobs/")}
    assert set(blobs) == {config, layer, f"blobs/sha256/{archive.ids(image)[1].hex}"}
    assert all(Digest.of(data).hex == name.rpartition("/")[2] for name, data in blobs.items())


def test_it_is_an_oci_layout_with_the_manifest_that_is_its_other_id(store: Store, image: RuntimeImage) -> None:
    members = read(b"".join(archive.stream(image, store, NAME)))
    assert json.loads(members["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (described,) = json.loads(members["index.json"])["manifests"]
    assert described["digest"] == str(archive.ids(image)[1])
    assert set(described["annotations"].values()) == {NAME}
    manifest = members[f"blobs/sha256/{archive.ids(image)[1].hex}"]
    assert RuntimeImage.parse(manifest, "archived") == image
    assert store.read(archive.ids(image)[1], what="the manifest that was verified") == manifest


def test_it_is_the_same_bytes_twice(store: Store, image: RuntimeImage) -> None:
    assert b"".join(archive.stream(image, store, NAME)) == b"".join(archive.stream(image, store, NAME))


def test_a_layer_that_stands_there_twice_is_sent_once(store: Store, image: RuntimeImage) -> None:
    doubled = RuntimeImage((*image.files, *image.files), image.config)
    with tarfile.open(fileobj=io.BytesIO(b"".join(archive.stream(doubled, store, NAME)))) as found:
        names = found.getnames()
        manifest = json.load(found.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert len(names) == len(set(names))
    assert len(manifest[0]["Layers"]) == 2


@pytest.mark.parametrize("change", ["flipped", "shorter", "longer"])
def test_a_damaged_layer_ends_the_stream_before_its_last_bytes(store: Store, image: RuntimeImage, change: str) -> None:
    place = store.path(image.files[0].digest)
    data = bytearray(place.read_bytes())
    data[100] ^= change == "flipped"
    place.unlink()
    place.write_bytes({"flipped": bytes(data), "shorter": bytes(data[:-512]), "longer": bytes(data)}[change])
    if change == "longer":
        place.write_bytes(bytes(data) + bytes(512))
        assert b"".join(archive.stream(image, store, NAME)), "what stands behind the promised bytes is not read"
        return
    sent = bytearray()
    with pytest.raises(CorruptContent, match="found other bytes"):
        sent.extend(byte for chunk in archive.stream(image, store, NAME) for byte in chunk)
    assert bytes(data[-20_000:-10_000]) not in sent
    assert b"manifest.json" not in sent


def test_a_layer_that_is_gone(store: Store, image: RuntimeImage) -> None:
    store.path(image.files[0].digest).unlink()
    with pytest.raises(NotVerifiable, match="is not in the store"):
        list(archive.stream(image, store, NAME))
