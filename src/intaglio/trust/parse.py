"""TUF metadata read: bytes in, payloads of one strict form out, unverified. No file, no network, no clock.

- Strict JSON of one form: no duplicate key, no fraction, no truth value where a number belongs; what a payload needs is
  there and of its type. What it does not know is left alone: it is signed with the rest.
- Only Ed25519 and ECDSA P-256 keys are read, and a role's keys are different keys, however they are called or written.
- What is signed is the canonical form of the signed part as it was received.
- Whatever the input, :func:`parse` returns metadata or raises ``VerificationError``.

(TUF specification 1.0, section 4; canonical form: http://wiki.laptop.org/go/Canonical_JSON.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from intaglio import strictjson
from intaglio.errors import CorruptContent, NotVerifiable, Untrusted
from intaglio.strictjson import Object
from intaglio.trust import freshness
from intaglio.trust.key import PublicKey
from intaglio.trust.payload import (
    CUSTOM,
    MAX_BYTES,
    MAX_KEYS,
    MAX_PATTERN,
    MAX_PATTERNS,
    MAX_ROLES,
    ROLES,
    Delegation,
    HashBins,
    Key,
    Metadata,
    MetaFile,
    Role,
    Root,
    S,
    Snapshot,
    Targets,
    Timestamp,
)
from intaglio.trust.target import Target

_KEY_KINDS = (("ed25519", "ed25519"), ("ecdsa", "ecdsa-sha2-nistp256"))
_ROLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SPECIFICATION = re.compile(r"1\.[0-9]+(?:\.[0-9]+)?")
_COUNTS = ("version", "length", "threshold")


def parse(kind: type[S], data: bytes, what: str) -> Metadata[S]:
    """Return the metadata in ``data``, unverified; ``what`` names it in errors.

    Raises:
        CorruptContent: not a metadata file of that kind in its one form.
        Untrusted: one key stands under two ids of a role, and would count twice (5.3.4 asks for unique keys).
    """
    role = kind.__name__.lower()
    document = strictjson.parse_object(data, what=what, max_bytes=MAX_BYTES[role])
    if set(document) != {"signatures", "signed"} or not isinstance(document["signed"], dict):
        raise CorruptContent(f"{what}: expected signatures and signed, found {_shown(sorted(document))}")
    body = document["signed"]
    if body.get("_type") != role:
        raise CorruptContent(f"{what}: expected metadata of type {role!r}, found {_shown(body.get('_type'))}")
    _check_numbers(body, what)
    specification = _text(body, "spec_version", what)
    if not _SPECIFICATION.fullmatch(specification):
        raise CorruptContent(f"{what}: expected version 1 of the TUF specification, found {_shown(specification)}")
    signatures = _signatures(document["signatures"], what)
    return Metadata(_READERS[kind](body, what), canonical(body), signatures)


def canonical(value: object) -> bytes:
    """Return the canonical form of JSON without fractions: keys sorted, no space, only quote and backslash escaped."""
    parts: list[str] = []
    _canonical(value, parts.append)
    return "".join(parts).encode()


def _canonical(value: object, put: Callable[[str], None]) -> None:
    if isinstance(value, dict):
        put("{")
        for place, (key, item) in enumerate(sorted(value.items())):
            put(f",{_quoted(key)}:" if place else f"{_quoted(key)}:")
            _canonical(item, put)
        put("}")
    elif isinstance(value, list):
        put("[")
        for place, item in enumerate(value):
            if place:
                put(",")
            _canonical(item, put)
        put("]")
    elif isinstance(value, str):
        put(_quoted(value))
    elif value is None or isinstance(value, bool):
        put({None: "null", True: "true", False: "false"}[value])
    elif isinstance(value, int):
        put(str(value))
    else:
        raise TypeError(f"no canonical form of {type(value).__name__}")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# --- the four kinds ---------------------------------------------------------------------------------------------------


def _root(body: Object, what: str) -> Root:
    if body.get("consistent_snapshot") is not True:
        raise CorruptContent(
            f"{what}: expected consistent_snapshot true, found {_shown(body.get('consistent_snapshot'))}"
        )
    keys = _keys(body, what)
    roles = _table(body, "roles", what)
    if set(roles) != set(ROLES):
        raise CorruptContent(f"{what}: expected the roles {', '.join(ROLES)}, found {_shown(sorted(roles))}")
    return Root(*_common(body, what), {name: _role(_table(roles, name, what), keys, name, what) for name in roles})


def _timestamp(body: Object, what: str) -> Timestamp:
    meta = _table(body, "meta", what)
    if set(meta) != {"snapshot.json"}:
        raise CorruptContent(f"{what}: meta: expected snapshot.json alone, found {_shown(sorted(meta))}")
    ours = body.get(CUSTOM)
    signed = freshness.read(ours.get("signed")) if isinstance(ours, dict) else None
    return Timestamp(*_common(body, what), _meta(meta, "snapshot.json", what), signed)


def _snapshot(body: Object, what: str) -> Snapshot:
    meta = _table(body, "meta", what)
    for name in meta:
        _check_role(name.removesuffix(".json"), what)
    return Snapshot(*_common(body, what), {name: _meta(meta, name, what) for name in meta})


def _targets(body: Object, what: str) -> Targets:
    listed = {path: _target(path, entry, what) for path, entry in _table(body, "targets", what).items()}
    delegations, bins = _delegations(_table(body, "delegations", what), what) if "delegations" in body else ({}, None)
    return Targets(*_common(body, what), listed, delegations, bins)


_READERS: Mapping[type, Callable[[Object, str], Any]] = {
    Root: _root,
    Timestamp: _timestamp,
    Snapshot: _snapshot,
    Targets: _targets,
}


def _target(path: str, entry: object, what: str) -> Target:
    if not isinstance(entry, dict):
        raise CorruptContent(f"{what}: target {_shown(path)}: expected an object, found {type(entry).__name__}")
    return Target.parse(
        path, entry.get("length"), _hashes(entry, f"{what}: target {_shown(path)}"), entry.get("custom")
    )


def _delegations(body: Object, what: str) -> tuple[dict[str, Delegation], HashBins | None]:
    keys = _keys(body, what)
    if ("roles" in body) == ("succinct_roles" in body):
        raise CorruptContent(f"{what}: delegations: expected either roles or succinct_roles")
    if "succinct_roles" in body:
        return {}, _bins(_table(body, "succinct_roles", what), keys, what)
    roles = body["roles"]
    if not isinstance(roles, list):
        raise CorruptContent(f"{what}: roles: expected a list, found {type(roles).__name__}")
    found: dict[str, Delegation] = {}
    for one in roles:
        delegation = _delegation(one, keys, what)
        if delegation.name in found:
            raise CorruptContent(f"{what}: role {delegation.name} is delegated to twice")
        found[delegation.name] = delegation
    return found, None


def _delegation(body: object, keys: Mapping[str, Key], what: str) -> Delegation:
    if not isinstance(body, dict):
        raise CorruptContent(f"{what}: roles: expected objects, found {type(body).__name__}")
    name = _check_role(_text(body, "name", what), what)
    if name in ROLES:
        raise CorruptContent(f"{what}: delegates to {name}, which is a top-level role")
    if ("paths" in body) == ("path_hash_prefixes" in body):
        raise CorruptContent(f"{what}: role {name}: expected either paths or path_hash_prefixes")
    if not isinstance(body.get("terminating"), bool):
        raise CorruptContent(f"{what}: role {name}: terminating: expected true or false")
    paths = _patterns(body, "paths", what) if "paths" in body else None
    prefixes = _patterns(body, "path_hash_prefixes", what) if paths is None else None
    return Delegation(name, _role(body, keys, name, what), body["terminating"], paths, prefixes)


def _patterns(body: Object, key: str, what: str) -> tuple[str, ...]:
    found = _texts(body, key, what)
    if len(found) > MAX_PATTERNS or any(len(one) > MAX_PATTERN for one in found):
        raise CorruptContent(
            f"{what}: {key}: expected at most {MAX_PATTERNS} of at most {MAX_PATTERN} characters, found more"
        )
    return found


def _bins(body: Object, keys: Mapping[str, Key], what: str) -> HashBins:
    bits = body.get("bit_length")
    if type(bits) is not int or bits < 1:
        raise CorruptContent(f"{what}: bit_length: expected a whole number from 1, found {_shown(bits)}")
    if bits > 32 or 1 << bits > MAX_ROLES:
        raise CorruptContent(f"{what}: expected at most {MAX_ROLES} hash bins, found more")
    prefix = _check_role(_text(body, "name_prefix", what), what)
    return HashBins(_role(body, keys, "hash bins", what), bits, prefix)


# --- their parts ------------------------------------------------------------------------------------------------------


def _common(body: Object, what: str) -> tuple[int, datetime]:
    text = _text(body, "expires", what)
    expires = freshness.read(text)
    if expires is None:
        raise CorruptContent(f"{what}: expires: expected a moment such as 2026-01-31T12:00:00Z, found {_shown(text)}")
    return _whole(body, "version", what, 1), expires


def _check_role(name: str, what: str) -> str:
    """Return ``name`` if it can be a role's, and so part of a file's name."""
    if not _ROLE_NAME.fullmatch(name):
        raise CorruptContent(f"{what}: expected a role's name of letters, digits, . _ -, found {_shown(name)}")
    return name


def _keys(body: Object, what: str) -> dict[str, Key]:
    return {name: _key(_table(body["keys"], name, what), name, what) for name in _table(body, "keys", what)}


def _key(body: Object, identifier: str, what: str) -> Key:
    kind, scheme = _text(body, "keytype", what), _text(body, "scheme", what)
    if (kind, scheme) not in _KEY_KINDS:
        raise CorruptContent(f"{what}: expected an Ed25519 or ECDSA P-256 key, found {_shown(f'{kind}/{scheme}')}")
    public = _text(_table(body, "keyval", what), "public", what)
    try:
        if kind == "ecdsa":
            return Key(PublicKey.from_pem(public))
        data = bytes.fromhex(public)
        if len(data) != 32:
            raise ValueError(f"expected 32 bytes of Ed25519 key, found {len(data)}")
        return Key(data)
    except (ValueError, NotVerifiable) as error:
        raise CorruptContent(f"{what}: key {_shown(identifier)}: {error}") from None


def _role(body: Object, keys: Mapping[str, Key], name: str, what: str) -> Role:
    what = f"{what}: role {name}"
    found: dict[str, Key] = {}
    names: dict[bytes, str] = {}
    listed = _texts(body, "keyids", what)
    if len(listed) > MAX_KEYS:
        raise CorruptContent(f"{what}: expected at most {MAX_KEYS} keys, found {len(listed)}")
    for identifier in listed:
        key = keys.get(identifier)
        if key is None:
            raise CorruptContent(f"{what}: names the key {_shown(identifier)}, which is not there")
        if identifier in found:
            raise CorruptContent(f"{what}: names the key {_shown(identifier)} twice")
        if key.material in names:
            raise Untrusted(
                f"{what}: one key stands under two ids: {_shown(names[key.material])} and {_shown(identifier)}"
            )
        found[identifier] = key
        names[key.material] = identifier
    return Role(found, _whole(body, "threshold", what, 1))


def _meta(body: Object, name: str, what: str) -> MetaFile:
    what = f"{what}: {name}"
    one = _table(body, name, what)
    length = _whole(one, "length", what, 0) if "length" in one else None
    return MetaFile(_whole(one, "version", what, 1), length, _hashes(one, what) if "hashes" in one else None)


def _hashes(body: Object, what: str) -> dict[str, str]:
    hashes = _table(body, "hashes", what)
    if not hashes:
        raise CorruptContent(f"{what}: hashes: expected at least one, found none")
    return {name: _text(hashes, name, what) for name in hashes}


def _signatures(listed: object, what: str) -> dict[str, str]:
    if not isinstance(listed, list):
        raise CorruptContent(f"{what}: signatures: expected a list, found {type(listed).__name__}")
    found: dict[str, str] = {}
    for one in listed:
        if not isinstance(one, dict):
            raise CorruptContent(f"{what}: signatures: expected objects, found {type(one).__name__}")
        identifier = _text(one, "keyid", what)
        if identifier in found:
            raise CorruptContent(f"{what}: two signatures of the key {_shown(identifier)}")
        found[identifier] = _text(one, "sig", what)
    return found


def _table(body: Object, key: str, what: str) -> Object:
    value = body.get(key)
    if not isinstance(value, dict):
        raise CorruptContent(f"{what}: {_member(key)}: expected an object, found {_kind(value)}")
    return value


def _text(body: Object, key: str, what: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise CorruptContent(f"{what}: {_member(key)}: expected text, found {_kind(value)}")
    return value


def _texts(body: Object, key: str, what: str) -> tuple[str, ...]:
    value = body.get(key)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise CorruptContent(f"{what}: {_member(key)}: expected a list of texts, found {_kind(value)}")
    return tuple(value)


def _whole(body: Object, key: str, what: str, least: int) -> int:
    value = body.get(key)
    if type(value) is not int or value < least:
        raise CorruptContent(f"{what}: {key}: expected a whole number from {least}, found {_shown(value)}")
    return value


def _shown(value: object) -> str:
    """Return what was found, as errors quote it: as Python writes it, and the beginning of it."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"


def _member(key: str) -> str:
    return key if _ROLE_NAME.fullmatch(key) else _shown(key)


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _check_numbers(value: object, what: str, key: str = "") -> None:
    """Refuse fractions anywhere, and anything but whole numbers where TUF counts: Python takes ``true`` for 1."""
    if isinstance(value, float):
        raise CorruptContent(f"{what}: {_member(key)}: expected no fractions, found {_shown(value)}")
    if key in _COUNTS and type(value) is not int and not isinstance(value, dict):
        raise CorruptContent(f"{what}: {key}: expected a whole number, found {_shown(value)}")
    if isinstance(value, dict):
        for name, item in value.items():
            _check_numbers(item, what, name)
    elif isinstance(value, list):
        for item in value:
            _check_numbers(item, what)
