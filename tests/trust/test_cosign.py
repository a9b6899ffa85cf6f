"""Referrers: golden manifests, and the older signature form read strictly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.images import KEYS, NAME, key

from intaglio import strictjson
from intaglio.content.cosign_tag import SIGNATURE_MARK
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, Untrusted
from intaglio.strictjson import Object
from intaglio.trust.cosign import (
    Link,
    bundle_referrer,
    cosign_referrer,
    lineage_referrer,
    open_cosign,
    signature_referrers,
)
from intaglio.trust.signature import encode

IMAGE = Descriptor(MANIFEST_TYPE, Digest.of(b"image"), 5, "application/vnd.cncf.model.manifest.v1+json")
FILES = [("a", Digest.of(b"1"))]


def test_golden_manifests() -> None:
    made = {
        "bundle": bundle_referrer(IMAGE, b"{}", "https://slsa.dev/provenance/v1", {"dev.intaglio.action": "x"}),
        "cosign": cosign_referrer(IMAGE, NAME, key("release")),
        "lineage": lineage_referrer(IMAGE, [b"2", b"1"]),
    }
    for name, referrer in made.items():
        assert referrer.manifest == (KEYS / f"referrer-{name}.json").read_bytes(), name


def test_a_referrer_carries_every_blob_that_it_names() -> None:
    for referrer in (*signature_referrers(IMAGE, NAME, FILES, key("release")), lineage_referrer(IMAGE, [b"1", b"2"])):
        link = Link.parse(referrer.manifest, "referrer")
        assert link.subject == Descriptor(MANIFEST_TYPE, IMAGE.digest, IMAGE.size)
        named = [(one.digest, one.size) for one in (link.config, *link.layers)]
        assert named == [(Digest.of(blob), len(blob)) for blob in referrer.blobs]


def test_lineage_does_not_depend_on_order_or_repeats() -> None:
    assert lineage_referrer(IMAGE, [b"1", b"2", b"3"]) == lineage_referrer(IMAGE, [b"3", b"1", b"2", b"1"])


def test_signatures_are_the_same_bytes_twice() -> None:
    first, second = (signature_referrers(IMAGE, NAME, FILES, key("release")) for _ in range(2))
    assert first == second


def test_older_form_opens() -> None:
    layer, payload = older()
    keys = [key("builder").public, key("release").public]
    assert open_cosign(layer, payload, IMAGE.digest, keys, what="signature") == key("release").public.id


def test_older_form_of_another_key_image_or_type_is_refused() -> None:
    layer, payload = older()
    with pytest.raises(Untrusted):
        open_cosign(layer, payload, IMAGE.digest, [key("builder").public], what="signature")
    with pytest.raises(CorruptContent, match="something else"):
        open_cosign(layer, payload, Digest.of(b"other"), [key("release").public], what="signature")
    changes: tuple[Callable[[Object], None], ...] = (
        lambda d: d["critical"].update(type="atomic container signature"),
        lambda d: d["critical"]["identity"].update({"docker-reference": 1}),
        lambda d: d["critical"].update(extra=1),
        lambda d: d.update(extra=1),
        lambda d: d.update(critical=None),
    )
    for change in changes:
        document = strictjson.parse_object(payload, what="payload")
        change(document)
        changed = strictjson.canonical(document)
        with pytest.raises(CorruptContent):
            open_cosign(signed(changed), changed, IMAGE.digest, [key("release").public], what="signature")
    with pytest.raises(CorruptContent):
        open_cosign(Descriptor("x", layer.digest, 1), payload, IMAGE.digest, [key("release").public], what="signature")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("subject"),
        lambda d: d.update(schemaVersion=1),
        lambda d: d.update(schemaVersion=True),
        lambda d: d.update(mediaType="application/vnd.oci.image.index.v1+json"),
        lambda d: d.update(manifests=[]),
        lambda d: d.update(layers=[]),
        lambda d: d.update(layers={}),
        lambda d: d.update(artifactType=1),
        lambda d: d.update(annotations={"a": 1}),
    ],
)
def test_malformed_referrers_are_refused(change: object) -> None:
    document = strictjson.parse_object(lineage_referrer(IMAGE, [b"1"]).manifest, what="referrer")
    change(document)  # type: ignore[operator]
    with pytest.raises(CorruptContent):
        Link.parse(strictjson.canonical(document), "referrer")


def older() -> tuple[Descriptor, bytes]:
    referrer = cosign_referrer(IMAGE, NAME, key("release"))
    return Link.parse(referrer.manifest, "referrer").layers[0], referrer.blobs[1]


def signed(payload: bytes) -> Descriptor:
    marks = {SIGNATURE_MARK: encode(key("release").sign(payload))}
    return Descriptor("x", Digest.of(payload), len(payload), annotations=marks)
