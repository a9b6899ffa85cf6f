"""Rules about runtime images, which are judged by who released and built them, not by a model's files.

- What a runtime image runs is its layers: each is re-hashed, and its config names them and nothing else.
- It shows no model of its own: formats, licences and names are the model's, which the guard in it judges.
"""

from __future__ import annotations

from intaglio.content.runtime_image import RuntimeImage
from intaglio.errors import CorruptContent, VerificationError
from intaglio.policy.document import Policy
from intaglio.policy.evidence import Evidence
from intaglio.policy.lineage import gather


def manifest(evidence: Evidence, policy: Policy) -> str:  # noqa: ARG001 - every rule is asked in one way
    """The manifest and config are a runnable image in its one strict form."""
    image = _require(evidence)
    return f"runtime image of {len(image.files)} layers"


def content(evidence: Evidence, policy: Policy) -> str:  # noqa: ARG001 - every rule is asked in one way
    """Every layer has its digest, and what the image's referrers name is whole."""
    image = _require(evidence)
    faults = [*evidence.damaged, *(one.content for one in evidence.files if one.content is not None)]
    if faults:
        first = next((fault for fault in faults if isinstance(fault, CorruptContent)), faults[0])
        raise type(first)("; ".join(fault.message for fault in faults[:5]))
    return f"{len(image.files)} layers, {sum(file.size for file in image.files)} bytes re-hashed"


def provenance(evidence: Evidence, policy: Policy) -> str:
    """A builder key says what this image was assembled from."""
    first = gather(evidence, policy).assemblies[0]
    parts = sorted(one.name for one in first.dependencies)
    return f"{first.external.get('recipe', '?')}, builder {first.builder}: {', '.join(parts)}"


def _require(evidence: Evidence) -> RuntimeImage:
    if isinstance(evidence.model, VerificationError):
        raise evidence.model
    if not isinstance(evidence.model, RuntimeImage):
        raise CorruptContent("expected a runtime image, found a model")
    return evidence.model
