"""cosign's older form: what is said about an image, as the layers of one manifest under a tag beside the image's.

- A manifest is a function of its layers: no time, canonical JSON.
- Signatures stand under ``sha256-….sig``; theirs has a ``subject``, since it is a referrer like any other.
- Attestations stand under ``sha256-….att``; theirs has none: it repeats what bundles say that are referrers already.

Source: cosign's signature specification, "Tag-based discovery"; cosign's attestation specification.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from intaglio import strictjson
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor, parts_of
from intaglio.content.modelpack import SIMPLE_SIGNING_TYPE
from intaglio.content.runtime_image import IMAGE_CONFIG_TYPE
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent
from intaglio.strictjson import Json, Object

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
"""The newer form, which is a referrer; what the older one repeats is taken from there."""
ENVELOPE_TYPE = "application/vnd.dsse.envelope.v1+json"
SIGNATURE_MARK = "dev.cosignproject.cosign/signature"
COSIGN_SIGN = "https://sigstore.dev/cosign/sign/v1"
"""What a bundle says that is a signature and nothing more."""
MAX_LAYERS = 1000
"""Most layers under one tag: cosign reads none of a manifest that has more."""


@dataclass(frozen=True, slots=True)
class Form:
    """One of the two kinds of tag."""

    suffix: str
    layer_type: str
    kind: str
    """What marks such a manifest in ``index.json``, where there are no tags."""

    def tag(self, image: Digest) -> str:
        """Return the tag in the image's repository."""
        return f"sha256-{image.hex}{self.suffix}"

    def layers(self, document: Object, what: str) -> tuple[Descriptor, ...]:
        """Return the layers of a manifest of this form.

        Raises:
            CorruptContent: it is of another form.
        """
        config, *layers = parts_of(document, what)
        if config.media_type != IMAGE_CONFIG_TYPE or any(layer.media_type != self.layer_type for layer in layers):
            raise CorruptContent(f"{what}: expected layers of type {self.layer_type} alone")
        return tuple(layers)


SIGNATURES = Form(".sig", SIMPLE_SIGNING_TYPE, "dev.cosignproject.cosign/sigs")
ATTESTATIONS = Form(".att", ENVELOPE_TYPE, "dev.cosignproject.cosign/atts")
ATTESTED: Mapping[str, Json] = {"artifactType": ENVELOPE_TYPE}
"""What else stands in a manifest of attestations: without it, a layout would seem to hold a second image."""


def config_of(layers: Iterable[Descriptor]) -> tuple[Descriptor, bytes]:
    """Return the config that goes with ``layers``: an image's without a system, as cosign expects one."""
    rootfs: Object = {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]}
    config = strictjson.canonical({"architecture": "", "os": "", "config": {}, "rootfs": rootfs})
    return Descriptor(IMAGE_CONFIG_TYPE, Digest.of(config), len(config)), config


def manifest_of(config: Descriptor, layers: Iterable[Descriptor], rest: Mapping[str, Json]) -> bytes:
    """Return the manifest that holds ``layers``; ``rest`` is what else stands in it."""
    return strictjson.canonical(
        {
            **rest,
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
    )
