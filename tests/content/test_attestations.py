"""Attestations in cosign's older form: what is taken from the bundles of a store, and what is not."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.images import KEYS, Draft, claim, key, output

from intaglio import strictjson
from intaglio.content.attestations import derive
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import CorruptContent
from intaglio.trust.cosign import bundle_referrer, runtime_referrers
from intaglio.trust.signature import sign_bundle
from intaglio.trust.statement import COSIGN_SIGN, PROVENANCE, TEST_RESULT, Statement, Subject

IMAGE = Descriptor(MANIFEST_TYPE, Digest.of(b"image"), 5)
ASSEMBLY = claim(key("builder"), "assemble", IMAGE.digest, [output("model", Digest.of(b"tree"))])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def refer(store: Store, bundle: bytes, kind: str = PROVENANCE) -> None:
    referrer = bundle_referrer(IMAGE, bundle, kind)
    store.put_referrer(referrer.manifest, referrer.blobs)


def altered(change: Callable[[strictjson.Object], object]) -> bytes:
    """Return the assembly's bundle, changed."""
    document = strictjson.parse_object(ASSEMBLY, what="bundle")
    change(document)
    return json.dumps(document).encode()


def saying(change: Callable[[strictjson.Object], object]) -> bytes:
    """Return a bundle over the assembly's statement, changed."""
    document = strictjson.parse_object(ASSEMBLY, what="bundle")
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    change(statement)
    return sign_bundle(json.dumps(statement).encode(), key("builder"))


def test_golden_manifest(store: Store) -> None:
    refer(store, ASSEMBLY)
    found = derive(store, IMAGE.digest)
    assert found is not None
    assert found.manifest == (KEYS / "attestations.json").read_bytes()


def test_provenance_and_test_results_are_attestations_and_signatures_are_not(tmp_path: Path) -> None:
    draft = Draft().sign().measure()
    found = derive(draft.store(tmp_path / "store"), draft.image.digest)
    assert found is not None
    envelopes = {}
    for bundle, kind in ((draft.assembly, PROVENANCE), (draft.referrers[-1].blobs[1], TEST_RESULT)):
        envelope = strictjson.canonical(json.loads(bundle)["dsseEnvelope"])
        envelopes[Digest.of(envelope)] = (envelope, kind)
    assert {layer.digest for layer in found.layers} == envelopes.keys()
    for layer, blob in zip(found.layers, found.blobs[1:], strict=True):
        envelope, kind = envelopes[layer.digest]
        assert (blob, layer.size, layer.media_type) == (
            envelope,
            len(envelope),
            "application/vnd.dsse.envelope.v1+json",
        )
        assert layer.annotations == {"dev.cosignproject.cosign/signature": "", "predicateType": kind}
    document = strictjson.parse_object(found.manifest, what="manifest")
    assert document["layers"] == [layer.to_json() for layer in found.layers]
    assert document["config"]["digest"] == str(Digest.of(found.blobs[0]))
    assert "subject" not in document


def test_the_order_and_repeats_do_not_matter(tmp_path: Path) -> None:
    draft = Draft().sign().measure()
    first = derive(draft.store(tmp_path / "first"), draft.image.digest)
    again = bundle_referrer(draft.image, draft.assembly, "https://example.com/another-word-for-it/v1")
    draft.referrers = [again, *reversed(draft.referrers)]
    assert derive(draft.store(tmp_path / "second"), draft.image.digest) == first


def test_a_runtime_images_attestations(store: Store) -> None:
    for one in runtime_referrers(IMAGE, "runtimes/demo", key("release")):
        store.put_referrer(one.manifest, one.blobs)
    assert derive(store, IMAGE.digest) is None
    refer(store, ASSEMBLY)
    found = derive(store, IMAGE.digest)
    assert found is not None
    assert len(found.layers) == 1


def test_one_subject_of_several_is_enough(store: Store) -> None:
    subjects = (Subject(Digest.of(b"another")), Subject(IMAGE.digest, "image"))
    statement = Statement(subjects, "https://example.com/scan/v1", {"found": 0.5})
    refer(store, sign_bundle(statement.payload(), key("stranger")))
    found = derive(store, IMAGE.digest)
    assert found is not None
    assert found.layers[0].annotations["predicateType"] == "https://example.com/scan/v1"


STRANGE = {
    "no JSON": b"garbage",
    "no object": b"[]",
    "no envelope": altered(lambda d: d.pop("dsseEnvelope")),
    "an envelope that is none": altered(lambda d: d.update(dsseEnvelope="x")),
    "no payload": altered(lambda d: d["dsseEnvelope"].pop("payload")),
    "no signatures": altered(lambda d: d["dsseEnvelope"].pop("signatures")),
    "a payload that is a number": altered(lambda d: d["dsseEnvelope"].update(payload=1)),
    "a payload that is not base64": altered(lambda d: d["dsseEnvelope"].update(payload="é")),
    "a payload that is not JSON": altered(lambda d: d["dsseEnvelope"].update(payload="eA==")),
    "no material": altered(lambda d: d.pop("verificationMaterial")),
    "material that is a word": altered(lambda d: d.update(verificationMaterial="publicKey")),
    "a certificate": altered(lambda d: d.update(verificationMaterial={"certificate": {"rawBytes": "eA=="}})),
    "about another image": saying(lambda s: s["subject"][0]["digest"].update(sha256="0" * 64)),
    "about nothing": saying(lambda s: s.update(subject=[])),
    "subjects that are a number": saying(lambda s: s.update(subject=1)),
    "a subject that is a list": saying(lambda s: s["subject"][0].update(digest=[])),
    "no predicate type": saying(lambda s: s.pop("predicateType")),
    "a predicate type that is a list": saying(lambda s: s.update(predicateType=[])),
    "a predicate type without end": saying(lambda s: s.update(predicateType="x" * 100_000)),
    "a signature": saying(lambda s: s.update(predicateType=COSIGN_SIGN)),
}


@pytest.mark.parametrize("bundle", STRANGE.values(), ids=STRANGE.keys())
def test_what_is_malformed_or_says_nothing_of_the_image_is_passed_over(store: Store, bundle: bytes) -> None:
    refer(store, bundle)
    assert derive(store, IMAGE.digest) is None
    refer(store, ASSEMBLY)
    found = derive(store, IMAGE.digest)
    assert found is not None
    assert found.manifest == (KEYS / "attestations.json").read_bytes()


def test_a_referrer_that_is_malformed_is_passed_over(store: Store) -> None:
    referrer = bundle_referrer(IMAGE, ASSEMBLY, PROVENANCE)
    document = strictjson.parse_object(referrer.manifest, what="referrer")
    huge = Descriptor(document["layers"][0]["mediaType"], Digest.of(b"huge"), 10 << 30).to_json()
    gone = Descriptor(document["layers"][0]["mediaType"], Digest.of(b"gone"), 4).to_json()
    wrong: list[list[strictjson.Object]] = [[{}], [huge], [gone]]
    for layers in wrong:
        manifest = strictjson.canonical(document | {"layers": layers})
        store.put_referrer(manifest, [b"{}"])
        assert derive(store, IMAGE.digest) is None


def test_damage_is_said(store: Store) -> None:
    refer(store, ASSEMBLY)
    place = store.path(Digest.of(ASSEMBLY))
    place.unlink()
    place.write_bytes(ASSEMBLY[:-1] + b"?")
    with pytest.raises(CorruptContent, match="digest"):
        derive(store, IMAGE.digest)
