"""The policy: a TOML file on the verifier's side that names the keys and what they must have signed.

- Closed-world: what is not required and shown to be good is refused; an unknown key is an error, not a comment.
- A policy that would accept anything cannot be written: keys for both roles and the core of evidence are mandatory.
- A demand that nothing could meet is a mistake, too: an attestation by a role that has no key, an empty table.
- Read with the standard library alone; every mistake of a file is reported at once.

(JSON Schema for editors: ``docs/schema/policy.schema.json``.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from intaglio.content.formats.inspect import FORMATS
from intaglio.dataclass import dataclass, field
from intaglio.errors import NotVerifiable, UsageError
from intaglio.policy.reader import MAX_BYTES, Reader, Table, nearest, show, toml
from intaglio.trust import statement
from intaglio.trust.key import PublicKey

if TYPE_CHECKING:
    from intaglio.trust.target import Name

Lookup: TypeAlias = "Callable[[Name], bytes | None]"
"""Finds the PEM of a key that is a target of the trusted source; ``None`` is one that the source has withdrawn."""
VERSION = 1
ROLES = ("builder", "release", "evaluator", "verifier")
"""``builder`` signs provenance, ``release`` images, ``evaluator`` test results, ``verifier`` summaries of verdicts."""
MANDATORY_ROLES = ("builder", "release")
MANDATORY = ("signature", "provenance", "lineage")
"""Evidence that every policy requires."""
EVIDENCE = (*MANDATORY, "cosign", "model-signing")
"""Evidence that a policy can require."""
TEST_RESULT = statement.TEST_RESULT
TOP = (
    *("version", "name", "require", "formats", "allow_unsandboxed", "keys", "roles"),
    *("attestations", "evaluation", "licences", "names", "source", "freshness"),
)
_HINT = "docs/policy.md describes every key"
_PREDICATE = re.compile(r"https?://[^\s\x00-\x1f]{1,1000}")
_LICENCE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?\+?( WITH [A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)?")
_PATTERN = re.compile(r"[^\s/]+(/[^\s/]+)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a metric may be; at least one of the two is given."""

    minimum: float | None = None
    maximum: float | None = None

    def hold(self, value: float) -> bool:
        """Return whether ``value`` lies within them; the bounds themselves do."""
        above = self.minimum is None or value >= self.minimum
        return above and (self.maximum is None or value <= self.maximum)

    def __str__(self) -> str:
        parts = [f"at least {self.minimum:g}"] if self.minimum is not None else []
        return " and ".join([*parts, *([f"at most {self.maximum:g}"] if self.maximum is not None else [])])


@dataclass(frozen=True, slots=True)
class Policy:
    """What must be shown, and by whose keys."""

    name: str
    roles: Mapping[str, tuple[PublicKey, ...]]
    """Role → the keys that may act in it."""
    require: frozenset[str]
    """Some of :data:`EVIDENCE`."""
    formats: frozenset[str]
    """Some of :data:`intaglio.content.formats.inspect.FORMATS`."""
    allow_unsandboxed: bool = False
    attestations: Mapping[str, str] = field(default_factory=dict)
    """Predicate type → the role whose keys must have signed such an attestation."""
    thresholds: Mapping[str, Bounds] = field(default_factory=dict)
    """Metric → what an evaluator must have measured."""
    licences: frozenset[str] | None = None
    """SPDX identifiers; ``None`` where licences are not looked at."""
    reserved: Mapping[str, tuple[PublicKey, ...]] = field(default_factory=dict)
    """Pattern of model names → the keys that may release under them."""
    source_required: bool = False
    """Whether every input must be an active target of the verifier's trusted source, and no program yanked by it."""
    source_programs: bool = False
    """Whether step programs and runtimes must be active targets of it, too."""
    max_age: timedelta | None = None
    """How long ago the trusted source must have been known to be current; ``None`` where its age is not looked at."""

    @property
    def builders(self) -> tuple[PublicKey, ...]:
        """The keys whose provenance counts."""
        return self.roles["builder"]

    @property
    def releasers(self) -> tuple[PublicKey, ...]:
        """The keys whose signature on an image counts."""
        return self.roles["release"]

    @property
    def needs_source(self) -> bool:
        """Whether nothing can be verified without a trusted source."""
        return self.source_required or self.max_age is not None


def load(path: Path, lookup: Lookup | None = None) -> Policy:
    """Return the policy in the file at ``path``; ``lookup`` as in :func:`parse`.

    Raises:
        NotVerifiable: there is none, or it is wrong: without an anchor there is no verdict.
        VerificationError: a key that it names is no active or withdrawn target of the trusted source.
    """
    return parse(read_file(path), what=f"policy {path}", lookup=lookup)


def read_file(path: Path) -> bytes:
    """Return the bytes of the policy file at ``path``.

    Raises:
        NotVerifiable: there is none, or it cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise NotVerifiable(
            f"there is no policy at {path}, and nothing is trusted without one",
            hint="`intaglio init` makes keys and a policy that names them; --policy FILE names another",
        ) from None
    except OSError as error:
        raise NotVerifiable(f"policy {path}: {error.strerror}") from None


def parse(
    data: bytes,
    *,
    what: str = "policy",
    keys: Mapping[str, PublicKey] | None = None,
    lookup: Lookup | None = None,
) -> Policy:
    """Return the policy in ``data``; ``what`` names it in errors.

    Args:
        data: TOML.
        what: names the document in errors.
        keys: stand in for those of the document, whatever it says; for templates, which have none, and for rehearsals.
        lookup: finds the keys that are named as targets of the trusted source; none where there is no source.

    Raises:
        NotVerifiable: it is not such a policy; the message lists every mistake.
        VerificationError: ``lookup`` does not find a key.
    """
    return interpret(toml(data, what), what=what, keys=keys, lookup=lookup)


def interpret(
    document: Table,
    *,
    what: str = "policy",
    keys: Mapping[str, PublicKey] | None = None,
    lookup: Lookup | None = None,
) -> Policy:
    """Return the policy in a TOML document that was read already; otherwise as :func:`parse`.

    Raises:
        NotVerifiable: it is no policy; the message lists every mistake.
        VerificationError: ``lookup`` does not find a key.
    """
    reader = Reader()
    reader.table(document, "", TOP)
    if type(document.get("version")) is not int or document["version"] != VERSION:
        reader.fault("version", f"expected {VERSION}, found {show(document.get('version'))}")
    known = dict(keys) if keys is not None else _keys(reader, document.get("keys"), lookup)
    roles = _roles(reader, document.get("roles"), known)
    require = reader.choices(document.get("require"), "require", EVIDENCE)
    for missing in MANDATORY:
        if missing not in require:
            reader.fault("require", f"{missing!r} cannot be left out")
    source = reader.table(document.get("source"), "source", ("required", "programs"))
    policy = Policy(
        name=reader.text(document, "name"),
        roles=roles,
        require=require,
        formats=reader.choices(document.get("formats"), "formats", FORMATS),
        allow_unsandboxed=reader.flag(document, "allow_unsandboxed"),
        attestations=_attestations(reader, document),
        thresholds=_thresholds(reader, document),
        licences=_licences(reader, document),
        reserved=_reserved(reader, document, known, roles),
        source_required=reader.flag(source, "required", "source"),
        source_programs=reader.flag(source, "programs", "source"),
        max_age=_max_age(reader, document),
    )
    if policy.source_programs and not policy.source_required:
        reader.fault("source.programs", "asks nothing without required = true")
    reader.close(what, _HINT)
    return policy


def key_names(data: bytes, *, what: str = "policy") -> tuple[str, ...]:
    """Return the names of the keys that a policy, or a template of one, speaks of.

    Raises:
        NotVerifiable: it is no TOML, or its roles are not arrays of names.
    """
    reader = Reader()
    document = toml(data, what)
    named = dict.fromkeys(reader.table(document.get("keys"), "keys"))
    for role, names in reader.table(document.get("roles"), "roles").items():
        named |= dict.fromkeys(reader.words(names, f"roles.{role}", "key names"))
    names_table = reader.table(document.get("names"), "names")
    for pattern, names in reader.table(names_table.get("reserved"), "names.reserved").items():
        named |= dict.fromkeys(reader.words(names, _quoted("names.reserved", pattern), "key names", empty=True))
    reader.close(what, _HINT)
    return tuple(named)


# --- tables -----------------------------------------------------------------------------------------------------------


def _keys(reader: Reader, value: object, lookup: Lookup | None) -> dict[str, PublicKey | None]:
    """Return name → key; ``None`` is one that could not be read, so that it is reported once, or one withdrawn."""
    if not isinstance(value, dict) or not value:
        reader.fault("keys", "expected at least one [keys.NAME] with a pem or a target")
        return {}
    keys: dict[str, PublicKey | None] = {}
    for name, entry in value.items():
        keys[name] = None
        where = f"keys.{name}"
        table = reader.table(entry, where, ("pem", "target"))
        given = [key for key in ("pem", "target") if isinstance(table.get(key), str)]
        if len(given) != 1 or len(table) != 1:
            reader.fault(where, "expected pem or target, a string")
            continue
        try:
            pem = table["pem"] if given == ["pem"] else _target(reader, table["target"], where, lookup)
            keys[name] = None if pem is None else PublicKey.from_pem(pem, what=f"{where}.{given[0]}")
        except NotVerifiable as error:
            reader.faults.append(error.message)
    return keys


def _target(reader: Reader, text: str, where: str, lookup: Lookup | None) -> str | bytes | None:
    """Return the PEM of a key that the policy names as a target; nothing where it was withdrawn, or is a fault."""
    from intaglio.trust.target import Name

    try:
        name = Name.parse(text)
    except UsageError as error:
        reader.fault(f"{where}.target", error.message)
        return None
    if name.kind != "key":
        reader.fault(f"{where}.target", f"expected a key's name such as keys/org/name@1, found {text}")
        return None
    if lookup is None:
        reader.fault(f"{where}.target", f"{text} is a target of the trusted source, and there is none here")
        return None
    return lookup(name)


def _roles(reader: Reader, value: object, keys: Mapping[str, PublicKey | None]) -> dict[str, tuple[PublicKey, ...]]:
    roles: dict[str, tuple[PublicKey, ...]] = dict.fromkeys(ROLES, ())
    if not isinstance(value, dict):
        reader.fault("roles", f"expected a table with {' and '.join(MANDATORY_ROLES)}")
        return roles
    table = reader.table(value, "roles", ROLES)
    for role in ROLES:
        if role in table or role in MANDATORY_ROLES:
            roles[role] = _named_keys(reader, table.get(role), f"roles.{role}", keys)
    return roles


def _named_keys(
    reader: Reader, value: object, where: str, keys: Mapping[str, PublicKey | None], *, empty: bool = False
) -> tuple[PublicKey, ...]:
    """Return the keys of those names; the same key under two names counts once."""
    names = reader.words(value, where, "key names", empty=empty)
    for name in names:
        if name not in keys:
            reader.fault(where, f"no key {name!r}{nearest(name, keys)}")
    return tuple(dict.fromkeys(key for name in names if (key := keys.get(name)) is not None))


def _named(document: Table, role: str) -> bool:
    """Return whether the policy names a key for ``role``, though it may have been withdrawn since."""
    roles = document.get("roles")
    return bool(isinstance(roles, dict) and roles.get(role))


def _attestations(reader: Reader, document: Table) -> dict[str, str]:
    table = reader.table(document.get("attestations"), "attestations")
    _not_empty(reader, document, "attestations", 'a predicate type, as in "https://…" = "evaluator"')
    for predicate_type, role in table.items():
        where = _quoted("attestations", predicate_type)
        if not _PREDICATE.fullmatch(predicate_type):
            reader.fault(where, "expected the URI of a predicate type")
        if role not in ROLES:
            reader.fault(where, f"expected a role, found {show(role)}{nearest(str(role), ROLES)}")
        elif not _named(document, role) and role not in MANDATORY_ROLES:
            reader.fault(where, f"roles.{role} names no key")
    return dict(table)


def _thresholds(reader: Reader, document: Table) -> dict[str, Bounds]:
    thresholds = {}
    _not_empty(reader, document, "evaluation", "a metric with its minimum or maximum")
    for metric, value in reader.table(document.get("evaluation"), "evaluation").items():
        where = _quoted("evaluation", metric)
        table = reader.table(value, where, ("minimum", "maximum"))
        bounds = Bounds(reader.number(table, "minimum", where), reader.number(table, "maximum", where))
        if isinstance(value, dict) and not {"minimum", "maximum"} & value.keys():
            reader.fault(where, "expected minimum or maximum, or both")
        if bounds.minimum is not None and bounds.maximum is not None and bounds.minimum > bounds.maximum:
            reader.fault(where, f"nothing is {bounds}")
        thresholds[metric] = bounds
    if thresholds and not _named(document, "evaluator"):
        reader.fault("evaluation", "roles.evaluator names no key")
    return thresholds


def _licences(reader: Reader, document: Table) -> frozenset[str] | None:
    if document.get("licences") is None:
        return None
    table = reader.table(document["licences"], "licences", ("allow",))
    allowed = reader.words(table.get("allow"), "licences.allow", "SPDX licence identifiers")
    for one in allowed:
        if not _LICENCE.fullmatch(one):
            reader.fault("licences.allow", f"expected one licence such as Apache-2.0, found {show(one)}")
    return frozenset(allowed)


def _reserved(
    reader: Reader,
    document: Table,
    keys: Mapping[str, PublicKey | None],
    roles: Mapping[str, tuple[PublicKey, ...]],
) -> dict[str, tuple[PublicKey, ...]]:
    table = reader.table(document.get("names"), "names", ("reserved",))
    if "names" in document:
        _not_empty(reader, table, "reserved", 'a pattern with its keys, as in "org/*" = ["release"]', "names")
    reserved = {}
    for pattern, value in reader.table(table.get("reserved"), "names.reserved").items():
        where = _quoted("names.reserved", pattern)
        if not _PATTERN.fullmatch(pattern):
            reader.fault(where, "expected a pattern of model names, such as org/name or org/*")
        found = _named_keys(reader, value, where, keys, empty=True)
        if roles["release"] and not set(found) <= set(roles["release"]):
            reader.fault(where, "expected keys of roles.release: another may not release anything")
        reserved[pattern] = found
    return reserved


def _max_age(reader: Reader, document: Table) -> timedelta | None:
    if document.get("freshness") is None:
        return None
    table = reader.table(document["freshness"], "freshness", ("max_age",))
    return reader.span(table, "max_age", "freshness")


def _not_empty(reader: Reader, table: Table, key: str, what: str, where: str = "") -> None:
    """A table that is there and asks for nothing is a demand that somebody forgot to write down."""
    if (key in table and table[key] == {}) or (where and key not in table):
        reader.fault(f"{where}.{key}" if where else key, f"expected at least {what}")


def _quoted(where: str, key: str) -> str:
    return f"{where}.{key if _BARE.fullmatch(key) else show(key)}"


# --- what init writes -------------------------------------------------------------------------------------------------

DEFAULT = """\
# What an image must show before Intaglio calls it verified. Every key: docs/policy.md.
version = 1
name = "default"

# The release signature as a bundle (signature), in cosign's older form (cosign) and over the plain files
# (model-signing); how the image was assembled (provenance), and every step before that (lineage).
require = ["signature", "cosign", "model-signing", "provenance", "lineage"]

# What a model's files may be. A pickle can never be allowed.
formats = ["safetensors", "gguf", "json", "text"]

# Steps whose claim says that they ran without the sandbox are refused.
allow_unsandboxed = false

# Who signs how images came about, who releases them, and who says what they measured.
[roles]
builder = ["builder"]
release = ["release"]
evaluator = ["evaluator"]
"""
"""The template of the default policy: ``policies/default.toml``, word for word."""


def default_policy(builder_pem: str, release_pem: str, evaluator_pem: str) -> str:
    """Return the text of the policy that ``intaglio init`` writes: it names the keys, and requires all that any has.

    Raises:
        NotVerifiable: one of them is not a P-256 public key in PEM.
    """
    pems = {"builder": builder_pem, "release": release_pem, "evaluator": evaluator_pem}
    return fill(DEFAULT, {name: PublicKey.from_pem(pem) for name, pem in pems.items()})


def fill(template: str, keys: Mapping[str, PublicKey]) -> str:
    """Return the policy that the text of a template becomes with ``keys``, by name."""
    parts = [template.rstrip("\n") + "\n"]
    for name, key in keys.items():
        quoted = name if _BARE.fullmatch(name) else json.dumps(name)
        parts.append(f'[keys.{quoted}]\npem = """\n{key.pem}"""\n')
    return "\n".join(parts)
