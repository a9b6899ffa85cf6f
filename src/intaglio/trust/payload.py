"""What TUF metadata says, as immutable values: keys and roles, and the four kinds of signed parts.

Nothing here is believed yet: :mod:`intaglio.trust.parse` makes these of bytes, :mod:`intaglio.trust.metadata` judges.
The publisher's side writes with python-tuf; this side reads without it: ``docs/adr/0055``.

(TUF specification 1.0, section 4.)
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Generic, Protocol, TypeAlias, TypeVar

from intaglio.dataclass import dataclass, field
from intaglio.trust.key import PublicKey
from intaglio.trust.target import Target

ROLES = ("root", "timestamp", "snapshot", "targets")
"""The top-level roles, in the order in which they are loaded."""
MAX_BYTES: Mapping[str, int] = {"root": 512_000, "timestamp": 16_384, "snapshot": 2_000_000, "targets": 5_000_000}
"""Largest metadata file by role; delegated roles count as targets."""
MAX_ROLES = 4096
"""Most delegations of a source."""
MAX_KEYS = 64
"""Most keys of a role."""
MAX_PATTERNS = 256
"""Most patterns, or beginnings of hashes, by which one role gets its paths."""
MAX_PATTERN = 512
"""Longest of them: no target has a longer path."""
CUSTOM = "intaglio"
"""Member of a timestamp's signed part that is ours: ``{"signed": "2026-01-31T12:00:00Z"}``."""


class Dated(Protocol):
    """What every signed part has, whoever read it."""

    @property
    def version(self) -> int:
        """Its version, from 1."""

    @property
    def expires(self) -> datetime:
        """The moment from which it is not valid any more."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key of those that sign metadata."""

    public: PublicKey | bytes
    """A P-256 key, or the 32 bytes of an Ed25519 key."""

    @property
    def material(self) -> bytes:
        """What the key is, however it is written: 32 bytes."""
        return self.public if isinstance(self.public, bytes) else bytes.fromhex(self.public.id.hex)

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Return whether ``signature`` was made over ``message`` by this key."""
        if not isinstance(self.public, bytes):
            return self.public.verifies(message, signature)
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Role:
    """Whose signatures make metadata good."""

    keys: Mapping[str, Key]
    """By id; no key stands under two."""
    threshold: int
    """How many of them must have signed."""


@dataclass(frozen=True, slots=True)
class MetaFile:
    """What a timestamp or snapshot says of a metadata file."""

    version: int
    length: int | None
    hashes: Mapping[str, str] | None
    """Name of an algorithm → digest in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Delegation:
    """A role that targets delegate paths to."""

    name: str
    role: Role
    terminating: bool
    paths: tuple[str, ...] | None
    """Patterns as a shell has them, part by part."""
    prefixes: tuple[str, ...] | None
    """Beginnings of the sha256 of a path in hexadecimal; one of the two is given."""

    def covers(self, path: str) -> bool:
        """Return whether the target at ``path`` is the role's."""
        if self.prefixes is not None:
            return hashlib.sha256(path.encode()).hexdigest().startswith(self.prefixes)
        return any(_matches(path.split("/"), pattern.split("/")) for pattern in self.paths or ())


@dataclass(frozen=True, slots=True)
class HashBins:
    """Roles without number that share the paths by their hashes, "succinct roles": every name, one set of keys."""

    role: Role
    bits: int
    prefix: str

    @property
    def names(self) -> Iterator[str]:
        """The roles' names, in order."""
        return (self._name(number) for number in range(1 << self.bits))

    def has(self, name: str) -> bool:
        """Return whether ``name`` is the name of one of them."""
        digits = name.rpartition("-")[2]
        number = int(digits, 16) if re.fullmatch("[0-9a-f]{1,8}", digits) else 1 << self.bits
        return number < 1 << self.bits and self._name(number) == name

    def name_for(self, path: str) -> str:
        """Return the name of the role whose the target at ``path`` is."""
        return self._name(int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") >> (32 - self.bits))

    def _name(self, number: int) -> str:
        digits = len(f"{(1 << self.bits) - 1:x}")
        return f"{self.prefix}-{number:0{digits}x}"


@dataclass(frozen=True, slots=True)
class Root:
    """The root: whose signatures make the four top-level roles good."""

    version: int
    expires: datetime
    roles: Mapping[str, Role]

    def role(self, name: str) -> Role | None:
        """Return whose signatures make ``name`` good; nothing if it is no top-level role."""
        return self.roles.get(name)


@dataclass(frozen=True, slots=True)
class Timestamp:
    """The timestamp: which snapshot is current."""

    version: int
    expires: datetime
    snapshot_meta: MetaFile
    signed: datetime | None
    """When it says that it was signed; nothing if it does not."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The snapshot: which targets belong together."""

    version: int
    expires: datetime
    meta: Mapping[str, MetaFile]
    """By the file's name without its version, as in ``targets.json``."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets, top-level or delegated: what is listed, and who lists more."""

    version: int
    expires: datetime
    targets: Mapping[str, Target]
    """By path."""
    delegations: Mapping[str, Delegation]
    """By name, the most trusted first."""
    bins: HashBins | None
    """Instead of delegations by name."""

    def role(self, name: str) -> Role | None:
        """Return whose signatures make the delegated role ``name`` good; nothing if nothing is delegated to it."""
        if self.bins is not None:
            return self.bins.role if self.bins.has(name) else None
        found = self.delegations.get(name)
        return None if found is None else found.role

    def delegated(self) -> Iterator[str]:
        """Yield the roles that this one delegates to."""
        yield from self.delegations if self.bins is None else self.bins.names

    def roles_for(self, path: str) -> Iterator[tuple[str, bool]]:
        """Yield the roles that may list ``path``, the most trusted first, each with whether the search ends there."""
        if self.bins is not None:
            yield self.bins.name_for(path), True
        yield from ((name, one.terminating) for name, one in self.delegations.items() if one.covers(path))


Signed: TypeAlias = Root | Timestamp | Snapshot | Targets
S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True)
class Metadata(Generic[S]):
    """A metadata file."""

    signed: S
    message: bytes = field(repr=False)
    """What is signed: the canonical form of the signed part."""
    signatures: Mapping[str, str]
    """Id of a key → what is said to be its signature, in hexadecimal."""

    def good(self, role: Role) -> int:
        """Return how many keys of ``role`` have signed."""
        return sum(self._is_good(identifier, key) for identifier, key in role.keys.items())

    def _is_good(self, identifier: str, key: Key) -> bool:
        text = self.signatures.get(identifier)
        try:
            return text is not None and key.verifies(self.message, bytes.fromhex(text))
        except ValueError:  # not even written like a signature
            return False


def _matches(parts: list[str], patterns: list[str]) -> bool:
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))
