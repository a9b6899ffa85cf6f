"""The rules for runtime images, on evidence made by hand."""

from __future__ import annotations

import pytest
from tests import images

from intaglio import strictjson
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
from intaglio.content.modelpack import ModelImage
from intaglio.content.runtime_image import IMAGE_CONFIG_TYPE, RuntimeImage
from intaglio.content.tree import File
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, ExitCode
from intaglio.policy.decide import RUNTIME_RULES, decide
from intaglio.policy.evidence import Evidence, FileEvidence, ReferrerEvidence
from intaglio.policy.rules import runtime
from intaglio.trust.cosign import Referrer, bundle_referrer, runtime_referrers
from intaglio.trust.statement import PROVENANCE

LAYER = File("layer-000.tar", Digest.of(b"layer"), 5)
IMAGE = RuntimeImage((LAYER,), Descriptor(IMAGE_CONFIG_TYPE, Digest.of(b"config"), 6))
MANIFEST = Descriptor(MANIFEST_TYPE, Digest.of(b"manifest"), 8)


def evidence(*, builder: str = "builder", release: str = "release", fault: CorruptContent | None = None) -> Evidence:
    made = images.claim(
        images.key(builder), "assemble", MANIFEST.digest, [images.part("toolchain"), images.part("program")]
    )
    referrers = [bundle_referrer(MANIFEST, made, PROVENANCE)]
    referrers += runtime_referrers(MANIFEST, "runtimes/llama.cpp", images.key(release))
    return Evidence(
        MANIFEST.digest, IMAGE, (FileEvidence(LAYER, fault, None),), tuple(_opened(one) for one in referrers)
    )


def _opened(referrer: Referrer) -> ReferrerEvidence:
    document = strictjson.parse_object(referrer.manifest, what="referrer")
    layers = [Descriptor.parse(one, "layer") for one in document["layers"]]
    blobs = {Digest.of(blob): blob for blob in referrer.blobs}
    return ReferrerEvidence(referrer.digest, tuple((one, blobs[one.digest]) for one in layers))


def test_one_that_is_good() -> None:
    verdict = decide(evidence(), images.policy())
    assert verdict.verdict == "verified", verdict.rules
    assert [rule.rule for rule in verdict.rules] == [name for name, _ in RUNTIME_RULES]


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (evidence(fault=CorruptContent("x")), ExitCode.CORRUPT),
        (evidence(release="stranger"), ExitCode.UNTRUSTED),
        (evidence(builder="stranger"), ExitCode.UNTRUSTED),
        (Evidence(MANIFEST.digest, IMAGE), ExitCode.UNTRUSTED),
    ],
)
def test_one_that_is_not(found: Evidence, code: ExitCode) -> None:
    assert decide(found, images.policy()).exit_code == code


def test_a_model_is_no_runtime_image() -> None:
    draft = images.Draft().seal()
    model = ModelImage.parse(draft.manifest, "image")
    for rule in (runtime.content, runtime.manifest):
        with pytest.raises(CorruptContent, match="found a model"):
            rule(Evidence(draft.image.digest, model), images.policy())
