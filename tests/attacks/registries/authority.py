"""A certificate authority for one test: its certificate, and one that it gave to loopback."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Authority:
    """Where its files stand."""

    ca: Path
    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def make(folder: Path, *, name: str = "127.0.0.1") -> Authority:
    """Make an authority and a certificate for the address or name."""
    folder.mkdir(parents=True, exist_ok=True)
    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's own authority")])
    ca = _builder(issuer, issuer, root).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    alternative = x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry")])
    server = _builder(subject, issuer, leaf).add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
    made = Authority(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    made.ca.write_bytes(ca.sign(root, hashes.SHA256()).public_bytes(Encoding.PEM))
    made.certificate.write_bytes(server.sign(root, hashes.SHA256()).public_bytes(Encoding.PEM))
    made.key.write_bytes(leaf.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
    )
