"""Our reading of TUF metadata beside python-tuf's: what we read it reads, and it says the same."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tests.trust import sources
from tests.trust.sources import NOW, Source, target
from tuf.api import metadata as stock

from intaglio.digest import Digest
from intaglio.errors import CorruptContent, Untrusted, VerificationError
from intaglio.trust import metadata, payload
from intaglio.trust.parse import canonical, parse
from intaglio.trust.repository import key_of
from intaglio.trust.target import Target

KINDS: dict[str, Any] = {
    "root": payload.Root,
    "timestamp": payload.Timestamp,
    "snapshot": payload.Snapshot,
    "targets": payload.Targets,
}


def published() -> dict[str, bytes]:
    """A file of each kind; targets with delegations by name, and with hash bins."""
    source = Source().add().delegate("team", ["models/team/*/*"], [target("models/team/own@1")])
    files = source.publish()
    found = {"root": files["metadata/1.root.json"], "timestamp": files["metadata/timestamp.json"]}
    found |= {"snapshot": files["metadata/1.snapshot.json"], "targets": files["metadata/1.targets.json"]}
    public = key_of(sources.TEAM.public)
    bins = stock.SuccinctRoles([public.keyid], 1, 5, "bin")
    source.targets.delegations = stock.Delegations({public.keyid: public}, succinct_roles=bins)
    return {**found, "targets with bins": sources.sign(source.targets, sources.TARGETS[:1])}


FILES = published()


def read(name: str, data: bytes) -> Any:
    return parse(KINDS[name.partition(" ")[0]], data, "it")


def told(mine: Any) -> dict[str, Any]:
    """What our reading says, in plain terms."""
    signed = mine.signed
    said: dict[str, Any] = {"version": signed.version, "expires": signed.expires, "message": mine.message}
    said["signatures"] = dict(mine.signatures)
    if isinstance(signed, payload.Root):
        said["roles"] = {name: role_of(role) for name, role in signed.roles.items()}
    elif isinstance(signed, payload.Timestamp):
        said["meta"] = {"snapshot.json": meta_of(signed.snapshot_meta)}
    elif isinstance(signed, payload.Snapshot):
        said["meta"] = {name: meta_of(one) for name, one in signed.meta.items()}
    else:
        said["targets"] = {path: (one.size, one.digest.hex, one.custom()) for path, one in signed.targets.items()}
        said["delegated"] = list(signed.delegated())
        said["roles"] = {name: role_of(signed.role(name)) for name in said["delegated"]}
        said["search"] = {path: list(signed.roles_for(path)) for path in PATHS}
    return said


def told_by_stock(data: bytes) -> dict[str, Any]:
    """What python-tuf's says, in the same terms."""
    whole: Any = stock.Metadata.from_bytes(data)
    signed = whole.signed
    said: dict[str, Any] = {"version": signed.version, "expires": signed.expires, "message": whole.signed_bytes}
    said["signatures"] = {name: one.signature for name, one in whole.signatures.items()}
    if isinstance(signed, stock.Root):
        said["roles"] = {name: stock_role_of(one, signed.keys) for name, one in signed.roles.items()}
    elif isinstance(signed, stock.Timestamp):
        said["meta"] = {"snapshot.json": meta_of(signed.snapshot_meta)}
    elif isinstance(signed, stock.Snapshot):
        said["meta"] = {name: meta_of(one) for name, one in signed.meta.items()}
    else:
        said["targets"] = {
            path: (one.length, one.hashes["sha256"], Target.parse(path, one.length, one.hashes, one.custom).custom())
            for path, one in signed.targets.items()
        }
        delegations = signed.delegations
        roles = {} if delegations is None else delegations.roles
        if delegations is not None and delegations.succinct_roles is not None:
            roles = dict.fromkeys(delegations.succinct_roles.get_roles(), delegations.succinct_roles)
        said["delegated"] = list(roles)
        said["roles"] = {name: stock_role_of(one, delegations.keys) for name, one in roles.items()}
        searched = {path: list(delegations.get_roles_for_target(path)) if delegations else [] for path in PATHS}
        said["search"] = searched
    return said


PATHS = ("models/acme/base/1.0.0", "models/team/own/1", "models/team/own/1/2", "models/team", "x", "")


def role_of(role: payload.Role | None) -> Any:
    assert role is not None
    return role.threshold, {name: key.material.hex() for name, key in role.keys.items()}


def stock_role_of(role: Any, keys: Any) -> Any:
    return role.threshold, {name: material(keys[name]) for name in role.keyids}


def material(key: Any) -> str:
    """Told by the libraries alone: the bytes of an Ed25519 key, the sha256 of another's DER."""
    public: str = key.keyval["public"]
    if key.keytype == "ed25519":
        return bytes.fromhex(public).hex()
    der = load_pem_public_key(public.encode()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def meta_of(one: Any) -> Any:
    return one.version, one.length, None if one.hashes is None else dict(one.hashes)


@pytest.mark.parametrize("name", FILES)
def test_both_say_the_same(name: str) -> None:
    mine, theirs = told(read(name, FILES[name])), told_by_stock(FILES[name])
    assert mine == theirs
    assert mine["message"]


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything in a document."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*way, key)
        yield from places(item, (*way, key))


DATES = ("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-00:01", "9999-12-31T23:59:59Z", "2026-01-31")
SCALARS = st.sampled_from([None, True, False, 0, 1, 2, -1, 2.5, 1 << 40, "", "x", "root", "1.0.31", "ab" * 32, *DATES])
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.sampled_from(["x", "team"]), SCALARS))


@settings(max_examples=600, deadline=None)
@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_whatever_is_changed_we_refuse_it_or_both_say_the_same(name: str, data: st.DataObject) -> None:
    document = json.loads(FILES[name])
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(sorted(places(document), key=str)))
        around = document
        for key in way:
            around = around[key]
        change = data.draw(st.sampled_from(["replace", "remove", "add", "twin"]))
        if change == "replace":
            around[last] = data.draw(VALUES)
        elif change == "remove":
            del around[last]
        elif isinstance(around, dict):
            around[data.draw(st.sampled_from(["x", "paths", "succinct_roles", "roles", "length"]))] = (
                copy.deepcopy(around[last]) if change == "twin" else data.draw(VALUES)
            )
        else:
            around.append(copy.deepcopy(around[last]))
        assume(any(True for _ in places(document)))
    changed = json.dumps(document).encode()
    try:
        mine = told(read(name, changed))
    except VerificationError:
        return
    assert mine == told_by_stock(changed)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
)


@given(JSON)
def test_the_canonical_form_is_that_of_the_library(value: Any) -> None:
    text = encode_canonical(value)
    assert text is not None
    assert canonical(value) == text.encode()


def test_a_fraction_has_no_canonical_form() -> None:
    with pytest.raises(TypeError):
        canonical({"a": [1.5]})


PARTS = st.lists(st.text(alphabet="ab*?[]!-", max_size=3), min_size=1, max_size=3).map("/".join)


@given(PARTS, PARTS)
def test_patterns_cover_what_the_librarys_do(path: str, pattern: str) -> None:
    role = payload.Role({}, 1)
    mine = payload.Delegation("team", role, False, (pattern,), None)
    assert mine.covers(path) == stock.DelegatedRole("team", [], 1, False, paths=[pattern]).is_delegated_path(path)


@given(st.text(max_size=8), st.lists(st.text(alphabet="0123456789abcdef", max_size=2), max_size=40))
def test_prefixes_cover_what_the_librarys_do(path: str, prefixes: list[str]) -> None:
    mine = payload.Delegation("team", payload.Role({}, 1), False, None, tuple(prefixes))
    theirs = stock.DelegatedRole("team", [], 1, False, path_hash_prefixes=prefixes)
    assert mine.covers(path) == theirs.is_delegated_path(path)


@pytest.mark.parametrize("bits", [1, 3, 4, 5, 12])
def test_bins_are_named_as_the_librarys_are(bits: int) -> None:
    mine, theirs = payload.HashBins(payload.Role({}, 1), bits, "bin"), stock.SuccinctRoles([], 1, bits, "bin")
    assert list(mine.names) == list(theirs.get_roles())
    for path in PATHS:
        assert mine.name_for(path) == theirs.get_role_for_target(path)
    for name in (*list(mine.names)[-3:], "bin", "bin-", "bin-x", "bin-0", "bin-00", "bin-0000", "bin-ffff", "other-0"):
        assert mine.has(name) == theirs.is_delegated_role(name), name
    assert not mine.has(f"bin-{(1 << bits) - 1:X}0")
    assert not mine.has("bin--1")


def edit(name: str, way: tuple[Any, ...], value: Any) -> bytes:
    """The file with another value at the end of ``way`` in its signed part, unsigned."""
    document = json.loads(FILES[name])
    around = document["signed"]
    for key in way[:-1]:
        around = around[next(iter(around)) if key == "*" else key]
    around[way[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("root", ("x",)),
        ("root", ("keys", "*", "x")),
        ("root", ("keys", "*", "keyval", "x")),
        ("root", ("roles", "targets", "x")),
        ("timestamp", ("x",)),
        ("timestamp", ("meta", "snapshot.json", "x")),
        ("snapshot", ("meta", "targets.json", "x")),
        ("targets", ("targets", "*", "x")),
        ("targets", ("targets", "*", "custom", "x")),
        ("targets", ("delegations", "x")),
        ("targets", ("delegations", "roles", 0, "x")),
        ("targets with bins", ("delegations", "succinct_roles", "x")),
    ],
)
def test_what_is_not_known_is_signed_with_the_rest_and_left_alone(name: str, way: tuple[Any, ...]) -> None:
    changed = edit(name, way, {"more": ['a "quoted" \\ line\n', 1, None, True]})
    mine = told(read(name, changed))
    assert mine == told_by_stock(changed)
    assert b"more" in mine["message"]
    assert {**mine, "message": b""} == {**told(read(name, FILES[name])), "message": b""}


@pytest.mark.parametrize(
    ("name", "way", "value", "says"),
    [
        ("root", ("spec_version",), "2.0.0", "expected version 1 of the TUF specification, found '2.0.0'"),
        ("root", ("expires",), "2026-1-1T00:00:00Z", "expires: expected a moment"),
        ("root", ("expires",), "2026-01-01T00:00:00+00:00", "expires: expected a moment"),
        ("root", ("expires",), "0001-01-01T00:00:00+01:00", "expires: expected a moment"),
        ("root", ("expires",), "9999-12-31T23:59:59-00:01", "expires: expected a moment"),
        ("root", ("keys", "x\n\x1b[2J"), 5, r"it: 'x\n\x1b[2J': expected an object, found int"),
        ("root", ("version",), 0, "version: expected a whole number from 1, found 0"),
        ("root", ("roles", "extra"), {"keyids": [], "threshold": 1}, "expected the roles root, timestamp"),
        ("root", ("roles", "targets", "keyids"), "ab", "keyids: expected a list of texts, found str"),
        ("root", ("roles", "targets", "keyids"), ["no"], "names the key 'no', which is not there"),
        ("root", ("keys", "*", "keyval"), {"public": "x"}, "expected a PEM public key"),
        ("root", ("keys", "x"), {"keytype": "rsa", "scheme": "rsassa-pss-sha256", "keyval": {"public": ""}}, "Ed25519"),
        ("timestamp", ("meta", "targets.json"), {"version": 1}, "expected snapshot.json alone"),
        ("snapshot", ("meta", "../x.json"), {"version": 1}, "expected a role's name"),
        ("snapshot", ("meta", "targets.json"), {"version": 1, "hashes": {}}, "hashes: expected at least one"),
        ("snapshot", ("meta", "targets.json"), {"version": 1, "length": -1}, "length: expected a whole number from 0"),
        ("targets", ("delegations",), None, "delegations: expected an object, found nothing"),
        ("targets", ("delegations", "succinct_roles"), {}, "expected either roles or succinct_roles"),
        ("targets", ("delegations", "roles", 0, "name"), "root", "which is a top-level role"),
        ("targets", ("delegations", "roles", 0, "terminating"), "no", "terminating: expected true or false"),
        ("targets", ("delegations", "roles", 0, "path_hash_prefixes"), [], "either paths or path_hash_prefixes"),
        ("targets", ("delegations", "roles", 0, "paths"), ["x" * 513], "at most 256 of at most 512 characters"),
        ("targets", ("delegations", "roles", 0, "paths"), ["x"] * 257, "at most 256 of at most 512 characters"),
        ("root", ("roles", "targets", "keyids"), ["x"] * 65, "expected at most 64 keys, found 65"),
        ("targets with bins", ("delegations", "succinct_roles", "bit_length"), 13, "at most 4096 hash bins"),
        ("targets with bins", ("delegations", "succinct_roles", "bit_length"), 0, "bit_length: expected a whole"),
        ("targets with bins", ("delegations", "succinct_roles", "bit_length"), 64, "at most 4096 hash bins"),
    ],
)
def test_what_is_wrong_is_said(name: str, way: tuple[Any, ...], value: Any, says: str) -> None:
    with pytest.raises(CorruptContent) as caught:
        read(name, edit(name, way, value))
    assert says in caught.value.message


def test_a_role_delegated_to_twice_and_a_key_that_signed_twice() -> None:
    document = json.loads(FILES["targets"])
    document["signed"]["delegations"]["roles"] *= 2
    with pytest.raises(CorruptContent, match="role team is delegated to twice"):
        read("targets", json.dumps(document).encode())
    document = json.loads(FILES["root"])
    document["signatures"] += document["signatures"][:1]
    with pytest.raises(CorruptContent, match="two signatures of the key"):
        read("root", json.dumps(document).encode())


def test_one_key_named_twice_and_under_two_ids() -> None:
    document = json.loads(FILES["root"])
    ids = document["signed"]["roles"]["root"]["keyids"]
    document["signed"]["roles"]["root"]["keyids"] = [*ids, ids[0]]
    with pytest.raises(CorruptContent, match="twice"):
        read("root", json.dumps(document).encode())
    document["signed"]["keys"]["twin"] = document["signed"]["keys"][ids[0]]
    document["signed"]["roles"]["root"]["keyids"] = [*ids, "twin"]
    with pytest.raises(Untrusted, match="one key stands under two ids"):
        read("root", json.dumps(document).encode())


def test_a_signature_that_is_no_hex_is_none() -> None:
    document = json.loads(FILES["root"])
    document["signatures"].append({"keyid": "stranger", "sig": "no hex at all"})
    good = read("root", json.dumps(document).encode())
    assert good.good(good.signed.roles["root"]) == 2
    document["signatures"][0]["sig"] = "no hex at all"
    with pytest.raises(Untrusted, match="expected 2 good signatures, found 1"):
        metadata.anchor(json.dumps(document).encode())
    document["signatures"][0]["sig"] = ""
    with pytest.raises(Untrusted, match="expected 2 good signatures, found 1"):
        metadata.anchor(json.dumps(document).encode())


def test_ed25519_keys_verify_what_they_signed_and_nothing_else() -> None:
    signer = CryptoSigner.generate_ed25519()
    root = stock.Root(expires=NOW)
    for role in payload.ROLES:
        root.add_key(signer.public_key, role)
    whole = stock.Metadata(root)
    whole.sign(signer)
    data = whole.to_bytes()
    assert metadata.anchor(data).version == 1
    other = Ed25519PrivateKey.generate().sign(whole.signed_bytes).hex()
    whole.signatures[signer.public_key.keyid].signature = other
    with pytest.raises(Untrusted, match="expected 1 good signatures, found 0"):
        metadata.anchor(whole.to_bytes())
    with pytest.raises(Untrusted, match="expected 1 good signatures, found 0"):
        metadata.anchor(data.replace(b'"version":1', b'"version":2'))


@pytest.mark.parametrize(
    ("hashes", "says"),
    [
        ({"sha256": "00"}, "expected sha256 00, found"),
        ({"sha512": "00"}, "expected sha512 00, found"),
        ({"md5": "d41d8cd98f00b204e9800998ecf8427e"}, "expected hashes by sha256, sha384, sha512, found 'md5'"),
    ],
)
def test_every_hash_that_is_given_is_checked(hashes: dict[str, str], says: str) -> None:
    source = Source().add()
    source.publish()
    data = source.files["metadata/1.snapshot.json"]
    source.timestamp.snapshot_meta = stock.MetaFile(1, len(data), {"sha256": Digest.of(data).hex, **hashes})
    source.stamp()
    root = metadata.anchor(source.anchor)
    stamp = metadata.timestamp(source.files["metadata/timestamp.json"], root)
    with pytest.raises(CorruptContent) as caught:
        metadata.snapshot(data, root, stamp)
    assert says in caught.value.message


def test_nothing_is_delegated_to_a_role_that_is_not_named() -> None:
    files = Source().add().delegate("team", ["models/team/*/*"], []).publish()
    top = read("targets", files["metadata/1.targets.json"]).signed
    shot = read("snapshot", files["metadata/1.snapshot.json"]).signed
    assert metadata.targets(files["metadata/1.team.json"], "team", top, shot).version == 1
    alone = read("targets", Source().publish()["metadata/1.targets.json"]).signed
    with pytest.raises(Untrusted, match="team: nothing is delegated to team"):
        metadata.targets(files["metadata/1.team.json"], "team", alone, shot)
