"""Runtime images: runnable OCI images, read strictly; and the one way to read either kind of image.

- Only what is written here is read: one platform, tar layers without compression, ``diff_ids`` that are the layers'
  digests; so whoever hashed the layers knows every byte that will run.
- What another program could read differently is refused: ``manifests`` beside ``layers``, unknown keys.

(OCI image specification 1.1, "Image Manifest" and "Image Configuration".)
"""

from __future__ import annotations

from collections.abc import Mapping

from intaglio import strictjson
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor, parse_annotations
from intaglio.content.modelpack import ModelImage
from intaglio.content.tree import File
from intaglio.dataclass import dataclass, field
from intaglio.errors import CorruptContent
from intaglio.strictjson import Object

IMAGE_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
"""Uncompressed: the layer's digest is its diff id."""
RUNTIME_LABEL = "dev.intaglio.runtime"
"""Label that says which runtime the image is."""
SERVER_LABEL = "dev.intaglio.server"
EMBED_LABEL = "dev.intaglio.embed"
MODEL_LABEL = "dev.intaglio.model"
"""Label that says which model image is in it, where one is."""
MAX_LAYERS = 127
"""Most layers that container engines take."""
_MANIFEST = {"schemaVersion", "mediaType", "config", "layers", "annotations"}
_CONFIG = {"architecture", "os", "config", "rootfs"}
_SETTINGS = {"Entrypoint", "Env", "Labels", "User", "WorkingDir"}


@dataclass(frozen=True, slots=True)
class RuntimeImage:
    """A runnable image: its layers, its config, and what it says about itself."""

    files: tuple[File, ...]
    """The layers in their order, under made-up names."""
    config: Descriptor
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """The layers' descriptors, in their order."""
        return tuple(Descriptor(LAYER_TYPE, file.digest, file.size) for file in self.files)

    @classmethod
    def parse(cls, data: bytes, what: str) -> RuntimeImage:
        """Return the image whose manifest is ``data``.

        Raises:
            CorruptContent: any deviation from the form that the module describes.
        """
        manifest = strictjson.parse_object(data, what=what)
        if unknown := manifest.keys() - _MANIFEST:
            raise CorruptContent(f"{what}: unknown key {min(unknown)!r} in the manifest")
        for key, expected in (("schemaVersion", 2), ("mediaType", MANIFEST_TYPE)):
            if manifest.get(key) != expected or isinstance(manifest[key], float):
                raise CorruptContent(f"{what}: expected {key} {expected}, found {manifest.get(key)!r}")
        config = Descriptor.parse(manifest.get("config"), what)
        if config != Descriptor(IMAGE_CONFIG_TYPE, config.digest, config.size):
            raise CorruptContent(f"{what}: expected a bare config of type {IMAGE_CONFIG_TYPE}")
        layers = manifest.get("layers")
        if not isinstance(layers, list) or not 0 < len(layers) <= MAX_LAYERS:
            raise CorruptContent(f"{what}: expected 1 to {MAX_LAYERS} layers")
        files = []
        for number, entry in enumerate(layers):
            layer = Descriptor.parse(entry, what)
            if layer != Descriptor(LAYER_TYPE, layer.digest, layer.size):
                raise CorruptContent(f"{what}: expected bare layers of type {LAYER_TYPE}, found {layer.media_type!r}")
            files.append(File(f"layer-{number:03}.tar", layer.digest, layer.size))
        return cls(tuple(files), config, parse_annotations(manifest.get("annotations"), what))

    def check_config(self, data: bytes, what: str) -> Object:
        """Return the config in ``data``, which must be in our form and fit this image's layers.

        Raises:
            CorruptContent: it does not.
        """
        config = strictjson.parse_object(data, what=what)
        _exact(config, _CONFIG, what)
        if (config["architecture"], config["os"]) != ("amd64", "linux"):
            raise CorruptContent(f"{what}: expected linux/amd64")
        settings = config["config"]
        _exact(settings, _SETTINGS, f"{what}, config")
        for key in ("Entrypoint", "Env"):
            if not isinstance(settings[key], list) or not all(isinstance(item, str) for item in settings[key]):
                raise CorruptContent(f"{what}: {key} is not an array of strings")
        parse_annotations(settings["Labels"], f"{what}, Labels")
        if not all(isinstance(settings[key], str) for key in ("User", "WorkingDir")):
            raise CorruptContent(f"{what}: User and WorkingDir are not strings")
        expected = {"type": "layers", "diff_ids": [str(file.digest) for file in self.files]}
        if config["rootfs"] != expected:
            raise CorruptContent(f"{what}: rootfs.diff_ids are not the digests of the layers, in their order")
        return config


def is_runtime(data: bytes, what: str = "image") -> bool:
    """Return whether the manifest ``data`` says that it is a runnable image: a hint for which form to hold it to."""
    manifest = strictjson.parse_object(data, what=what)
    config = manifest.get("config")
    return "artifactType" not in manifest and isinstance(config, dict) and config.get("mediaType") == IMAGE_CONFIG_TYPE


def open_image(data: bytes, what: str) -> ModelImage | RuntimeImage:
    """Return the image whose manifest is ``data``, of whichever kind it is.

    Raises:
        CorruptContent: it is neither a model image nor a runtime image in its one strict form.
    """
    return RuntimeImage.parse(data, what) if is_runtime(data, what) else ModelImage.parse(data, what)


def _exact(value: object, keys: set[str], what: str) -> None:
    if not isinstance(value, dict) or value.keys() != keys:
        found = ", ".join(sorted(map(str, value))) if isinstance(value, dict) else type(value).__name__
        raise CorruptContent(f"{what}: expected the keys {', '.join(sorted(keys))}, found {found}")
