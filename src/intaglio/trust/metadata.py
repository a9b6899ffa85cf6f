"""TUF metadata judged: bytes in, what may be believed out. No file, no network, no clock.

The client workflow of the specification (TUF 1.0, section 5) in pure functions; each names the clause that it carries
out. The shell that fetches and keeps is :mod:`intaglio.trust.tuf`.

- Metadata is read in one strict form, and a key counts once, whatever it is called: :mod:`intaglio.trust.parse`.
- A role is believed when its delegator's threshold of keys signed it; a root when its predecessor's and its own did.
- Versions never go back: of roots, of the timestamp, of the snapshot, of anything that a snapshot lists.
- What a snapshot or timestamp says about a file holds: version, and length and hash where given.
- Whatever the input, a function here returns verified metadata or raises ``VerificationError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from hashlib import sha256, sha384, sha512
from typing import TypeAlias

from intaglio.errors import CorruptContent, Stale, Untrusted
from intaglio.strictjson import Object
from intaglio.trust import freshness
from intaglio.trust.parse import parse
from intaglio.trust.payload import CUSTOM, MAX_ROLES, Dated, Metadata, MetaFile, Root, S, Snapshot, Targets, Timestamp
from intaglio.trust.target import Target

MAX_DELEGATIONS = 32
"""Most roles that one search looks into."""
_HASHES = {"sha256": sha256, "sha384": sha384, "sha512": sha512}


def anchor(data: bytes) -> Root:
    """Return the root in ``data``, which the verifier's own side says is to be trusted: it has to sign itself (5.2).

    Raises:
        CorruptContent: it is no root.
        Untrusted: too few of its own keys signed it.
    """
    metadata = parse(Root, data, "root")
    _require_signed(metadata.signed, "root", metadata, f"root {metadata.signed.version}")
    return metadata.signed


def next_root(data: bytes, trusted: Root) -> Root:
    """Return the root in ``data``, which follows ``trusted`` (5.3.3 to 5.3.5). Its expiry is not looked at.

    Raises:
        CorruptContent: it is no root.
        Untrusted: it is not the next version, or too few keys of the one or the other signed it.
    """
    expected = trusted.version + 1
    what = f"root {expected}"
    metadata = parse(Root, data, what)
    root = metadata.signed
    _require_signed(trusted, "root", metadata, f"{what}: by the keys of root {trusted.version}")
    _require_signed(root, "root", metadata, f"{what}: by its own keys")
    if root.version != expected:
        raise Untrusted(f"{what}: expected version {expected}, found {root.version}")
    return root


def timestamp(data: bytes, root: Root, previous: Timestamp | None = None) -> Timestamp:
    """Return the timestamp in ``data`` (5.4.2, 5.4.3); ``previous`` itself where it has the same version.

    Raises:
        CorruptContent: it is no timestamp.
        Untrusted: too few signatures; an older version than ``previous``, of itself or of the snapshot; or it claims
            to have been signed after its own expiry.
    """
    metadata = parse(Timestamp, data, "timestamp")
    _require_signed(root, "timestamp", metadata, "timestamp")
    new = metadata.signed
    if new.signed is not None and new.signed >= new.expires:
        raise Untrusted(
            f"timestamp {new.version}: says it was signed on {freshness.write(new.signed)}, after its expiry"
        )
    if previous is None:
        return new
    if new.version == previous.version:
        return previous
    _not_older("timestamp", new.version, previous.version)
    _not_older("timestamp: snapshot", new.snapshot_meta.version, previous.snapshot_meta.version)
    return new


def snapshot(data: bytes, root: Root, by: Timestamp, previous: Snapshot | None = None) -> Snapshot:
    """Return the snapshot in ``data``, which the timestamp ``by`` names (5.5.2 to 5.5.5).

    Raises:
        CorruptContent: not the file that the timestamp names, or no snapshot.
        Untrusted: too few signatures; another version; an older version, or none, of what ``previous`` lists.
    """
    _require_same(by.snapshot_meta, data, "snapshot")
    metadata = parse(Snapshot, data, "snapshot")
    _require_signed(root, "snapshot", metadata, "snapshot")
    new = metadata.signed
    _require_version("snapshot", new.version, by.snapshot_meta.version, "the timestamp")
    for name, meta in (previous.meta if previous else {}).items():
        if name not in new.meta:
            raise Untrusted(f"snapshot {new.version}: no longer lists {name}")
        _not_older(f"snapshot {new.version}: {name}", new.meta[name].version, meta.version)
    return new


def targets(data: bytes, role: str, delegator: Root | Targets, by: Snapshot) -> Targets:
    """Return the targets of ``role`` in ``data``, delegated by ``delegator`` (5.6.2 to 5.6.4).

    Raises:
        CorruptContent: not the file that the snapshot names, or no targets.
        Untrusted: the snapshot does not list the role; too few signatures; another version.
    """
    meta = listed(by, role)
    _require_same(meta, data, role)
    metadata = parse(Targets, data, role)
    _require_signed(delegator, role, metadata, role)
    _require_version(role, metadata.signed.version, meta.version, "the snapshot")
    return metadata.signed


def require_current(signed: Dated, what: str, at: datetime) -> None:
    """Check that ``signed`` had not expired ``at`` that moment (5.3.10, 5.4.4, 5.5.6, 5.6.5).

    Raises:
        Stale: it had.
    """
    if at >= signed.expires:
        raise Stale(
            f"{what} {signed.version} expired on {freshness.write(signed.expires)}; "
            f"the time is taken to be {freshness.write(at)}",
            hint="if this machine's clock is right, ask the publisher to renew it, then: intaglio trust refresh",
        )


def rotated(before: Root, after: Root) -> bool:
    """Return whether the timestamp's or the snapshot's keys changed: then what they signed is forgotten (5.3.11)."""
    return any(_materials(before, role) != _materials(after, role) for role in ("timestamp", "snapshot"))


def listed(by: Snapshot, role: str) -> MetaFile:
    """Return what the snapshot says about the metadata file of ``role``.

    Raises:
        Untrusted: nothing.
    """
    meta = by.meta.get(f"{role}.json")
    if meta is None:
        raise Untrusted(f"{role}: is not listed by snapshot {by.version}")
    return meta


Load: TypeAlias = Callable[[str, str, Targets], Targets]
"""Returns a delegated role, verified under one delegator: gets its name, and the delegator's name and targets.

A name may be delegated to by several roles, each with keys of its own: what one believes is nothing to another.
"""


def roles(top: Targets, load: Load) -> Iterator[Targets]:
    """Yield the top-level targets and every role below them, each once; every delegation is verified, each by itself.

    Raises:
        CorruptContent: there are too many delegations.
        VerificationError: a role does not verify under one that delegates to it.
    """
    pending, seen, count = [("targets", top)], {"targets"}, 0
    while pending:
        delegator, found = pending.pop()
        for name in found.delegated():
            count += 1
            if count > MAX_ROLES:
                raise CorruptContent(f"expected at most {MAX_ROLES} delegations, found more")
            role = load(name, delegator, found)
            if name not in seen:
                seen.add(name)
                pending.append((name, role))
        yield found


def search(path: str, top: Targets, load: Load) -> Target | None:
    """Return the target at ``path``, by the most trusted role that lists it (5.6.7); nothing if none does.

    Args:
        path: the target's path.
        top: the top-level targets.
        load: see :data:`Load`.
    """
    pending: list[tuple[str, tuple[str, Targets] | None]] = [("targets", None)]
    seen: set[str] = set()
    while pending and len(seen) <= MAX_DELEGATIONS:
        role, by = pending.pop()
        if role in seen:
            continue
        seen.add(role)
        found = top if by is None else load(role, *by)
        if path in found.targets:
            return found.targets[path]
        children: list[tuple[str, tuple[str, Targets] | None]] = []
        for name, terminating in found.roles_for(path):
            children.append((name, (role, found)))
            if terminating:
                pending.clear()
                break
        pending.extend(reversed(children))
    return None


def _materials(root: Root, role: str) -> frozenset[bytes]:
    return frozenset(key.material for key in root.roles[role].keys.values())


def _require_signed(delegator: Root | Targets, name: str, metadata: Metadata[S], what: str) -> None:
    """Check the threshold of signatures over what is signed."""
    role = delegator.role(name)
    if role is None:
        raise Untrusted(f"{what}: nothing is delegated to {name}")
    found = metadata.good(role)
    if found < role.threshold:
        raise Untrusted(f"{what}: expected {role.threshold} good signatures, found {found}")


def _require_same(meta: MetaFile, data: bytes, what: str) -> None:
    """Check length and hashes, as far as they are given; a hash by another algorithm cannot be checked, so is none."""
    what = f"{what}: not the file that was promised"
    if meta.length is not None and len(data) != meta.length:
        raise CorruptContent(f"{what}: expected {meta.length} bytes, found {len(data)}")
    for name, digest in (meta.hashes or {}).items():
        if name not in _HASHES:
            raise CorruptContent(f"{what}: expected hashes by {', '.join(_HASHES)}, found {name[:40]!r}")
        found = _HASHES[name](data).hexdigest()
        if found != digest:
            raise CorruptContent(f"{what}: expected {name} {digest[:128]}, found {found}")


def _require_version(what: str, found: int, expected: int, by: str) -> None:
    if found != expected:
        raise Untrusted(f"{what}: expected version {expected} as {by} says, found {found}")


def _not_older(what: str, found: int, known: int) -> None:
    if found < known:
        raise Untrusted(
            f"{what}: rolled back: expected version {known} or newer, found {found}",
            hint="the mirror, or the kit, is behind what is known here; or somebody replays old metadata",
        )


def custom_of(signed: datetime) -> Object:
    """Return the member that a timestamp signed then carries: :attr:`Timestamp.signed` reads it."""
    return {CUSTOM: {"signed": freshness.write(signed)}}
