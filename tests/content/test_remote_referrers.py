from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.attacks.registries import client
from tests.attacks.registries.fake import Asked, Registry, Reply
from tests.images import Draft, key, policy

from intaglio import strictjson
from intaglio.content.attestations import Attestations, derive
from intaglio.content.cosign_tag import ENVELOPE_TYPE, MAX_LAYERS
from intaglio.content.descriptor import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.content.layout import Store
from intaglio.content.remote_referrers import Attached, attach, attest, find
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, RegistryError
from intaglio.strictjson import MAX_BYTES
from intaglio.verify import verify_image


@pytest.fixture
def draft() -> Draft:
    return Draft().sign()


def attached(draft: Draft) -> list[Attached]:
    return [Attached.parse(one.manifest, draft.image, "referrer") for one in draft.referrers]


def tag(draft: Draft, suffix: str = "") -> str:
    return f"sha256-{draft.image.digest.hex}{suffix}"


def listed(registry: Registry, name: str) -> list[strictjson.Object]:
    kind, data = registry.manifests[name]
    assert kind == INDEX_TYPE
    found: list[strictjson.Object] = json.loads(data)["manifests"]
    return found


def test_the_fallback_index_tells_true_types_and_annotations(draft: Draft) -> None:
    with Registry() as registry, client.repository(registry.reference(), writing=True) as there:
        attach(there, draft.image, attached(draft))
        found = {entry["digest"]: entry for entry in listed(registry, tag(draft))}
    assert found.keys() == {str(one.digest) for one in draft.referrers}
    for one in draft.referrers:
        document = json.loads(one.manifest)
        entry = found[str(one.digest)]
        assert entry["mediaType"] == MANIFEST_TYPE
        assert entry["size"] == len(one.manifest)
        assert entry["artifactType"] == document.get("artifactType", document["config"]["mediaType"])
        assert entry.get("annotations", {}) == document.get("annotations", {})


def test_every_referrer_has_a_tag_of_its_own(draft: Draft) -> None:
    with Registry() as registry, client.repository(registry.reference(), writing=True) as there:
        attach(there, draft.image, attached(draft))
        tags = {
            name: data for name, (_, data) in registry.manifests.items() if name.startswith(tag(draft, ".referrer-"))
        }
    assert sorted(tags.values()) == sorted(one.manifest for one in draft.referrers)


def test_others_stay_in_the_index(draft: Draft) -> None:
    other = {
        "mediaType": MANIFEST_TYPE,
        "digest": str(Digest.of(b"other")),
        "size": 5,
        "urls": ["x"],
        "artifactType": "t",
    }
    with Registry() as registry, client.repository(registry.reference(), writing=True) as there:
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [other]}
        registry.put(json.dumps(index).encode(), tag(draft), INDEX_TYPE)
        attach(there, draft.image, attached(draft))
        assert listed(registry, tag(draft))[0] == other
        before = len(registry.asked("PUT", "manifests"))
        attach(there, draft.image, attached(draft))
        again = [asked.what for asked in registry.asked("PUT", "manifests")[before:]]
        assert tag(draft) not in again, "an index that holds all is not written again"


def test_what_another_writer_overwrote_is_written_again(draft: Draft) -> None:
    empty = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
    races = [1, 1]
    with Registry() as registry, client.repository(registry.reference(), writing=True) as there:

        def race(asked: Asked, reply: Reply) -> Reply:
            if asked.method == "PUT" and asked.what == tag(draft) and races:
                races.pop()
                registry.put(json.dumps(empty).encode(), tag(draft), INDEX_TYPE)
            return reply

        registry.tamper = race
        attach(there, draft.image, attached(draft))
        assert len(listed(registry, tag(draft))) == len(draft.referrers)
        assert races == []


def test_a_race_that_is_never_won_is_said(draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    empty = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
    with Registry() as registry, client.repository(registry.reference(), writing=True) as there:

        def race(asked: Asked, reply: Reply) -> Reply:
            if asked.method == "PUT" and asked.what == tag(draft):
                registry.put(json.dumps(empty).encode(), tag(draft), INDEX_TYPE)
            return reply

        registry.tamper = race
        with pytest.raises(RegistryError, match="keep writing"):
            attach(there, draft.image, attached(draft))


def test_a_tag_that_is_no_index_is_not_written_over(draft: Draft) -> None:
    with Registry() as registry, client.repository(registry.reference(), writing=True) as there:
        registry.put(draft.manifest, tag(draft))
        with pytest.raises(CorruptContent, match="index"):
            attach(there, draft.image, attached(draft))
        assert registry.manifests[tag(draft)][1] == draft.manifest


def test_where_there_is_the_api_only_cosigns_tag_is_written(draft: Draft) -> None:
    with Registry(referrers_api=True) as registry, client.repository(registry.reference(), writing=True) as there:
        attach(there, draft.image, attached(draft))
        assert {name for name in registry.manifests if not name.startswith("sha256:")} == {tag(draft, ".sig")}
        assert {one.descriptor.digest for one in find(there, draft.image)} == {one.digest for one in draft.referrers}


def test_signatures_of_others_stay_under_cosigns_tag(draft: Draft) -> None:
    stranger = Draft(release=key("stranger")).sign()
    with Registry() as registry, client.repository(registry.reference(), writing=True) as there:
        for one in (draft, stranger, draft):
            attach(there, one.image, attached(one))
        document = json.loads(registry.manifests[tag(draft, ".sig")][1])
        config = json.loads(registry.blobs[document["config"]["digest"]])
    signatures = {layer["annotations"]["dev.cosignproject.cosign/signature"] for layer in document["layers"]}
    assert len(document["layers"]) == len(signatures) == 2
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in document["layers"]]
    assert document["subject"]["digest"] == str(draft.image.digest)


def attestations(draft: Draft, folder: Path) -> Attestations:
    found = derive(draft.store(folder), draft.image.digest)
    assert found is not None
    return found


def test_attestations_of_others_stay_under_cosigns_tag(draft: Draft, tmp_path: Path) -> None:
    ours = attestations(draft, tmp_path / "ours")
    theirs = attestations(Draft(builder=key("stranger")).sign().measure(), tmp_path / "theirs")
    with Registry() as registry, client.repository(registry.reference(), writing=True) as there:
        document = json.loads(theirs.manifest)
        registry.put(json.dumps(document | {"annotations": {"by": "them"}}).encode(), tag(draft, ".att"))
        for one in (ours, theirs, ours):
            assert attest(there, draft.image, one) is None
            document = json.loads(registry.manifests[tag(draft, ".att")][1])
            assert document["annotations"] == {"by": "them"}
            assert document["layers"] == [layer.to_json() for layer in (*theirs.layers, *ours.layers)]
        config = json.loads(registry.blobs[document["config"]["digest"]])
        assert len(registry.asked("PUT", "manifests")) == 1
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in document["layers"]]
    assert "subject" not in document


OTHERS: dict[str, Callable[[strictjson.Object], object]] = {
    "no layers": lambda document: document.pop("layers"),
    "no manifest": lambda document: document.clear(),
    "another config": lambda document: document["config"].update(mediaType="application/octet-stream"),
    "another layer": lambda document: document["layers"][0].update(mediaType="application/octet-stream"),
    "a layer that says more": lambda document: document["layers"][0].update(urls=["https://example.com"]),
    "a malformed digest": lambda document: document["layers"][0].update(digest="sha256:x"),
    "another media type": lambda document: document.update(mediaType=INDEX_TYPE),
    "an index as well": lambda document: document.update(manifests=[]),
    "as much as a registry takes": lambda document: document.update(
        annotations={"a": "x" * (MAX_BYTES - len(json.dumps(document)) - 100)}
    ),
    "as many as cosign reads": lambda document: document.update(layers=[_other(n) for n in range(MAX_LAYERS)]),
}


def _other(number: int) -> strictjson.Object:
    return Descriptor(ENVELOPE_TYPE, Digest.of(b"%d" % number), 1).to_json()


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_what_stands_under_cosigns_tag_in_another_form_is_kept(
    draft: Draft, tmp_path: Path, change: Callable[[strictjson.Object], object]
) -> None:
    ours = attestations(draft, tmp_path / "ours")
    document = json.loads(attestations(Draft(builder=key("stranger")).sign(), tmp_path / "theirs").manifest)
    change(document)
    with Registry() as registry, client.repository(registry.reference(), writing=True) as there:
        registry.put(json.dumps(document).encode(), tag(draft, ".att"))
        before = dict(registry.manifests)
        assert attest(there, draft.image, ours) == tag(draft, ".att")
        assert registry.manifests == before


def test_an_older_signature_without_subject_is_brought_as_a_referrer(draft: Draft, tmp_path: Path) -> None:
    """As stock cosign writes it."""
    with Registry() as registry:
        registry.load(draft)
        older = draft.referrers[1]
        document = json.loads(older.manifest)
        del document["subject"]
        registry.put(json.dumps(document).encode(), tag(draft, ".sig"))
        rest = [entry for entry in listed(registry, tag(draft)) if entry["digest"] != str(older.digest)]
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": rest}
        registry.put(json.dumps(index).encode(), tag(draft), INDEX_TYPE)
        store = Store.open(tmp_path / "store")
        client.pull(registry.reference(), store)
    assert older.digest in {one.digest for one in store.referrers(draft.image.digest)}
    assert verify_image(store, draft.image.digest, policy()).verdict == "verified"


def test_what_is_malformed_or_about_another_image_is_a_strangers(draft: Draft) -> None:
    other = Draft(files={"LICENSE": b"MIT\n"}).sign()
    good = json.loads(draft.referrers[0].manifest)
    wrong = [
        other.referrers[0].manifest,
        strictjson.canonical(good | {"subject": good["subject"] | {"size": 1}}),
        strictjson.canonical(good | {"layers": "none"}),
        strictjson.canonical(good | {"manifests": []}),
        strictjson.canonical({key: value for key, value in good.items() if key != "subject"}),
    ]
    with Registry() as registry, client.repository(registry.reference()) as there:
        entries = [Descriptor(MANIFEST_TYPE, registry.put(data), len(data)).to_json() for data in wrong]
        entries.append(Descriptor(MANIFEST_TYPE, Digest.of(b"gone"), 4).to_json())
        entries.append(Descriptor(MANIFEST_TYPE, registry.put(draft.referrers[0].manifest), 1, "text/lie").to_json())
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
        registry.put(json.dumps(index).encode(), tag(draft), INDEX_TYPE)
        assert [one.descriptor.digest for one in find(there, draft.image)] == [draft.referrers[0].digest]


def test_a_large_thing_that_hangs_on_the_image_is_not_brought(draft: Draft, tmp_path: Path) -> None:
    document = json.loads(draft.referrers[0].manifest)
    huge = Descriptor("application/octet-stream", Digest.of(b"huge"), 10 << 30)
    document["layers"] = [huge.to_json()]
    with Registry() as registry:
        registry.load(draft)
        data = strictjson.canonical(document)
        digest = registry.put(data, tag(draft, ".referrer-0123456789abcdef"))
        store = Store.open(tmp_path / "store")
        client.pull(registry.reference(), store)
        assert not any(asked.what == str(huge.digest) for asked in registry.requests)
    assert not store.has(digest)
