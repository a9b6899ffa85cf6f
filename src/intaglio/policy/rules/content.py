"""Rules about the bytes: they are the promised ones, in the promised form, of formats that may pass."""

from __future__ import annotations

from intaglio.content.formats.inspect import Inspected
from intaglio.content.modelpack import ModelImage
from intaglio.errors import CorruptContent, PolicyRefusal, VerificationError
from intaglio.policy.document import Policy
from intaglio.policy.evidence import Evidence
from intaglio.policy.rules.signature import opened_folder_signature


def content(evidence: Evidence, policy: Policy) -> str:
    """Every byte has its digest, nothing is missing, and nothing lies there that the image does not name."""
    require_model(evidence)
    faults = [*evidence.damaged, *(one.content for one in evidence.files if one.content is not None)]
    if faults:
        raise _joined(faults)
    if evidence.folder_signature is not None:
        opened_folder_signature(evidence, policy)
    total = sum(one.file.size for one in evidence.files)
    return f"{len(evidence.files)} files, {total} bytes re-hashed"


def manifest(evidence: Evidence, policy: Policy) -> str:  # noqa: ARG001 - every rule is asked in one way
    """The manifest and config are a ModelPack image in its one strict form."""
    model = require_model(evidence)
    return f"CNCF ModelPack over {len(model.files)} raw layers"


def formats(evidence: Evidence, policy: Policy) -> str:
    """Every file is, by name and by bytes, of a format that the policy allows, and refers to files that are there."""
    model = require_model(evidence)
    present = {file.path for file in model.files}
    faults: list[VerificationError] = []
    found: set[str] = set()
    for one in evidence.files:
        if one.inspected is None:
            raise CorruptContent("some files could not be looked into: their bytes are not the promised ones")
        if not isinstance(one.inspected, Inspected):
            faults.append(one.inspected)
            continue
        found.add(one.inspected.format)
        if one.inspected.format not in policy.formats:
            faults.append(PolicyRefusal(f"{one.file.path}: the policy does not allow {one.inspected.format}"))
        for reference in one.inspected.references:
            if reference not in present:
                faults.append(CorruptContent(f"{one.file.path}: names {reference!r}, which the image does not hold"))
    if faults:
        raise _joined(faults)
    return ", ".join(sorted(found))


def require_model(evidence: Evidence) -> ModelImage:
    """Return the image's model.

    Raises:
        VerificationError: its manifest or config cannot be read.
    """
    if isinstance(evidence.model, VerificationError):
        raise evidence.model
    if not isinstance(evidence.model, ModelImage):
        raise CorruptContent("expected a model image, found a runtime image")
    return evidence.model


def _joined(faults: list[VerificationError]) -> VerificationError:
    """Return one error for several: the first one's kind, the first few messages."""
    first = next((fault for fault in faults if isinstance(fault, CorruptContent)), faults[0])
    listed = "; ".join(fault.message for fault in faults[:5])
    return type(first)(listed + (f"; and {len(faults) - 5} more" if len(faults) > 5 else ""))
