"""Stamps of users' files, kept in the store's index: an unchanged file is recognised without reading it."""

from __future__ import annotations

from intaglio.content.index import Index
from intaglio.digest import Digest
from intaglio.recipe.sources.interface import Stat


class Stamps:
    """The index as what ``file:`` sources remember digests in."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def get(self, path: str, stat: Stat) -> Digest | None:
        """Return the digest of the file at ``path``, if it is as it was when hashed."""
        known = self._index.stamp(path)
        return known[1] if known and known[0] == _text(stat) else None

    def put(self, path: str, stat: Stat, digest: Digest) -> None:
        """Remember the digest of the file at ``path``."""
        self._index.set_stamp(path, _text(stat), digest)


def _text(stat: Stat) -> str:
    return f"{stat.size} {stat.mtime_ns} {stat.ctime_ns} {stat.inode} {stat.device}"
