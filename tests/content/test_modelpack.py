"""Model images: one strict form of manifest, and a config that the specification's schema accepts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from tests.images import Draft

from intaglio import strictjson
from intaglio.content.modelpack import ModelImage
from intaglio.errors import CorruptContent
from intaglio.strictjson import Object

SCHEMA = json.loads((Path(__file__).parents[1] / "vectors" / "modelpack-config.schema.json").read_text())


def test_reads_files_in_their_order() -> None:
    draft = Draft().seal()
    model = ModelImage.parse(draft.manifest, "image")
    assert model.files == draft.entries
    assert model.tree.digest == draft.tree
    assert model.check_config(strictjson.canonical(draft.config), "config") == draft.config


def marks(document: Object) -> Object:
    found: Object = document["layers"][0]["annotations"]
    return found


WRONG: dict[str, Callable[[Object], object]] = {
    "manifests beside layers": lambda d: d.update(manifests=[]),
    "subject": lambda d: d.update(subject=d["config"]),
    "schema version 1": lambda d: d.update(schemaVersion=1),
    "schema version as a float": lambda d: d.update(schemaVersion=2.5),
    "index": lambda d: d.update(mediaType="application/vnd.oci.image.index.v1+json"),
    "no artifact type": lambda d: d.pop("artifactType"),
    "other artifact type": lambda d: d.update(artifactType="application/vnd.intaglio.tree.v1"),
    "other config type": lambda d: d["config"].update(mediaType="application/vnd.oci.empty.v1+json"),
    "annotated config": lambda d: d["config"].update(annotations={"a": "b"}),
    "unknown key in a descriptor": lambda d: d["layers"][0].update(urls=["https://example.com"]),
    "no layers": lambda d: d.update(layers=[]),
    "layers an object": lambda d: d.update(layers={}),
    "tar layer": lambda d: d["layers"][0].update(mediaType="application/vnd.cncf.model.weight.v1.tar"),
    "layer of another kind": lambda d: d["layers"][0].update(mediaType="application/octet-stream"),
    "layer with an artifact type": lambda d: d["layers"][0].update(artifactType="x"),
    "negative size": lambda d: d["layers"][0].update(size=-1),
    "size as a string": lambda d: d["layers"][0].update(size="11"),
    "digest in upper case": lambda d: d["layers"][0].update(digest=d["layers"][0]["digest"].upper()),
    "digest of another algorithm": lambda d: d["layers"][0].update(digest="sha512:" + "0" * 128),
    "title another than path": lambda d: marks(d).update({"org.opencontainers.image.title": "LICENCE"}),
    "no title": lambda d: marks(d).pop("org.opencontainers.image.title"),
    "no path": lambda d: marks(d).pop("org.cncf.model.filepath"),
    "no metadata": lambda d: marks(d).pop("org.cncf.model.file.metadata+json"),
    "metadata of another size": lambda d: marks(d).update({"org.cncf.model.file.metadata+json": '{"size":1}'}),
    "unknown annotation": lambda d: marks(d).update({"org.cncf.model.file.encoding": "x"}),
    "annotation no string": lambda d: marks(d).update({"org.cncf.model.file.mediatype.untested": True}),
    "executable: false": lambda d: marks(d).update({"dev.intaglio.executable": "false"}),
    "duplicate path": lambda d: d["layers"].insert(0, d["layers"][0]),
    "layers in another order": lambda d: d["layers"].reverse(),
    "security annotation": lambda d: d.update(annotations={"org.cncf.ai.security.signed": "true"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_deviation_is_refused(name: str) -> None:
    document = Draft().seal().document
    WRONG[name](document)
    with pytest.raises(CorruptContent):
        ModelImage.parse(strictjson.canonical(document), "image")


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a\\b", "a\0b", "a\nb", "x.", "x ", "", ".", "n" * 256, "aux"])
def test_bad_paths_are_refused(path: str) -> None:
    document = Draft().seal().document
    for annotation in ("org.cncf.model.filepath", "org.opencontainers.image.title"):
        marks(document)[annotation] = path
    with pytest.raises(CorruptContent):
        ModelImage.parse(strictjson.canonical(document), "image")


def config(**parts: object) -> Object:
    return Draft().config | parts


CONFIGS: dict[str, Object] = {
    "ours": config(),
    "everything": config(
        descriptor={
            "createdAt": "2025-01-01T00:00:00Z",
            "authors": ["a"],
            "family": "f",
            "name": "n",
            "docURL": "u",
            "sourceURL": "u",
            "datasetsURL": ["u"],
            "version": "1",
            "revision": "r",
            "vendor": "v",
            "licenses": ["l"],
            "title": "t",
            "description": "d",
        },
        config={
            "architecture": "a",
            "format": "f",
            "paramSize": "1b",
            "precision": "p",
            "quantization": "q",
            "capabilities": {
                "inputTypes": ["text"],
                "outputTypes": ["embedding", "other"],
                "knowledgeCutoff": "2025-01-01T00:00:00Z",
                "reasoning": True,
                "toolUsage": False,
                "reward": False,
                "languages": ["en"],
            },
        },
    ),
    "empty": {},
    "no descriptor": {key: value for key, value in config().items() if key != "descriptor"},
    "unknown key": config(extra=1),
    "unknown key in the descriptor": config(descriptor={"digest": "x"}),
    "unknown key in the model": config(config={"sbom": "x"}),
    "unknown key in the capabilities": config(config={"capabilities": {"x": True}}),
    "empty name": config(descriptor={"name": ""}),
    "name a number": config(descriptor={"name": 1}),
    "licences a string": config(descriptor={"licenses": "x"}),
    "licence a number": config(descriptor={"licenses": [1]}),
    "reasoning a string": config(config={"capabilities": {"reasoning": "yes"}}),
    "modality unknown": config(config={"capabilities": {"inputTypes": ["smell"]}}),
    "modality no string": config(config={"capabilities": {"inputTypes": [["text"]]}}),
    "language long": config(config={"capabilities": {"languages": ["eng"]}}),
    "model null": config(config=None),
    "no diffIds": config(modelfs={"type": "layers"}),
    "diffIds numbers": config(modelfs={"type": "layers", "diffIds": [1]}),
    "other type": config(modelfs={"type": "tar", "diffIds": ["x"]}),
    "no type": config(modelfs={"diffIds": ["x"]}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_agrees_with_the_specifications_schema(name: str) -> None:
    model = ModelImage.parse(Draft().seal().manifest, "image")
    data = strictjson.canonical(CONFIGS[name])
    if jsonschema.Draft202012Validator(SCHEMA).is_valid(CONFIGS[name]):
        model.check_config(data, "config")
    else:
        with pytest.raises(CorruptContent):
            model.check_config(data, "config")


@pytest.mark.parametrize("change", [lambda ids: ids.reverse(), lambda ids: ids.pop(), lambda ids: ids.append(ids[0])])
def test_diff_ids_are_the_layers(change: Callable[[list[str]], object]) -> None:
    draft = Draft().seal()
    change(draft.config["modelfs"]["diffIds"])
    with pytest.raises(CorruptContent, match="diffIds"):
        ModelImage.parse(draft.manifest, "image").check_config(strictjson.canonical(draft.config), "config")


def test_dates_are_dates() -> None:
    model = ModelImage.parse(Draft().seal().manifest, "image")
    with pytest.raises(CorruptContent, match="createdAt"):
        model.check_config(strictjson.canonical(config(descriptor={"createdAt": "yesterday"})), "config")
