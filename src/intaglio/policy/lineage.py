"""Lineage: the builders' claims about an image as a graph of digests, back to inputs that were pinned.

- A digest is *grounded* when some claim about it has only grounded outputs among its dependencies. Grounding is
  built up from claims without such dependencies, so a circle of claims grounds nothing, and the search ends.
- Several claims may stand about one digest; one lineage of good claims is enough, and it has to be good in every
  respect at once: sandboxed, listed, licensed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, Untrusted, VerificationError
from intaglio.policy.document import Policy
from intaglio.policy.evidence import Evidence
from intaglio.policy.listing import Listed
from intaglio.policy.rules.signature import find_statements
from intaglio.trust.signature import read_bundle
from intaglio.trust.statement import ASSEMBLE, PROVENANCE, Dependency, Provenance, read

MAX_EDGES = 200_000
"""Most dependencies in one lineage, all claims together."""
Accepts = Callable[[Provenance], bool]
"""Says whether a claim is good enough for a rule."""
Faults = Callable[[Provenance], list[str]]
"""Says what a rule has against a claim; nothing where it is good."""
OWN_PROGRAMS = frozenset({"program:intaglio-guard", "program:anchor"})
"""What stands in a runtime image beside what it serves with: the engine's own guard, and the anchor of its site."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """The builders' claims about an image."""

    assemblies: tuple[Provenance, ...]
    """About the image itself: at least one."""
    claims: tuple[Provenance, ...]
    """About everything else."""

    def only(self, accepts: Accepts) -> Lineage:
        """Return what is left of it with only those claims that are accepted."""
        return Lineage(tuple(filter(accepts, self.assemblies)), tuple(filter(accepts, self.claims)))


@dataclass(frozen=True, slots=True)
class Sound:
    """What came of looking for a lineage whose every claim is accepted: its claims, or those that stand in the way."""

    claims: tuple[Provenance, ...] = ()
    rejected: tuple[Provenance, ...] = ()


def named_dependencies(attachments: Iterable[tuple[str, bytes]]) -> set[Digest]:
    """Return what a trusted source has to be asked about: all that any attached provenance names, signed or not."""
    found: set[Digest] = set()
    for what, data in attachments:
        try:
            statement = read(read_bundle(data, what=what).payload, what=what)
            if statement.predicate_type == PROVENANCE:
                found |= {one.digest for one in listable(Provenance.of(statement, what))}
        except VerificationError:
            continue
    return found


def claimed_licence(claim: Provenance, origin: Dependency) -> str | None:
    """Return the licence that the builder recorded for one of a claim's origins."""
    licences = claim.internal.get("licences")
    found = licences.get(origin.name) if isinstance(licences, dict) else None
    return found if isinstance(found, str) and found else None


def narrowed(evidence: Evidence, policy: Policy, *, before_source: bool = False) -> Lineage:
    """Return the claims that the rules on sandbox and source leave, so that no two rules rest on different claims.

    A rule that leaves no lineage at all narrows nothing: it says itself what is wrong.
    """
    found = gather(evidence, policy)
    tests: list[Accepts] = [] if policy.allow_unsandboxed else [is_sandboxed]
    if policy.source_required and evidence.source is not None and not before_source:
        faults = unlisted(evidence, policy, evidence.source.listed)
        tests.append(lambda claim: not faults(claim))
    for test in tests:
        kept = found.only(test)
        try:
            _grounded_assembly(kept.assemblies, kept.claims)
        except VerificationError:
            continue
        found = kept
    return found


def sound(lineage: Lineage, accepts: Accepts) -> Sound:
    """Return a way from the image to pinned inputs over accepted claims alone, or what stands in the way.

    Raises:
        Untrusted: there is no such way whatever is accepted.
    """
    kept = lineage.only(accepts)
    try:
        assembly = _grounded_assembly(kept.assemblies, kept.claims)
    except Untrusted:
        assembly = _grounded_assembly(lineage.assemblies, lineage.claims)
        whole = (assembly, *_reached(assembly, lineage.claims))
        return Sound(rejected=tuple(claim for claim in whole if not accepts(claim)))
    return Sound(claims=(assembly, *_reached(assembly, kept.claims)))


def summary(texts: Iterable[str]) -> str:
    """Return several findings as one line: each once, the first few."""
    listed = sorted(set(texts))
    return "; ".join(listed[:5]) + (f"; and {len(listed) - 5} more" if len(listed) > 5 else "")


def of_kind(claim: Provenance, kind: str) -> list[Dependency]:
    """Return the dependencies of that kind."""
    return [one for one in claim.dependencies if one.kind == kind]


def is_sandboxed(claim: Provenance) -> bool:
    """Return whether the step ran in a sandbox."""
    return claim.sandboxed


def listable(claim: Provenance) -> list[Dependency]:
    """Return the dependencies that a trusted source can list."""
    return [one for one in claim.dependencies if one.kind in ("origin", "toolchain", "program")]


def unlisted(evidence: Evidence, policy: Policy, listed: Mapping[Digest, Listed]) -> Faults:
    """Return what says why something that went into a claim may not: it was yanked, or is not listed and has to be."""

    def may_be_absent(claim: Provenance, one: Dependency) -> bool:
        own = claim.subject == evidence.image and one.name in OWN_PROGRAMS
        return one.kind == "program" and (own or not policy.source_programs)

    def faults(claim: Provenance) -> list[str]:
        found = []
        for one in listable(claim):
            target = listed.get(one.digest)
            if target is not None and target.status != "active":
                found.append(f"{target.name} was yanked by the trusted source: {target.reason or 'no reason given'}")
            elif target is None and not may_be_absent(claim, one):
                found.append(f"{one.uri or one.name} {one.digest}: the trusted source does not list it")
        return found

    return faults


def gather(evidence: Evidence, policy: Policy) -> Lineage:
    """Return the builders' provenance, at least one of the image itself.

    Raises:
        VerificationError: there is none, or it is too large or malformed.
    """
    signed = find_statements(evidence.attachments(), PROVENANCE, policy.builders, "builder's provenance")
    found = [Provenance.of(one.statement, "the builder's provenance") for one in signed]
    assemblies = tuple(one for one in found if one.subject == evidence.image and one.build_type == ASSEMBLE)
    if not assemblies:
        raise Untrusted(f"no builder's provenance of the assembly of {evidence.image}")
    claims = tuple(one for one in found if one.subject != evidence.image)
    if sum(len(claim.dependencies) for claim in claims) > MAX_EDGES:
        raise CorruptContent(f"the lineage has more than {MAX_EDGES} dependencies")
    return Lineage(assemblies, claims)


def _grounded_assembly(assemblies: Iterable[Provenance], claims: Iterable[Provenance]) -> Provenance:
    """Return an assembly all of whose step outputs are grounded.

    Raises:
        Untrusted: there is none; names a digest without a claim, or with circular ones only.
    """
    by_subject = _by_subject(claims)
    grounded = _grounded(by_subject)
    missing: list[tuple[str, Digest]] = []
    for assembly in assemblies:
        lacking = [(one.name, one.digest) for one in of_kind(assembly, "output") if one.digest not in grounded]
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
            for one in of_kind(claim, "output")
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
            needs = {one.digest for one in of_kind(claim, "output")}
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
        for one in of_kind(pending.pop(), "output"):
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
