"""Signing keys: ECDSA over P-256, deterministic (RFC 6979), in PEM.

- A signature is a function of key and message: the same claim is the same bytes twice.
- No key and no passphrase ever stands in an error, a ``repr`` or a log.
- Other curves and kinds of key are refused where they are read.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from intaglio.digest import Digest
from intaglio.errors import NotVerifiable, Untrusted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

_WRONG = "the private key cannot be opened: wrong passphrase, or the file is damaged"


class KeyId(Digest):
    """The sha256 of a public key's DER SubjectPublicKeyInfo: names a key, not content."""

    __slots__ = ()


class PublicKey:
    """A P-256 public key; equal to another of the same :class:`KeyId`."""

    __slots__ = ("_key", "id", "pem")

    id: KeyId
    """Names the key."""
    pem: str
    """The key as OpenSSL writes it, one final newline included: its sha256 is the hint that OMS bundles carry."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = key
        spki = PublicFormat.SubjectPublicKeyInfo
        self.id = KeyId("sha256:" + hashlib.sha256(key.public_bytes(Encoding.DER, spki)).hexdigest())
        self.pem = key.public_bytes(Encoding.PEM, spki).decode("ascii")

    @classmethod
    def from_pem(cls, pem: str | bytes, *, what: str = "public key") -> PublicKey:
        """Return the public key written as ``pem``; ``what`` names it in errors.

        Raises:
            NotVerifiable: no PEM public key, or one of another kind or curve.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        data = pem.encode("utf-8", "replace") if isinstance(pem, str) else pem
        hint = "`intaglio key show NAME --public` prints one"
        try:
            key = load_pem_public_key(data)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise NotVerifiable(f"{what}: expected a PEM public key, found something else", hint=hint) from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise NotVerifiable(f"{what}: expected an ECDSA P-256 key, found another kind of key", hint=hint)
        return cls(key)

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Return whether ``signature`` (DER) was made over ``message`` by this key."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.hashes import SHA256

        try:
            self._key.verify(signature, message, ec.ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PublicKey({self.id.short})"


class PrivateKey:
    """A P-256 private key; its ``repr`` shows the public half's name alone."""

    __slots__ = ("_key", "public")

    public: PublicKey
    """The public half."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @classmethod
    def generate(cls) -> PrivateKey:
        """Return a fresh key."""
        from cryptography.hazmat.primitives.asymmetric import ec

        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, pem: bytes, passphrase: bytes | None = None) -> PrivateKey:
        """Return the key in ``pem``, opened with ``passphrase`` when it is encrypted.

        Raises:
            Untrusted: the passphrase is missing or wrong, or this is no P-256 private key.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        if is_encrypted(pem) and not passphrase:
            raise Untrusted(
                "the private key is encrypted and no passphrase was given",
                hint="set INTAGLIO_PASSPHRASE or INTAGLIO_PASSPHRASE_FILE, or run where it can be asked for",
            )
        try:
            key = load_pem_private_key(pem, passphrase if is_encrypted(pem) else None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # What the library says is not repeated: it may quote what it read.
            raise Untrusted(_WRONG, hint="check the passphrase; `intaglio key new` makes another key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise Untrusted("expected an ECDSA P-256 private key, found another kind of key")
        return cls(key)

    def to_pem(self, passphrase: bytes | None = None) -> bytes:
        """Return the key as PKCS #8 PEM, encrypted when there is a passphrase."""
        from cryptography.hazmat.primitives import serialization as s

        secrecy: s.KeySerializationEncryption = (
            s.BestAvailableEncryption(passphrase) if passphrase else s.NoEncryption()
        )
        return self._key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, secrecy)

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature over ``message``: ECDSA with SHA-256, its nonce from RFC 6979."""
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.hashes import SHA256

        return self._key.sign(message, ec.ECDSA(SHA256(), deterministic_signing=True))

    def __repr__(self) -> str:
        return f"PrivateKey(public={self.public!r})"


def is_encrypted(pem: bytes) -> bool:
    """Return whether the PEM private key asks for a passphrase."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in pem
