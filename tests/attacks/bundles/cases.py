"""Signatures and attestations: altered, of another key or role, about something else, malformed inside and out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.attacks.corpus import Corpus
from tests.images import NAME, Draft, claim, key, origin, output, part

from intaglio import strictjson
from intaglio.content.cosign_tag import SIGNATURE_MARK
from intaglio.digest import Digest
from intaglio.errors import ExitCode
from intaglio.strictjson import Object
from intaglio.trust.cosign import (
    bundle_referrer,
    cosign_referrer,
    lineage_referrer,
    signature_referrers,
)
from intaglio.trust.signature import Hint, decode, encode, sign_bundle
from intaglio.trust.statement import (
    COSIGN_SIGN,
    MODEL_SIGNING,
    PROVENANCE,
    Statement,
    Subject,
    cosign_statement,
    model_signing_statement,
)

CASES = Corpus()
case = CASES.case
BUNDLE, OLDER, OMS, ASSEMBLY, LINEAGE = range(5)
"""Where each referrer stands in a draft."""
U, C, P = ExitCode.UNTRUSTED, ExitCode.CORRUPT, ExitCode.POLICY
ORIGIN = ("provenance", "lineage", "sandbox")


def with_bundle(folder: Path, change: Callable[[Object], object], place: int = BUNDLE) -> Digest:
    """Write the image with the JSON of one bundle changed, its referrer made to fit."""
    draft = Draft().sign()
    document = strictjson.parse_object(draft.referrers[place].blobs[1], what="bundle")
    change(document)
    return with_bytes(folder, strictjson.canonical(document), draft, place)


def with_bytes(folder: Path, bundle: bytes, draft: Draft | None = None, place: int = BUNDLE) -> Digest:
    draft = draft or Draft().sign()
    kind = {BUNDLE: COSIGN_SIGN, OMS: MODEL_SIGNING, ASSEMBLY: PROVENANCE}[place]
    draft.referrers[place] = bundle_referrer(draft.image, bundle, kind)
    return draft.write(folder)


def with_statement(folder: Path, payload: bytes, place: int = BUNDLE) -> Digest:
    """Write the image with another statement, well signed, in place of one."""
    signer = key("builder") if place == ASSEMBLY else key("release")
    return with_bytes(folder, sign_bundle(payload, signer, Hint.OMS if place == OMS else Hint.COSIGN), place=place)


# --- altered ----------------------------------------------------------------------------------------------------------


@case(U, "signature")
def payload_altered(folder: Path) -> Digest:
    other = cosign_statement(Digest.of(b"other")).payload()
    return with_bundle(folder, lambda d: d["dsseEnvelope"].update(payload=encode(other)))


@case(C, "signature")
def payload_type_altered(folder: Path) -> Digest:
    return with_bundle(folder, lambda d: d["dsseEnvelope"].update(payloadType="application/json"))


@case(U, "signature")
def signature_altered(folder: Path) -> Digest:
    def change(document: Object) -> None:
        entry = document["dsseEnvelope"]["signatures"][0]
        raw = bytearray(decode(entry["sig"], "signature"))
        raw[-1] ^= 1
        entry["sig"] = encode(bytes(raw))

    return with_bundle(folder, change)


@case(U, "signature")
def signature_of_another_bundle(folder: Path) -> Digest:
    other = strictjson.parse_object(Draft().sign().referrers[OMS].blobs[1], what="bundle")
    return with_bundle(folder, lambda d: d["dsseEnvelope"].update(signatures=other["dsseEnvelope"]["signatures"]))


@case(C, "signature")
def garbage_extra_signature(folder: Path) -> Digest:
    return with_bundle(folder, lambda d: d["dsseEnvelope"]["signatures"].insert(0, {"sig": "AAAA"}))


@case(C, "signature")
def no_signature_in_the_envelope(folder: Path) -> Digest:
    return with_bundle(folder, lambda d: d["dsseEnvelope"].update(signatures=[]))


@case(C, "signature")
def a_log_entry_that_nobody_checks(folder: Path) -> Digest:
    return with_bundle(folder, lambda d: d["verificationMaterial"].update(tlogEntries=[{"logIndex": "1"}]))


@case(C, "signature")
def a_certificate_that_nobody_checks(folder: Path) -> Digest:
    return with_bundle(folder, lambda d: d.update(verificationMaterial={"certificate": {"rawBytes": "AAAA"}}))


# --- another key or role ----------------------------------------------------------------------------------------------


@case(U, "signature", "cosign", "model-signing")
def signed_by_a_stranger(folder: Path) -> Digest:
    return Draft(release=key("stranger")).sign().write(folder)


@case(U, "signature", "cosign", "model-signing")
def signed_by_the_builder(folder: Path) -> Digest:
    return Draft(release=key("builder")).sign().write(folder)


@case(U, *ORIGIN)
def built_by_a_stranger(folder: Path) -> Digest:
    return Draft(builder=key("stranger")).sign().write(folder)


@case(U, *ORIGIN)
def built_by_the_release_key(folder: Path) -> Digest:
    return Draft(builder=key("release")).sign().write(folder)


@case(U, "signature")
def a_stranger_who_gives_the_release_keys_hint(folder: Path) -> Digest:
    bundle = sign_bundle(cosign_statement(Draft().sign().image.digest).payload(), key("stranger"))
    document = strictjson.parse_object(bundle, what="bundle")
    document["verificationMaterial"]["publicKey"]["hint"] = Hint.COSIGN.of(key("release").public)
    return with_bytes(folder, strictjson.canonical(document))


# --- about something else ---------------------------------------------------------------------------------------------


@case(C, "signature")
def about_another_digest(folder: Path) -> Digest:
    return with_statement(folder, cosign_statement(Digest.of(b"other")).payload())


@case(C, "signature")
def about_two_digests(folder: Path) -> Digest:
    both = (Subject(Draft().sign().image.digest), Subject(Digest.of(b"other")))
    return with_statement(folder, Statement(both, COSIGN_SIGN, {}).payload())


@case(C, "signature")
def a_signature_that_says_more(folder: Path) -> Digest:
    image = Subject(Draft().sign().image.digest)
    return with_statement(folder, Statement((image,), COSIGN_SIGN, {"expired": True}).payload())


@case(U, "signature")
def a_lone_summary_that_says_failed(folder: Path) -> Digest:
    image = Subject(Draft().sign().image.digest)
    kind = "https://slsa.dev/verification_summary/v1"
    return with_statement(folder, Statement((image,), kind, {"verificationResult": "FAILED"}).payload())


@case(U, *ORIGIN)
def a_test_result_where_provenance_is_asked(folder: Path) -> Digest:
    draft = Draft().sign()
    kind = "https://in-toto.io/attestation/test-result/v0.1"
    payload = Statement((Subject(draft.image.digest),), kind, {"result": "PASSED"}).payload()
    draft.referrers[ASSEMBLY] = bundle_referrer(draft.image, sign_bundle(payload, key("builder")), PROVENANCE)
    return draft.write(folder)


@case(C, "cosign")
def an_older_signature_about_another_digest(folder: Path) -> Digest:
    draft = Draft().sign()
    other = cosign_referrer(draft.seal().image, NAME, key("release"))
    document = strictjson.parse_object(other.blobs[1], what="payload")
    document["critical"]["image"]["docker-manifest-digest"] = str(Digest.of(b"other"))
    payload = strictjson.canonical(document)

    def change(manifest: Object) -> None:
        layer = manifest["layers"][0]
        layer.update(digest=str(Digest.of(payload)), size=len(payload))
        layer["annotations"][SIGNATURE_MARK] = encode(key("release").sign(payload))

    draft.referrers[OLDER] = type(other)(other.manifest, (other.blobs[0], payload))
    draft.replace_referrer(OLDER, change)
    return draft.write(folder)


@case(C, "cosign")
def an_older_signature_without_its_annotation(folder: Path) -> Digest:
    draft = Draft().sign()
    draft.replace_referrer(OLDER, lambda manifest: manifest["layers"][0].pop("annotations"))
    return draft.write(folder)


def model_signature(folder: Path, files: list[tuple[str, Digest]]) -> Digest:
    return with_statement(folder, model_signing_statement(NAME, files).payload(), OMS)


@case(C, "model-signing")
def a_model_signature_that_leaves_a_file_out(folder: Path) -> Digest:
    return model_signature(folder, [(file.path, file.digest) for file in Draft().entries[1:]])


@case(C, "model-signing")
def a_model_signature_over_swapped_names(folder: Path) -> Digest:
    files = Draft().entries
    return model_signature(folder, [(one.path, two.digest) for one, two in zip(files, reversed(files), strict=True)])


@case(C, "model-signing")
def a_model_signature_with_ignored_paths(folder: Path) -> Digest:
    statement = model_signing_statement(NAME, [(file.path, file.digest) for file in Draft().entries])
    statement.predicate["serialization"]["ignore_paths"] = [".git"]
    return with_statement(folder, statement.payload(), OMS)


@case(C, "model-signing")
def a_model_signature_that_follows_links(folder: Path) -> Digest:
    statement = model_signing_statement(NAME, [(file.path, file.digest) for file in Draft().entries])
    statement.predicate["serialization"]["allow_symlinks"] = True
    return with_statement(folder, statement.payload(), OMS)


@case(C, "model-signing")
def a_model_signature_with_the_wrong_root(folder: Path) -> Digest:
    statement = model_signing_statement(NAME, [(file.path, file.digest) for file in Draft().entries])
    wrong = Statement((Subject(Digest.of(b"root"), NAME),), statement.predicate_type, statement.predicate)
    return with_statement(folder, wrong.payload(), OMS)


# --- malformed, outside and inside what was signed --------------------------------------------------------------------


@case(C, "signature")
def duplicate_keys_in_the_bundle(folder: Path) -> Digest:
    good = Draft().sign().referrers[BUNDLE].blobs[1]
    return with_bytes(folder, good[:-1] + b',"mediaType":"x"}')


@case(C, "signature")
def nan_in_the_bundle(folder: Path) -> Digest:
    good = Draft().sign().referrers[BUNDLE].blobs[1]
    return with_bytes(folder, good[:-1] + b',"x":NaN}')


@case(C, "signature")
def invalid_utf8_in_the_bundle(folder: Path) -> Digest:
    good = Draft().sign().referrers[BUNDLE].blobs[1]
    return with_bytes(folder, good.replace(b"mediaType", b"media\xffype"))


@case(C, "signature")
def a_deep_bundle(folder: Path) -> Digest:
    return with_bytes(folder, b"[" * 100_000)


@case(U, "signature")
def a_bundle_larger_than_any(folder: Path) -> Digest:
    return with_bytes(folder, Draft().sign().referrers[BUNDLE].blobs[1] + b" " * (5 << 20))


@case(C, "signature")
def an_empty_bundle(folder: Path) -> Digest:
    return with_bytes(folder, b"")


def signed_json(folder: Path, change: Callable[[bytes], bytes]) -> Digest:
    return with_statement(folder, change(cosign_statement(Draft().sign().image.digest).payload()))


@case(C, "signature")
def duplicate_keys_in_the_signed_statement(folder: Path) -> Digest:
    return signed_json(folder, lambda good: good[:-1] + b',"predicateType":"x"}')


@case(C, "signature")
def nan_in_the_signed_statement(folder: Path) -> Digest:
    return signed_json(folder, lambda good: good.replace(b'"predicate":{}', b'"predicate":{"a":NaN}'))


@case(C, "signature")
def invalid_utf8_in_the_signed_statement(folder: Path) -> Digest:
    return signed_json(folder, lambda good: good.replace(b'"predicate":{}', b'"predicate":{"\xff":1}'))


@case(C, "signature")
def a_deep_signed_statement(folder: Path) -> Digest:
    deep = b"[" * 50 + b"]" * 50
    return signed_json(folder, lambda good: good.replace(b'"predicate":{}', b'"predicate":{"a":%s}' % deep))


# --- provenance and lineage -------------------------------------------------------------------------------------------


@case(U, "lineage", "sandbox")
def lineage_hidden(folder: Path) -> Digest:
    draft = Draft().sign()
    del draft.referrers[LINEAGE]
    return draft.write(folder)


@case(U, *ORIGIN)
def provenance_hidden(folder: Path) -> Digest:
    draft = Draft().sign()
    del draft.referrers[ASSEMBLY]
    return draft.write(folder)


@case(U, "signature")
def signature_hidden(folder: Path) -> Digest:
    draft = Draft().sign()
    del draft.referrers[BUNDLE]
    return draft.write(folder)


@case(U, "cosign")
def older_signature_hidden(folder: Path) -> Digest:
    draft = Draft().sign()
    del draft.referrers[OLDER]
    return draft.write(folder)


@case(U, "model-signing")
def model_signature_hidden(folder: Path) -> Digest:
    draft = Draft().sign()
    del draft.referrers[OMS]
    return draft.write(folder)


@case(U, "lineage", "sandbox")
def a_claim_left_out_of_the_lineage(folder: Path) -> Digest:
    draft = Draft().sign()
    del draft.claims[0]
    draft.refer()
    return draft.write(folder)


@case(U, "lineage", "sandbox")
def a_strangers_claim_in_the_lineage(folder: Path) -> Digest:
    draft = Draft().sign()
    draft.claims[0] = claim(key("stranger"), "import", Digest.of(b"base"), [origin("pypi:base==1.0")])
    draft.refer()
    return draft.write(folder)


@case(U, "lineage", "sandbox")
def a_circle_of_claims(folder: Path) -> Digest:
    draft = Draft().sign()
    base, tuned = Digest.of(b"base"), Digest.of(b"tuned")
    draft.claims[0] = claim(draft.builder, "import", base, [output("x", tuned), part("program")])
    draft.refer()
    return draft.write(folder)


@case(U, "lineage", "sandbox")
def a_claim_that_rests_on_itself(folder: Path) -> Digest:
    draft = Draft().sign()
    base = Digest.of(b"base")
    draft.claims[0] = claim(draft.builder, "import", base, [output("x", base), part("program")])
    draft.refer()
    return draft.write(folder)


@case(P, "sandbox")
def a_step_without_a_sandbox(folder: Path) -> Digest:
    draft = Draft().sign()
    tuned = Digest.of(b"tuned")
    draft.claims[1] = claim(draft.builder, "finetune", tuned, [output("base", Digest.of(b"base"))], sandbox="none")
    draft.refer()
    return draft.write(folder)


@case(P, "sandbox")
def a_sandbox_of_unknown_kind(folder: Path) -> Digest:
    draft = Draft().sign()
    draft.claims[0] = claim(draft.builder, "import", Digest.of(b"base"), [origin("a")], sandbox="trust me")
    draft.refer()
    return draft.write(folder)


@case(U, *ORIGIN)
def provenance_of_a_step_as_the_images(folder: Path) -> Digest:
    draft = Draft().seal()
    draft.assembly = claim(draft.builder, "convert", draft.image.digest, [output("model", draft.tree)])
    return draft.sign().write(folder)


@case(C, "provenance")
def an_image_assembled_from_another_tree(folder: Path) -> Digest:
    draft = Draft().seal()
    tuned = output("model", Digest.of(b"tuned"))
    draft.assembly = claim(draft.builder, "assemble", draft.image.digest, [tuned], sandbox="builtin")
    return draft.sign().write(folder)


@case(U, "signature", "cosign", "model-signing", *ORIGIN)
def referrers_of_another_image(folder: Path) -> Digest:
    other = Draft(files=Draft().files | {"LICENSE": b"other\n"}).sign()
    draft = Draft().sign()
    draft.referrers = other.referrers
    return draft.write(folder)


@case(C, "signature", "model-signing", "cosign", *ORIGIN)
def attestations_of_another_image_under_this_subject(folder: Path) -> Digest:
    other = Draft(files=Draft().files | {"LICENSE": b"other\n"}).sign()
    draft = Draft().sign()
    subject = strictjson.parse_object(draft.referrers[BUNDLE].manifest, what="referrer")["subject"]
    draft.referrers = other.referrers
    for place in range(len(draft.referrers)):
        draft.replace_referrer(place, lambda manifest: manifest.update(subject=subject))
    return draft.write(folder)


@case(C, *ORIGIN)
def an_empty_lineage_and_no_provenance(folder: Path) -> Digest:
    draft = Draft().sign()
    files = [(file.path, file.digest) for file in draft.entries]
    draft.referrers = [
        *signature_referrers(draft.image, NAME, files, key("release")),
        lineage_referrer(draft.image, [b"{}"]),
    ]
    return draft.write(folder)
