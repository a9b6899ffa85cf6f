"""Keys: deterministic signatures, PEM in and out, and nothing secret in what is said about them."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from tests.images import KEYS, key

from intaglio.errors import NotVerifiable, Untrusted
from intaglio.trust.key import KeyId, PrivateKey, PublicKey, is_encrypted


def test_signatures_are_deterministic_and_verify() -> None:
    signer = key("release")
    first, second = signer.sign(b"message"), signer.sign(b"message")
    assert first == second
    assert signer.public.verifies(b"message", first)
    assert not signer.public.verifies(b"messagf", first)
    assert not key("builder").public.verifies(b"message", first)


def test_rfc6979_vector() -> None:
    # RFC 6979, A.2.5: P-256, SHA-256, message "sample".
    scalar = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
    signer = PrivateKey(ec.derive_private_key(scalar, ec.SECP256R1()))
    r = "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
    s = "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
    assert signer.sign(b"sample").hex() == f"3046022100{r}022100{s}"


@pytest.mark.parametrize("junk", [b"", b"\0", b"\x30\x06\x02\x01\x00\x02\x01\x00", b"x" * 72])
def test_garbage_signatures_do_not_verify(junk: bytes) -> None:
    assert not key("release").public.verifies(b"message", junk)


def test_verification_is_the_librarys_own() -> None:
    """Ours leaves out the library's constructor; by its verdict the two are the same, bit for bit."""
    key = PrivateKey.generate()
    stock = load_pem_public_key(key.public.pem.encode())
    assert isinstance(stock, ec.EllipticCurvePublicKey)
    good = key.sign(b"message")
    flipped = [bytes(one ^ (1 << place % 8) if at == place // 8 else one for at, one in enumerate(good))
               for place in range(8 * len(good))]  # fmt: skip
    r, s = decode_dss_signature(good)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = [encode_dss_signature(*pair) for pair in ((r, order - s), (s, r), (r + order, s), (0, 0), (r, 0))]
    verdicts = []
    for signature in (good, *flipped, *other, good + b"\0", b""):
        try:
            stock.verify(signature, b"message", ec.ECDSA(SHA256()))
            expected = True
        except InvalidSignature:
            expected = False
        assert key.public.verifies(b"message", signature) == expected, signature.hex()
        verdicts.append(expected)
    assert True in verdicts
    assert False in verdicts


def test_key_id_is_the_sha256_of_the_der_key() -> None:
    pem = (KEYS / "release.pub").read_bytes()
    der = load_pem_public_key(pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    public = PublicKey.from_pem(pem)
    assert public.id == KeyId("sha256:" + hashlib.sha256(der).hexdigest())
    assert public.pem.encode() == pem
    assert public == key("release").public
    assert len({public, key("release").public, key("builder").public}) == 2


def test_encrypted_pem_needs_the_right_passphrase() -> None:
    made = PrivateKey.generate()
    pem = made.to_pem(b"secret")
    assert is_encrypted(pem)
    assert not is_encrypted(made.to_pem())
    assert PrivateKey.load(pem, b"secret").public == made.public
    assert PrivateKey.load(made.to_pem(), b"not needed").public == made.public
    for wrong in (None, b"", b"Secret"):
        with pytest.raises(Untrusted) as caught:
            PrivateKey.load(pem, wrong)
        assert caught.value.exit_code == 22
        assert caught.value.hint
        assert "ecret" not in str(caught.value)


@pytest.mark.parametrize("pem", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(pem: bytes) -> None:
    with pytest.raises(Untrusted):
        PrivateKey.load(pem)
    with pytest.raises(NotVerifiable):
        PublicKey.from_pem(pem)


def test_other_curves_and_kinds_are_refused() -> None:
    others = (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate())
    for other in others:
        with pytest.raises(Untrusted, match="P-256"):
            PrivateKey.load(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with pytest.raises(NotVerifiable, match="P-256"):
            PublicKey.from_pem(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_repr_shows_the_public_name_alone() -> None:
    made = PrivateKey.generate()
    assert repr(made) == f"PrivateKey(public=PublicKey({made.public.id.short}))"
