"""The catalogue: what could be trusted, one reviewed TOML file each, from which the trusted source is made.

- An entry says where content comes from and which tree it must be, under which licence, and whose it is. It vouches for
  nothing: the keys that sign the targets do.
- Content from elsewhere has its version and, where somebody has looked at it, its tree's digest in the entry. What
  ships beside the engine (``source``) has neither: its version is said, and its tree computed, when it is added.
- A policy or key is carried by the source itself, so it has no origins once it is a target.
- Unknown keys are mistakes; every mistake of a file is reported at once.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, get_args

from intaglio.content.descriptor import MANIFEST_TYPE
from intaglio.content.tree import TREE_TYPE, Tree
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, UsageError
from intaglio.strictjson import Object
from intaglio.trust.target import FILES, Name, Status, Target, is_line

MAX_BYTES = 1 << 16
"""Largest entry that is read."""
_LINES = ("licence", "publisher", "summary", "repository", "reason", "source")
_LISTS = ("formats", "origins")
_KEYS = {"name", "version", "tree", "digest", "status", *_LINES, *_LISTS}
_HINT = "docs/trust.md describes every key"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that could be trusted."""

    file: Path
    """Where the entry stands; for messages."""
    name: str
    """As in ``models/org/name``."""
    licence: str
    """SPDX expression."""
    publisher: str
    summary: str
    version: str | None = None
    tree: Digest | None = None
    digest: Digest | None = None
    """Of the one file that an ``https:`` origin has."""
    formats: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    """Addresses as recipes have them."""
    source: str | None = None
    """Where it ships beside the engine, as in ``builder/steps/finetune``."""
    repository: str | None = None
    status: Status = "active"
    reason: str | None = None

    def target(self, name: Name, tree: Tree) -> Target:
        """Return the target that ``tree`` becomes under ``name``."""
        return Target(
            name=name,
            digest=tree.digest,
            size=len(tree.manifest()),
            media_type=MANIFEST_TYPE,
            artifact_type=TREE_TYPE,
            total_size=tree.total_size,
            licence=self.licence,
            publisher=self.publisher,
            status=self.status,
            reason=self.reason,
            origins=() if name.kind in FILES else self.origins,
            repository=self.repository,
        )


def read(path: Path) -> Entry:
    """Return the entry in the file at ``path``.

    Raises:
        UsageError: there is none, or it is wrong; the message lists every mistake.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"catalogue entry {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"catalogue entry {path}: expected at most {MAX_BYTES} bytes, found more")
    return parse(data, path)


def read_all(folder: Path) -> tuple[Entry, ...]:
    """Return every entry below ``folder``, sorted by name and version.

    Raises:
        UsageError: one is wrong, or two are of one name and version.
    """
    entries = sorted(
        (read(path) for path in folder.rglob("*.toml")), key=lambda entry: (entry.name, entry.version or "")
    )
    for one, other in itertools.pairwise(entries):
        if (one.name, one.version) == (other.name, other.version):
            raise UsageError(f"{one.file} and {other.file} are of one name and version: {one.name}@{one.version}")
    return tuple(entries)


def find(entries: Iterable[Entry], text: str) -> tuple[Entry, Name]:
    """Return the entry that ``text`` names, and the whole name: ``NAME@VERSION``, or ``NAME`` with one version.

    Raises:
        UsageError: nothing has that name, or not that version.
    """
    known = tuple(entries)
    name, at, version = text.partition("@")
    named = [entry for entry in known if entry.name == name]
    if not named:
        near = get_close_matches(name, {entry.name for entry in known}, 1)
        raise UsageError(
            f"no catalogue entry {name!r}" + (f"; did you mean {near[0]}?" if near else ""),
            hint="intaglio trust catalogue   (lists the entries)",
        )
    fitting = [entry for entry in named if not at or entry.version in (version, None)]
    if len(fitting) != 1:
        versions = ", ".join(entry.version or "any" for entry in named)
        raise UsageError(f"{text}: name one version of {name}: {versions}")
    whole = version or fitting[0].version
    if whole is None:
        raise UsageError(f"{name} ships with the engine and has no version of its own: name one, as in {name}@1.0.0")
    return fitting[0], Name(name, whole)


def parse(data: bytes, file: Path) -> Entry:
    """Return the entry in ``data``; ``file`` names it in errors.

    Raises:
        UsageError: the message lists every mistake.
    """
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"catalogue entry {file}: not TOML: {error}") from None
    faults = [*_unknown(values), *_lines(values), *_lists(values)]
    tree, digest = _digest("tree", values, faults), _digest("digest", values, faults)
    _check_name(values, faults)
    if values.get("status", "active") not in get_args(Status):
        faults.append(f"status: expected active or yanked, found {values['status']!r}")
    if (values.get("status") == "yanked") != ("reason" in values):
        faults.append("reason: belongs to what is yanked, and only to that")
    if ("source" in values) == bool(values.get("origins")):
        faults.append("expected either origins, where it can be fetched, or source, where it ships with the engine")
    if "source" not in values and "version" not in values:
        faults.append("version: missing")
    web = any(str(origin).startswith(("https:", "http:")) for origin in values.get("origins") or ())
    if web != ("digest" in values):
        faults.append("digest: belongs to an https: origin, which needs the digest of its file, and only to that")
    if faults:
        raise UsageError(f"catalogue entry {file}:\n" + "\n".join(f"  {fault}" for fault in faults), hint=_HINT)
    plain: dict[str, Any] = {key: values[key] for key in ("name", "version", *_LINES) if key in values}
    plain.update({key: tuple(values.get(key, ())) for key in _LISTS})
    return Entry(file=file, tree=tree, digest=digest, status=cast("Status", values.get("status", "active")), **plain)


def _unknown(values: Object) -> Iterable[str]:
    for key in values:
        if key not in _KEYS:
            near = get_close_matches(key, _KEYS, 1)
            yield f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "")


def _lines(values: Object) -> Iterable[str]:
    for key in _LINES:
        required = key in ("licence", "publisher", "summary")
        if key not in values and required:
            yield f"{key}: missing"
        elif key in values and not is_line(values[key]):
            yield f"{key}: expected one line of text, found {values[key]!r}"


def _lists(values: Object) -> Iterable[str]:
    for key in _LISTS:
        value = values.get(key, [])
        if not isinstance(value, list) or not all(is_line(item) for item in value):
            yield f"{key}: expected an array of strings, found {value!r}"


def _digest(key: str, values: Object, faults: list[str]) -> Digest | None:
    if key not in values:
        return None
    try:
        return Digest.parse(values[key])
    except CorruptContent as error:
        faults.append(f"{key}: {error.message}")
        return None


def _check_name(values: Object, faults: list[str]) -> None:
    name, version = values.get("name"), values.get("version", "0")
    if not isinstance(name, str) or not isinstance(version, str):
        faults.append("name, version: expected strings")
        return
    try:
        Name(name, version)
    except UsageError as error:
        faults.append(error.message)
