"""In-toto statements: what a signature says, and about which digests.

- Every statement written here is canonical and holds no time, host or invocation.
- What a signer signed is read as strictly as what anyone sent: a key can be careless, too.

(in-toto Statement v1; SLSA Provenance v1; in-toto test result v0.1; OpenSSF Model Signing 1.0; cosign's ``sign/v1``
predicate.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from intaglio import strictjson
from intaglio.content import cosign_tag
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent
from intaglio.strictjson import Json, Object
from intaglio.trust.key import KeyId, PublicKey
from intaglio.trust.signature import fields, read_bundle, text

STATEMENT = "https://in-toto.io/Statement/v1"
COSIGN_SIGN = cosign_tag.COSIGN_SIGN
MODEL_SIGNING = "https://model_signing/signature/v1.0"
PROVENANCE = "https://slsa.dev/provenance/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
BUILD_TYPES = "https://intaglio.dev/buildtypes/"
ASSEMBLE = f"{BUILD_TYPES}assemble/v1"
"""The build type of an image's assembly."""
LOCAL_BUILDER = "https://intaglio.dev/builders/local/v1"
KINDS = frozenset({"origin", "output", "program", "toolchain"})
"""What a dependency can be; an ``output`` is another step's and needs a claim of its own."""
MAX_DEPENDENCIES = 10_000


@dataclass(frozen=True, slots=True)
class Subject:
    """What a statement is about: a digest, perhaps with a name."""

    digest: Digest
    name: str | None = None

    def to_json(self) -> Object:
        """Return the in-toto resource descriptor."""
        named: Object = {} if self.name is None else {"name": self.name}
        return {**named, "digest": {"sha256": self.digest.hex}}

    @classmethod
    def parse(cls, value: object, what: str) -> Subject:
        """Return the subject in ``value``: a sha256 and nothing unknown."""
        entry = fields(value, {"digest"}, what, optional={"name"})
        name = text(entry["name"], what) if "name" in entry else None
        return cls(_sha256(entry["digest"], what), name)


@dataclass(frozen=True, slots=True)
class Statement:
    """An in-toto statement; ``predicate`` is checked by whoever knows its type."""

    subjects: tuple[Subject, ...]
    predicate_type: str
    predicate: Object

    def payload(self) -> bytes:
        """Return the canonical bytes to sign."""
        return strictjson.canonical(
            {
                "_type": STATEMENT,
                "subject": [subject.to_json() for subject in self.subjects],
                "predicateType": self.predicate_type,
                "predicate": self.predicate,
            }
        )


@dataclass(frozen=True, slots=True)
class Signed:
    """A statement together with the key that was found to have signed it."""

    statement: Statement
    key: KeyId


def read(payload: bytes, *, what: str) -> Statement:
    """Return the statement in ``payload``.

    Raises:
        CorruptContent: not strict JSON, not a Statement v1, no subject, or unknown fields.
    """
    value = strictjson.parse_object(payload, what=what)
    fields(value, {"_type", "subject", "predicateType", "predicate"}, what)
    if value["_type"] != STATEMENT:
        raise CorruptContent(f"{what}: expected _type {STATEMENT}, found {value['_type']!r}")
    subjects = value["subject"]
    if not isinstance(subjects, list) or not subjects:
        raise CorruptContent(f"{what}: expected at least one subject")
    predicate = value["predicate"]
    if not isinstance(predicate, dict):
        raise CorruptContent(f"{what}: expected an object as predicate, found {type(predicate).__name__}")
    predicate_type = text(value["predicateType"], what)
    return Statement(tuple(Subject.parse(subject, what) for subject in subjects), predicate_type, predicate)


def open_statement(bundle: bytes, keys: Iterable[PublicKey], *, what: str) -> Signed:
    """Return the statement in ``bundle``, signed by one of ``keys``.

    Raises:
        CorruptContent: the bundle, or the statement that was signed, is malformed.
        Untrusted: none of ``keys`` signed it.
    """
    envelope = read_bundle(bundle, what=what)
    key = envelope.open(keys, what=what)
    return Signed(read(envelope.payload, what=f"{what}, the signed statement"), key)


# --- signatures ------------------------------------------------------------------------------------------------------


def cosign_statement(image: Digest) -> Statement:
    """Return what ``cosign sign`` says: this manifest, and nothing about it."""
    return Statement((Subject(image),), COSIGN_SIGN, {})


def model_signing_statement(name: str, files: Iterable[tuple[str, Digest]]) -> Statement:
    """Return the OMS statement over ``files`` (path, sha256); made from a manifest, no file is read.

    The subject's digest is OMS's root: it binds no names, so it is never used as an identity.
    """
    ordered = sorted(files)
    root = hashlib.sha256(b"".join(bytes.fromhex(digest.hex) for _, digest in ordered)).hexdigest()
    resources = [{"name": path, "algorithm": "sha256", "digest": digest.hex} for path, digest in ordered]
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
    predicate: Object = {"resources": resources, "serialization": serialization}
    return Statement((Subject(Digest.from_hex(root), name),), MODEL_SIGNING, predicate)


# --- evaluations ------------------------------------------------------------------------------------------------------


def evaluation_statement(
    image: Digest,
    *,
    configuration: Iterable[tuple[str, Digest]],
    metrics: Mapping[str, float],
    gates: Mapping[str, Mapping[str, float]],
    samples: int,
) -> Statement:
    """Return the test result of an evaluation whose gates all hold: nothing else is ever attested.

    Args:
        image: the image's manifest.
        configuration: name and digest of what decided the results: program, toolchain, tasks, texts.
        metrics: what was measured; an extension of the predicate, as policies read it.
        gates: for each metric that had to hold, ``minimum`` and ``maximum``; an extension, too.
        samples: how many samples were measured; an extension, too.
    """
    named = sorted(configuration, key=lambda one: one[0])
    predicate: Object = {
        "result": "PASSED",
        "configuration": [Subject(digest, name).to_json() for name, digest in named],
        "passedTests": sorted(gates),
        "failedTests": [],
        "metrics": dict(metrics),
        "gates": {metric: dict(bounds) for metric, bounds in gates.items()},
        "samples": samples,
    }
    return Statement((Subject(image),), TEST_RESULT, predicate)


# --- provenance ------------------------------------------------------------------------------------------------------


def provenance(
    *,
    subject: Digest,
    build_type: str,
    external: Mapping[str, str],
    internal: Mapping[str, Json],
    dependencies: Iterable[Object],
    builder_id: str = LOCAL_BUILDER,
    byproducts: Iterable[Subject] = (),
) -> bytes:
    """Return the canonical SLSA provenance of ``subject``, ready to sign.

    Args:
        subject: the manifest that was built.
        build_type: URI under :data:`BUILD_TYPES`.
        external: what whoever asked for the build chose: recipe and step, as strings.
        internal: what the builder chose: action key, parameters, platform, environment, sandbox.
        dependencies: :meth:`Dependency.to_json` of each thing that went in; written sorted.
        builder_id: URI of the builder.
        byproducts: further digests worth keeping.

    Raises:
        CorruptContent: what would be signed could not be read back.
    """
    run: Object = {"builder": {"id": builder_id}}
    if products := [product.to_json() for product in byproducts]:
        run["byproducts"] = products
    predicate: Object = {
        "buildDefinition": {
            "buildType": build_type,
            "externalParameters": dict(external),
            "internalParameters": dict(internal),
            "resolvedDependencies": sorted(dependencies, key=strictjson.canonical),
        },
        "runDetails": run,
    }
    payload = Statement((Subject(subject, "output"),), PROVENANCE, predicate).payload()
    Provenance.of(read(payload, what="the provenance to sign"), "the provenance to sign")
    return payload


@dataclass(frozen=True, slots=True)
class Dependency:
    """One thing that went into a build, by digest."""

    name: str
    """As in ``input:base``, ``program``."""
    digest: Digest
    kind: str
    """One of :data:`KINDS`."""
    uri: str | None = None
    """Where an origin came from: information, never identity."""

    def to_json(self) -> Object:
        """Return the in-toto resource descriptor."""
        value: Object = {
            "name": self.name,
            "digest": {"sha256": self.digest.hex},
            "annotations": {"kind": self.kind},
        }
        if self.uri is not None:
            value["uri"] = self.uri
        return value

    @classmethod
    def parse(cls, value: object, what: str) -> Dependency:
        """Return the dependency in ``value``; one without a digest or of unknown kind is refused."""
        entry = fields(value, {"name", "digest", "annotations"}, what, optional={"uri"})
        kind = text(fields(entry["annotations"], {"kind"}, what)["kind"], what)
        if kind not in KINDS:
            raise CorruptContent(f"{what}: expected a kind of {', '.join(sorted(KINDS))}, found {kind!r}")
        uri = text(entry["uri"], what) if "uri" in entry else None
        return cls(text(entry["name"], what), _sha256(entry["digest"], what), kind, uri)


@dataclass(frozen=True, slots=True)
class Provenance:
    """SLSA provenance v1 as Intaglio writes it: no times, no invocation, every dependency by digest."""

    subject: Digest
    build_type: str
    external: Mapping[str, str]
    internal: Object
    dependencies: tuple[Dependency, ...]
    builder: str

    @classmethod
    def of(cls, statement: Statement, what: str) -> Provenance:
        """Return the provenance that ``statement`` carries.

        Raises:
            CorruptContent: another predicate type, more than one subject, or a predicate of another form.
        """
        if statement.predicate_type != PROVENANCE:
            raise CorruptContent(f"{what}: expected {PROVENANCE}, found {statement.predicate_type!r}")
        if len(statement.subjects) != 1:
            raise CorruptContent(f"{what}: expected one subject, found {len(statement.subjects)}")
        predicate = fields(statement.predicate, {"buildDefinition", "runDetails"}, what)
        build = fields(
            predicate["buildDefinition"],
            {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"},
            what,
        )
        run = fields(predicate["runDetails"], {"builder"}, what, optional={"byproducts"})
        for product in _array(run.get("byproducts", []), what):
            Subject.parse(product, what)
        internal = build["internalParameters"]
        if not isinstance(internal, dict):
            raise CorruptContent(f"{what}: internalParameters are not an object")
        return cls(
            statement.subjects[0].digest,
            text(build["buildType"], what),
            _strings(build["externalParameters"], "externalParameters", what),
            internal,
            tuple(Dependency.parse(one, what) for one in _array(build["resolvedDependencies"], what)),
            text(fields(run["builder"], {"id"}, what)["id"], what),
        )

    @property
    def step(self) -> str:
        """Recipe and step for people, as in ``examples/demo@1.0.0 tune``."""
        return f"{self.external.get('recipe', '?')} {self.external.get('step', '?')}"

    @property
    def sandboxed(self) -> bool:
        """Whether the builder says that no foreign code ran outside its sandbox; anything but a plain yes is a no."""
        return self.internal.get("sandbox") in ("bubblewrap", "builtin")


def _array(value: object, what: str) -> list[object]:
    if not isinstance(value, list) or len(value) > MAX_DEPENDENCIES:
        raise CorruptContent(f"{what}: expected an array of at most {MAX_DEPENDENCIES} entries")
    return value


def _strings(value: object, name: str, what: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise CorruptContent(f"{what}: {name} is not an object of strings")
    return value


def _sha256(value: object, what: str) -> Digest:
    hexadecimal = fields(value, {"sha256"}, what)["sha256"]
    return Digest.from_hex(text(hexadecimal, what))
