"""cosign's older form: one manifest for signatures and attestations, read strictly."""

from __future__ import annotations

import pytest

from intaglio import strictjson
from intaglio.content.cosign_tag import ATTESTATIONS, ATTESTED, SIGNATURES, Form, config_of, manifest_of
from intaglio.content.descriptor import Descriptor
from intaglio.digest import Digest
from intaglio.errors import CorruptContent

FORMS = [SIGNATURES, ATTESTATIONS]


def layers(form: Form) -> tuple[Descriptor, ...]:
    return tuple(Descriptor(form.layer_type, Digest.of(data), 1) for data in (b"1", b"2"))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.suffix)
def test_what_is_written_is_read(form: Form) -> None:
    config, data = config_of(layers(form))
    assert (config.digest, config.size) == (Digest.of(data), len(data))
    document = strictjson.parse_object(manifest_of(config, layers(form), {}), what="manifest")
    assert form.layers(document, "tag") == layers(form)
    assert form.tag(Digest.of(b"image")) == f"sha256-{Digest.of(b'image').hex}{form.suffix}"


def test_the_forms_are_told_apart() -> None:
    for form, other in (FORMS, FORMS[::-1]):
        config, _ = config_of(layers(form))
        document = strictjson.parse_object(manifest_of(config, layers(form), {}), what="manifest")
        with pytest.raises(CorruptContent, match="expected layers of type"):
            other.layers(document, "tag")


def test_the_rest_of_a_manifest_stays_but_decides_nothing() -> None:
    config, _ = config_of(layers(ATTESTATIONS))
    rest = {"annotations": {"a": "b"}, "layers": [], "mediaType": "x", **ATTESTED}
    made = strictjson.parse_object(manifest_of(config, layers(ATTESTATIONS), rest), what="manifest")
    plain = strictjson.parse_object(manifest_of(config, layers(ATTESTATIONS), {}), what="manifest")
    assert made == {**plain, **ATTESTED, "annotations": {"a": "b"}}
