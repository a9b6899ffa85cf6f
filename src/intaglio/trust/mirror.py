"""Where a published source is fetched: a folder with ``metadata/`` and ``targets/``, however it is reached.

Beside them stands ``blobs/sha256/``, as in an OCI layout, with the file of each target that is a policy or a key.

- What a mirror gives is not trusted: who asks verifies it. A mirror can withhold, never forge.
- Nothing larger than was asked for is taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from intaglio.content.tree import TREE_TYPE, File, Tree
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, SourceUnreachable
from intaglio.trust.target import FILES, MAX_FILE, MAX_SIZE, Target

if TYPE_CHECKING:
    from intaglio.content.layout import Store

BLOBS = "blobs/sha256"
"""Folder of the files of policies and keys, by the hex of their sha256."""


class Mirror(Protocol):
    """Where a published source can be fetched: a folder with ``metadata/`` and ``targets/``, however reached."""

    @property
    def address(self) -> str:
        """Where it is, as :attr:`State.address` remembers it."""

    def fetch(self, path: str, *, max_bytes: int) -> bytes | None:
        """Return the file at ``path``, as in ``metadata/timestamp.json``; nothing where there is none.

        Raises:
            SourceUnreachable: no answer, or more than ``max_bytes``.
        """


@dataclass(frozen=True, slots=True)
class FolderMirror:
    """A published source in a folder: mounted, or carried there."""

    folder: Path

    @property
    def address(self) -> str:
        """The folder's absolute path."""
        return str(self.folder.absolute())

    def fetch(self, path: str, *, max_bytes: int) -> bytes | None:
        """Return the file at ``path``: see :meth:`Mirror.fetch`."""
        try:
            with open(self.folder / path, "rb") as stream:
                data = stream.read(max_bytes + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceUnreachable(f"{self.folder / path}: {error.strerror}") from None
        if len(data) > max_bytes:
            raise SourceUnreachable(f"{self.folder / path}: expected at most {max_bytes} bytes, found more")
        return data


def fetch_manifest(target: Target, mirror: Mirror, store: Store) -> bytes:
    """Return the bytes of ``target``, which is a manifest, brought into ``store`` where it lacks them.

    Raises:
        SourceUnreachable: the mirror does not answer, or has no such file.
        CorruptContent: what it gives has another length or digest, or is not the tree that it should be.
    """
    what = f"target {target.name}"
    if store.has(target.digest, target.size):
        return store.read(target.digest, what=what)
    data = _manifest(target, mirror)
    if data is None:
        raise SourceUnreachable(f"{mirror.address}: has no {target_path(target)}", hint="publish the source again")
    if target.artifact_type == TREE_TYPE:
        Tree.parse(data, what)
    store.put(data)
    return data


def fetch_file(target: Target, mirror: Mirror) -> tuple[bytes, bytes] | None:
    """Return the manifest and the one file of a policy or key; nothing where the mirror lacks either.

    Raises:
        SourceUnreachable: the mirror does not answer.
        CorruptContent: what it gives has another length or digest, or is not such a tree.
    """
    manifest = _manifest(target, mirror)
    if manifest is None:
        return None
    file = only_file(target, manifest)
    data = mirror.fetch(f"{BLOBS}/{file.digest.hex}", max_bytes=MAX_FILE)
    if data is None:
        return None
    return manifest, check(data, file.digest, file.size, f"target {target.name}: {file.path}")


def only_file(target: Target, manifest: bytes) -> File:
    """Return the one file of a policy or key whose manifest is ``manifest``.

    Raises:
        CorruptContent: the target is of another kind, or the tree holds something else.
    """
    what = f"target {target.name}"
    name = FILES.get(target.kind)
    files = Tree.parse(manifest, what).files
    if name is None or len(files) != 1 or files[0].path != name or files[0].executable or files[0].size > MAX_FILE:
        expected = name or f"one of the kinds {', '.join(FILES)}"
        raise CorruptContent(f"{what}: expected {expected} alone, found {', '.join(file.path for file in files)}")
    return files[0]


def target_path(target: Target) -> str:
    """Return where a published source has the bytes of ``target``: hash-prefixed, as TUF calls it."""
    folder, _, version = target.path.rpartition("/")
    return f"targets/{folder}/{target.digest.hex}.{version}"


def check(data: bytes, digest: Digest, size: int, what: str) -> bytes:
    """Return ``data`` if it is what was promised.

    Raises:
        CorruptContent: it has another length or digest.
    """
    if len(data) != size or Digest.of(data) != digest:
        raise CorruptContent(f"{what}: expected {size} bytes with {digest}, found {len(data)} with {Digest.of(data)}")
    return data


def _manifest(target: Target, mirror: Mirror) -> bytes | None:
    data = mirror.fetch(target_path(target), max_bytes=MAX_SIZE)
    return None if data is None else check(data, target.digest, target.size, f"target {target.name}")
