"""Runtime images in their one strict form, and which kind of image a manifest is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.images import Draft

from intaglio import strictjson
from intaglio.content.descriptor import MANIFEST_TYPE
from intaglio.content.modelpack import ModelImage
from intaglio.content.runtime_image import IMAGE_CONFIG_TYPE, LAYER_TYPE, RuntimeImage, is_runtime, open_image
from intaglio.digest import Digest
from intaglio.errors import CorruptContent

LAYERS = [Digest.of(b"one"), Digest.of(b"two")]
Change = Callable[[dict[str, Any]], object]


def config() -> dict[str, Any]:
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/x"], "Env": ["A=b"], "Labels": {"l": "v"}, "User": "1:1", "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [str(one) for one in LAYERS]},
    }


def manifest() -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": IMAGE_CONFIG_TYPE, "digest": str(Digest.of(b"config")), "size": 6},
        "layers": [{"mediaType": LAYER_TYPE, "digest": str(one), "size": 3} for one in LAYERS],
    }


def parsed(document: dict[str, Any]) -> RuntimeImage:
    return RuntimeImage.parse(strictjson.canonical(document), "image")


def test_layers_and_config() -> None:
    image = parsed(manifest())
    assert [one.digest for one in image.layers] == LAYERS
    assert [one.digest for one in image.files] == LAYERS
    assert image.check_config(strictjson.canonical(config()), "config")["config"]["Labels"] == {"l": "v"}


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.update(schemaVersion=1),
        lambda one: one.update(mediaType="application/vnd.oci.image.index.v1+json"),
        lambda one: one.update(manifests=[]),
        lambda one: one.update(subject=one["config"]),
        lambda one: one.update(artifactType="x/y"),
        lambda one: one.update(layers=[]),
        lambda one: one.update(layers=one["layers"] * 64),
        lambda one: one["layers"][0].update(mediaType=LAYER_TYPE + "+gzip"),
        lambda one: one["layers"][0].update(annotations={"a": "b"}),
        lambda one: one["layers"][0].update(urls=["https://example.com"]),
        lambda one: one["config"].update(mediaType="application/json"),
        lambda one: one.pop("layers"),
    ],
)
def test_a_manifest_of_another_form(change: Change) -> None:
    document = manifest()
    change(document)
    with pytest.raises(CorruptContent):
        parsed(document)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.update(history=[]),
        lambda one: one.update(os="windows"),
        lambda one: one.update(architecture="arm64"),
        lambda one: one["rootfs"]["diff_ids"].reverse(),
        lambda one: one["rootfs"]["diff_ids"].pop(),
        lambda one: one["config"].update(Cmd=["sh"]),
        lambda one: one["config"].update(Entrypoint="/x"),
        lambda one: one["config"].update(Env=[1]),
        lambda one: one["config"].update(Labels={"a": 1}),
        lambda one: one["config"].pop("User"),
        lambda one: one["config"].update(User=0),
        lambda one: one.update(config=None),
    ],
)
def test_a_config_of_another_form(change: Change) -> None:
    document = config()
    change(document)
    with pytest.raises(CorruptContent):
        parsed(manifest()).check_config(strictjson.canonical(document), "config")


def test_either_kind_is_opened() -> None:
    draft = Draft().seal()
    assert isinstance(open_image(draft.manifest, "image"), ModelImage)
    assert isinstance(open_image(strictjson.canonical(manifest()), "image"), RuntimeImage)
    assert is_runtime(strictjson.canonical(manifest()))
    assert not is_runtime(draft.manifest)


def test_a_manifest_that_is_neither() -> None:
    with pytest.raises(CorruptContent):
        open_image(b'{"schemaVersion":2}', "image")
