"""Model images: the CNCF ModelPack manifest over raw layers, read strictly and written in one way.

- One raw layer a file; its annotations say the path, twice, and constant metadata: they cannot disagree.
- The config's ``diffIds`` are the layers' digests, in order; it holds no time and nothing that the schema lacks.
- What another program could read differently is refused: ``manifests`` beside ``layers``, unknown keys.

(CNCF ModelPack specification 0.0.7; its JSON Schema ``config-schema.json``.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from intaglio import strictjson
from intaglio.content.descriptor import MANIFEST_TYPE, TITLE, Descriptor, parse_annotations
from intaglio.content.tree import EXECUTABLE, File, Tree
from intaglio.dataclass import dataclass, field
from intaglio.errors import CorruptContent
from intaglio.strictjson import Object

MODEL_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
FILEPATH = "org.cncf.model.filepath"
METADATA = "org.cncf.model.file.metadata+json"
SIMPLE_SIGNING_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
"""The payload of cosign's older signatures of images."""
MODEL_SIG = "model.sig"
"""The OMS bundle beside the files, where an image is a plain folder."""
_UNTESTED = "org.cncf.model.file.mediatype.untested"
_LAYER = re.compile(r"application/vnd\.cncf\.model\.(weight|weight\.config|doc|code|dataset)\.v1\.raw\Z")
_SECURITY = "org.cncf.ai.security."
"""Annotations of this prefix claim what a manifest cannot show."""
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)\Z")
_LANGUAGE = re.compile(r"[a-z]{2}\Z")
_MODALITIES = {"text", "image", "audio", "video", "embedding", "other"}


@dataclass(frozen=True, slots=True)
class ModelImage:
    """A model image: its files, its config, and what it says about itself."""

    files: tuple[File, ...]
    config: Descriptor
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def tree(self) -> Tree:
        """The tree of the same files: what the image is when it is an input."""
        return Tree.of(self.files)

    @classmethod
    def parse(cls, data: bytes, what: str) -> ModelImage:
        """Return the image whose manifest is ``data``.

        Raises:
            CorruptContent: any deviation from the form that the module describes.
        """
        manifest = strictjson.parse_object(data, what=what)
        known = {"schemaVersion", "mediaType", "artifactType", "config", "layers", "annotations"}
        if unknown := manifest.keys() - known:
            raise CorruptContent(f"{what}: unknown key {min(unknown)!r} in the manifest")
        for key, expected in (("schemaVersion", 2), ("mediaType", MANIFEST_TYPE), ("artifactType", MODEL_TYPE)):
            if manifest.get(key) != expected or isinstance(manifest[key], float):
                raise CorruptContent(f"{what}: expected {key} {expected}, found {manifest.get(key)!r}")
        config = Descriptor.parse(manifest.get("config"), what)
        if config != Descriptor(CONFIG_TYPE, config.digest, config.size):
            raise CorruptContent(f"{what}: expected a bare config of type {CONFIG_TYPE}, found {config.media_type!r}")
        layers = manifest.get("layers")
        if not isinstance(layers, list):
            raise CorruptContent(f"{what}: expected an array of layers")
        annotations = parse_annotations(manifest.get("annotations"), what)
        if any(key.startswith(_SECURITY) for key in annotations):
            raise CorruptContent(f"{what}: an annotation {_SECURITY}* claims what a manifest cannot show")
        files = tuple(_file(Descriptor.parse(layer, what), what) for layer in layers)
        if Tree.of(files).files != files:
            raise CorruptContent(f"{what}: expected the layers in the order of their paths")
        return cls(files, config, annotations)

    def check_config(self, data: bytes, what: str) -> Object:
        """Return the config in ``data``, which must fit the schema and this image's layers.

        Raises:
            CorruptContent: it does not.
        """
        config = strictjson.parse_object(data, what=what)
        _table(config, _CONFIG, what, required=("descriptor", "config", "modelfs"))
        expected = [str(file.digest) for file in self.files]
        if config["modelfs"]["diffIds"] != expected:
            raise CorruptContent(f"{what}: modelfs.diffIds are not the digests of the layers, in their order")
        return config


def layer_metadata(file: File) -> Object:
    """Return the constant file metadata of a layer: no owner, no time."""
    return {
        "name": file.path.rpartition("/")[2],
        "mode": 0o755 if file.executable else 0o644,
        "uid": 0,
        "gid": 0,
        "size": file.size,
        "mtime": "1970-01-01T00:00:00Z",
        "typeflag": 48,
    }


def _file(layer: Descriptor, what: str) -> File:
    marks = dict(layer.annotations)
    path = marks.pop(FILEPATH, "")
    where = f"{what}, layer {path[:128]!r}"
    if not _LAYER.match(layer.media_type):
        raise CorruptContent(f"{where}: expected a raw ModelPack layer, found {layer.media_type!r}")
    if layer.artifact_type is not None:
        raise CorruptContent(f"{where}: unknown key 'artifactType'")
    if marks.pop(TITLE, None) != path:
        raise CorruptContent(f"{where}: {TITLE} and {FILEPATH} disagree")
    executable = marks.pop(EXECUTABLE, None)
    if executable not in (None, "true"):
        raise CorruptContent(f"{where}: expected {EXECUTABLE} 'true' or none, found {executable!r}")
    file = File(path, layer.digest, layer.size, executable == "true")
    metadata = strictjson.parse_object(marks.pop(METADATA, "").encode(), what=f"{where}, its metadata")
    if metadata != layer_metadata(file):
        raise CorruptContent(f"{where}: expected the constant file metadata of this layer, found {metadata!r}")
    if marks.pop(_UNTESTED, "true") not in ("true", "false") or marks:
        raise CorruptContent(f"{where}: unknown annotation {min(marks, default=_UNTESTED)!r}")
    return file


# --- the config's schema, as functions -------------------------------------------------------------------------------

_Check = Callable[[object, str], None]


def _string(value: object, what: str) -> None:
    if not isinstance(value, str):
        raise CorruptContent(f"{what}: expected a string, found {type(value).__name__}")


def _name(value: object, what: str) -> None:
    _string(value, what)
    if not value:
        raise CorruptContent(f"{what}: expected a name, found an empty string")


def _date(value: object, what: str) -> None:
    if not isinstance(value, str) or not _DATE.match(value):
        raise CorruptContent(f"{what}: expected a date and time, found {value!r}")


def _boolean(value: object, what: str) -> None:
    if not isinstance(value, bool):
        raise CorruptContent(f"{what}: expected true or false, found {value!r}")


def _modality(value: object, what: str) -> None:
    if value not in list(_MODALITIES):
        raise CorruptContent(f"{what}: expected one of {', '.join(sorted(_MODALITIES))}, found {value!r}")


def _language(value: object, what: str) -> None:
    if not isinstance(value, str) or not _LANGUAGE.match(value):
        raise CorruptContent(f"{what}: expected a two-letter language, found {value!r}")


def _layers(value: object, what: str) -> None:
    if value != "layers":
        raise CorruptContent(f"{what}: expected 'layers', found {value!r}")


def _each(check: _Check) -> _Check:
    def run(value: object, what: str) -> None:
        if not isinstance(value, list):
            raise CorruptContent(f"{what}: expected an array, found {type(value).__name__}")
        for item in value:
            check(item, what)

    return run


def _object(table: Mapping[str, _Check], required: Iterable[str] = ()) -> _Check:
    def run(value: object, what: str) -> None:
        _table(value, table, what, required)

    return run


def _table(value: object, table: Mapping[str, _Check], what: str, required: Iterable[str] = ()) -> None:
    if not isinstance(value, dict):
        raise CorruptContent(f"{what}: expected an object, found {type(value).__name__}")
    if missing := set(required) - value.keys():
        raise CorruptContent(f"{what}: missing {min(missing)!r}")
    for key, item in value.items():
        if key not in table:
            raise CorruptContent(f"{what}: unknown key {key!r}")
        table[key](item, f"{what}, {key}")


_DESCRIPTOR: dict[str, _Check] = {
    **dict.fromkeys(
        ("family", "docURL", "sourceURL", "version", "revision", "vendor", "title", "description"), _string
    ),
    **dict.fromkeys(("authors", "datasetsURL", "licenses"), _each(_string)),
    "name": _name,
    "createdAt": _date,
}
_CAPABILITIES: dict[str, _Check] = {
    **dict.fromkeys(("inputTypes", "outputTypes"), _each(_modality)),
    **dict.fromkeys(("reasoning", "toolUsage", "reward"), _boolean),
    "knowledgeCutoff": _date,
    "languages": _each(_language),
}
_MODEL: dict[str, _Check] = {
    **dict.fromkeys(("architecture", "format", "paramSize", "precision", "quantization"), _string),
    "capabilities": _object(_CAPABILITIES),
}
_CONFIG: dict[str, _Check] = {
    "descriptor": _object(_DESCRIPTOR),
    "config": _object(_MODEL),
    "modelfs": _object({"type": _layers, "diffIds": _each(_string)}, required=("type", "diffIds")),
}
