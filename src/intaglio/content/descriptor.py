"""OCI descriptors: media type, digest and size of one blob (OCI image specification 1.1, "Descriptor")."""

from __future__ import annotations

from collections.abc import Mapping

from intaglio.dataclass import dataclass, field
from intaglio.digest import Digest
from intaglio.errors import CorruptContent
from intaglio.strictjson import Object

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
"""The one empty configuration blob."""
TITLE = "org.opencontainers.image.title"
"""Annotation that names the file a layer holds."""
_KNOWN = {"mediaType", "digest", "size", "artifactType", "annotations"}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What names a blob: its media type, digest and size in bytes."""

    media_type: str
    digest: Digest
    size: int
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> Object:
        """Return the JSON form; absent parts are left out, never written as null."""
        value: Object = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.artifact_type is not None:
            value["artifactType"] = self.artifact_type
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return value

    @classmethod
    def parse(cls, value: object, what: str) -> Descriptor:
        """Return the descriptor in ``value``; ``what`` says where it stands.

        Raises:
            CorruptContent: a part is missing, unknown, or of the wrong type.
        """
        if not isinstance(value, dict):
            raise CorruptContent(f"{what}: expected a descriptor, found {type(value).__name__}")
        unknown = value.keys() - _KNOWN
        if unknown:
            raise CorruptContent(f"{what}: unknown key {min(map(str, unknown))!r} in a descriptor")
        media_type, size = value.get("mediaType"), value.get("size")
        if not isinstance(media_type, str) or not media_type:
            raise CorruptContent(f"{what}: mediaType is not a string")
        if type(size) is not int or size < 0:
            raise CorruptContent(f"{what}: size is not a count of bytes: {size!r}")
        artifact_type = value.get("artifactType")
        if artifact_type is not None and not isinstance(artifact_type, str):
            raise CorruptContent(f"{what}: artifactType is not a string")
        return cls(
            media_type,
            Digest.parse(value.get("digest")),
            size,
            artifact_type,
            parse_annotations(value.get("annotations"), what),
        )


def parse_annotations(value: object, what: str) -> dict[str, str]:
    """Return ``value`` as annotations: an object of strings, or nothing.

    Raises:
        CorruptContent: anything else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise CorruptContent(f"{what}: annotations are not an object of strings")
    return dict(value)


def parts_of(document: Object, what: str) -> tuple[Descriptor, ...]:
    """Return config and layers of an image manifest.

    Raises:
        CorruptContent: it is none.
    """
    layers = document.get("layers")
    if document.get("mediaType") != MANIFEST_TYPE or "manifests" in document or not isinstance(layers, list):
        raise CorruptContent(f"{what}: expected an OCI image manifest")
    return tuple(Descriptor.parse(part, what) for part in (document.get("config"), *layers))
