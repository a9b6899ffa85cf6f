"""A trusted source in memory, every part of which can be bent, and the mirror that serves it.

Made with the metadata library alone, not with the publisher's side of the engine: an attacker has no use for that.
Keys come from small numbers and times are fixed, so that the same source is the same bytes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import Signature
from tuf.api.metadata import Delegations, Metadata, MetaFile, Role, Root, Snapshot, TargetFile, Targets, Timestamp

from intaglio.content.descriptor import MANIFEST_TYPE
from intaglio.content.tree import TREE_TYPE, File, Tree
from intaglio.digest import Digest
from intaglio.errors import SourceUnreachable
from intaglio.trust.key import PrivateKey
from intaglio.trust.metadata import custom_of
from intaglio.trust.repository import key_of
from intaglio.trust.target import Name, Target

NOW = datetime(2026, 1, 10, 12, 0, 0, tzinfo=UTC)
"""When everything happens."""
DAY = timedelta(days=1)
Files = dict[str, bytes]
"""What is published, by path."""


def key(number: int) -> PrivateKey:
    """The private key of a number: the same each time."""
    return PrivateKey(ec.derive_private_key(number, ec.SECP256R1()))


ROOT = (key(11), key(12), key(13))
TARGETS = (key(21), key(22))
SNAPSHOT = key(31)
TIMESTAMP = key(41)
TEAM = key(51)
STRANGER = key(666)


def tree(text: str = "weights", path: str = "model.gguf") -> Tree:
    data = text.encode()
    return Tree.of([File(path, Digest.of(data), len(data))])


def target(name: str = "models/acme/base@1.0.0", content: Tree | None = None, **changes: Any) -> Target:
    content = content or tree()
    values = {
        "digest": content.digest,
        "size": len(content.manifest()),
        "media_type": MANIFEST_TYPE,
        "artifact_type": TREE_TYPE,
        "total_size": content.total_size,
        "licence": "Apache-2.0",
        "publisher": "Acme",
        "origins": ("pypi:acme-base==1.0.0",),
    }
    return Target(name=Name.parse(name), **{**values, **changes})


def listing(entry: Target) -> TargetFile:
    """How metadata lists ``entry``."""
    return TargetFile(entry.size, {"sha256": entry.digest.hex}, entry.path, {"custom": entry.custom()})


def sign(signed: Any, keys: Iterable[PrivateKey]) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    for one in keys:
        add_signature(metadata, one)
    return metadata.to_bytes()


def add_signature(metadata: Metadata[Any], one: PrivateKey, keyid: str | None = None) -> None:
    keyid = keyid or key_of(one.public).keyid
    metadata.signatures[keyid] = Signature(keyid, one.sign(metadata.signed_bytes).hex())


def bend(data: bytes, change: Callable[[dict[str, Any]], None], keys: Iterable[PrivateKey]) -> bytes:
    """Change the signed part of metadata as JSON, and sign what comes out with ``keys``."""
    from securesystemslib.formats import encode_canonical

    document = json.loads(data)
    change(document["signed"])
    text = encode_canonical(document["signed"])
    assert text is not None
    document["signatures"] = [{"keyid": key_of(one.public).keyid, "sig": one.sign(text.encode()).hex()} for one in keys]
    return json.dumps(document).encode()


def describe(version: int, data: bytes, *, hashes: bool = True) -> MetaFile:
    return MetaFile(version, len(data), {"sha256": Digest.of(data).hex}) if hashes else MetaFile(version)


@dataclass
class Source:
    """What a publisher has; :meth:`publish` signs the next version of everything that is not the root."""

    root: Root = field(default_factory=lambda: Root(expires=NOW + 365 * DAY))
    targets: Targets = field(default_factory=lambda: Targets(expires=NOW + 180 * DAY))
    roles: dict[str, tuple[Targets, tuple[PrivateKey, ...]]] = field(default_factory=dict)
    """Delegated roles and who signs them."""
    snapshot: Snapshot = field(default_factory=lambda: Snapshot(expires=NOW + 30 * DAY))
    timestamp: Timestamp = field(default_factory=lambda: Timestamp(expires=NOW + 7 * DAY))
    signers: dict[str, tuple[PrivateKey, ...]] = field(
        default_factory=lambda: {
            "root": ROOT[:2],
            "targets": TARGETS[:1],
            "snapshot": (SNAPSHOT,),
            "timestamp": (TIMESTAMP,),
        }
    )
    files: Files = field(default_factory=dict)
    signed_at: datetime | None = NOW
    hashes: bool = True
    """Whether snapshot and timestamp give lengths and hashes."""

    def __post_init__(self) -> None:
        self.targets.version = self.snapshot.version = self.timestamp.version = 0  # publishing makes it 1
        self.root.roles = {
            "root": Role([], 2),
            "targets": Role([], 1),
            "snapshot": Role([], 1),
            "timestamp": Role([], 1),
        }
        for role, keys in {**self.signers, "root": ROOT, "targets": TARGETS}.items():
            for one in keys:
                self.root.add_key(key_of(one.public), role)
        self.files["metadata/1.root.json"] = sign(self.root, self.signers["root"])

    @property
    def anchor(self) -> bytes:
        return self.files["metadata/1.root.json"]

    def add(self, entry: Target | None = None, content: Tree | None = None) -> Source:
        content = content or tree()
        entry = entry or target(content=content)
        self.targets.targets[entry.path] = listing(entry)
        folder, _, version = entry.path.rpartition("/")
        self.files[f"targets/{folder}/{entry.digest.hex}.{version}"] = content.manifest()
        return self

    def next_root(self, signers: Iterable[PrivateKey] | None = None) -> Source:
        """Sign the root as it is now as the next version."""
        self.root.version += 1
        self.files[f"metadata/{self.root.version}.root.json"] = sign(self.root, signers or self.signers["root"])
        return self

    def delegate(self, name: str, paths: list[str], entries: Iterable[Target], *, threshold: int = 1) -> Source:
        from tuf.api.metadata import DelegatedRole

        if self.targets.delegations is None:
            self.targets.delegations = Delegations({}, {})
        public = key_of(TEAM.public)
        self.targets.delegations.keys[public.keyid] = public
        assert self.targets.delegations.roles is not None
        self.targets.delegations.roles[name] = DelegatedRole(name, [public.keyid], threshold, False, paths=paths)
        role = Targets(version=1, expires=NOW + 180 * DAY)
        role.targets = {entry.path: listing(entry) for entry in entries}
        self.roles[name] = (role, (TEAM,))
        return self

    def publish(self) -> Files:
        """Sign the next version of targets, snapshot and timestamp; return everything that is published."""
        self.targets.version += 1
        data = sign(self.targets, self.signers["targets"])
        self.files[f"metadata/{self.targets.version}.targets.json"] = data
        self.snapshot.meta = {"targets.json": describe(self.targets.version, data, hashes=self.hashes)}
        for name, (role, keys) in self.roles.items():
            data = sign(role, keys)
            self.files[f"metadata/{role.version}.{name}.json"] = data
            self.snapshot.meta[f"{name}.json"] = describe(role.version, data, hashes=self.hashes)
        return self.take_snapshot()

    def take_snapshot(self) -> Files:
        """Sign the next version of the snapshot as it is now, and of the timestamp."""
        self.snapshot.version += 1
        data = sign(self.snapshot, self.signers["snapshot"])
        self.files[f"metadata/{self.snapshot.version}.snapshot.json"] = data
        self.timestamp.snapshot_meta = describe(self.snapshot.version, data, hashes=self.hashes)
        return self.stamp()

    def stamp(self) -> Files:
        """Sign the next version of the timestamp as it is now."""
        self.timestamp.version += 1
        self.timestamp.unrecognized_fields = custom_of(self.signed_at) if self.signed_at else {}
        self.files["metadata/timestamp.json"] = sign(self.timestamp, self.signers["timestamp"])
        return self.now()

    def now(self) -> Files:
        """Everything that is published now; later changes do not reach it."""
        return copy.copy(self.files)


@dataclass
class MemoryMirror:
    """Serves ``files``, and remembers what was asked for."""

    files: Files
    address: str = "memory:"
    asked: list[str] = field(default_factory=list)

    def fetch(self, path: str, *, max_bytes: int) -> bytes | None:
        self.asked.append(path)
        data = self.files.get(path)
        if data is not None and len(data) > max_bytes:
            raise SourceUnreachable(f"{path}: expected at most {max_bytes} bytes, found more")
        return data


def write(files: Files, folder: Path) -> Path:
    """Write ``files`` below ``folder``, for clients that read a folder or a server."""
    for path, data in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return folder
