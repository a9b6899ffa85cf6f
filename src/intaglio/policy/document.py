"""The policy: a TOML file on the verifier's side that names the keys and what they must have signed.

- Closed-world: what is not required and shown to be good is refused; an unknown key is an error, not a comment.
- A policy that would accept anything cannot be written: keys for both roles and the core of evidence are mandatory.
- Read with the standard library alone; every mistake of a file is reported at once.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio.content.formats.inspect import FORMATS
from intaglio.errors import NotVerifiable
from intaglio.trust.key import PublicKey

VERSION = 1
ROLES = ("builder", "release")
"""``builder`` signs provenance, ``release`` signs images."""
MANDATORY = ("signature", "provenance", "lineage")
"""Evidence that every policy requires."""
EVIDENCE = (*MANDATORY, "cosign", "model-signing")
"""Evidence that a policy can require."""
MAX_BYTES = 1 << 20
_TOP = {"version", "name", "require", "formats", "allow_unsandboxed", "keys", "roles"}


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

    @property
    def builders(self) -> tuple[PublicKey, ...]:
        """The keys whose provenance counts."""
        return self.roles["builder"]

    @property
    def releasers(self) -> tuple[PublicKey, ...]:
        """The keys whose signature on an image counts."""
        return self.roles["release"]


def load(path: Path) -> Policy:
    """Return the policy in the file at ``path``.

    Raises:
        NotVerifiable: there is none, or it is wrong: without an anchor there is no verdict.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise NotVerifiable(
            f"there is no policy at {path}, and nothing is trusted without one",
            hint="`intaglio init` makes keys and a policy that names them; --policy FILE names another",
        ) from None
    except OSError as error:
        raise NotVerifiable(f"policy {path}: {error.strerror}") from None
    return parse(data, what=f"policy {path}")


def parse(data: bytes, *, what: str = "policy") -> Policy:
    """Return the policy in ``data``; ``what`` names it in errors.

    Raises:
        NotVerifiable: it is not such a policy; the message lists every mistake.
    """
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES} bytes, found more")
        document = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NotVerifiable(f"{what}: not TOML: {error}") from None
    faults: list[str] = []
    _unknown(document.keys(), _TOP, "", faults)
    if type(document.get("version")) is not int or document["version"] != VERSION:
        faults.append(f"version: expected {VERSION}, found {document.get('version')!r}")
    name = document.get("name")
    if not isinstance(name, str) or not name:
        faults.append(f"name: expected a string, found {name!r}")
    unsandboxed = document.get("allow_unsandboxed", False)
    if not isinstance(unsandboxed, bool):
        faults.append(f"allow_unsandboxed: expected true or false, found {unsandboxed!r}")
    keys = _keys(document.get("keys"), faults)
    roles = _roles(document.get("roles"), keys, faults)
    require = _choices(document.get("require"), EVIDENCE, "require", faults)
    faults.extend(f"require: {missing!r} cannot be left out" for missing in MANDATORY if missing not in require)
    formats = _choices(document.get("formats"), FORMATS, "formats", faults)
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise NotVerifiable(f"{what}:\n{listed}", hint="docs/policy.md describes every key")
    return Policy(str(name), roles, require, formats, bool(unsandboxed))


def _unknown(found: Iterable[str], known: Set[str], where: str, faults: list[str]) -> None:
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            faults.append(f"{where}{key}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))


def _keys(value: Any, faults: list[str]) -> dict[str, PublicKey | None]:
    """Return name → key; a key that could not be read is there as ``None``, so that it is reported once."""
    if not isinstance(value, dict) or not value:
        faults.append("keys: expected at least one [keys.NAME] with a pem")
        return {}
    keys: dict[str, PublicKey | None] = {}
    for name, entry in value.items():
        keys[name] = None
        if not isinstance(entry, dict) or not isinstance(entry.get("pem"), str):
            faults.append(f"keys.{name}: expected pem, a string")
            continue
        _unknown(entry.keys(), {"pem"}, f"keys.{name}.", faults)
        try:
            keys[name] = PublicKey.from_pem(entry["pem"], what=f"keys.{name}.pem")
        except NotVerifiable as error:
            faults.append(error.message)
    return keys


def _roles(value: Any, keys: Mapping[str, PublicKey | None], faults: list[str]) -> dict[str, tuple[PublicKey, ...]]:
    roles: dict[str, tuple[PublicKey, ...]] = dict.fromkeys(ROLES, ())
    if not isinstance(value, dict):
        faults.append(f"roles: expected a table with {' and '.join(ROLES)}")
        return roles
    _unknown(value.keys(), set(ROLES), "roles.", faults)
    for role in ROLES:
        names = value.get(role)
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            faults.append(f"roles.{role}: expected an array of key names, found {names!r}")
            continue
        for name in names:
            if name not in keys:
                near = difflib.get_close_matches(name, keys, 1)
                faults.append(f"roles.{role}: no key {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        # The same key under two names counts once.
        roles[role] = tuple(dict.fromkeys(key for name in names if (key := keys.get(name)) is not None))
    return roles


def _choices(value: Any, known: Iterable[str], where: str, faults: list[str]) -> frozenset[str]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        faults.append(f"{where}: expected an array of some of {', '.join(sorted(known))}, found {value!r}")
        return frozenset()
    for item in value:
        if item not in known:
            near = difflib.get_close_matches(item, list(known), 1)
            faults.append(f"{where}: unknown {item!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return frozenset(value)


_DEFAULT = """\
# What an image must show before Intaglio calls it verified. Every key: docs/policy.md.
version = 1
name = "default"

# The release signature as a bundle (signature), in cosign's older form (cosign) and over the plain files
# (model-signing); how the image was assembled (provenance), and every step before that (lineage).
require = ["signature", "cosign", "model-signing", "provenance", "lineage"]

# What a model's files may be. A pickle can never be allowed.
formats = ["safetensors", "gguf", "json", "text"]

# Steps that ran without a sandbox (--insecure-no-sandbox) are refused.
allow_unsandboxed = false

[roles]
builder = ["builder"]
release = ["release"]

[keys.builder]
pem = \"\"\"
{builder}\"\"\"

[keys.release]
pem = \"\"\"
{release}\"\"\"
"""


def default_policy(builder_pem: str, release_pem: str) -> str:
    """Return the text of the policy that ``intaglio init`` writes: it names the two keys and requires everything.

    Raises:
        NotVerifiable: one of them is not a P-256 public key in PEM.
    """
    builder, release = PublicKey.from_pem(builder_pem), PublicKey.from_pem(release_pem)
    return _DEFAULT.format(builder=builder.pem, release=release.pem)
