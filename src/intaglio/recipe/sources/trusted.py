"""``models/org/name@version`` — a name of the trusted source, which says its digest and where its files can be had.

- The name means what the trusted source says, verified from the anchor on this side; without one it means nothing.
- What the source does not list, or has yanked, is refused when it is pinned, and whenever it is built from.
- Origins are hints: whatever they give is compared with the digest that the source signed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from intaglio.content.layout import Store
from intaglio.content.tree import Tree
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, Error, NotVerifiable, UsageError
from intaglio.progress import Progress
from intaglio.recipe.sources.interface import BadUri, changed, offline_refusal, present, resolve, unreachable
from intaglio.trust.target import Name, Target
from intaglio.trust.tuf import TrustedSource


@dataclass(frozen=True, slots=True)
class TrustedInput:
    """A name of the trusted source."""

    uri: str
    target: Name
    folder: Path
    name: str | None = None
    """The input's, for hints."""
    source: Callable[[], TrustedSource] | None = None
    """Opens the trusted source of this side; ``None`` where names are only read."""

    @classmethod
    def parse(
        cls, uri: str, folder: Path, name: str | None, source: Callable[[], TrustedSource] | None
    ) -> TrustedInput:
        """Return the source that ``uri`` names.

        Raises:
            BadUri: it is no name with a version.
        """
        try:
            return cls(uri, Name.parse(uri), folder, name, source)
        except UsageError as error:
            raise BadUri(error.message, hint=error.hint) from None

    def require(self, expected: Digest | None) -> Target:
        """Return what the trusted source, as it was last refreshed, says of the name; no network is asked.

        Raises:
            PolicyRefusal: the trusted source does not list the name, or has yanked it.
            CorruptContent: it lists other bytes than the pinned ones.
            NotVerifiable: there is no trusted source on this side.
            CorruptContent: no origin gives the signed bytes, and one gives others.
        """
        if self.source is None:
            raise NotVerifiable(f"{self.uri}: no trusted source to ask", hint="intaglio trust refresh")
        target = self.source().target(self.target.path).require_active()
        if expected is not None and target.digest != expected:
            raise changed(self.uri, self.name, expected, target.digest)
        return target

    def fetch(self, store: Store, *, expected: Digest | None, progress: Progress, offline: bool) -> Tree:
        """Bring the files into ``store``: see :meth:`Source.fetch`.

        Raises:
            PolicyRefusal, NotVerifiable: see :meth:`require`; not asked for what the store holds.
        """
        stored = present(store, expected)
        if stored is not None:
            return stored
        target = self.require(expected)
        stored = present(store, target.digest)
        if stored is not None:
            return stored
        if offline:
            raise offline_refusal(self.uri, self.name)
        problems: list[Error] = []
        for origin in target.origins:
            try:
                found = resolve(origin, self.folder, name=self.name, digest=self._file(origin, target, store))
                return found.fetch(store, expected=target.digest, progress=progress, offline=False)
            except Error as error:
                problems.append(error)
        said = "; ".join(error.message for error in problems) or "the trusted source names no origin"
        why = f"none of its origins gives {target.digest}: {said}"
        if any(isinstance(error, CorruptContent) for error in problems):
            raise CorruptContent(f"{self.uri}: {why}", hint="what is there now is not what the trusted source signed")
        raise unreachable(self.uri, why)

    def _file(self, origin: str, target: Target, store: Store) -> Digest | None:
        """Return the digest of the one file behind an ``https:`` origin, from the target's manifest; else nothing.

        Raises:
            BadUri: the target is of several files, which no such origin can give.
            SourceUnreachable, CorruptContent: the source does not give the manifest.
        """
        if self.source is None or not origin.startswith(("https:", "http:")):
            return None
        from intaglio.recipe.sources.mirror import mirror_at
        from intaglio.trust.mirror import fetch_manifest

        manifest = fetch_manifest(target, mirror_at(self.source().address), store)
        files = Tree.parse(manifest, str(target.name)).files
        if len(files) != 1:
            raise BadUri(f"{origin}: expected one file, {target.name} has {len(files)}")
        return files[0].digest
