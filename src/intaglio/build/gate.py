"""Gates: whether what was measured lets an image come about, and the attestation that says so.

- A step that measures ran like any other: its results are a tree with a claim, and no threshold is in its key.
- A metric that is gated and was not measured holds nothing: it stops the image as a missed one does.
- What is attested is about the image's manifest, by the evaluator's own key, and is the same bytes each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from intaglio import strictjson
from intaglio.content.descriptor import Descriptor
from intaglio.content.layout import Store
from intaglio.content.tree import Tree
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import PolicyRefusal, StepFailed, VerificationError
from intaglio.policy.document import Bounds
from intaglio.recipe.gates import MODEL, RESULTS, Gate
from intaglio.trust.cosign import Link, bundle_referrer
from intaglio.trust.key import PrivateKey, PublicKey
from intaglio.trust.signature import BUNDLE_TYPE, sign_bundle
from intaglio.trust.statement import TEST_RESULT, Statement, evaluation_statement, open_statement

if TYPE_CHECKING:
    from intaglio.build.plan import Plan

MAX_METRICS = 4096
"""Most metrics of one evaluation."""


class Evaluators(Protocol):
    """The evaluator's key; the private half is opened when something has to be signed, and not before."""

    def evaluator_public(self) -> PublicKey:
        """Return the public half."""

    def evaluator(self) -> PrivateKey:
        """Return the private half."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a step measured."""

    metrics: Mapping[str, float]
    samples: int

    @classmethod
    def parse(cls, data: bytes, what: str) -> Results:
        """Return the results in ``data``.

        Raises:
            StepFailed: they are not what a step that measures writes: a metric is a finite number, or is not there.
        """
        try:
            document = strictjson.parse_object(data, what=what)
        except VerificationError as error:
            raise StepFailed(error.message) from None
        metrics, samples = document.get("metrics"), document.get("samples")
        if not isinstance(metrics, dict) or not 0 < len(metrics) <= MAX_METRICS:
            raise StepFailed(f"{what}: expected metrics, found none")
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise StepFailed(f"{what}: {name[:80]}: expected a finite number, found {str(value)[:40]}")
        if type(samples) is not int or samples < 1:
            raise StepFailed(f"{what}: expected samples, found {str(samples)[:40]}")
        return cls(metrics, samples)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One step that measured what becomes the image."""

    step: str
    results: Results
    gates: Mapping[str, Gate]
    configuration: tuple[tuple[str, Digest], ...]
    """Name and digest of what decided the results, beside the model."""

    def missed(self) -> list[str]:
        """Return, for each gate that does not hold, by how much."""
        return [text for metric, gate in sorted(self.gates.items()) if (text := self._missed(metric, gate))]

    def _missed(self, metric: str, gate: Gate) -> str | None:
        bounds, value = Bounds(gate.minimum, gate.maximum), self.results.metrics.get(metric)
        if value is None:
            return f"{metric}: expected {bounds}, but it was not measured; measured: {self._names()}"
        if bounds.hold(value):
            return None
        low = bounds.minimum is not None and value < bounds.minimum
        by = (bounds.minimum or 0) - value if low else value - (bounds.maximum or 0)
        return f"{metric}: expected {bounds}, found {value:g}: {by:.3g} too {'low' if low else 'high'}"

    def _names(self) -> str:
        names = sorted(self.results.metrics)
        return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")

    def describe(self) -> str:
        """Return the metrics for people, gated ones first."""
        ordered = sorted(self.results.metrics, key=lambda name: (name not in self.gates, name))
        return ", ".join(f"{name} {self.results.metrics[name]:g}" for name in ordered[:8])

    def statement(self, image: Digest) -> Statement:
        """Return what the evaluator says about ``image``."""
        gates = {
            metric: {
                key: bound for key, bound in (("minimum", gate.minimum), ("maximum", gate.maximum)) if bound is not None
            }
            for metric, gate in self.gates.items()
        }
        return evaluation_statement(
            image,
            configuration=self.configuration,
            metrics=self.results.metrics,
            gates=gates,
            samples=self.results.samples,
        )


def evaluations(store: Store, plan: Plan, trees: Mapping[str, Digest]) -> tuple[Evaluation, ...]:
    """Return what the plan's steps measured about what becomes the image.

    Args:
        store: where outputs are.
        plan: what is built.
        trees: the tree of each input and of each step that ran, by name.

    Raises:
        StepFailed: results are not what they must be.
    """
    found = []
    for name in plan.recipe.evaluations:
        planned = plan.steps[name]
        results = Results.parse(_results(store.tree(trees[name]), store, name), f"step {name}: {RESULTS}")
        configuration = [(f"input:{slot}", trees[source]) for slot, source in planned.upstream.items() if slot != MODEL]
        configuration.append((f"program:{planned.step.uses}", planned.program))
        configuration.append((f"toolchain:{planned.toolchain.name}", planned.toolchain.tree().digest))
        found.append(Evaluation(name, results, planned.step.gates, tuple(configuration)))
    return tuple(found)


def _results(tree: Tree, store: Store, name: str) -> bytes:
    for file in tree.files:
        if file.path == RESULTS:
            return store.read(file.digest, what=f"step {name}: {RESULTS}")
    raise StepFailed(f"step {name}: expected an output {RESULTS}, found none")


def require(found: Iterable[Evaluation]) -> None:
    """Let an image come about where every gate holds.

    Raises:
        PolicyRefusal: one does not; the message says by how much, for each.
    """
    missed = [f"step {one.step}: {text}" for one in found for text in one.missed()]
    if missed:
        raise PolicyRefusal(
            "no image was made: " + "\n".join(missed),
            hint="what was measured is kept, so a gate that is moved decides anew without measuring again",
        )


def attest(store: Store, image: Descriptor, found: Iterable[Evaluation], signers: Evaluators) -> None:
    """Give ``image`` the evaluator's word for what was measured, unless it has this very one."""
    said = _attested(store, image, signers.evaluator_public())
    for one in found:
        statement = one.statement(image.digest)
        if statement.payload() in said:
            continue
        bundle = sign_bundle(statement.payload(), signers.evaluator())
        referrer = bundle_referrer(image, bundle, TEST_RESULT)
        store.put_referrer(referrer.manifest, referrer.blobs)


def _attested(store: Store, image: Descriptor, key: PublicKey) -> Sequence[bytes]:
    """Return what ``key`` has signed about ``image``."""
    said = []
    try:
        referrers = store.referrers(image.digest)
    except VerificationError:  # signing again makes it anew
        return ()
    for referrer in referrers:
        what = f"referrer {referrer.digest.short}"
        try:
            layer = Link.parse(store.read(referrer.digest, what=what), what).layers[0]
            if layer.media_type == BUNDLE_TYPE:
                said.append(open_statement(store.read(layer.digest, what=what), [key], what=what).statement.payload())
        except VerificationError:
            continue
    return said
