"""Rules about origin: who built the image from what, back to inputs that were pinned by digest.

- The builder's provenance names every dependency by digest; a dependency that another step made needs a claim of
  its own, signed by a builder too, and so on.
- A digest is *grounded* when some claim about it has only grounded outputs among its dependencies. Grounding is
  built up from claims without such dependencies, so a circle of claims grounds nothing, and the search ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from intaglio.digest import Digest
from intaglio.errors import CorruptContent, PolicyRefusal, Untrusted, VerificationError
from intaglio.policy.document import Policy
from intaglio.policy.evidence import Evidence
from intaglio.policy.rules.content import require_model
from intaglio.policy.rules.signature import NotRequired, find_statements
from intaglio.trust.statement import ASSEMBLE, PROVENANCE, Dependency, Provenance

MAX_EDGES = 200_000
"""Most dependencies in one lineage, all claims together."""


def provenance(evidence: Evidence, policy: Policy) -> str:
    """A builder key says how this image was assembled, and from the very files that it holds."""
    assemblies = _assemblies(evidence, policy)
    tree = require_model(evidence).tree.digest
    first = next((one for one in assemblies if any(part.digest == tree for part in one.dependencies)), None)
    if first is None:
        raise CorruptContent(f"the builder's provenance does not name the image's tree {tree} among what it is made of")
    return f"{first.external.get('recipe', '?')}, builder {first.builder}"


def lineage(evidence: Evidence, policy: Policy) -> str:
    """Every step output that went into the image has a builder's claim, until only pinned inputs remain."""
    claims = _claims(evidence, policy)
    assembly = _grounded_assembly(_assemblies(evidence, policy), claims)
    reached = _reached(assembly, claims)
    origins = sorted({(one.uri or one.name) for claim in (assembly, *reached) for one in _of_kind(claim, "origin")})
    return f"{len(reached)} claims, pinned origins: {', '.join(origins) if origins else 'none'}"


def sandbox(evidence: Evidence, policy: Policy) -> str:
    """Every step ran in a sandbox, as its builder's signature says."""
    if policy.allow_unsandboxed:
        raise NotRequired
    assemblies = _assemblies(evidence, policy)
    claims = _claims(evidence, policy)
    if not any(claim.sandboxed for claim in assemblies):
        raise PolicyRefusal(f"{assemblies[0].step}: assembled without a sandbox")
    good = [claim for claim in claims if claim.sandboxed]
    try:
        _grounded_assembly([claim for claim in assemblies if claim.sandboxed], good)
    except VerificationError as error:
        steps = sorted({claim.step for claim in claims if not claim.sandboxed})
        if not steps:
            raise error
        raise PolicyRefusal(f"built without a sandbox: {', '.join(steps[:5])}") from None
    return "every step"


def _assemblies(evidence: Evidence, policy: Policy) -> list[Provenance]:
    """Return the builders' provenance of the image itself, at least one."""
    found = _provenances(evidence, policy)
    good = [one for one in found if one.subject == evidence.image and one.build_type == ASSEMBLE]
    if not good:
        raise Untrusted(f"no builder's provenance of the assembly of {evidence.image}")
    return good


def _claims(evidence: Evidence, policy: Policy) -> list[Provenance]:
    """Return the builders' provenance of everything else."""
    claims = [one for one in _provenances(evidence, policy) if one.subject != evidence.image]
    if sum(len(claim.dependencies) for claim in claims) > MAX_EDGES:
        raise CorruptContent(f"the lineage has more than {MAX_EDGES} dependencies")
    return claims


def _provenances(evidence: Evidence, policy: Policy) -> list[Provenance]:
    signed = find_statements(evidence.attachments(), PROVENANCE, policy.builders, "builder's provenance")
    return [Provenance.of(one.statement, "the builder's provenance") for one in signed]


def _grounded_assembly(assemblies: Iterable[Provenance], claims: Iterable[Provenance]) -> Provenance:
    """Return an assembly all of whose step outputs are grounded.

    Raises:
        Untrusted: there is none; names a digest without a claim, or with circular ones only.
    """
    by_subject = _by_subject(claims)
    grounded = _grounded(by_subject)
    missing: list[tuple[str, Digest]] = []
    for assembly in assemblies:
        lacking = [(one.name, one.digest) for one in _of_kind(assembly, "output") if one.digest not in grounded]
        if not lacking:
            return assembly
        missing = missing or lacking
    # Walk down to where the chain breaks: a digest with no claim at all explains more than its heirs.
    seen: set[Digest] = set()
    while missing:
        name, digest = missing.pop()
        if digest in seen:
            continue
        seen.add(digest)
        if digest not in by_subject:
            raise Untrusted(f"{name} {digest}: made by a step, and no builder's claim says how")
        missing += [
            (one.name, one.digest)
            for claim in by_subject[digest]
            for one in _of_kind(claim, "output")
            if one.digest not in grounded
        ]
    raise Untrusted("the lineage is circular: claims that rest on each other show no origin")


def _grounded(by_subject: dict[Digest, list[Provenance]]) -> set[Digest]:
    """Return the subjects that can be traced to pinned inputs alone: the least fixed point, in linear time."""
    waiting: dict[int, int] = {}
    users: dict[Digest, list[tuple[int, Digest]]] = defaultdict(list)
    ready: list[Digest] = []
    number = 0
    for subject, claims in by_subject.items():
        for claim in claims:
            needs = {one.digest for one in _of_kind(claim, "output")}
            waiting[number] = len(needs)
            for need in needs:
                users[need].append((number, subject))
            if not needs:
                ready.append(subject)
            number += 1
    grounded: set[Digest] = set()
    while ready:
        subject = ready.pop()
        if subject in grounded:
            continue
        grounded.add(subject)
        for claim_number, user in users[subject]:
            waiting[claim_number] -= 1
            if not waiting[claim_number]:
                ready.append(user)
    return grounded


def _reached(assembly: Provenance, claims: Iterable[Provenance]) -> list[Provenance]:
    """Return the claims that the assembly rests on."""
    by_subject = _by_subject(claims)
    seen: set[Digest] = set()
    reached: list[Provenance] = []
    pending = [assembly]
    while pending:
        for one in _of_kind(pending.pop(), "output"):
            if one.digest not in seen:
                seen.add(one.digest)
                reached += by_subject.get(one.digest, [])
                pending += by_subject.get(one.digest, [])
    return reached


def _by_subject(claims: Iterable[Provenance]) -> dict[Digest, list[Provenance]]:
    table: dict[Digest, list[Provenance]] = defaultdict(list)
    for claim in claims:
        table[claim.subject].append(claim)
    return table


def _of_kind(claim: Provenance, kind: str) -> list[Dependency]:
    return [one for one in claim.dependencies if one.kind == kind]
