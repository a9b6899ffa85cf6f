"""Rules about the release signature: in the form that counts, and in the forms that other tools read.

- Every referrer is opened; what it calls itself does not matter, only what was signed and by whom.
- What strangers attached is no evidence and no obstacle: one good signature is enough, and it has to be there.
- The signed statement must be exactly the one expected: another predicate, another digest, one more word is none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from intaglio.content.modelpack import SIMPLE_SIGNING_TYPE, ModelImage
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, Untrusted, VerificationError
from intaglio.policy.document import Policy
from intaglio.policy.evidence import Evidence
from intaglio.trust.cosign import open_cosign
from intaglio.trust.key import PublicKey
from intaglio.trust.signature import Envelope, read_bundle
from intaglio.trust.statement import (
    COSIGN_SIGN,
    MODEL_SIGNING,
    Signed,
    Statement,
    cosign_statement,
    model_signing_statement,
    read,
)


class NotRequired(Exception):
    """The policy does not require what a rule would look for."""


def signature(evidence: Evidence, policy: Policy) -> str:
    """A release key signed this manifest, in a Sigstore bundle."""
    expected = cosign_statement(evidence.image)
    found = find_statements(evidence.attachments(), COSIGN_SIGN, policy.releasers, "release signature")
    signed = next((one for one in found if one.statement == expected), None)
    if signed is None:
        raise CorruptContent(f"the release signature is about something else than {evidence.image}")
    return f"release key {signed.key.short}"


def cosign(evidence: Evidence, policy: Policy) -> str:
    """A release key signed this manifest in cosign's older form, too."""
    if "cosign" not in policy.require:
        raise NotRequired
    faults: list[VerificationError] = []
    for referrer in evidence.referrers:
        for layer, payload in referrer.layers:
            if layer.media_type != SIMPLE_SIGNING_TYPE:
                continue
            try:
                what = f"cosign signature in {referrer.digest.short}"
                key = open_cosign(layer, payload, evidence.image, policy.releasers, what=what)
            except VerificationError as error:
                faults.append(error)
            else:
                return f"release key {key.short}"
    raise faults[0] if faults else Untrusted("no release signature in cosign's older form")


def model_signing(evidence: Evidence, policy: Policy) -> str:
    """A release key signed the plain files as OpenSSF Model Signing has it: these names, these digests, no others."""
    if "model-signing" not in policy.require:
        raise NotRequired
    if isinstance(evidence.model, VerificationError):
        raise evidence.model
    if not isinstance(evidence.model, ModelImage):
        raise CorruptContent("expected a model image, found a runtime image")
    found = find_statements(evidence.attachments(), MODEL_SIGNING, policy.releasers, "model signature")
    signed = next((one for one in found if _covers(one.statement, evidence.model)), None)
    if signed is None:
        raise CorruptContent("the model signature is about other files than the image's")
    return f"release key {signed.key.short}, {len(evidence.model.files)} files"


def opened_folder_signature(evidence: Evidence, policy: Policy) -> Signed:
    """Return the statement in a plain folder's ``model.sig``.

    Raises:
        VerificationError: it is not a release key's model signature over exactly the image's files.
    """
    attached = [("model.sig", evidence.folder_signature or b"")]
    for signed in find_statements(attached, MODEL_SIGNING, policy.releasers, "model.sig"):
        if isinstance(evidence.model, ModelImage) and _covers(signed.statement, evidence.model):
            return signed
    raise CorruptContent("model.sig is about other files than the image's")


def find_statements(
    attachments: Iterable[tuple[str, bytes]], predicate_type: str, keys: Iterable[PublicKey], kind: str
) -> list[Signed]:
    """Return the statements of that type which one of ``keys`` signed, at least one.

    Raises:
        VerificationError: there is none; the fault of the one that came nearest, if any did.
    """
    keys = tuple(keys)
    found: list[Signed] = []
    faults: list[VerificationError] = []
    for what, data in attachments:
        try:
            envelope, statement = _opened(what, data)
            if statement.predicate_type == predicate_type:
                found.append(Signed(statement, envelope.open(keys, what=f"{kind}, {what}")))
        except VerificationError as error:
            faults.append(error)
    if found:
        return found
    # A stranger's signature says more about what is missing here than something that is no bundle at all.
    faults.sort(key=lambda error: not isinstance(error, Untrusted))
    raise faults[0] if faults else Untrusted(f"no {kind} by a key that the policy names")


@functools.lru_cache(maxsize=256)
def _opened(what: str, data: bytes) -> tuple[Envelope, Statement]:
    """Return what stands in a bundle, unverified: several rules ask, and reading it again gives the same."""
    envelope = read_bundle(data, what=what)
    return envelope, read(envelope.payload, what=f"{what}, the signed statement")


def _covers(statement: Statement, model: ModelImage) -> bool:
    name = statement.subjects[0].name
    files: list[tuple[str, Digest]] = [(file.path, file.digest) for file in model.files]
    return name is not None and statement == model_signing_statement(name, files)
