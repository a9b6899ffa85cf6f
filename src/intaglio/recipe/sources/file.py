"""``file:PATH`` — a file or folder beside the recipe, copied into the store.

- ``PATH`` counts from the recipe's folder and is taken literally; a file becomes a tree of that one file under its
  base name, a folder the tree of its files.
- Each build looks whether the files are still those of the pin; unchanged ones are recognised by their status alone.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from intaglio.content.intake import walk
from intaglio.content.layout import Store
from intaglio.content.tree import File, Tree
from intaglio.dataclass import dataclass
from intaglio.digest import Digest, hash_stream
from intaglio.errors import CorruptContent
from intaglio.progress import Progress
from intaglio.recipe.sources.interface import BadUri, Stat, StatCache, changed, check_pin, present, unreachable

SETTLED = 0.1
"""Seconds since the last change after which a file's times tell a new change: clocks of file systems tick slowly."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file or folder of the user's."""

    uri: str
    path: Path
    name: str | None = None
    digest: Digest | None = None
    """The tree that the recipe promises."""
    stats: StatCache | None = None

    @classmethod
    def parse(
        cls, uri: str, folder: Path, name: str | None, digest: Digest | None, stats: StatCache | None
    ) -> FileSource:
        """Return the source that ``uri`` addresses.

        Raises:
            BadUri: a host, a fragment, or the folder that holds the recipe itself.
        """
        rest = uri.removeprefix("file:")
        if rest.startswith("///"):
            rest = rest[2:]
        elif rest.startswith("//"):
            raise BadUri(f"expected file:PATH without a host, found {uri!r}")
        if "\0" in rest or "?" in rest or "#" in rest:
            raise BadUri(f"expected file:PATH without ? and #, found {uri!r}")
        path = Path(os.path.normpath(folder.absolute() / rest))
        if Path(os.path.normpath(folder.absolute())).is_relative_to(path):
            raise BadUri(f"{uri!r} holds the recipe itself; put the data into a folder of its own")
        return cls(uri, path, name, digest, stats)

    def fetch(self, store: Store, *, expected: Digest | None, progress: Progress, offline: bool) -> Tree:  # noqa: ARG002
        """Copy the files into ``store``: see :meth:`Source.fetch`; a missing file is unreachable."""
        expected = expected or self.digest
        if not os.path.lexists(self.path):
            raise unreachable(self.uri, f"missing file: expected {self.path}, found none", "put it there")
        try:
            if expected is not None:
                self._compare(expected)
                stored = present(store, expected)
                if stored is not None:
                    return stored
            tree = store.ingest(self.path, move=False, progress=progress)
        except PermissionError as error:
            raise unreachable(self.uri, f"cannot be read: {error.filename}", "let its owner make it readable") from None
        check_pin(self.uri, self.name, expected, tree)
        return tree

    def _compare(self, expected: Digest) -> None:
        """Refuse files that are not those of ``expected``, before any of them is copied."""
        tree = self.tree()
        if tree.digest != expected:
            raise changed(self.uri, self.name, expected, tree.digest)

    def tree(self) -> Tree:
        """Return the tree of the files where they are; nothing is stored.

        Raises:
            CorruptContent: links, devices, or names that no tree may hold.
        """
        return Tree.of(self._survey())

    def _survey(self) -> list[File]:
        if self.path.is_symlink():
            raise CorruptContent(f"{self.uri}: expected a file or folder, found a symbolic link")
        if not self.path.is_dir():
            return [self._file(self.path.name, self.path)]
        return [self._file(name, path) for name, path in walk(self.path)]

    def _file(self, name: str, path: Path) -> File:
        key = str(path)
        status = os.lstat(path)
        stat = _stat(status)
        digest = self.stats.get(key, stat) if self.stats else None
        if digest is None:
            with open(path, "rb", buffering=0, opener=_no_follow) as stream:
                stat = _stat(os.fstat(stream.fileno()))
                digest, _ = hash_stream(stream)
                settled = time.time_ns() - max(stat.mtime_ns, stat.ctime_ns) > SETTLED * 1e9
                if self.stats and settled and _stat(os.fstat(stream.fileno())) == stat:
                    self.stats.put(key, stat, digest)
        return File(name, digest, stat.size, bool(status.st_mode & 0o100))


def _stat(status: os.stat_result) -> Stat:
    return Stat(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
