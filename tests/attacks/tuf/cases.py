"""The corpus of attacks on a TUF client: a function a case, each giving a mirror's states, one after another.

A client that starts from the anchor and refreshes against each state in turn accepts all but the last, and refuses
that one. Any client can be run over it (``tests/interop/test_tuf.py`` runs python-tuf's).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from securesystemslib.signer import SSlibKey
from tests.trust import sources
from tests.trust.sources import (
    DAY,
    NOW,
    ROOT,
    SNAPSHOT,
    STRANGER,
    TARGETS,
    TEAM,
    TIMESTAMP,
    Files,
    Source,
    add_signature,
    bend,
    sign,
)
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Root, Targets

from intaglio.errors import ExitCode
from intaglio.trust.repository import key_of


@dataclass(frozen=True, slots=True)
class Attack:
    """The states of a mirror; the last is the attack."""

    anchor: bytes
    states: tuple[Files, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One attack."""

    name: str
    build: Callable[[], Attack]
    exit_code: ExitCode
    """The answer that is due."""
    says: str
    """Part of the message."""
    stock: bool
    """Whether python-tuf's client refuses it, too."""


CASES: list[Case] = []


def case(exit_code: ExitCode, says: str, *, stock: bool = True) -> Callable[[Callable[[Source], list[Files]]], None]:
    """Register the attack that follows an honest publication by a source with one target."""

    def register(build: Callable[[Source], list[Files]]) -> None:
        def attack() -> Attack:
            source = Source().add()
            honest = source.publish()
            return Attack(source.anchor, (honest, *build(source)))

        CASES.append(Case(build.__name__, attack, exit_code, says, stock))

    return register


# --- signatures and keys ---------------------------------------------------------------------------------------------


@case(ExitCode.UNTRUSTED, "timestamp: expected 1 good signatures, found 0")
def unknown_signature(source: Source) -> list[Files]:
    source.signers["timestamp"] = (STRANGER,)
    return [source.publish()]


@case(ExitCode.UNTRUSTED, "timestamp: expected 1 good signatures, found 0")
def signature_under_anothers_id(source: Source) -> list[Files]:
    source.publish()
    metadata: Metadata[Any] = Metadata(source.timestamp)
    add_signature(metadata, STRANGER, key_of(TIMESTAMP.public).keyid)
    source.files["metadata/timestamp.json"] = metadata.to_bytes()
    return [source.now()]


@case(ExitCode.UNTRUSTED, "root 2: by the keys of root 1: expected 2 good signatures, found 1")
def too_few_root_signatures(source: Source) -> list[Files]:
    return [source.next_root([ROOT[0]]).now()]


@case(ExitCode.UNTRUSTED, "root 2: by the keys of root 1: expected 2 good signatures, found 0")
def root_of_another_publisher(source: Source) -> list[Files]:
    stranger = Root(version=1, expires=NOW + DAY, roles=source.root.roles, keys=source.root.keys)
    for one in ROOT:
        stranger.revoke_key(key_of(one.public).keyid, "root")
    for one in (STRANGER, sources.key(667)):
        stranger.add_key(key_of(one.public), "root")
    source.root = stranger
    return [source.next_root([STRANGER, sources.key(667)]).now()]


@case(ExitCode.UNTRUSTED, "root 2: by its own keys: expected 2 good signatures, found 1")
def root_without_its_own_threshold(source: Source) -> list[Files]:
    source.root.revoke_key(key_of(ROOT[0].public).keyid, "root")
    return [source.next_root(ROOT[:2]).now()]


@case(ExitCode.UNTRUSTED, "one key stands under two ids", stock=False)
def one_key_under_two_ids(source: Source) -> list[Files]:
    keys = source.root.keys[key_of(TARGETS[0].public).keyid]
    twin = SSlibKey("f" * 64, keys.keytype, keys.scheme, dict(keys.keyval))
    source.root.roles["targets"].keyids = []
    source.root.add_key(keys, "targets")
    source.root.add_key(twin, "targets")
    source.root.roles["targets"].threshold = 2
    source.next_root()
    source.targets.version += 1
    metadata: Metadata[Any] = Metadata(source.targets)
    add_signature(metadata, TARGETS[0])
    add_signature(metadata, TARGETS[0], "f" * 64)
    data = metadata.to_bytes()
    source.files[f"metadata/{source.targets.version}.targets.json"] = data
    source.snapshot.meta = {"targets.json": sources.describe(source.targets.version, data)}
    return [source.take_snapshot()]


@case(ExitCode.UNTRUSTED, "one key stands under two ids", stock=False)
def one_key_in_two_spellings(source: Source) -> list[Files]:
    keys = source.root.keys[key_of(ROOT[0].public).keyid]
    twin = SSlibKey("e" * 64, keys.keytype, keys.scheme, {"public": keys.keyval["public"] + "\n"})
    source.root.add_key(twin, "root")
    return [source.next_root().now()]


@case(ExitCode.CORRUPT, "threshold: expected a whole number from 1, found 0")
def threshold_zero(source: Source) -> list[Files]:
    def change(signed: dict[str, Any]) -> None:
        signed["version"] = 2
        signed["roles"]["targets"]["threshold"] = 0

    source.files["metadata/2.root.json"] = bend(source.anchor, change, ROOT[:2])
    return [source.now()]


@case(ExitCode.CORRUPT, "threshold: expected a whole number, found True", stock=False)
def threshold_true(source: Source) -> list[Files]:
    def change(signed: dict[str, Any]) -> None:
        signed["version"] = 2
        signed["roles"]["root"]["threshold"] = True

    source.files["metadata/2.root.json"] = bend(source.anchor, change, ROOT[:2])
    return [source.now()]


@case(ExitCode.CORRUPT, "expected an Ed25519 or ECDSA P-256 key, found 'rsa/rsassa-pss-sha256'", stock=False)
def key_of_another_kind(source: Source) -> list[Files]:
    return [_foreign_key(source, "rsassa-pss-sha256", "x")]


@case(ExitCode.CORRUPT, "expected an Ed25519 or ECDSA P-256 key, found 'rsa/pgp+rsa-pkcsv1.5'", stock=False)
def key_whose_check_runs_a_program(source: Source) -> list[Files]:
    return [_foreign_key(source, "pgp+rsa-pkcsv1.5", {"e": "1", "n": "1"}, hashes=["pgp+SHA2"])]


def _foreign_key(source: Source, scheme: str, public: object, **more: object) -> Files:
    def change(signed: dict[str, Any]) -> None:
        signed["version"] = 2
        keyval = {"public": public, "private": ""}
        signed["keys"]["d" * 64] = {"keytype": "rsa", "scheme": scheme, "keyval": keyval, **more}
        signed["roles"]["targets"]["keyids"].append("d" * 64)

    source.files["metadata/2.root.json"] = bend(source.anchor, change, ROOT[:2])
    return source.now()


@case(ExitCode.CORRUPT, "not the file that was promised")
def payload_altered(source: Source) -> list[Files]:
    files = source.publish()
    name = "metadata/2.targets.json"
    return [{**files, name: files[name].replace(b"Apache-2.0", b"Apache-1.0")}]


@case(ExitCode.UNTRUSTED, "targets: expected 1 good signatures, found 0")
def payload_altered_where_no_hash_is_given(source: Source) -> list[Files]:
    source.hashes = False
    files = source.publish()
    name = "metadata/2.targets.json"
    return [{**files, name: files[name].replace(b"Apache-2.0", b"Apache-1.0")}]


@case(ExitCode.UNTRUSTED, "timestamp: expected 1 good signatures, found 0")
def signed_by_a_revoked_key(source: Source) -> list[Files]:
    source.root.revoke_key(key_of(TIMESTAMP.public).keyid, "timestamp")
    source.root.add_key(key_of(sources.key(42).public), "timestamp")
    source.next_root()
    return [source.publish()]


# --- versions --------------------------------------------------------------------------------------------------------


@case(ExitCode.UNTRUSTED, "root 2: expected version 2, found 1")
def rolled_back_root(source: Source) -> list[Files]:
    source.files["metadata/2.root.json"] = source.anchor
    return [source.now()]


@case(ExitCode.UNTRUSTED, "root 2: expected version 2, found 3")
def skipped_root_version(source: Source) -> list[Files]:
    source.root.version = 2
    source.next_root()
    source.files["metadata/2.root.json"] = source.files.pop("metadata/3.root.json")
    return [source.now()]


@case(ExitCode.UNTRUSTED, "timestamp: rolled back: expected version 2 or newer, found 1")
def rolled_back_timestamp(source: Source) -> list[Files]:
    before = source.now()
    return [source.publish(), before]


@case(ExitCode.UNTRUSTED, "timestamp: snapshot: rolled back: expected version 2 or newer, found 1")
def rolled_back_snapshot(source: Source) -> list[Files]:
    old = source.timestamp.snapshot_meta
    states = [source.publish()]
    source.timestamp.snapshot_meta = old
    return [*states, source.stamp()]


@case(ExitCode.UNTRUSTED, "targets.json: rolled back: expected version 2 or newer, found 1")
def rolled_back_targets(source: Source) -> list[Files]:
    old = source.snapshot.meta
    states = [source.publish()]
    source.snapshot.meta = old
    return [*states, source.take_snapshot()]


@case(ExitCode.UNTRUSTED, "no longer lists team.json")
def dropped_role(source: Source) -> list[Files]:
    source.delegate("team", ["models/team/*/*"], [])
    states = [source.publish()]
    del source.snapshot.meta["team.json"]
    return [*states, source.take_snapshot()]


@case(ExitCode.CORRUPT, "targets: not the file that was promised")
def mix_of_snapshot_and_targets(source: Source) -> list[Files]:
    old = source.files["metadata/1.targets.json"]
    files = source.publish()
    return [{**files, "metadata/2.targets.json": old}]


@case(ExitCode.UNTRUSTED, "targets: expected version 2 as the snapshot says, found 1")
def mix_where_no_hash_is_given(source: Source) -> list[Files]:
    source.hashes = False
    old = source.files["metadata/1.targets.json"]
    files = source.publish()
    return [{**files, "metadata/2.targets.json": old}]


@case(ExitCode.CORRUPT, "snapshot: not the file that was promised")
def mix_of_timestamp_and_snapshot(source: Source) -> list[Files]:
    old = source.files["metadata/1.snapshot.json"]
    files = source.publish()
    return [{**files, "metadata/2.snapshot.json": old}]


# --- dates -----------------------------------------------------------------------------------------------------------


@case(ExitCode.STALE, "timestamp 2 expired on 2026-01-10T11:59:59Z")
def expired_timestamp(source: Source) -> list[Files]:
    source.timestamp.expires = NOW - timedelta(seconds=1)
    source.signed_at = NOW - DAY
    return [source.publish()]


@case(ExitCode.STALE, "snapshot 2 expired on 2026-01-10T12:00:00Z")
def expired_snapshot(source: Source) -> list[Files]:
    source.snapshot.expires = NOW
    return [source.publish()]


@case(ExitCode.STALE, "targets 2 expired")
def expired_targets(source: Source) -> list[Files]:
    source.targets.expires = NOW - DAY
    return [source.publish()]


@case(ExitCode.STALE, "root 2 expired")
def expired_root(source: Source) -> list[Files]:
    source.root.expires = NOW - DAY
    return [source.next_root().now()]


@case(ExitCode.STALE, "team 1 expired", stock=False)  # it does not fetch a role before a target is asked for
def expired_delegated_role(source: Source) -> list[Files]:
    source.delegate("team", ["models/team/*/*"], [])
    source.roles["team"][0].expires = NOW - DAY
    return [source.publish()]


@case(ExitCode.UNTRUSTED, "timestamp 2: says it was signed on 2026-02-01T12:00:00Z, after its expiry", stock=False)
def signed_after_its_expiry(source: Source) -> list[Files]:
    source.signed_at = NOW + 22 * DAY
    return [source.publish()]


# --- delegations -----------------------------------------------------------------------------------------------------


@case(ExitCode.UNTRUSTED, "team: expected 1 good signatures, found 0", stock=False)
def delegated_role_by_a_stranger(source: Source) -> list[Files]:
    source.delegate("team", ["models/team/*/*"], [])
    source.roles["team"] = (source.roles["team"][0], (STRANGER,))
    return [source.publish()]


@case(ExitCode.UNTRUSTED, "team: is not listed by snapshot 2", stock=False)
def delegated_role_that_no_snapshot_lists(source: Source) -> list[Files]:
    source.delegate("team", ["models/team/*/*"], [])
    source.roles.clear()
    return [source.publish()]


@case(ExitCode.UNTRUSTED, "shared: expected 1 good signatures, found 0", stock=False)
def role_that_another_delegator_believes(source: Source) -> list[Files]:
    """Two roles delegate to one name, each by a key of its own; the file is signed by one of them."""
    source.delegate("team", ["models/team/*/*"], []).delegate("other", ["models/other/*/*"], [])
    for name, one in (("team", TEAM), ("other", STRANGER)):
        public = key_of(one.public)
        shared = DelegatedRole("shared", [public.keyid], 1, False, paths=["models/*/*/*"])
        source.roles[name][0].delegations = Delegations({public.keyid: public}, {"shared": shared})
    role = Targets(version=1, expires=NOW + DAY)
    role.targets = {"models/team/own/1": sources.listing(sources.target("models/team/own@1"))}
    source.roles["shared"] = (role, (STRANGER,))
    return [source.publish()]


@case(ExitCode.CORRUPT, "expected at most 256 of at most 512 characters", stock=False)
def pattern_that_takes_long(source: Source) -> list[Files]:
    source.delegate("team", ["[" * 16_000], [])
    return [source.publish()]


@case(ExitCode.CORRUPT, "expected at most 64 keys, found 65", stock=False)
def more_keys_than_can_be_tried(source: Source) -> list[Files]:
    for number in range(1000, 1064):
        source.root.add_key(key_of(sources.key(number).public), "timestamp")
    return [source.next_root().now()]


@case(ExitCode.CORRUPT, "expected at most 4096 delegations", stock=False)
def delegations_without_end(source: Source) -> list[Files]:
    """65 roles that all delegate to each other."""
    names = [f"r{number}" for number in range(65)]
    for name in names:
        source.delegate(name, ["models/*/*/*"], [])
    assert source.targets.delegations is not None
    for name in names:
        source.roles[name][0].delegations = source.targets.delegations
    return [source.publish()]


@case(ExitCode.CORRUPT, "expected a role's name", stock=False)
def delegated_role_named_like_a_path(source: Source) -> list[Files]:
    source.delegate("../../root", ["models/team/*/*"], [])
    return [source.publish()]


# --- targets ---------------------------------------------------------------------------------------------------------


def _list(source: Source, path: str, change: Callable[[dict[str, Any]], None] = lambda entry: None) -> Files:
    """Publish a target at ``path``, its entry changed, by the targets' own keys."""
    source.publish()

    def bent(signed: dict[str, Any]) -> None:
        entry = signed["targets"].pop("models/acme/base/1.0.0")
        change(entry)
        signed["targets"][path] = entry

    name = f"metadata/{source.targets.version}.targets.json"
    data = bend(source.files[name], bent, TARGETS[:1])
    source.files[name] = data
    source.snapshot.meta["targets.json"] = sources.describe(source.targets.version, data)
    return source.take_snapshot()


@case(ExitCode.CORRUPT, "target 'models/../../etc/passwd'", stock=False)
def target_outside(source: Source) -> list[Files]:
    return [_list(source, "models/../../etc/passwd")]


@case(ExitCode.CORRUPT, "target '/models/acme/base/1.0.0'", stock=False)
def target_absolute(source: Source) -> list[Files]:
    return [_list(source, "/models/acme/base/1.0.0")]


@case(ExitCode.CORRUPT, "lower case", stock=False)
def target_in_other_letters(source: Source) -> list[Files]:
    return [_list(source, "models/\u0430cme/base/1.0.0")]  # a Cyrillic a


@case(ExitCode.CORRUPT, "expected kind 'dataset', found 'model'", stock=False)
def target_of_another_kind(source: Source) -> list[Files]:
    return [_list(source, "datasets/acme/base/1.0.0")]


@case(ExitCode.CORRUPT, "expected a sha256 hash alone, found md5", stock=False)
def target_with_a_weak_hash(source: Source) -> list[Files]:
    return [_list(source, "models/acme/base/1.0.0", lambda entry: entry.update(hashes={"md5": "0" * 32}))]


@case(ExitCode.CORRUPT, "expected a manifest of at most", stock=False)
def target_too_large(source: Source) -> list[Files]:
    return [_list(source, "models/acme/base/1.0.0", lambda entry: entry.update(length=1 << 40))]


@case(ExitCode.CORRUPT, "expected status active or yanked, found None", stock=False)
def target_without_a_status(source: Source) -> list[Files]:
    return [_list(source, "models/acme/base/1.0.0", lambda entry: entry["custom"]["intaglio"].pop("status"))]


@case(ExitCode.CORRUPT, "unknown key 'embargo'", stock=False)
def target_with_a_condition_that_is_not_known(source: Source) -> list[Files]:
    return [_list(source, "models/acme/base/1.0.0", lambda entry: entry["custom"]["intaglio"].update(embargo="2030"))]


# --- form ------------------------------------------------------------------------------------------------------------


@case(ExitCode.CORRUPT, "expected metadata of type 'timestamp', found 'snapshot'")
def another_kind_of_metadata(source: Source) -> list[Files]:
    source.publish()
    source.files["metadata/timestamp.json"] = sign(source.snapshot, [SNAPSHOT, TIMESTAMP])
    return [source.now()]


@case(ExitCode.CORRUPT, "expires: expected a moment such as 2026-01-31T12:00:00Z")
def expiry_that_no_clock_reaches(source: Source) -> list[Files]:
    data = source.publish()["metadata/timestamp.json"]
    written = f"{source.timestamp.expires:%Y-%m-%dT%H:%M:%SZ}".encode()
    return [{**source.now(), "metadata/timestamp.json": data.replace(written, b"0001-01-01T00:00:00+01:00")}]


@case(ExitCode.CORRUPT, "duplicate key 'version'", stock=False)
def duplicate_key(source: Source) -> list[Files]:
    data = source.publish()["metadata/timestamp.json"]
    return [{**source.now(), "metadata/timestamp.json": data.replace(b'"version":2}', b'"version":1,"version":2}')}]


@case(ExitCode.CORRUPT, "expected no fractions, found 2.5")
def version_with_a_fraction(source: Source) -> list[Files]:
    data = source.publish()["metadata/timestamp.json"]
    return [{**source.now(), "metadata/timestamp.json": data.replace(b'"version":2}', b'"version":2.5}')}]


@case(ExitCode.CORRUPT, "NaN is not JSON")
def version_that_is_no_number(source: Source) -> list[Files]:
    data = source.publish()["metadata/timestamp.json"]
    return [{**source.now(), "metadata/timestamp.json": data.replace(b'"version":2}', b'"version":NaN}')}]


@case(ExitCode.CORRUPT, "not valid UTF-8")
def not_text(source: Source) -> list[Files]:
    return [{**source.publish(), "metadata/timestamp.json": b'{"signed": "\xff"}'}]


@case(ExitCode.CORRUPT, "nested too deep")
def too_deep(source: Source) -> list[Files]:
    return [{**source.publish(), "metadata/timestamp.json": b'{"signed":' + b"[" * 100 + b"]" * 100 + b"}"}]


@case(ExitCode.SOURCE, "expected at most 16384 bytes")
def too_large(source: Source) -> list[Files]:
    return [{**source.publish(), "metadata/timestamp.json": b" " * 16_385}]


@case(ExitCode.CORRUPT, "snapshot: not the file that was promised")
def longer_than_promised(source: Source) -> list[Files]:
    files = source.publish()
    return [{**files, "metadata/2.snapshot.json": files["metadata/2.snapshot.json"] + b" "}]


@case(ExitCode.CORRUPT, "expected consistent_snapshot true, found False", stock=False)
def without_consistent_snapshots(source: Source) -> list[Files]:
    source.root.consistent_snapshot = False
    return [source.next_root().now()]


@case(ExitCode.CORRUPT, "expected signatures and signed", stock=False)
def something_beside_the_signed_part(source: Source) -> list[Files]:
    document = json.loads(source.publish()["metadata/timestamp.json"])
    document["more"] = 1
    return [{**source.now(), "metadata/timestamp.json": json.dumps(document).encode()}]


@case(ExitCode.SOURCE, "has no metadata/2.snapshot.json")
def missing_snapshot(source: Source) -> list[Files]:
    files = source.publish()
    del files["metadata/2.snapshot.json"]
    return [files]


@case(ExitCode.CORRUPT, "version: expected a whole number from 1, found 0")
def snapshot_version_zero(source: Source) -> list[Files]:
    source.publish()
    meta = MetaFile(1)
    meta.version = 0
    source.timestamp.snapshot_meta = meta
    return [source.stamp()]
