"""Bundles: golden bytes, one reading, and only the caller's keys."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.images import KEYS, key

from intaglio import strictjson
from intaglio.errors import CorruptContent, Untrusted, VerificationError
from intaglio.trust.signature import PAYLOAD_TYPE, Hint, decode, encode, pae, read_bundle, sign_bundle

VECTORS = KEYS.parent
PAYLOAD = b'{"a":1}'


def test_pre_authentication_encoding() -> None:
    # DSSE protocol.md, "Test Vectors".
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_round_trip() -> None:
    envelope = read_bundle(sign_bundle(PAYLOAD, key("builder")), what="bundle")
    assert envelope.payload == PAYLOAD
    both = (key("release").public, key("builder").public)
    assert envelope.open(both, what="bundle") == key("builder").public.id
    for keys in ((), (key("release").public,)):
        with pytest.raises(Untrusted) as caught:
            envelope.open(keys, what="bundle")
        assert caught.value.exit_code == 22


@pytest.mark.parametrize("hint", list(Hint))
def test_golden_bundle(hint: Hint) -> None:
    bundle = sign_bundle(PAYLOAD, key("release"), hint)
    assert bundle == (KEYS / f"bundle-{hint.name.lower()}.json").read_bytes()


def test_hints_are_what_each_tool_computes() -> None:
    pem = (KEYS / "release.pub").read_bytes()
    assert Hint.OMS.of(key("release").public) == hashlib.sha256(pem).hexdigest()
    digest = base64.b64decode(Hint.COSIGN.of(key("release").public))
    assert digest.hex() == key("release").public.id.hex


def test_the_hint_is_not_believed() -> None:
    document = json.loads(sign_bundle(PAYLOAD, key("release")))
    document["verificationMaterial"]["publicKey"]["hint"] = Hint.COSIGN.of(key("stranger").public)
    envelope = read_bundle(strictjson.canonical(document), what="bundle")
    assert envelope.open([key("release").public], what="bundle") == key("release").public.id
    with pytest.raises(Untrusted):
        envelope.open([key("stranger").public], what="bundle")


def test_reads_the_specifications_key_bundle() -> None:
    envelope = read_bundle((VECTORS / "oms" / "valid-key.bundle.json").read_bytes(), what="vector")
    assert b"https://model_signing/signature/v1.0" in envelope.payload


@pytest.mark.parametrize(
    "name",
    [
        "invalid-empty.bundle.json",
        "invalid-missing-envelope.bundle.json",
        "invalid-missing-verification-material.bundle.json",
        "valid-certificate.bundle.json",  # nothing here could check a certificate
    ],
)
def test_refuses_the_specifications_other_bundles(name: str) -> None:
    with pytest.raises(CorruptContent):
        read_bundle((VECTORS / "oms" / name).read_bytes(), what="vector")


def good() -> strictjson.Object:
    return strictjson.parse_object(sign_bundle(PAYLOAD, key("release"), Hint.OMS), what="bundle")


WRONG = {
    "other media type": lambda d: d.update(mediaType="application/vnd.dev.sigstore.bundle.v0.2+json"),
    "unknown field": lambda d: d.update(extra=1),
    "message signature too": lambda d: d.update(messageSignature={}),
    "log entry": lambda d: d["verificationMaterial"].update(tlogEntries=[{}]),
    "log entries no array": lambda d: d["verificationMaterial"].update(tlogEntries={}),
    "certificate beside": lambda d: d["verificationMaterial"].update(certificate={"rawBytes": "AA=="}),
    "no hint": lambda d: d["verificationMaterial"]["publicKey"].clear(),
    "material a string": lambda d: d.update(verificationMaterial="x"),
    "other payload type": lambda d: d["dsseEnvelope"].update(payloadType="text/plain"),
    "no signature": lambda d: d["dsseEnvelope"].update(signatures=[]),
    "two signatures": lambda d: d["dsseEnvelope"]["signatures"].append(d["dsseEnvelope"]["signatures"][0]),
    "key id": lambda d: d["dsseEnvelope"]["signatures"][0].update(keyid="release"),
    "payload no string": lambda d: d["dsseEnvelope"].update(payload=1),
    "payload not base64": lambda d: d["dsseEnvelope"].update(payload="e30*"),
    "payload with a line break": lambda d: d["dsseEnvelope"].update(payload="e30=\n"),
    "payload unpadded": lambda d: d["dsseEnvelope"].update(payload="e30"),
    "payload with spare bits": lambda d: d["dsseEnvelope"].update(payload="e31="),
    "payload empty": lambda d: d["dsseEnvelope"].update(payload=""),
    "envelope null": lambda d: d.update(dsseEnvelope=None),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_deviation_is_refused(name: str) -> None:
    document = good()
    WRONG[name](document)
    with pytest.raises(CorruptContent) as caught:
        read_bundle(strictjson.canonical(document), what="bundle")
    assert caught.value.exit_code == 21


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptContent):
        read_bundle(data, what="bundle")


@given(st.integers(min_value=0), st.integers(0, 7))
def test_a_flipped_bit_never_verifies_other_bytes(place: int, bit: int) -> None:
    data = bytearray(sign_bundle(PAYLOAD, key("release")))
    data[place % len(data)] ^= 1 << bit
    try:
        envelope = read_bundle(bytes(data), what="bundle")
        envelope.open([key("release").public], what="bundle")
    except VerificationError:
        return
    assert envelope.payload == PAYLOAD  # only the hint, which nobody believes, can differ


@given(st.binary(max_size=100))
def test_base64_round_trip(data: bytes) -> None:
    if data:
        assert decode(encode(data), "x") == data
    assert PAYLOAD_TYPE in pae(PAYLOAD_TYPE, data).decode("latin-1")
