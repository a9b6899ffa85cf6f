"""``https://HOST/PATH`` — one file whose digest the recipe promises.

The file becomes a tree of one file under the last part of its path. ``http:`` is for this machine's loopback alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from intaglio.content.layout import Store
from intaglio.content.tree import File, Tree, check_path
from intaglio.dataclass import dataclass
from intaglio.digest import Digest, hash_stream
from intaglio.errors import CorruptContent, SourceUnreachable
from intaglio.progress import Progress
from intaglio.recipe.sources.interface import BadUri, changed, check_pin, offline_refusal, present

if TYPE_CHECKING:
    from intaglio.recipe.sources.http import Network


@dataclass(frozen=True, slots=True)
class HttpsSource:
    """One file somewhere on the web."""

    uri: str
    file: str
    """Its name in the tree."""
    digest: Digest
    """What its bytes must be."""
    name: str | None = None
    network: Network | None = None
    """``None``: as the environment says."""

    @classmethod
    def parse(cls, uri: str, name: str | None, digest: Digest | None) -> HttpsSource:
        """Return the source that ``uri`` addresses.

        Raises:
            BadUri: not https, no file name, a fragment, or no digest promised.
        """
        from intaglio.recipe.sources.http import check_url

        try:
            parts = urlsplit(uri)
            check_url(uri)
            file = check_path(unquote(parts.path.rpartition("/")[2], errors="strict"))
        except SourceUnreachable as error:
            raise BadUri(error.message) from None
        except (CorruptContent, ValueError) as error:
            raise BadUri(f"expected https://host/path/file, found {uri!r}: {error}") from None
        if parts.fragment:
            raise BadUri(f"expected an address without #, found {uri!r}")
        if digest is None:
            raise BadUri('not pinned: an https: input needs digest = "sha256:…" of the file beside its uri')
        return cls(uri, file, digest, name)

    def fetch(self, store: Store, *, expected: Digest | None, progress: Progress, offline: bool) -> Tree:
        """Bring the file into ``store``: see :meth:`Source.fetch`."""
        tree = present(store, expected)
        if tree is not None and [(file.path, file.digest) for file in tree.files] == [(self.file, self.digest)]:
            return tree
        if not store.has(self.digest):
            if offline:
                raise offline_refusal(self.uri, self.name)
            self._download(store, progress)
        size = store.path(self.digest).stat().st_size
        only = File(self.file, self.digest, size)
        check_pin(self.uri, self.name, expected, Tree.of([only]))
        return store.put_tree([only])

    def _download(self, store: Store, progress: Progress) -> None:
        from intaglio.recipe.sources.http import Client, Network

        client = Client(self.network or Network.from_environment())
        partial = store.partial(self.digest)
        with store.lock(f"fetch-{self.digest.hex}"):
            if store.has(self.digest):
                return
            partial.parent.mkdir(parents=True, exist_ok=True)
            resumed = partial.exists()
            while True:
                with progress.task(f"fetching {self.file}") as task:
                    client.download(self.uri, partial, size=None, task=task)
                try:
                    store.adopt(partial, expected=self.digest, move=True)
                    return
                except CorruptContent:
                    found = _digest_of(partial)
                    partial.unlink(missing_ok=True)
                    # What a resumed download began with may have been another file: once more, from the start.
                    if not resumed:
                        raise changed(self.uri, self.name, self.digest, found) from None
                    resumed = False


def _digest_of(path: Path) -> Digest:
    with open(path, "rb") as stream:
        return hash_stream(stream)[0]
