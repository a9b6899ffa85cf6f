"""Images: ModelPack manifests that anyone makes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from intaglio.build import image
from intaglio.content.modelpack import ModelImage
from intaglio.content.tree import File, Tree
from intaglio.digest import Digest
from intaglio.recipe.modelfile import Image, Model

VECTORS = Path(__file__).parents[1] / "vectors"
SCHEMA = json.loads((VECTORS / "modelpack-config.schema.json").read_text(encoding="utf-8"))
CONFIG = b'{"architectures":["LlamaForCausalLM"],"dtype":"bfloat16","model_type":"llama"}'
FILES = {
    "LICENSE": b"Apache-2.0\n",
    "README.md": b"# demo\n",
    "config.json": CONFIG,
    "model.safetensors": b"weights",
    "run.sh": b"#!/bin/sh\n",
    "sub/tokenizer.json": b"{}",
}


def recipe(**change: Any) -> Any:
    model = Model(
        name="examples/demo",
        version="1.0.0",
        licence="Apache-2.0",
        family="llama",
        description="A “demo”, for tests.",
        authors=("The Intaglio authors",),
    )
    labels = {"org.example.team": "press"}
    return SimpleNamespace(model=change.get("model", model), image=Image("convert", change.get("labels", labels)))


def tree(files: dict[str, bytes] | None = None) -> Tree:
    files = FILES if files is None else files
    return Tree.of(File(path, Digest.of(data), len(data), path.endswith(".sh")) for path, data in files.items())


def assemble(files: dict[str, bytes] | None = None, **change: Any) -> image.Assembled:
    source = FILES if files is None else files
    return image.assemble(recipe(**change), tree(source), lambda file: source[file.path])


def test_golden() -> None:
    made = assemble()
    assert made.manifest == (VECTORS / "build" / "image-manifest.json").read_bytes()
    assert made.config == (VECTORS / "build" / "image-config.json").read_bytes()
    assert made.descriptor().digest == Digest.of(made.manifest)


@pytest.mark.parametrize("change", [{}, {"labels": {}}, {"model": Model("a", "1", "MIT")}])
def test_the_config_fits_the_schema_of_the_specification(change: dict[str, Any]) -> None:
    made = assemble(**change)
    config = json.loads(made.config)
    jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(config)
    parsed = ModelImage.parse(made.manifest, "image")
    assert parsed.check_config(made.config, "config") == config
    assert parsed.files == tree().files
    assert parsed.tree == tree()


def test_the_schema_refuses_what_it_does_not_know() -> None:
    config = json.loads(assemble().config)
    spoils: tuple[Callable[[], None], ...] = (
        lambda: config.update(lineage=[]),
        lambda: config["descriptor"].update(digest="x"),
    )
    for spoil in spoils:
        spoil()
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(config, SCHEMA)


def test_layers_are_the_files_with_their_kinds_and_constant_metadata() -> None:
    manifest = json.loads(assemble().manifest)
    layers = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in manifest["layers"]}
    kinds = {path: layer["mediaType"] for path, layer in layers.items()}
    assert kinds == {
        "LICENSE": "application/vnd.cncf.model.doc.v1.raw",
        "README.md": "application/vnd.cncf.model.doc.v1.raw",
        "config.json": "application/vnd.cncf.model.weight.config.v1.raw",
        "model.safetensors": "application/vnd.cncf.model.weight.v1.raw",
        "run.sh": "application/vnd.cncf.model.weight.config.v1.raw",
        "sub/tokenizer.json": "application/vnd.cncf.model.weight.config.v1.raw",
    }
    for path, layer in layers.items():
        assert layer["digest"] == str(Digest.of(FILES[path]))
        assert layer["annotations"]["org.opencontainers.image.title"] == path
        metadata = json.loads(layer["annotations"]["org.cncf.model.file.metadata+json"])
        assert metadata == {
            "name": path.rpartition("/")[2],
            "mode": 0o755 if path == "run.sh" else 0o644,
            "uid": 0,
            "gid": 0,
            "size": len(FILES[path]),
            "mtime": "1970-01-01T00:00:00Z",
            "typeflag": 48,
        }
    text = assemble().manifest + assemble().config
    for word in (b"createdAt", b"created", b"intaglio/", b"org.cncf.ai.security"):
        assert word not in text


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        (CONFIG, {"format": "safetensors", "architecture": "llama", "precision": "bfloat16"}),
        (b"not json", {"format": "safetensors"}),
        (b"[]", {"format": "safetensors"}),
        (b'{"model_type": 7, "dtype": null}', {"format": "safetensors"}),
        (b'{"model_type":"a","model_type":"b"}', {"format": "safetensors"}),
        (b"{" * 10000, {"format": "safetensors"}),
    ],
)
def test_facts_are_taken_from_the_files_and_never_invented(config: bytes, facts: dict[str, str]) -> None:
    made = assemble({**FILES, "config.json": config})
    assert json.loads(made.config)["config"] == facts


def test_the_format_of_a_gguf_model() -> None:
    made = assemble({"model.gguf": b"GGUF"})
    assert json.loads(made.config)["config"] == {"format": "gguf"}
    assert json.loads(assemble({"notes.txt": b"x"}).config)["config"] == {}


def test_labels_and_names_change_the_image_and_its_action_alone() -> None:
    plain, labelled = image.parameters(recipe(labels={})), image.parameters(recipe())
    assert plain != labelled
    assert assemble(labels={}).config == assemble().config
    assert json.loads(assemble().manifest)["annotations"] == {"org.example.team": "press"}
    assert "annotations" not in json.loads(assemble(labels={}).manifest)
    renamed = Model("examples/other", "1.0.0", "Apache-2.0")
    assert assemble(model=renamed).manifest != assemble().manifest
