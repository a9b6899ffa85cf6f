"""Rehearsals: evidence made up from a few facts about an image, so that a policy can be tried without one.

- Everything that is signed is signed for real, by keys that live as long as the rehearsal: the rules that are asked are
  the rules of ``intaglio verify``, and none is told that this is a rehearsal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
from intaglio.content.formats.inspect import GGUF, JSON, SAFETENSORS, TEXT, Inspected
from intaglio.content.modelpack import CONFIG_TYPE, ModelImage
from intaglio.content.tree import File, Tree
from intaglio.dataclass import dataclass, field
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, PolicyRefusal
from intaglio.policy.evidence import About, Evidence, FileEvidence, ReferrerEvidence, SourceEvidence
from intaglio.policy.listing import Listed
from intaglio.strictjson import Object
from intaglio.trust.cosign import Link, cosign_referrer
from intaglio.trust.key import PrivateKey
from intaglio.trust.signature import BUNDLE_TYPE, Hint, sign_bundle
from intaglio.trust.statement import (
    ASSEMBLE,
    BUILD_TYPES,
    Dependency,
    Statement,
    Subject,
    cosign_statement,
    model_signing_statement,
    provenance,
)

_FILES = {SAFETENSORS: "model.safetensors", GGUF: "model.gguf", JSON: "config.json", TEXT: "README.md"}


@dataclass(frozen=True, slots=True)
class Input:
    """A pinned origin, a toolchain or a step program."""

    name: str
    """As in the trusted source, with its version."""
    licence: str = "Apache-2.0"
    """What the trusted source says."""
    claimed: str | None = None
    """What the builder recorded."""
    status: str = "active"
    """``active``, ``yanked`` or ``unlisted``."""
    reason: str | None = None
    """Why it was yanked."""

    @property
    def digest(self) -> Digest:
        """A digest of its own."""
        return Digest.of(self.name.encode())


@dataclass(frozen=True, slots=True)
class Attestation:
    """An attestation beside the evidence that every build makes."""

    type: str
    """Predicate type."""
    by: str
    """Name of the key that signs it."""
    predicate: Object
    about: str = "image"
    """``image``, or ``another`` image."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about an image that is not there."""

    name: str
    title: str | None = None
    vendor: str | None = None
    licences: tuple[str, ...] = ("Apache-2.0",)
    formats: tuple[str, ...] = (GGUF, JSON, TEXT)
    """A format that no policy can allow stands for a file of no format."""
    damaged: bool = False
    """Whether a file's bytes are not the promised ones."""
    sandboxed: bool = True
    origins: tuple[Input, ...] = ()
    toolchains: tuple[Input, ...] = ()
    programs: tuple[Input, ...] = ()
    signers: Mapping[str, str] = field(default_factory=dict)
    """Each of :data:`EVIDENCE` that is not missing → name of the key that signs it."""
    without: frozenset[str] = frozenset()
    """Evidence that is missing."""
    attestations: tuple[Attestation, ...] = ()
    source_age: timedelta | None = None
    """How old the trusted source is; ``None`` where the verifier has none."""

    @property
    def image(self) -> Digest:
        """The digest of the image's manifest."""
        return Digest.of(f"image {self.name}".encode())

    @property
    def files(self) -> tuple[File, ...]:
        """The image's files, one a format."""
        paths = dict.fromkeys(_FILES.get(one, f"model.{one}") for one in self.formats)
        return Tree.of(File(path, Digest.of(path.encode()), len(path)) for path in paths).files


def rehearse(facts: Facts, signer: Callable[[str], PrivateKey]) -> Evidence:
    """Return the evidence that gathering would find about such an image.

    Args:
        facts: what it is like.
        signer: gives the key of a name.
    """
    model = ModelImage(facts.files, Descriptor(CONFIG_TYPE, Digest.of(b"config"), 6))
    config: Object = {"descriptor": {"name": facts.name, "licenses": list(facts.licences)}}
    config["descriptor"] |= {key: text for key in ("title", "vendor") if (text := getattr(facts, key))}
    inputs = (*facts.origins, *facts.toolchains, *facts.programs)
    listed = {
        one.digest: Listed(
            one.name, one.licence, "example", "yanked" if one.status == "yanked" else "active", one.reason
        )
        for one in inputs
        if one.status != "unlisted"
    }
    return Evidence(
        facts.image,
        model,
        tuple(_file(file, number == 0 and facts.damaged) for number, file in enumerate(facts.files)),
        tuple(_referrers(facts, model, signer)),
        about=About.of(config, {}),
        source=None if facts.source_age is None else SourceEvidence(facts.source_age, listed),
    )


def _file(file: File, damaged: bool) -> FileEvidence:
    if damaged:
        return FileEvidence(file, CorruptContent(f"{file.path}: its bytes are not the promised ones"), None)
    known = {path: name for name, path in _FILES.items()}
    if file.path not in known:
        return FileEvidence(file, None, PolicyRefusal(f"{file.path}: nothing that a model may hold"))
    return FileEvidence(file, None, Inspected(file.path, known[file.path]))


def _referrers(facts: Facts, model: ModelImage, signer: Callable[[str], PrivateKey]) -> Iterator[ReferrerEvidence]:
    def key(evidence: str) -> PrivateKey:
        return signer(facts.signers[evidence])

    image = Descriptor(MANIFEST_TYPE, facts.image, 1)
    if "signature" not in facts.without:
        yield _bundled(sign_bundle(cosign_statement(facts.image).payload(), key("signature")))
    if "cosign" not in facts.without:
        referrer = cosign_referrer(image, facts.name, key("cosign"))
        layer = Link.parse(referrer.manifest, "referrer").layers[0]
        yield ReferrerEvidence(referrer.digest, ((layer, referrer.blobs[1]),))
    if "model-signing" not in facts.without:
        statement = model_signing_statement(facts.name, ((file.path, file.digest) for file in facts.files))
        yield _bundled(sign_bundle(statement.payload(), key("model-signing"), Hint.OMS))
    tree = model.tree.digest
    if "provenance" not in facts.without:
        made_of = [Dependency("input:model", tree, "output")]
        yield _bundled(sign_bundle(_claim(facts, "assemble", facts.image, made_of), key("provenance")))
    if "lineage" not in facts.without:
        made_of = [Dependency(f"input:{one.name}", one.digest, "origin", one.name) for one in facts.origins]
        made_of += [Dependency(f"toolchain:{one.name}", one.digest, "toolchain") for one in facts.toolchains]
        made_of += [Dependency(f"program:{one.name}", one.digest, "program") for one in facts.programs]
        yield _bundled(sign_bundle(_claim(facts, "build", tree, made_of), key("lineage")))
    for one in facts.attestations:
        subject = facts.image if one.about == "image" else Digest.of(b"another image")
        yield _bundled(sign_bundle(Statement((Subject(subject),), one.type, one.predicate).payload(), signer(one.by)))


def _claim(facts: Facts, step: str, subject: Digest, made_of: list[Dependency]) -> bytes:
    internal: Object = {"sandbox": "bubblewrap" if facts.sandboxed else "none"}
    if licences := {f"input:{one.name}": one.claimed for one in facts.origins if one.claimed}:
        internal["licences"] = licences
    return provenance(
        subject=subject,
        build_type=ASSEMBLE if step == "assemble" else f"{BUILD_TYPES}{step}/v1",
        external={"recipe": facts.name, "step": step},
        internal=internal,
        dependencies=[one.to_json() for one in made_of],
    )


def _bundled(bundle: bytes) -> ReferrerEvidence:
    digest = Digest.of(bundle)
    return ReferrerEvidence(digest, ((Descriptor(BUNDLE_TYPE, digest, len(bundle)), bundle),))
