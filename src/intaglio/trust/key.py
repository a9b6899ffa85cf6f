"""Signing keys: ECDSA over P-256, deterministic (RFC 6979), in PEM.

- A signature is a function of key and message: the same claim is the same bytes twice.
- No key and no passphrase ever stands in an error, a ``repr`` or a log.
- Other curves and kinds of key are refused where they are read.
"""

from __future__ import annotations

import binascii
import functools
import hashlib
from typing import TYPE_CHECKING

from intaglio.digest import Digest
from intaglio.errors import NotVerifiable, Untrusted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

_WRONG = "the private key cannot be opened: wrong passphrase, or the file is damaged"
_SPKI = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
"""What stands before the coordinates in the DER of an uncompressed P-256 public key (RFC 5480, section 2)."""


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
        self._key = key
        numbers = key.public_numbers()
        der = _SPKI + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        self.id = KeyId("sha256:" + hashlib.sha256(der).hexdigest())
        self.pem = _pem(der)

    @classmethod
    def from_pem(cls, pem: str | bytes, *, what: str = "public key") -> PublicKey:
        """Return the public key written as ``pem``; ``what`` names it in errors.

        Raises:
            NotVerifiable: no PEM public key, or one of another kind or curve.
        """
        from cryptography.hazmat.primitives.asymmetric import ec

        data = pem.encode("utf-8", "replace") if isinstance(pem, str) else pem
        point = _point(data)
        if point is not None:
            try:
                return cls(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
            except ValueError:  # not on the curve: said below as whatever else is wrong
                pass
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

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

        try:
            self._key.verify(signature, message, _verification())
        except InvalidSignature:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PublicKey({self.id.short})"


@functools.cache
def _verification() -> ec.ECDSA:
    """Return ECDSA with SHA-256, to verify by.

    The library's own constructor loads all of its ciphers, to ask whether it could sign; that takes long.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    class Verification(ec.ECDSA):
        def __init__(self) -> None:
            pass

        @property
        def algorithm(self) -> SHA256:
            return SHA256()

    return Verification()


def _pem(der: bytes) -> str:
    """Return a public key's DER as OpenSSL writes it in PEM."""
    text = binascii.b2a_base64(der, newline=False).decode("ascii")
    lines = (text[place : place + 64] for place in range(0, len(text), 64))
    return "\n".join(("-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----\n"))


def _point(pem: bytes) -> bytes | None:
    """Return the point of a P-256 key whose PEM is the one that :func:`_pem` writes; nothing of any other.

    Only then can the part of the library that reads all kinds of keys stay where it is: it takes long to import.
    """
    try:
        der = binascii.a2b_base64(b"".join(pem.split(b"\n")[1:-2]), strict_mode=True)
    except ValueError:
        return None
    known = len(der) == len(_SPKI) + 64 and der.startswith(_SPKI) and _pem(der).encode("ascii") == pem
    return der[len(_SPKI) - 1 :] if known else None


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
