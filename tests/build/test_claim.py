"""Claims: the same build with the same keys is the same bytes, and nobody else's word is taken."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import images
from tests.build.test_action import action

from intaglio import strictjson
from intaglio.build import claim
from intaglio.build.claim import Circumstances
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
from intaglio.content.layout import ACTION, Store
from intaglio.content.tree import File
from intaglio.dataclass import replace
from intaglio.digest import ActionKey, Digest
from intaglio.errors import CorruptContent, Untrusted, VerificationError
from intaglio.trust.cosign import Referrer, bundle_referrer
from intaglio.trust.key import PrivateKey
from intaglio.trust.signature import sign_bundle
from intaglio.trust.statement import COSIGN_SIGN, PROVENANCE, Dependency, cosign_statement

VECTORS = Path(__file__).parents[1] / "vectors" / "build"
ABOUT = Circumstances(
    recipe="examples/demo@1.0.0",
    step="tune",
    uses="finetune",
    reproducible="platform",
    sandbox="bubblewrap",
    dependencies=(
        Dependency("input:base", Digest.of(b"base"), "output"),
        Dependency("input:data", Digest.of(b"data"), "origin", "file:data.jsonl"),
        Dependency("program:finetune", Digest.of(b"program"), "program"),
        Dependency("toolchain:train-cpu", Digest.of(b"toolchain"), "toolchain"),
    ),
)
BUILDER, STRANGER = images.key("builder"), images.key("stranger")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def output(store: Store) -> Descriptor:
    digest = store.put(b"model")
    return store.put_tree([File("model.bin", digest, 5)]).descriptor()


def statement(bundle: bytes) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))
    return said


# --- making ----------------------------------------------------------------------------------------------------------


def test_licences_are_said_only_where_there_are_some(output: Descriptor) -> None:
    def said(about: Circumstances) -> dict[str, Any]:
        bundle = claim.make(action(), output, about, BUILDER).blobs[-1]
        internal: dict[str, Any] = statement(bundle)["predicate"]["buildDefinition"]["internalParameters"]
        return internal

    assert "licences" not in said(ABOUT)
    assert said(replace(ABOUT, licences={"input:data": "MIT"}))["licences"] == {"input:data": "MIT"}


def test_golden(output: Descriptor) -> None:
    """With the same keys the same bytes, on any machine and day."""
    made = claim.make(action(), output, ABOUT, BUILDER)
    assert made.manifest == (VECTORS / "claim-manifest.json").read_bytes()
    (bundle,) = [blob for blob in made.blobs if blob != b"{}"]
    assert bundle == (VECTORS / "claim-bundle.json").read_bytes()
    assert statement(bundle) == json.loads((VECTORS / "claim-statement.json").read_bytes())


def test_it_is_slsa_provenance_of_everything_that_went_in(output: Descriptor) -> None:
    (bundle,) = [blob for blob in claim.make(action(), output, ABOUT, BUILDER).blobs if blob != b"{}"]
    said = statement(bundle)
    build = said["predicate"]["buildDefinition"]
    assert said["predicateType"] == PROVENANCE
    assert [subject["digest"] for subject in said["subject"]] == [{"sha256": output.digest.hex}]
    assert build["buildType"] == "https://intaglio.dev/buildtypes/finetune/v1"
    assert build["externalParameters"] == {"recipe": "examples/demo@1.0.0", "step": "tune"}
    internal = build["internalParameters"]
    assert internal["action"] == str(action().key)
    assert internal["parameters"] == action().parameters
    assert internal["environment"] == action().environment
    assert (internal["platform"], internal["reproducible"], internal["sandbox"]) == (
        "linux/amd64/v3",
        "platform",
        "bubblewrap",
    )
    assert {one["name"] for one in build["resolvedDependencies"]} == {one.name for one in ABOUT.dependencies}
    assert set(said["predicate"]["runDetails"]) == {"builder"}, "no time, no invocation, no host"


def test_a_recipes_own_step_has_a_build_type_without_its_dot(output: Descriptor) -> None:
    made = claim.make(action(), output, replace(ABOUT, uses="./own"), BUILDER)
    (bundle,) = [blob for blob in made.blobs if blob != b"{}"]
    assert statement(bundle)["predicate"]["buildDefinition"]["buildType"] == "https://intaglio.dev/buildtypes/own/v1"


# --- finding ---------------------------------------------------------------------------------------------------------


def test_what_was_recorded_is_found_and_its_preimage_kept(store: Store, output: Descriptor) -> None:
    made = claim.record(store, action(), output, ABOUT, BUILDER)
    assert claim.find(store, action().key, [BUILDER.public]) == (made,)
    assert (made.action, made.subject) == (action().key, output.digest)
    assert store.read(Digest(action().key.value), what="preimage") == action().preimage
    again = claim.record(store, action(), output, ABOUT, BUILDER)
    assert again == made
    assert len(claim.find(store, action().key, [BUILDER.public])) == 1
    assert claim.find(store, ActionKey(str(Digest.of(b"other"))), [BUILDER.public]) == ()


def put(store: Store, referrer: Referrer) -> Digest:
    return store.put_referrer(referrer.manifest, referrer.blobs)


def honest(output: Descriptor, key: PrivateKey = BUILDER, **change: object) -> bytes:
    return next(blob for blob in claim.make(action(**change), output, ABOUT, key).blobs if blob != b"{}")


def test_another_builders_claim_is_passed_over(store: Store, output: Descriptor) -> None:
    put(store, claim.make(action(), output, ABOUT, STRANGER))
    assert claim.find(store, action().key, [BUILDER.public]) == ()
    assert len(claim.find(store, action().key, [BUILDER.public, STRANGER.public])) == 1
    assert claim.find(store, action().key, []) == ()
    ours = claim.record(store, action(), output, ABOUT, BUILDER)
    assert claim.find(store, action().key, [BUILDER.public]) == (ours,)


def test_a_claim_about_another_action_is_passed_over(store: Store, output: Descriptor) -> None:
    """The annotation that the index believes says this action; what is signed says another."""
    bundle = honest(output, platform="linux/arm64/v8")
    put(store, bundle_referrer(output, bundle, PROVENANCE, {ACTION: str(action().key)}))
    assert store.claims(action().key)
    assert claim.find(store, action().key, [BUILDER.public]) == ()


def test_a_claim_moved_to_another_output_is_passed_over(store: Store, output: Descriptor) -> None:
    evil = Descriptor(MANIFEST_TYPE, store.put(b'{"evil":1}'), 10)
    digest = put(store, bundle_referrer(evil, honest(output), PROVENANCE, {ACTION: str(action().key)}))
    with pytest.raises(CorruptContent, match="another subject"):
        claim.read(store, digest, [BUILDER.public])
    assert claim.find(store, action().key, [BUILDER.public]) == ()


def edited(bundle: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(bundle)
    said = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    change(said)
    document["dsseEnvelope"]["payload"] = base64.b64encode(strictjson.canonical(said)).decode()
    return strictjson.canonical(document)


def move(said: dict[str, Any]) -> None:
    said["subject"][0]["digest"]["sha256"] = Digest.of(b"evil").hex


def unbox(said: dict[str, Any]) -> None:
    said["predicate"]["buildDefinition"]["internalParameters"]["sandbox"] = "none"


def rekey(said: dict[str, Any]) -> None:
    said["predicate"]["buildDefinition"]["internalParameters"]["action"] = str(Digest.of(b"other"))


@pytest.mark.parametrize("change", [move, unbox, rekey])
def test_an_edited_payload_is_passed_over(
    store: Store, output: Descriptor, change: Callable[[dict[str, Any]], None]
) -> None:
    forged = edited(honest(output), change)
    subject = Descriptor(MANIFEST_TYPE, Digest.of(b"evil"), 4) if change is move else output
    digest = put(store, bundle_referrer(subject, forged, PROVENANCE, {ACTION: str(action().key)}))
    with pytest.raises(Untrusted):
        claim.read(store, digest, [BUILDER.public])
    assert claim.find(store, action().key, [BUILDER.public]) == ()


def test_a_statement_that_is_no_provenance_is_passed_over(store: Store, output: Descriptor) -> None:
    bundle = sign_bundle(cosign_statement(output.digest).payload(), BUILDER)
    put(store, bundle_referrer(output, bundle, COSIGN_SIGN, {ACTION: str(action().key)}))
    assert claim.find(store, action().key, [BUILDER.public]) == ()


@pytest.mark.parametrize("lost", ["bundle", "manifest"])
@pytest.mark.parametrize("how", ["gone", "garbage", "truncated"])
def test_a_damaged_claim_is_passed_over(store: Store, output: Descriptor, lost: str, how: str) -> None:
    made = claim.record(store, action(), output, ABOUT, BUILDER)
    path = store.path(made.manifest if lost == "manifest" else Digest.of(made.bundle))
    data = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(b"garbage" if how == "garbage" else data[:-1])
    assert claim.find(store, action().key, [BUILDER.public]) == ()
    with pytest.raises(VerificationError):
        claim.read(store, made.manifest, [BUILDER.public])
    assert claim.record(store, action(), output, ABOUT, BUILDER) == made, "recording it again heals it"


def test_a_manifest_of_two_layers_is_no_claim(store: Store, output: Descriptor) -> None:
    honest_one = bundle_referrer(output, honest(output), PROVENANCE, {ACTION: str(action().key)})
    document = json.loads(honest_one.manifest)
    document["layers"] *= 2
    digest = store.put_referrer(strictjson.canonical(document), honest_one.blobs)
    with pytest.raises(CorruptContent, match="one layer, found 2"):
        claim.read(store, digest, [BUILDER.public])
