"""The attestations of an image in cosign's older form, derived from the bundles that refer to it.

- The same bundles give the same bytes, in whatever order they are found; no key is needed, since envelopes are copied.
- An attestation says something about the image, by its digest, that is more than a signature.
- What is derived is for other tools: it is no evidence here, and no key is asked about it. A bundle that is malformed,
  or says who signed it by a certificate, which an envelope has no place for, is passed over.

Source: cosign's attestation specification; DSSE 1.0; in-toto Statement v1.
"""

from __future__ import annotations

import base64

from intaglio import strictjson
from intaglio.content.cosign_tag import (
    ATTESTED,
    BUNDLE_TYPE,
    COSIGN_SIGN,
    ENVELOPE_TYPE,
    SIGNATURE_MARK,
    config_of,
    manifest_of,
)
from intaglio.content.descriptor import Descriptor, parts_of
from intaglio.content.layout import Store
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import VerificationError

_ENVELOPE = ("payload", "payloadType", "signatures")
_MAX_TYPE = 256
"""Longest predicate type that is repeated in an annotation: no stranger's bundle makes the manifest too large."""


@dataclass(frozen=True, slots=True)
class Attestations:
    """The manifest for cosign's tag, and the blobs that it needs beside it."""

    manifest: bytes
    layers: tuple[Descriptor, ...]
    blobs: tuple[bytes, ...]
    """The config, then one envelope a layer."""


def derive(store: Store, image: Digest) -> Attestations | None:
    """Return the attestations of ``image`` that the store holds bundles of; nothing where there is none.

    Raises:
        CorruptContent: a bundle does not have its digest.
    """
    found: dict[Digest, tuple[Descriptor, bytes]] = {}
    for referrer in store.referrers(image):
        if referrer.artifact_type != BUNDLE_TYPE:
            continue
        for part in _bundles(store.read(referrer.digest, what="referrer")):
            if not store.has(part.digest):
                continue  # whoever copies the image has said so already, where it matters
            layer = _envelope(store.read(part.digest, what=f"bundle {part.digest.short}"), image)
            if layer is not None:
                found[layer[0].digest] = layer
    if not found:
        return None
    layers, envelopes = zip(*(found[digest] for digest in sorted(found)), strict=True)
    config, data = config_of(layers)
    return Attestations(manifest_of(config, layers, ATTESTED), layers, (data, *envelopes))


def _bundles(manifest: bytes) -> tuple[Descriptor, ...]:
    """Return the layers that can be bundles."""
    try:
        _, *layers = parts_of(strictjson.parse_object(manifest, what="referrer"), "referrer")
    except VerificationError:
        return ()
    return tuple(one for one in layers if one.media_type == BUNDLE_TYPE and one.size <= strictjson.MAX_BYTES)


def _envelope(bundle: bytes, image: Digest) -> tuple[Descriptor, bytes] | None:
    """Return the envelope in ``bundle``, with its descriptor, if what it holds is an attestation of ``image``."""
    try:
        document = strictjson.parse_object(bundle, what="bundle")
        envelope, _ = document["dsseEnvelope"], document["verificationMaterial"]["publicKey"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        statement = strictjson.parse_object(payload, what="statement")
        kind = statement["predicateType"]
        subjects = [subject["digest"].get("sha256") for subject in statement["subject"]]
        data = strictjson.canonical({name: envelope[name] for name in _ENVELOPE})
    except (VerificationError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if image.hex not in subjects or not isinstance(kind, str) or kind == COSIGN_SIGN or len(kind) > _MAX_TYPE:
        return None
    marks = {SIGNATURE_MARK: "", "predicateType": kind}
    return Descriptor(ENVELOPE_TYPE, Digest.of(data), len(data), annotations=marks), data
