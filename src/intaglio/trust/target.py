"""Targets: what the trusted source says about one name and version.

- A name says what kind of thing it is, who it belongs to and what it is called: ``models/org/name``. It is lower-case
  ASCII, so that no two names look alike by case, script or separators.
- The path of a target is the name and the version; its bytes are an OCI manifest, so its hash is that content's
  identity.
- A policy or a key is a tree of one file of a fixed name, so that its digest depends on the file's bytes alone.
- ``status``, ``licence`` and ``publisher`` bind: they are signed and policies read them. ``origins`` and ``repository``
  are hints where to fetch; what comes from there is compared with the digest.

(TUF specification 1.0, section 4.5, "custom".)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeAlias, cast, get_args

from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, PolicyRefusal, UsageError
from intaglio.strictjson import Object

KINDS: Mapping[str, str] = {
    "models": "model",
    "datasets": "dataset",
    "toolchains": "toolchain",
    "steps": "step",
    "runtimes": "runtime",
    "policies": "policy",
    "keys": "key",
}
"""First part of a name → kind of the target."""
FILES: Mapping[str, str] = {"policy": "policy.toml", "key": "key.pem"}
"""Kind of a target that is one small file, which the source itself carries → the file's name in its tree."""
MAX_FILE = 1 << 20
"""Largest such file in bytes."""
Status: TypeAlias = Literal["active", "yanked"]
MAX_SIZE = 4 << 20
"""Largest target in bytes: what registries accept as a manifest."""
_WORD = r"[a-z0-9]+(?:[._-][a-z0-9]+)*"
_NAME = re.compile(rf"(?P<kind>[a-z]+)/(?P<owner>{_WORD})/(?P<word>{_WORD})")
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LINE = re.compile(r"[^\x00-\x1f\x7f\u2028\u2029]{1,1024}")
_MAX_ORIGINS = 16
_OURS = {"kind", "licence", "publisher", "status", "reason", "origins", "repository"}
_OCI = {"mediaType", "artifactType", "totalSize"}


@dataclass(frozen=True, slots=True)
class Name:
    """What a person or a recipe calls a target: ``models/org/name@version``."""

    name: str
    """Kind, owner and word, as in ``models/org/name``."""
    version: str

    def __post_init__(self) -> None:
        found = _NAME.fullmatch(self.name)
        if not found or len(self.name) > 255:
            raise UsageError(
                f"expected a name such as models/org/name in lower case, found {self.name[:80]!r}",
                hint="letters, digits, and single . _ - between them; three parts",
            )
        if found["kind"] not in KINDS:
            raise UsageError(f"{self.name}: expected one of {', '.join(KINDS)} first, found {found['kind']!r}")
        if not _VERSION.fullmatch(self.version):
            raise UsageError(f"{self.name}: expected a version of letters, digits, . _ -, found {self.version[:80]!r}")

    @classmethod
    def parse(cls, text: str) -> Name:
        """Return the name written as ``text``: ``models/org/name@version``.

        Raises:
            UsageError: it is none.
        """
        name, at, version = text.partition("@")
        if not at:
            raise UsageError(f"expected NAME@VERSION, as in models/org/name@1.0.0, found {text[:80]!r}")
        return cls(name, version)

    @classmethod
    def of_path(cls, path: str) -> Name:
        """Return the name whose target stands at ``path``.

        Raises:
            CorruptContent: the path is none of a target's: a ``..``, an unknown kind, upper case.
        """
        name, _, version = path.rpartition("/")
        try:
            return cls(name, version)
        except UsageError as error:
            raise CorruptContent(f"target {path[:128]!r}: {error.message}") from None

    @property
    def kind(self) -> str:
        """What kind of thing it is, as in ``model``."""
        return KINDS[self.name.partition("/")[0]]

    @property
    def path(self) -> str:
        """The target's path: name, slash, version."""
        return f"{self.name}/{self.version}"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Target:
    """One entry of the trusted source."""

    name: Name
    digest: Digest
    """Of the manifest: the content's identity."""
    size: int
    """Bytes of the manifest."""
    media_type: str
    artifact_type: str | None
    total_size: int
    """Bytes of all files together: for people, not for checks."""
    licence: str
    """SPDX expression."""
    publisher: str
    status: Status = "active"
    reason: str | None = None
    """Why it was yanked."""
    origins: tuple[str, ...] = ()
    """Where the files can be had: addresses as recipes have them."""
    repository: str | None = None
    """Where the manifest can be had: an OCI repository."""

    @property
    def path(self) -> str:
        """Where it stands in the trusted source."""
        return self.name.path

    @property
    def kind(self) -> str:
        """What kind of thing it is, as in ``model``."""
        return self.name.kind

    def require_active(self) -> Target:
        """Return the target itself.

        Raises:
            PolicyRefusal: it was yanked.
        """
        if self.status == "yanked":
            raise PolicyRefusal(
                f"{self.name} was yanked by the trusted source: {self.reason}",
                hint="choose another version: `intaglio trust list`",
            )
        return self

    def custom(self) -> Object:
        """Return what stands in the metadata beside length and hash."""
        oci: Object = {"mediaType": self.media_type, "totalSize": self.total_size}
        if self.artifact_type is not None:
            oci["artifactType"] = self.artifact_type
        ours: Object = {
            "kind": self.kind,
            "licence": self.licence,
            "publisher": self.publisher,
            "status": self.status,
            "origins": list(self.origins),
        }
        if self.reason is not None:
            ours["reason"] = self.reason
        if self.repository is not None:
            ours["repository"] = self.repository
        return {"oci": oci, "intaglio": ours}

    @classmethod
    def parse(cls, path: str, size: object, hashes: Mapping[str, str], custom: object) -> Target:
        """Return the target that a signed metadata file lists at ``path``.

        Raises:
            CorruptContent: no sha256, a wrong size, or a part that is missing, unknown or of the wrong form: what an
                older reader does not know might be what forbids the target.
        """
        name = Name.of_path(path)
        what = f"target {name}"
        if type(size) is not int or not 0 <= size <= MAX_SIZE:
            raise CorruptContent(f"{what}: expected a manifest of at most {MAX_SIZE} bytes, found {size!r}")
        if set(hashes) != {"sha256"}:
            raise CorruptContent(f"{what}: expected a sha256 hash alone, found {', '.join(sorted(hashes)) or 'none'}")
        oci = _table(custom, "oci", _OCI, what)
        ours = _table(custom, "intaglio", _OURS, what)
        if ours.get("kind") != name.kind:
            raise CorruptContent(f"{what}: expected kind {name.kind!r}, found {ours.get('kind')!r}")
        status = ours.get("status")
        if status not in get_args(Status):
            raise CorruptContent(f"{what}: expected status active or yanked, found {status!r}")
        total = oci.get("totalSize")
        if type(total) is not int or total < 0:
            raise CorruptContent(f"{what}: totalSize is not a count of bytes: {total!r}")
        origins = ours.get("origins", [])
        if not isinstance(origins, list) or len(origins) > _MAX_ORIGINS:
            raise CorruptContent(f"{what}: origins are not a list of at most {_MAX_ORIGINS} addresses")
        artifact, reason, repository = oci.get("artifactType"), ours.get("reason"), ours.get("repository")
        return cls(
            name=name,
            digest=Digest.from_hex(hashes["sha256"]),
            size=size,
            media_type=_line(oci.get("mediaType"), "mediaType", what),
            artifact_type=None if artifact is None else _line(artifact, "artifactType", what),
            total_size=total,
            licence=_line(ours.get("licence"), "licence", what),
            publisher=_line(ours.get("publisher"), "publisher", what),
            status=cast("Status", status),
            reason=None if reason is None else _line(reason, "reason", what),
            origins=tuple(_line(origin, "origins", what) for origin in origins),
            repository=None if repository is None else _line(repository, "repository", what),
        )


def is_line(text: object) -> bool:
    """Return whether ``text`` is one line of 1 to 1024 characters."""
    return isinstance(text, str) and _LINE.fullmatch(text) is not None


def _line(value: object, key: str, what: str) -> str:
    if not is_line(value):
        raise CorruptContent(f"{what}: {key}: expected one line of text, found {str(value)[:80]!r}")
    return str(value)


def _table(custom: object, key: str, known: set[str], what: str) -> Object:
    table = custom.get(key) if isinstance(custom, dict) else None
    if not isinstance(table, dict):
        raise CorruptContent(f"{what}: expected custom.{key}, found none")
    unknown = sorted(table.keys() - known)
    if unknown:
        raise CorruptContent(f"{what}: custom.{key}: unknown key {unknown[0]!r}", hint="update Intaglio")
    return table
