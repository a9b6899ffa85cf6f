"""Where a published source is fetched: a folder with ``metadata/`` and ``targets/``, however it is reached.

- What a mirror gives is not trusted: who asks verifies it. A mirror can withhold, never forge.
- Nothing larger than was asked for is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from intaglio.content.layout import Store
from intaglio.content.tree import TREE_TYPE, Tree
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, SourceUnreachable
from intaglio.trust.target import MAX_SIZE, Target


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
    folder, _, version = target.path.rpartition("/")
    path = f"targets/{folder}/{target.digest.hex}.{version}"
    data = mirror.fetch(path, max_bytes=MAX_SIZE)
    if data is None:
        raise SourceUnreachable(f"{mirror.address}: has no {path}", hint="publish the source again")
    if len(data) != target.size or Digest.of(data) != target.digest:
        raise CorruptContent(
            f"{what}: expected {target.size} bytes with {target.digest}, found {len(data)} with {Digest.of(data)}"
        )
    if target.artifact_type == TREE_TYPE:
        Tree.parse(data, what)
    store.put(data)
    return data
