"""The image: a CNCF ModelPack manifest over the same raw layers as the tree that it is made of.

- No byte is read but small configuration files: layers, sizes and digests are the tree's.
- Manifest and config hold no time, host, user or tool version: the same tree and recipe give the same digest.
- Everything that can be checked stands in referrers, not in annotations that claim what a manifest cannot show.

(CNCF model-spec 0.0.7.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from intaglio import strictjson
from intaglio.content.descriptor import MANIFEST_TYPE, TITLE, Descriptor
from intaglio.content.modelpack import CONFIG_TYPE, FILEPATH, METADATA, MODEL_TYPE, layer_metadata
from intaglio.content.tree import EXECUTABLE, LAYOUT, File, Tree
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent
from intaglio.recipe.modelfile import Model, Recipe
from intaglio.strictjson import Object

_LAYER = "application/vnd.cncf.model.{}.v1.raw"
_UNTESTED = "org.cncf.model.file.mediatype.untested"
_WEIGHTS = (".safetensors", ".gguf")
_DOCS = (".md", ".txt", ".pdf")
_DOC_NAMES = ("licence", "license", "notice", "readme")


@dataclass(frozen=True, slots=True)
class Assembled:
    """The bytes of an image's manifest and config."""

    manifest: bytes
    config: bytes

    def descriptor(self) -> Descriptor:
        """Return the descriptor of the manifest."""
        return Descriptor(MANIFEST_TYPE, Digest.of(self.manifest), len(self.manifest), MODEL_TYPE)


def parameters(recipe: Recipe) -> Object:
    """Return what the assembly of ``recipe`` depends on, beside the tree: it is part of the action."""
    return {"layout": LAYOUT, "model": _descriptor(recipe.model), "labels": dict(recipe.image.labels)}


def assemble(recipe: Recipe, tree: Tree, read: Callable[[File], bytes]) -> Assembled:
    """Return the image of ``tree``; ``read`` gives the bytes of a small file of it."""
    config = strictjson.canonical(
        {
            "descriptor": _descriptor(recipe.model),
            "config": _facts(tree, read),
            "modelfs": {"type": "layers", "diffIds": [str(file.digest) for file in tree.files]},
        }
    )
    manifest: Object = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": MODEL_TYPE,
        "config": Descriptor(CONFIG_TYPE, Digest.of(config), len(config)).to_json(),
        "layers": [_layer(file).to_json() for file in tree.files],
    }
    if recipe.image.labels:
        manifest["annotations"] = dict(recipe.image.labels)
    return Assembled(strictjson.canonical(manifest), config)


def _layer(file: File) -> Descriptor:
    metadata = strictjson.canonical(layer_metadata(file)).decode()
    marks = {FILEPATH: file.path, METADATA: metadata, _UNTESTED: "true", TITLE: file.path}
    if file.executable:
        marks[EXECUTABLE] = "true"
    return Descriptor(_LAYER.format(_kind(file.path)), file.digest, file.size, annotations=marks)


def _kind(path: str) -> str:
    name = path.rpartition("/")[2].lower()
    if name.endswith(_WEIGHTS):
        return "weight"
    if name.endswith(_DOCS) or name.split(".")[0] in _DOC_NAMES:
        return "doc"
    return "weight.config"


def _descriptor(model: Model) -> Object:
    """Return the model's own description; no creation time, no tool."""
    value: Object = {"name": model.name, "version": model.version, "licenses": [model.licence]}
    if model.family:
        value["family"] = model.family
    if model.description:
        value["description"] = model.description
    if model.authors:
        value["authors"] = list(model.authors)
    return value


def _facts(tree: Tree, read: Callable[[File], bytes]) -> Object:
    """Return what the files themselves say: format, architecture, precision."""
    facts: Object = {}
    for suffix in _WEIGHTS:
        if any(file.path.endswith(suffix) for file in tree.files):
            facts["format"] = suffix[1:]
    config = next((file for file in tree.files if file.path == "config.json"), None)
    if config is not None:
        try:
            values: Mapping[str, object] = strictjson.parse_object(read(config), what="config.json")
        except CorruptContent:
            return facts
        for name, key in (("architecture", "model_type"), ("precision", "dtype")):
            value = values.get(key)
            if isinstance(value, str):
                facts[name] = value
    return facts
