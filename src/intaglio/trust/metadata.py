"""TUF metadata judged: bytes in, what may be believed out. No file, no network, no clock.

The client workflow of the specification (TUF 1.0, section 5) in pure functions; each names the clause that it carries
out. The shell that fetches and keeps is :mod:`intaglio.trust.tuf`.

- Metadata is read as strict JSON of one form: no duplicate key, no fraction, no truth value where a number belongs.
- Only Ed25519 and ECDSA P-256 keys count, and a key counts once, whatever it is called.
- A role is believed when its delegator's threshold of keys signed it; a root when its predecessor's and its own did.
- Versions never go back: of roots, of the timestamp, of the snapshot, of anything that a snapshot lists.
- What a snapshot or timestamp says about a file holds: version, and length and hash where given.
- Whatever the input, a function here returns verified metadata or raises ``VerificationError``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TypeVar

from securesystemslib.exceptions import Error as LibraryError
from securesystemslib.signer import Key
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Delegations, Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp

from intaglio import strictjson
from intaglio.errors import CorruptContent, Stale, Untrusted
from intaglio.strictjson import Object
from intaglio.trust import freshness
from intaglio.trust.target import Target

ROLES = ("root", "timestamp", "snapshot", "targets")
"""The top-level roles, in the order in which they are loaded."""
MAX_BYTES: Mapping[str, int] = {"root": 512_000, "timestamp": 16_384, "snapshot": 2_000_000, "targets": 5_000_000}
"""Largest metadata file by role; delegated roles count as targets."""
MAX_DELEGATIONS = 32
"""Most roles that one search looks into."""
MAX_ROLES = 4096
"""Most delegated roles of a source."""
CUSTOM = "intaglio"
"""Member of a timestamp's signed part that is ours: ``{"signed": "2026-01-31T12:00:00Z"}``."""
_KEY_KINDS = (("ed25519", "ed25519"), ("ecdsa", "ecdsa-sha2-nistp256"))
_ROLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_COUNTS = ("version", "length", "threshold")
_S = TypeVar("_S", Root, Timestamp, Snapshot, Targets)
_T = TypeVar("_T")
_UNSOUND = (
    RepositoryError,
    LibraryError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    OverflowError,
)
"""What the library raises over metadata of the wrong form."""


def parse(kind: type[_S], data: bytes, what: str) -> Metadata[_S]:
    """Return the metadata in ``data``, unverified; ``what`` names it in errors.

    Raises:
        CorruptContent: not a metadata file of that kind in its one form.
    """
    limit = MAX_BYTES[kind.type]
    document = strictjson.parse_object(data, what=what, max_bytes=limit)
    if set(document) != {"signatures", "signed"} or not isinstance(document["signed"], dict):
        raise CorruptContent(f"{what}: expected signatures and signed, found {', '.join(sorted(document))}")
    found = document["signed"].get("_type")
    if found != kind.type:
        raise CorruptContent(f"{what}: expected metadata of type {kind.type!r}, found {found!r}")
    _check_numbers(document["signed"], what)
    metadata: Metadata[_S] = _sound(what, lambda: Metadata.from_dict(document))
    if isinstance(metadata.signed, Root):
        _check_root(metadata.signed, what)
    elif isinstance(metadata.signed, Snapshot):
        for name in metadata.signed.meta:
            check_role(name.removesuffix(".json"), what)
    elif isinstance(metadata.signed, Targets):
        _check_targets(metadata.signed, what)
    return metadata


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
    moment = signed_at(new)
    if moment is not None and new.is_expired(moment):
        raise Untrusted(f"timestamp {new.version}: says it was signed on {freshness.write(moment)}, after its expiry")
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


def require_current(signed: Signed, what: str, at: datetime) -> None:
    """Check that ``signed`` had not expired ``at`` that moment (5.3.10, 5.4.4, 5.5.6, 5.6.5).

    Raises:
        Stale: it had.
    """
    if signed.is_expired(at):
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


def signed_at(stamp: Timestamp) -> datetime | None:
    """Return when ``stamp`` says that it was signed; nothing if it does not."""
    ours = stamp.unrecognized_fields.get(CUSTOM)
    return freshness.read(ours.get("signed")) if isinstance(ours, dict) else None


def search(path: str, top: Targets, load: Callable[[str, Targets], Targets]) -> Target | None:
    """Return the target at ``path``, by the most trusted role that lists it (5.6.7); nothing if none does.

    Args:
        path: the target's path.
        top: the top-level targets.
        load: returns a delegated role, verified; gets its name and the role that delegates to it.

    Raises:
        CorruptContent: the entry is no target of ours.
    """
    pending: list[tuple[str, Targets | None]] = [("targets", None)]
    seen: set[str] = set()
    while pending and len(seen) <= MAX_DELEGATIONS:
        role, delegator = pending.pop()
        if role in seen:
            continue
        seen.add(role)
        found = top if delegator is None else load(role, delegator)
        if path in found.targets:
            return target(path, found)
        children: list[tuple[str, Targets | None]] = []
        for name, terminating in found.delegations.get_roles_for_target(path) if found.delegations else ():
            children.append((name, found))
            if terminating:
                pending.clear()
                break
        pending.extend(reversed(children))
    return None


def target(path: str, role: Targets) -> Target:
    """Return the target that ``role`` itself lists at ``path``.

    Raises:
        CorruptContent: the entry is no target of ours.
    """
    file = role.targets[path]
    return Target.parse(path, file.length, file.hashes, file.custom)


def delegated(role: Targets) -> Iterator[str]:
    """Yield the roles that ``role`` delegates to."""
    delegations = role.delegations
    if delegations is None:
        return
    yield from delegations.succinct_roles.get_roles() if delegations.succinct_roles else delegations.roles or ()


def check_role(name: str, what: str) -> str:
    """Return ``name`` if it can be a role's, and so part of a file's name.

    Raises:
        CorruptContent: it cannot.
    """
    if not _ROLE_NAME.fullmatch(name):
        raise CorruptContent(f"{what}: expected a role's name of letters, digits, . _ -, found {name[:80]!r}")
    return name


# --- what the library leaves open ------------------------------------------------------------------------------------


def _sound(what: str, work: Callable[[], _T]) -> _T:
    try:
        return work()
    except _UNSOUND as error:
        raise CorruptContent(f"{what}: not sound metadata: {error or type(error).__name__}") from None


def _check_numbers(value: object, what: str, key: str = "") -> None:
    """Refuse fractions anywhere, and anything but whole numbers where TUF counts: Python takes ``true`` for 1."""
    if isinstance(value, float):
        raise CorruptContent(f"{what}: {key}: expected no fractions, found {value!r}")
    if key in _COUNTS and type(value) is not int and not isinstance(value, dict):
        raise CorruptContent(f"{what}: {key}: expected a whole number, found {value!r}")
    if isinstance(value, dict):
        for name, item in value.items():
            _check_numbers(item, what, name)
    elif isinstance(value, list):
        for item in value:
            _check_numbers(item, what)


def _check_root(root: Root, what: str) -> None:
    if root.consistent_snapshot is not True:
        raise CorruptContent(f"{what}: expected consistent_snapshot true, found {root.consistent_snapshot!r}")
    for name, role in root.roles.items():
        _check_keys(role.keyids, root.keys, f"{what}: role {name}")


def _check_targets(role: Targets, what: str) -> None:
    for path in role.targets:
        target(path, role)
    delegations = role.delegations
    if delegations is None:
        return
    for name, one in (delegations.roles or {}).items():
        check_role(name, what)
        _check_keys(one.keyids, delegations.keys, f"{what}: role {name}")
    if delegations.succinct_roles is not None:
        _check_bins(delegations, what)


def _check_bins(delegations: Delegations, what: str) -> None:
    bins = delegations.succinct_roles
    if bins is None or bins.number_of_bins > MAX_ROLES:
        raise CorruptContent(f"{what}: expected at most {MAX_ROLES} hash bins, found more")
    check_role(bins.name_prefix, what)
    _check_keys(bins.keyids, delegations.keys, f"{what}: hash bins")


def _check_keys(ids: Iterable[str], keys: Mapping[str, Key], what: str) -> None:
    """Refuse other kinds of keys, and one key under two ids, which would count twice (5.3.4 asks for unique keys)."""
    seen: dict[bytes, str] = {}
    for identifier in ids:
        key = keys.get(identifier)
        if key is None:
            raise CorruptContent(f"{what}: names the key {identifier!r}, which is not there")
        material = _material(key, what)
        if material in seen:
            raise Untrusted(f"{what}: one key stands under two ids: {seen[material][:12]}… and {identifier[:12]}…")
        seen[material] = identifier


def _materials(root: Root, role: str) -> frozenset[bytes]:
    return frozenset(_material(root.keys[one], f"role {role}") for one in root.roles[role].keyids)


def _material(key: Key, what: str) -> bytes:
    """Return what the key is, however it is written."""
    if (key.keytype, key.scheme) not in _KEY_KINDS:
        raise CorruptContent(f"{what}: expected an Ed25519 or ECDSA P-256 key, found {key.keytype}/{key.scheme}")
    return _sound(what, lambda: _public_bytes(key.keytype, key.keyval["public"]))


def _public_bytes(kind: str, public: str) -> bytes:
    if kind == "ed25519":
        data = bytes.fromhex(public)
        if len(data) != 32:
            raise ValueError(f"expected 32 bytes of Ed25519 key, found {len(data)}")
        return data
    from intaglio.errors import NotVerifiable
    from intaglio.trust.key import PublicKey

    try:
        return bytes.fromhex(PublicKey.from_pem(public).id.hex)
    except NotVerifiable as error:
        raise ValueError(error.message) from None


def _require_signed(delegator: Root | Targets, role: str, metadata: Metadata[_S], what: str) -> None:
    """Check the threshold of signatures over the metadata's canonical form."""
    result = _sound(what, lambda: delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures))
    if not result:
        raise Untrusted(f"{what}: expected {result.threshold} good signatures, found {len(result.signed)}")


def _require_same(meta: MetaFile, data: bytes, what: str) -> None:
    try:
        meta.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        raise CorruptContent(f"{what}: not the file that was promised: {error}") from None


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
    """Return the member that a timestamp signed then carries: see :func:`signed_at`."""
    return {CUSTOM: {"signed": freshness.write(signed)}}
