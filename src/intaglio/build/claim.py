"""Claims: "this action gave this output", each of them the step's signed SLSA provenance.

- A claim is a Sigstore bundle that refers to the output's manifest; the cache is an index from action key to claims.
- A claim counts only when a key that the caller names signed it, and what is signed says the same action and subject.
- It holds no time, invocation, host, user or tool version: the same build with the same keys gives the same bytes.

(SLSA Provenance 1.0; field by field in ``docs/provenance.md``.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from intaglio.build.action import Action
from intaglio.content.descriptor import Descriptor
from intaglio.content.layout import ACTION, Store
from intaglio.dataclass import dataclass, field
from intaglio.digest import ActionKey, Digest
from intaglio.errors import CorruptContent, VerificationError
from intaglio.trust.cosign import Link, Referrer, bundle_referrer
from intaglio.trust.key import PrivateKey, PublicKey
from intaglio.trust.signature import sign_bundle
from intaglio.trust.statement import BUILD_TYPES, PROVENANCE, Dependency, Provenance, open_statement, provenance


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a claim says beside the action itself."""

    recipe: str
    """``NAME@VERSION`` of the model."""
    step: str
    uses: str
    reproducible: str
    """``bit``, ``platform`` or ``statistical``."""
    sandbox: str
    """``bubblewrap``, or ``builtin`` for what the engine does itself."""
    dependencies: tuple[Dependency, ...]
    trust: Mapping[str, int] = field(default_factory=dict)
    """Versions of the trusted source's roles, where an input is a name of it."""
    licences: Mapping[str, str] = field(default_factory=dict)
    """Name of a dependency → its licence (SPDX expression), as the recipe has it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that was read, checked and believed."""

    manifest: Digest
    """The referrer's manifest."""
    bundle: bytes
    action: ActionKey
    subject: Digest
    """The output's manifest."""


def make(action: Action, output: Descriptor, about: Circumstances, key: PrivateKey) -> Referrer:
    """Return the claim that ``action`` gave ``output``, signed by the builder's ``key``."""
    payload = provenance(
        subject=output.digest,
        build_type=f"{BUILD_TYPES}{about.uses.removeprefix('./')}/v1",
        external={"recipe": about.recipe, "step": about.step},
        internal={
            "action": str(action.key),
            "parameters": action.parameters,
            "platform": action.platform,
            "environment": dict(action.environment),
            "host": dict(action.host),
            "reproducible": about.reproducible,
            "sandbox": about.sandbox,
            **({"trust": dict(about.trust)} if about.trust else {}),
            **({"licences": dict(about.licences)} if about.licences else {}),
        },
        dependencies=[dependency.to_json() for dependency in about.dependencies],
    )
    bundle = sign_bundle(payload, key)
    return bundle_referrer(output, bundle, PROVENANCE, {ACTION: str(action.key)})


def record(store: Store, action: Action, output: Descriptor, about: Circumstances, key: PrivateKey) -> Claim:
    """Sign the claim, keep it and the action's preimage in ``store``, and return it."""
    referrer = make(action, output, about, key)
    store.put(action.preimage)
    return read(store, store.put_referrer(referrer.manifest, referrer.blobs), [key.public])


def find(store: Store, action: ActionKey, trusted: Sequence[PublicKey]) -> tuple[Claim, ...]:
    """Return the claims about ``action`` that one of the ``trusted`` keys signed, in the order of their digests.

    What is damaged, signed by others, or about something else is passed over: it is no claim.
    """
    found = []
    for digest in store.claims(action):
        try:
            claim = read(store, digest, trusted)
        except VerificationError:
            continue
        if claim.action == action:
            found.append(claim)
    return tuple(found)


def read(store: Store, manifest: Digest, trusted: Sequence[PublicKey]) -> Claim:
    """Return the claim whose manifest has that digest.

    Raises:
        VerificationError: it is damaged, not a claim, or signed by nobody whom the caller trusts.
    """
    what = f"claim {manifest.short}"
    link = Link.parse(store.read(manifest, what=what), what)
    if len(link.layers) != 1:
        raise CorruptContent(f"{what}: expected one layer, found {len(link.layers)}")
    bundle = store.read(link.layers[0].digest, what=what)
    statement = open_statement(bundle, trusted, what=what).statement
    said = Provenance.of(statement, what)
    if link.subject.digest != said.subject:
        raise CorruptContent(f"{what}: refers to another subject than it signs")
    action = ActionKey(Digest.parse(said.internal.get("action")).value)
    return Claim(manifest, bundle, action, said.subject)
