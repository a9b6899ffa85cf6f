"""Manifests that refer to an image: signatures, attestations and lineage, as bytes ready to store.

- Each is a function of its subject and blobs: no creation time, canonical JSON.
- Each carries its ``subject``, cosign's older form too, so that one walk over referrers finds all of them.
- Annotations and artifact types are for those who list; whoever decides opens the blobs.

(OCI image specification 1.1, "Image Manifest"; cosign's signature specification, both forms.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from intaglio import strictjson
from intaglio.content.cosign_tag import SIGNATURE_MARK, config_of, manifest_of
from intaglio.content.descriptor import EMPTY, EMPTY_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.content.modelpack import SIMPLE_SIGNING_TYPE
from intaglio.dataclass import dataclass, field
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, Untrusted
from intaglio.strictjson import Object
from intaglio.trust.key import KeyId, PrivateKey, PublicKey
from intaglio.trust.signature import BUNDLE_TYPE, Hint, decode, encode, fields, sign_bundle
from intaglio.trust.statement import COSIGN_SIGN, MODEL_SIGNING, cosign_statement, model_signing_statement

LINEAGE_TYPE = "application/vnd.intaglio.lineage.v1"
MAX_CLAIMS = 4096
"""Most claims in one lineage."""
_SIGNATURE = "cosign container image signature"


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest with a subject, and the blobs it needs beside it."""

    manifest: bytes
    blobs: tuple[bytes, ...]

    @property
    def digest(self) -> Digest:
        """The manifest's digest."""
        return Digest.of(self.manifest)


@dataclass(frozen=True, slots=True)
class Link:
    """A referrer's manifest as it was read: what its blobs are, by their descriptors."""

    subject: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes, what: str) -> Link:
        """Return the referrer whose manifest is ``data``.

        Raises:
            CorruptContent: not an image manifest with a subject, or one with unknown fields.
        """
        manifest = strictjson.parse_object(data, what=what)
        fields(
            manifest,
            {"schemaVersion", "mediaType", "config", "layers", "subject"},
            what,
            optional={"artifactType", "annotations"},
        )
        version = manifest["schemaVersion"]
        if type(version) is not int or version != 2 or manifest["mediaType"] != MANIFEST_TYPE:
            raise CorruptContent(f"{what}: expected an OCI image manifest, found {manifest['mediaType']!r}")
        layers = manifest["layers"]
        if not isinstance(layers, list) or not layers or len(layers) > MAX_CLAIMS:
            raise CorruptContent(f"{what}: expected 1 to {MAX_CLAIMS} layers")
        # One descriptor's rules serve for all that a manifest says about itself, too.
        itself = {"mediaType": MANIFEST_TYPE, "digest": str(Digest.of(data)), "size": len(data)}
        itself |= {key: manifest[key] for key in ("artifactType", "annotations") if key in manifest}
        described = Descriptor.parse(itself, what)
        return cls(
            Descriptor.parse(manifest["subject"], what),
            Descriptor.parse(manifest["config"], what),
            tuple(Descriptor.parse(layer, what) for layer in layers),
            described.artifact_type,
            described.annotations,
        )


def bundle_referrer(
    subject: Descriptor, bundle: bytes, predicate_type: str, annotations: Mapping[str, str] | None = None
) -> Referrer:
    """Return the referrer that carries one Sigstore bundle, as cosign 3 and later write and read it."""
    marks = {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": predicate_type,
        **(annotations or {}),
    }
    return Referrer(_manifest(subject, BUNDLE_TYPE, (bundle,), marks), (EMPTY, bundle))


def lineage_referrer(image: Descriptor, claims: Iterable[bytes]) -> Referrer:
    """Return the one referrer that holds every upstream claim of ``image``; repeats are dropped, order is fixed."""
    unique = {Digest.of(claim): claim for claim in claims}
    ordered = tuple(unique[digest] for digest in sorted(unique))
    return Referrer(_manifest(image, LINEAGE_TYPE, ordered, {}), (EMPTY, *ordered))


def signature_referrers(
    image: Descriptor, name: str, files: Iterable[tuple[str, Digest]], key: PrivateKey
) -> tuple[Referrer, ...]:
    """Return the release signature of ``image`` in all forms: bundle, cosign's older one, OMS.

    Args:
        image: the image's manifest.
        name: the model's name without version; signed as OMS subject and as cosign's ``docker-reference``.
        files: path and sha256 of each of the image's files, from its manifest: no blob is read.
        key: the release key.
    """
    subject = Descriptor(image.media_type, image.digest, image.size)
    signature = sign_bundle(cosign_statement(image.digest).payload(), key)
    folder = sign_bundle(model_signing_statement(name, files).payload(), key, Hint.OMS)
    return (
        bundle_referrer(subject, signature, COSIGN_SIGN),
        cosign_referrer(subject, name, key),
        bundle_referrer(subject, folder, MODEL_SIGNING),
    )


def runtime_referrers(image: Descriptor, name: str, key: PrivateKey) -> tuple[Referrer, ...]:
    """Return the release signature of a runtime image in both of cosign's forms: it has no files of its own to sign."""
    subject = Descriptor(image.media_type, image.digest, image.size)
    signature = sign_bundle(cosign_statement(image.digest).payload(), key)
    return bundle_referrer(subject, signature, COSIGN_SIGN), cosign_referrer(subject, name, key)


def cosign_referrer(image: Descriptor, name: str, key: PrivateKey) -> Referrer:
    """Return cosign's older signature manifest (tag ``sha256-….sig`` in a registry)."""
    payload = strictjson.canonical(_simple_signing(name, image.digest))
    layer = Descriptor(
        SIMPLE_SIGNING_TYPE,
        Digest.of(payload),
        len(payload),
        annotations={SIGNATURE_MARK: encode(key.sign(payload))},
    )
    config, data = config_of([layer])
    subject = Descriptor(image.media_type, image.digest, image.size)
    return Referrer(manifest_of(config, [layer], {"subject": subject.to_json()}), (data, payload))


def open_cosign(layer: Descriptor, payload: bytes, image: Digest, keys: Iterable[PublicKey], *, what: str) -> KeyId:
    """Return the key that signed ``payload`` in cosign's older form, if it is about ``image``.

    Raises:
        CorruptContent: the signature or the signed payload is malformed, or about another manifest.
        Untrusted: none of ``keys`` signed it.
    """
    signature = decode(layer.annotations.get(SIGNATURE_MARK), what)
    signers = [key.id for key in keys if key.verifies(payload, signature)]
    if not signers:
        raise Untrusted(f"{what}: not signed by a key that the policy names for this role")
    critical = fields(strictjson.parse_object(payload, what=what), {"critical", "optional"}, what)["critical"]
    parts = fields(critical, {"identity", "image", "type"}, what)
    name = fields(parts["identity"], {"docker-reference"}, what)["docker-reference"]
    if not isinstance(name, str) or parts != _simple_signing(name, image)["critical"]:
        raise CorruptContent(f"{what}: the signature is about something else than {image}")
    return signers[0]


def _simple_signing(name: str, image: Digest) -> Object:
    critical = {
        "identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": str(image)},
        "type": _SIGNATURE,
    }
    return {"critical": critical, "optional": None}


def _manifest(subject: Descriptor, kind: str, layers: tuple[bytes, ...], annotations: Mapping[str, str]) -> bytes:
    manifest: Object = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": kind,
        "config": Descriptor(EMPTY_TYPE, Digest.of(EMPTY), len(EMPTY)).to_json(),
        "layers": [Descriptor(BUNDLE_TYPE, Digest.of(layer), len(layer)).to_json() for layer in layers],
        "subject": Descriptor(subject.media_type, subject.digest, subject.size).to_json(),
    }
    if annotations:
        manifest["annotations"] = dict(annotations)
    return strictjson.canonical(manifest)
