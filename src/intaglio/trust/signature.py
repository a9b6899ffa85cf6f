"""DSSE envelopes in Sigstore bundles, version 0.3: one payload, one signature, one key.

- What is written is canonical JSON (RFC 8785) and holds no time: the same statement is the same bundle.
- What is read holds exactly the known fields; base64 has one reading; exactly one signature.
- Only the caller's keys count: the key hint in a bundle is a hint and is not looked at.

(DSSE 1.0, "Protocol"; Sigstore protobuf specifications, ``sigstore_bundle.proto``; OpenSSF Model Signing 1.0, §4.1.)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from enum import Enum

from intaglio import strictjson
from intaglio.content import cosign_tag
from intaglio.dataclass import dataclass
from intaglio.errors import CorruptContent, Untrusted
from intaglio.strictjson import Object
from intaglio.trust.key import KeyId, PrivateKey, PublicKey

BUNDLE_TYPE = cosign_tag.BUNDLE_TYPE
PAYLOAD_TYPE = "application/vnd.in-toto+json"


class Hint(Enum):
    """How a bundle names its key: the two tools that read bundles expect two ways."""

    COSIGN = "base64 of the sha256 of the DER key"
    OMS = "hexadecimal sha256 of the PEM text"

    def of(self, key: PublicKey) -> str:
        """Return the hint for ``key``."""
        if self is Hint.COSIGN:
            return encode(bytes.fromhex(key.id.hex))
        return hashlib.sha256(key.pem.encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True)
class Envelope:
    """A DSSE envelope as it was read; nothing in it is trusted before :meth:`open`."""

    payload: bytes
    signature: bytes

    def open(self, keys: Iterable[PublicKey], *, what: str) -> KeyId:
        """Return the id of the first of ``keys`` that signed the payload.

        Raises:
            Untrusted: none of them did.
        """
        message = pae(PAYLOAD_TYPE, self.payload)
        for key in keys:
            if key.verifies(message, self.signature):
                return key.id
        raise Untrusted(f"{what}: not signed by a key that the policy names for this role")


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that a DSSE signature covers (pre-authentication encoding)."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign_bundle(payload: bytes, key: PrivateKey, hint: Hint = Hint.COSIGN) -> bytes:
    """Return a bundle over the in-toto statement ``payload``."""
    material: Object = {"publicKey": {"hint": hint.of(key.public)}}
    if hint is Hint.OMS:
        material["tlogEntries"] = []
    return strictjson.canonical(
        {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": material,
            "dsseEnvelope": {
                "payload": encode(payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": encode(key.sign(pae(PAYLOAD_TYPE, payload)))}],
            },
        }
    )


def read_bundle(data: bytes, *, what: str) -> Envelope:
    """Return the envelope in a bundle that a bare key signed.

    Raises:
        CorruptContent: not a version 0.3 bundle of exactly that form; one with a certificate or log entries too,
            since nothing here could check them.
    """
    bundle = strictjson.parse_object(data, what=what)
    fields(bundle, {"mediaType", "verificationMaterial", "dsseEnvelope"}, what)
    if bundle["mediaType"] != BUNDLE_TYPE:
        raise CorruptContent(f"{what}: expected mediaType {BUNDLE_TYPE}, found {bundle['mediaType']!r}")
    material = fields(bundle["verificationMaterial"], {"publicKey"}, what, optional={"tlogEntries"})
    if material.get("tlogEntries", []) != []:
        raise CorruptContent(f"{what}: expected no log entries beside a bare key")
    text(fields(material["publicKey"], {"hint"}, what)["hint"], what)
    return _read_envelope(bundle["dsseEnvelope"], what)


def _read_envelope(value: object, what: str) -> Envelope:
    envelope = fields(value, {"payload", "payloadType", "signatures"}, what)
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise CorruptContent(f"{what}: expected payloadType {PAYLOAD_TYPE}, found {envelope['payloadType']!r}")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise CorruptContent(f"{what}: expected exactly one signature")
    signature = fields(signatures[0], {"sig"}, what, optional={"keyid"})
    if signature.get("keyid", "") != "":
        raise CorruptContent(f"{what}: expected no key id: it is not covered by the signature")
    return Envelope(decode(envelope["payload"], what), decode(signature["sig"], what))


# --- strict pieces, shared by everything that is read from a signer ---------------------------------------------------


def fields(value: object, required: AbstractSet[str], what: str, *, optional: AbstractSet[str] = frozenset()) -> Object:
    """Return ``value`` if it is an object with the ``required`` keys, perhaps ``optional`` ones, and no others.

    Raises:
        CorruptContent: anything else.
    """
    if not isinstance(value, dict):
        raise CorruptContent(f"{what}: expected an object with {_names(required)}, found {type(value).__name__}")
    missing = required - value.keys()
    if missing:
        raise CorruptContent(f"{what}: missing {_names(missing)}")
    unknown = value.keys() - required - optional
    if unknown:
        raise CorruptContent(f"{what}: unknown key {_names(unknown)}")
    return value


def text(value: object, what: str) -> str:
    """Return ``value`` if it is a string that is not empty.

    Raises:
        CorruptContent: anything else.
    """
    if not isinstance(value, str) or not value:
        raise CorruptContent(f"{what}: expected a string, found {type(value).__name__}")
    return value


def encode(data: bytes) -> str:
    """Return standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def decode(value: object, what: str) -> bytes:
    """Return the bytes in standard base64: padded, no other alphabet, no spare bits.

    Raises:
        CorruptContent: anything else.
    """
    try:
        data = base64.b64decode(text(value, what), validate=True)
    except (binascii.Error, ValueError):
        raise CorruptContent(f"{what}: not base64") from None
    if encode(data) != value:
        raise CorruptContent(f"{what}: base64 that is not in its one canonical form")
    return data


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)[:8])
