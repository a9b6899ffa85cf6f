"""Content identities: ``sha256:`` and 64 lower-case hexadecimal digits, nothing else.

- A ``Digest`` is never a bare ``str``: parsing is the only way in, and it is strict.
- Identity is sha256 everywhere (OCI image specification 1.1, "Digests"; other algorithms are refused).
"""

from __future__ import annotations

import hashlib
import re
from typing import BinaryIO

from intaglio.dataclass import dataclass
from intaglio.errors import CorruptContent

_PATTERN = re.compile(r"sha256:[0-9a-f]{64}\Z")
CHUNK = 1 << 20
"""Bytes read at a time while hashing: large enough for hashlib to release the interpreter lock."""


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256 digest in its OCI form, as in ``sha256:e3b0…``."""

    value: str

    def __post_init__(self) -> None:
        if not _PATTERN.match(self.value):
            raise CorruptContent(f"not a digest: expected sha256: and 64 lower-case hex digits, found {self.value!r}")

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Return the digest written as ``text``.

        Raises:
            CorruptContent: another algorithm, upper case, a wrong length, or no string at all.
        """
        if not isinstance(text, str):
            raise CorruptContent(f"not a digest: expected a string, found {type(text).__name__}")
        return cls(text)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the digest of ``data``."""
        return cls("sha256:" + hashlib.sha256(data).hexdigest())

    @classmethod
    def from_hex(cls, text: str) -> Digest:
        """Return the digest of 64 hexadecimal digits without their algorithm."""
        return cls("sha256:" + text)

    @property
    def hex(self) -> str:
        """The 64 hexadecimal digits."""
        return self.value[7:]

    @property
    def short(self) -> str:
        """The first twelve digits with the algorithm: for people, never for identity."""
        return self.value[:19]

    def __str__(self) -> str:
        return self.value


class ActionKey(Digest):
    """The digest of an action's preimage: names a computation, not content."""

    __slots__ = ()


def hash_stream(stream: BinaryIO, buffer: bytearray | None = None) -> tuple[Digest, int]:
    """Return digest and size in bytes of the rest of ``stream``."""
    hasher = hashlib.sha256()
    view = memoryview(buffer if buffer is not None else bytearray(CHUNK))
    size = 0
    while count := stream.readinto(view):  # type: ignore[attr-defined]
        hasher.update(view[:count])
        size += count
    return Digest.from_hex(hasher.hexdigest()), size
