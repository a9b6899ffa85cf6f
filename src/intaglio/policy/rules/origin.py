"""Rules about origin: who built the image from what, back to inputs that were pinned by digest.

- The builder's provenance names every dependency by digest; a dependency that another step made needs a claim of
  its own, signed by a builder too, and so on (:mod:`intaglio.policy.lineage`).
"""

from __future__ import annotations

from intaglio.errors import CorruptContent, PolicyRefusal
from intaglio.policy.document import Policy
from intaglio.policy.evidence import Evidence
from intaglio.policy.lineage import gather, is_sandboxed, of_kind, sound, summary
from intaglio.policy.rules.content import require_model
from intaglio.policy.rules.signature import NotRequired


def provenance(evidence: Evidence, policy: Policy) -> str:
    """A builder key says how this image was assembled, and from the very files that it holds."""
    assemblies = gather(evidence, policy).assemblies
    tree = require_model(evidence).tree.digest
    first = next((one for one in assemblies if any(part.digest == tree for part in one.dependencies)), None)
    if first is None:
        raise CorruptContent(f"the builder's provenance does not name the image's tree {tree} among what it is made of")
    return f"{first.external.get('recipe', '?')}, builder {first.builder}"


def lineage(evidence: Evidence, policy: Policy) -> str:
    """Every step output that went into the image has a builder's claim, until only pinned inputs remain."""
    found = sound(gather(evidence, policy), lambda _: True).claims
    origins = sorted({(one.uri or one.name) for claim in found for one in of_kind(claim, "origin")})
    return f"{len(found) - 1} claims, pinned origins: {', '.join(origins) if origins else 'none'}"


def sandbox(evidence: Evidence, policy: Policy) -> str:
    """Every step ran in a sandbox, as its builder's signature says."""
    if policy.allow_unsandboxed:
        raise NotRequired
    found = sound(gather(evidence, policy), is_sandboxed)
    if found.rejected:
        raise PolicyRefusal(f"built without a sandbox: {summary(claim.step for claim in found.rejected)}")
    return "every step"
