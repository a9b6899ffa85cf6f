"""Rules about the verifier's trusted source: what went into the image is listed there, and the list is not too old.

- The source is the verifier's own, verified from its own anchor; where a policy asks for one and there is none, nothing
  can be shown.
- A yanked target is refused with its reason, whenever it was built in: input, toolchain, step program or runtime.
- Programs have to be listed where the policy says so; what of a runtime image is the engine's or the site's own, never.
"""

from __future__ import annotations

from intaglio.errors import NotVerifiable, PolicyRefusal, Stale
from intaglio.policy.document import Policy
from intaglio.policy.evidence import Evidence
from intaglio.policy.lineage import listable, narrowed, sound, summary, unlisted
from intaglio.policy.rules.signature import NotRequired
from intaglio.trust.freshness import words


def source(evidence: Evidence, policy: Policy) -> str:
    """Every pinned origin and every toolchain is an active target of the verifier's trusted source, and no program was
    yanked by it; where the policy says so, programs are listed there, too.
    """
    if not policy.source_required:
        raise NotRequired
    if evidence.source is None:
        raise NotVerifiable("the policy requires a trusted source, and there is none to ask")
    listed = evidence.source.listed
    claims = narrowed(evidence, policy, before_source=True)
    faults = unlisted(evidence, policy, listed)
    found = sound(claims, lambda claim: not faults(claim))
    if found.rejected:
        raise PolicyRefusal(summary(text for claim in found.rejected for text in faults(claim)))
    digests = {one.digest for claim in found.claims for one in listable(claim) if one.digest in listed}
    names = sorted({listed[digest].name for digest in digests})
    return f"{len(digests)} inputs listed: {', '.join(names[:8])}" + (", …" if len(names) > 8 else "")


def freshness(evidence: Evidence, policy: Policy) -> str:
    """What is known of the trusted source is no older than the policy allows."""
    if policy.max_age is None:
        raise NotRequired
    if evidence.source is None:
        raise NotVerifiable("the policy bounds the age of a trusted source, and there is none to ask")
    age, bound = words(evidence.source.age), words(policy.max_age)
    if evidence.source.age > policy.max_age:
        raise Stale(f"the trusted source was last known to be current {age} ago; the policy allows {bound}")
    return f"known to be current {age} ago, of at most {bound}"
