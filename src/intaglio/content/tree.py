"""Trees: what crosses a boundary, as an OCI manifest with one raw layer a file.

- A tree is a function of its files: path, bytes, and whether they are executable. No time, owner, host or tool.
- Paths are relative, portable, and collide with no other path by case or Unicode form.
- The manifest's digest is the tree's identity; layout 1 is fixed for ever (golden vectors guard it).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cached_property

from intaglio import strictjson
from intaglio.content.descriptor import EMPTY, EMPTY_TYPE, MANIFEST_TYPE, TITLE, Descriptor
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent

LAYOUT = 1
"""Number of the layout below; the lock records it."""
TREE_TYPE = "application/vnd.intaglio.tree.v1"
FILE_TYPE = "application/vnd.intaglio.file.v1"
EXECUTABLE = "dev.intaglio.executable"
MAX_FILES = 5000
"""Most files in a tree: manifests end at 4 MiB in common registries."""
MAX_NAME = 255
MAX_PATH = 1024
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_EMPTY_CONFIG = Descriptor(EMPTY_TYPE, Digest.of(EMPTY), len(EMPTY))


@dataclass(frozen=True, slots=True)
class File:
    """One file of a tree."""

    path: str
    """Relative, with ``/`` between parts."""
    digest: Digest
    size: int
    """Bytes."""
    executable: bool = False

    def descriptor(self) -> Descriptor:
        """Return the layer that stands for this file."""
        marks = {TITLE: self.path, EXECUTABLE: "true"} if self.executable else {TITLE: self.path}
        return Descriptor(FILE_TYPE, self.digest, self.size, annotations=marks)


@dataclass(frozen=True)
class Tree:
    """An immutable set of files, sorted by path as UTF-8 bytes; make one with :meth:`of` or :meth:`parse`."""

    files: tuple[File, ...]

    @classmethod
    def of(cls, files: Iterable[File]) -> Tree:
        """Return the tree of ``files``.

        Raises:
            CorruptContent: no file at all, too many, a bad path, or two paths that some file system takes for one.
        """
        ordered = tuple(sorted(files, key=lambda file: file.path.encode("utf-8", "surrogatepass")))
        if not ordered:
            raise CorruptContent("a tree holds at least one file, found none")
        if len(ordered) > MAX_FILES:
            raise CorruptContent(
                f"a tree holds at most {MAX_FILES} files, found {len(ordered)}",
                hint="pack many small files into one archive or one JSONL file",
            )
        check_paths(file.path for file in ordered)
        return cls(ordered)

    @classmethod
    def parse(cls, data: bytes, what: str) -> Tree:
        """Return the tree whose manifest is ``data``; only the exact canonical bytes are accepted.

        Raises:
            CorruptContent: any deviation from layout 1.
        """
        manifest = strictjson.parse_object(data, what=what)
        layers = manifest.get("layers")
        if manifest.get("artifactType") != TREE_TYPE or not isinstance(layers, list):
            raise CorruptContent(f"{what}: expected a tree ({TREE_TYPE}), found {manifest.get('artifactType')!r}")
        files = []
        for layer in layers:
            descriptor = Descriptor.parse(layer, what)
            path = descriptor.annotations.get(TITLE)
            if path is None:
                raise CorruptContent(f"{what}: a layer without {TITLE}")
            files.append(File(path, descriptor.digest, descriptor.size, EXECUTABLE in descriptor.annotations))
        tree = cls.of(files)
        if tree.manifest() != data:
            raise CorruptContent(f"{what}: not a canonical tree manifest of layout {LAYOUT}")
        return tree

    def manifest(self) -> bytes:
        """Return the manifest's bytes (canonical JSON)."""
        return self._manifest

    @cached_property
    def _manifest(self) -> bytes:
        return strictjson.canonical(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": TREE_TYPE,
                "config": _EMPTY_CONFIG.to_json(),
                "layers": [file.descriptor().to_json() for file in self.files],
            }
        )

    @cached_property
    def digest(self) -> Digest:
        """The tree's identity."""
        return Digest.of(self.manifest())

    @cached_property
    def total_size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    def descriptor(self) -> Descriptor:
        """Return the descriptor of the manifest."""
        return Descriptor(MANIFEST_TYPE, self.digest, len(self.manifest()), TREE_TYPE)


def check_paths(paths: Iterable[str]) -> None:
    """Check each path, and that no two of them name one place.

    Raises:
        CorruptContent: a bad path; a duplicate, also by case folding or Unicode form; a file where a folder is.
    """
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        key = _fold(check_path(path))
        if key in seen:
            raise CorruptContent(f"two files take one place on some file systems: {seen[key]!r} and {path!r}")
        seen[key] = path
        while "/" in key:
            key = key.rpartition("/")[0]
            folders.setdefault(key, path)
    for key, path in seen.items():
        if key in folders:
            raise CorruptContent(f"a file and a folder of one name: {path!r} and {folders[key]!r}")


def check_path(path: str) -> str:
    """Return ``path`` if it is relative, clean and portable.

    Raises:
        CorruptContent: absolute, empty or dot parts, backslash, control characters, a trailing dot or space, a part
            over 255 bytes, a whole over 1024, a name that Windows reserves, or text that is not Unicode.
    """
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        raise CorruptContent(f"bad path {path!r}: not Unicode") from None
    if not path or len(encoded) > MAX_PATH:
        raise CorruptContent(f"bad path {path[:64]!r}: expected 1 to {MAX_PATH} bytes, found {len(encoded)}")
    for part in path.split("/"):
        why = _fault(part)
        if why:
            raise CorruptContent(f"bad path {path[:128]!r}: {why}")
    return path


def _fault(part: str) -> str | None:
    if part in ("", ".", ".."):
        return "absolute, or with an empty, '.' or '..' part"
    if "\\" in part or ":" in part:
        return "a backslash or colon"
    if any(unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") for char in part):
        return "a control or format character"
    if part[-1] in ". ":
        return "a part ends in a dot or space"
    if len(part.encode("utf-8")) > MAX_NAME:
        return f"a part longer than {MAX_NAME} bytes"
    if part.split(".")[0].lower() in _WINDOWS_DEVICES:
        return "a name that Windows reserves"
    return None


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
