"""Toolchains: hash-locked Python environments, read from their ``pylock.toml`` (PEP 751).

- A toolchain's identity is the tree of its lock and its files, and it follows from the lock alone: no download needed.
- The lock holds no index address: where files come from is the user's own pip configuration.
- Exactly one file a package, each with its size and sha256: nothing is left to be resolved.
- What ships no wheel is an sdist with the digest of the wheel that the sandboxed ``wheel`` step makes of it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from pathlib import Path

from intaglio.content.tree import File, Tree
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, LockError, NotReproducible, RecipeError

LOCK_NAME = "pylock.toml"
_LOCK_VERSION = "1.0"
_MAX_LOCK = 4 << 20
_REQUIRES = re.compile(r"==(3)\.([0-9]{1,2})\.\*\Z")
_PACKAGE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.!+]*\Z")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_HEX = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*\Z")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A file of a package: a wheel or an sdist, as an index serves it."""

    package: str
    """Normalised project name (PEP 503)."""
    version: str
    name: str
    """File name."""
    digest: Digest
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Sdist:
    """A package without a wheel: its source, and the wheel that the ``wheel`` step must make of it."""

    source: Distribution
    wheel: Distribution
    build_toolchain: str
    """Name of the toolchain which the ``wheel`` step runs in."""
    environment: tuple[str, ...] = ()
    """What the build is told, as ``NAME=VALUE``."""

    def source_tree(self) -> Tree:
        """Return the input of the ``wheel`` step: a tree with the sdist alone."""
        return Tree.of([File(self.source.name, self.source.digest, self.source.size)])

    def accept(self, output: Tree) -> None:
        """Check the output of the ``wheel`` step against the lock.

        Raises:
            NotReproducible: it holds other files, or other bytes, than the wheel in the lock.
        """
        expected = Tree.of([File(self.wheel.name, self.wheel.digest, self.wheel.size)])
        if output != expected:
            found = ", ".join(f"{file.path} {file.digest.short}" for file in output.files)
            raise NotReproducible(
                f"wheel of {self.source.name}: expected {self.wheel.name} {self.wheel.digest.short}, found {found}",
                hint=f"without a compiler in {self.build_toolchain}, each machine's own makes other bytes; with one, "
                "lock the toolchain again, and look at what changed in it",
            )


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A Python environment, pinned file by file."""

    name: str
    lock: bytes
    """The text of ``pylock.toml``; it is part of the identity."""
    python: tuple[int, int]
    """The Python it is for: major and minor version."""
    wheels: tuple[Distribution, ...]
    """What an index serves, in the lock's order."""
    sdists: tuple[Sdist, ...]
    """What has to be built first, in the lock's order."""

    @property
    def downloads(self) -> tuple[Distribution, ...]:
        """Every file that an index serves."""
        return (*self.wheels, *(sdist.source for sdist in self.sdists))

    @property
    def installed(self) -> tuple[Distribution, ...]:
        """Every wheel of the environment, built ones too, sorted by package."""
        wheels = (*self.wheels, *(sdist.wheel for sdist in self.sdists))
        return tuple(sorted(wheels, key=lambda wheel: wheel.package))

    @property
    def requires_python(self) -> str:
        """The lock's own words for :attr:`python`, as in ``==3.11.*``."""
        return f"=={self.python[0]}.{self.python[1]}.*"

    def tree(self) -> Tree:
        """Return the toolchain's tree: ``pylock.toml``, ``wheels/…`` and ``sdists/…``."""
        files = [File(LOCK_NAME, Digest.of(self.lock), len(self.lock))]
        files += [File(f"wheels/{wheel.name}", wheel.digest, wheel.size) for wheel in self.wheels]
        files += [File(f"sdists/{one.source.name}", one.source.digest, one.source.size) for one in self.sdists]
        return Tree.of(files)


def load(folder: Path) -> Toolchain:
    """Return the toolchain in ``folder``, named as the folder is.

    Raises:
        RecipeError: there is no toolchain there.
        LockError: its lock is not one of ours; every mistake is listed.
    """
    path = folder / LOCK_NAME
    try:
        with open(path, "rb") as stream:
            data = stream.read(_MAX_LOCK + 1)
    except OSError as error:
        raise RecipeError(
            f"toolchain {folder.name}: cannot read {path}: {error.strerror}",
            hint="a toolchain is a folder with a pylock.toml; see builder/toolchains/",
        ) from None
    return parse(folder.name, data, what=str(path))


def parse(name: str, data: bytes, *, what: str) -> Toolchain:
    """Return the toolchain ``name`` whose lock is ``data``; ``what`` names the lock in errors.

    Raises:
        LockError: every mistake is listed.
    """
    reader = _Reader(what)
    if not _NAME.match(name):
        reader.fault("toolchain", "a name of a-z, 0-9 and single . _ - between them", name)
    document = reader.document(data)
    reader.keys(document, "", required={"lock-version", "created-by", "requires-python", "packages"})
    reader.text(document, "lock-version", "", re.compile(re.escape(_LOCK_VERSION) + r"\Z"), f'"{_LOCK_VERSION}"')
    reader.text(document, "created-by", "", re.compile("."), "a name")
    requires = reader.text(document, "requires-python", "", _REQUIRES, 'one Python, as in "==3.11.*"')
    wheels: list[Distribution] = []
    sdists: list[Sdist] = []
    for number, entry in enumerate(reader.tables(document, "packages", "")):
        package = _package(reader, entry, f"packages[{number}]")
        if isinstance(package, Sdist):
            sdists.append(package)
        elif package is not None:
            wheels.append(package)
    reader.unique([wheel.package for wheel in wheels] + [sdist.source.package for sdist in sdists])
    reader.finish()
    version = _REQUIRES.match(requires)
    assert version is not None  # noqa: S101 - finish() raised otherwise
    return Toolchain(name, data, (int(version[1]), int(version[2])), tuple(wheels), tuple(sdists))


def _package(reader: _Reader, entry: dict[str, object], at: str) -> Distribution | Sdist | None:
    """Return one package: a wheel of its own, or an sdist with the wheel to be built."""
    from_source = "sdist" in entry
    reader.keys(entry, at, required={"name", "version", *(("sdist", "tool") if from_source else ("wheels",))})
    name = reader.text(entry, "name", at, _PACKAGE, "a normalised project name")
    version = reader.text(entry, "version", at, _VERSION, "a version")
    if from_source:
        return _sdist(reader, entry, at, (name, version))
    files = reader.tables(entry, "wheels", at)
    if len(files) != 1:
        reader.fault(f"{at}.wheels", "exactly one wheel", len(files))
        return None
    return _file(reader, files[0], f"{at}.wheels[0]", (name, version), "wheels")


def _sdist(reader: _Reader, entry: dict[str, object], at: str, package: tuple[str, str]) -> Sdist | None:
    source = _file(reader, reader.table(entry, "sdist", at), f"{at}.sdist", package, "sdists")
    tool = reader.table(entry, "tool", at)
    reader.keys(tool, f"{at}.tool", required={"intaglio"})
    ours, at = reader.table(tool, "intaglio", f"{at}.tool"), f"{at}.tool.intaglio"
    reader.keys(ours, at, required={"build-toolchain", "wheel"}, optional={"environment"})
    environment = ours.get("environment", [])
    if not isinstance(environment, list) or not all(isinstance(e, str) and _VARIABLE.match(e) for e in environment):
        reader.fault(f"{at}.environment", "a list of NAME=VALUE", environment)
        environment = []
    builder = reader.text(ours, "build-toolchain", at, _NAME, "the name of a toolchain")
    built, at = reader.table(ours, "wheel", at), f"{at}.wheel"
    reader.keys(built, at, required={"name", "size", "sha256"})
    wheel = _distribution(reader, built, at, package, reader.text(built, "sha256", at, _HEX, "64 hex digits"))
    return Sdist(source, wheel, builder, tuple(environment)) if source is not None and wheel is not None else None


def _file(
    reader: _Reader, entry: dict[str, object], at: str, package: tuple[str, str], folder: str
) -> Distribution | None:
    """Return a file that an index serves: name, path in the tree, size, hashes."""
    reader.keys(entry, at, required={"name", "path", "size", "hashes"})
    hashes = reader.table(entry, "hashes", at)
    reader.keys(hashes, f"{at}.hashes", required={"sha256"})
    digest = reader.text(hashes, "sha256", f"{at}.hashes", _HEX, "64 lower-case hex digits")
    found = _distribution(reader, entry, at, package, digest, suffix=".whl" if folder == "wheels" else ".tar.gz")
    if found is not None and entry.get("path") != f"{folder}/{found.name}":
        reader.fault(f"{at}.path", f"{folder}/{found.name}", entry.get("path"))
    return found


def _distribution(
    reader: _Reader, entry: dict[str, object], at: str, package: tuple[str, str], digest: str, suffix: str = ".whl"
) -> Distribution | None:
    """Return a named and sized file, whose name must say the package and version it is listed under."""
    name = reader.text(entry, "name", at, _FILE_NAME, f"a file name ending in {suffix}")
    size = entry.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        reader.fault(f"{at}.size", "a positive number of bytes", size)
        return None
    if not digest or not name:
        return None
    stem = name.removesuffix(suffix)
    parts = stem.split("-") if suffix == ".whl" else stem.rsplit("-", 1)
    if not name.endswith(suffix) or len(parts) < 2 or (_normalise(parts[0]), parts[1]) != package:
        reader.fault(f"{at}.name", f"a {suffix} file of {package[0]} {package[1]}", name)
        return None
    return Distribution(package[0], package[1], name, Digest.from_hex(digest), size)


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class _Reader:
    """Reads a TOML document strictly and gathers every mistake."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._faults: list[str] = []

    def document(self, data: bytes) -> dict[str, object]:
        try:
            if len(data) > _MAX_LOCK:
                raise CorruptContent(f"larger than {_MAX_LOCK} bytes")
            return tomllib.loads(data.decode("utf-8"))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError, CorruptContent) as error:
            raise LockError(f"{self._what}: not TOML: {error}", hint="lock the toolchain again") from None

    def fault(self, at: str, expected: str, found: object) -> None:
        self._faults.append(f"{self._what}: {at}: expected {expected}, found {_shown(found)}")

    def keys(
        self,
        entry: dict[str, object],
        at: str,
        *,
        required: set[str],
        optional: Collection[str] = (),
    ) -> None:
        prefix = f"{at}." if at else ""
        unknown = entry.keys() - required - set(optional)
        self._faults += [f"{self._what}: {prefix}{key}: unknown key" for key in sorted(unknown)]
        self._faults += [f"{self._what}: {prefix}{key}: missing" for key in sorted(required - entry.keys())]

    def text(self, entry: dict[str, object], key: str, at: str, pattern: re.Pattern[str], expected: str) -> str:
        """Return the string under ``key``, or an empty one after noting what is wrong with it."""
        value = entry.get(key)
        if isinstance(value, str) and pattern.match(value):
            return value
        if key in entry:
            self.fault(f"{at}.{key}" if at else key, expected, value)
        return ""

    def table(self, entry: dict[str, object], key: str, at: str) -> dict[str, object]:
        value = entry.get(key)
        if isinstance(value, dict):
            return value
        if key in entry:
            self.fault(f"{at}.{key}", "a table", value)
        return {}

    def tables(self, entry: dict[str, object], key: str, at: str) -> list[dict[str, object]]:
        value = entry.get(key)
        place = f"{at}.{key}" if at else key
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value) or not value:
            if key in entry:
                self.fault(place, "a list of tables that is not empty", value)
            return []
        return value

    def unique(self, names: list[str]) -> None:
        for name in sorted({name for name in names if names.count(name) > 1}):
            self._faults.append(f"{self._what}: packages: {name} stands there more than once")

    def finish(self) -> None:
        if self._faults:
            raise LockError("\n".join(self._faults), hint="lock the toolchain again: builder/toolchains/lock.py")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
