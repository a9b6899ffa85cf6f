"""What two images measured, side by side: read from verified attestations and from nothing else.

- The policy of this side says whose test results count; no file of an image is read, so large ones compare as fast.
- A metric that two evaluations of one image measured differently has no value, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import NotVerifiable, PolicyRefusal, VerificationError
from intaglio.policy.document import Policy
from intaglio.policy.evidence import Evidence, ReferrerEvidence
from intaglio.policy.rules.attestation import measured
from intaglio.strictjson import Object
from intaglio.trust.cosign import Link
from intaglio.trust.signature import BUNDLE_TYPE
from intaglio.verify import MAX_REFERRERS, EvidenceSource


@dataclass(frozen=True, slots=True)
class Pair:
    """One metric of two images; ``None`` where one of them did not measure it."""

    first: float | None
    second: float | None

    @property
    def difference(self) -> float | None:
        """How much more the second has."""
        return None if self.first is None or self.second is None else self.second - self.first

    def to_json(self) -> Object:
        """Return the interface of ``intaglio eval compare --json``."""
        return {"a": self.first, "b": self.second, "difference": self.difference}


def compare(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, Pair]:
    """Return the metrics of both, by name."""
    return {name: Pair(first.get(name), second.get(name)) for name in sorted({*first, *second})}


def metrics(source: EvidenceSource, image: Digest, policy: Policy) -> dict[str, float]:
    """Return what the policy's evaluators attest to have measured about ``image``.

    Raises:
        VerificationError: there is no such image or attestation, it does not verify, it states no metric, or two of
            them disagree.
    """
    if not policy.roles.get("evaluator"):
        raise NotVerifiable(
            f"policy {policy.name!r} names no evaluator, so nothing that was measured counts",
            hint="name one under roles.evaluator; `intaglio init` makes its key",
        )
    source.read(image, what=f"image {image.short}")
    found = measured(Evidence(image, NotVerifiable("not read"), referrers=_referrers(source, image)), policy)
    if not found:
        raise NotVerifiable(
            f"{image}: its evaluators attest to tests that passed, but to no metric: there is nothing to compare",
            hint="images whose recipe measures them have metrics: docs/evaluation.md",
        )
    for name, values in sorted(found.items()):
        if len(set(values)) > 1:
            raise PolicyRefusal(f"{image}: {name}: two evaluations disagree: {', '.join(f'{one:g}' for one in values)}")
    return {name: values[0] for name, values in found.items()}


def _referrers(source: EvidenceSource, image: Digest) -> tuple[ReferrerEvidence, ...]:
    listed = source.referrers(image)
    if len(listed) > MAX_REFERRERS:
        raise NotVerifiable(f"expected at most {MAX_REFERRERS} referrers of one image, found {len(listed)}")
    found = []
    for descriptor in sorted(listed, key=lambda one: one.digest):
        what = f"referrer {descriptor.digest.short}"
        data = source.read(descriptor.digest, what=what)
        try:
            link = Link.parse(data, what)
        except VerificationError:
            continue  # a stranger's
        if link.subject.digest == image:
            bundles = [layer for layer in link.layers if layer.media_type == BUNDLE_TYPE]
            found.append(
                ReferrerEvidence(
                    descriptor.digest, tuple((layer, source.read(layer.digest, what=what)) for layer in bundles)
                )
            )
    return tuple(found)
