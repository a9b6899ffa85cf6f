"""What every source can do: bring the bytes of one address into the store, as a tree.

- Nothing is kept under a final name before it has the digest that was promised (recipe, lock, or the hub's listing).
- With a pin, a tree that differs is refused, never taken.
- Offline, what the store does not hold is unreachable.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from intaglio.content.layout import Store
from intaglio.content.tree import Tree
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable, RecipeError, SourceUnreachable
from intaglio.progress import Progress

if TYPE_CHECKING:
    from intaglio.trust.tuf import TrustedSource

SCHEMES = ("file", "https", "pypi", "hf")
"""The kinds of address there are, beside names of the trusted source."""
TRUSTED_KINDS = ("models", "datasets")
"""What a name of the trusted source begins with, where it can be an input."""


class BadUri(RecipeError):
    """An address that no source understands; the message does not repeat its secrets."""


class FloatingRevision(BadUri):
    """The address names a branch or tag, which may point elsewhere tomorrow."""


@dataclass(frozen=True, slots=True)
class Pin:
    """What a lock says about one input."""

    tree: Digest
    size: int
    """Bytes of all files together."""
    files: int
    """How many."""

    @classmethod
    def of(cls, tree: Tree) -> Pin:
        """Return the pin of ``tree``."""
        return cls(tree.digest, tree.total_size, len(tree.files))


@dataclass(frozen=True, slots=True)
class Stat:
    """What tells, without reading, that a file is still the one that was hashed."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int


class StatCache(Protocol):
    """Remembers digests of users' files; may forget, must not invent."""

    def get(self, path: str, stat: Stat) -> Digest | None:
        """Return the digest of the file at the absolute ``path``, if ``stat`` is what it was when hashed."""

    def put(self, path: str, stat: Stat, digest: Digest) -> None:
        """Remember ``digest`` for ``path`` and ``stat``."""


class Source(Protocol):
    """One address."""

    @property
    def uri(self) -> str:
        """The address as the recipe has it."""

    def fetch(self, store: Store, *, expected: Digest | None, progress: Progress, offline: bool) -> Tree:
        """Bring the bytes into ``store`` and return their tree.

        Args:
            store: where the files and the tree's manifest are put.
            expected: the tree that the lock pins; ``None`` while locking.
            progress: where the work is shown.
            offline: use what the store holds, ask no network.

        Raises:
            CorruptContent: the bytes are not those that were promised; nothing of them is kept.
            SourceUnreachable: the source does not answer, does not have it, or must not be asked.
        """


def resolve(
    uri: str,
    folder: Path,
    *,
    name: str | None = None,
    digest: Digest | None = None,
    stats: StatCache | None = None,
    trusted: Callable[[], TrustedSource] | None = None,
) -> Source:
    """Return the source that ``uri`` addresses; nothing is read or asked.

    Args:
        uri: the address.
        folder: the recipe's folder, from which ``file:`` counts.
        name: the input's name, for hints.
        digest: what the recipe promises: of the file for ``https:``, of the tree otherwise.
        stats: where ``file:`` remembers digests; ``None`` hashes anew each time.
        trusted: opens the trusted source, for names such as ``models/org/name@version``.

    Raises:
        BadUri: no source understands ``uri``, or a digest is missing where it must be promised.
    """
    _refuse_secrets(uri)
    scheme, colon, rest = uri.partition(":")
    if is_name(uri):
        from intaglio.recipe.sources.trusted import TrustedInput

        return TrustedInput.parse(uri, folder, name, trusted)
    if not colon or not rest:
        raise BadUri(
            f"expected an address such as file:data.jsonl, hf:org/name@revision or models/org/name@1, found {uri!r}"
        )
    if scheme == "file":
        from intaglio.recipe.sources.file import FileSource

        return FileSource.parse(uri, folder, name, digest, stats)
    if scheme in ("https", "http"):
        from intaglio.recipe.sources.https import HttpsSource

        return HttpsSource.parse(uri, name, digest)
    if scheme == "pypi":
        from intaglio.recipe.sources.pypi import PypiSource

        return PypiSource.parse(uri, name, digest)
    if scheme == "hf":
        from intaglio.recipe.sources.hf import HubSource

        return HubSource.parse(uri, name, digest)
    from intaglio.recipe.shape import nearest

    raise BadUri(f"unknown kind of address {scheme!r}; {nearest(scheme, SCHEMES)}")


def is_name(uri: str) -> bool:
    """Return whether ``uri`` is meant as a name of the trusted source, not as an address."""
    return ":" not in uri and uri.partition("/")[0] in TRUSTED_KINDS


def present(store: Store, expected: Digest | None) -> Tree | None:
    """Return the tree ``expected`` if the store holds its manifest and all its files, else nothing."""
    if expected is None:
        return None
    try:
        return store.tree(expected) if store.has_tree(expected) else None
    except (CorruptContent, NotVerifiable):
        return None


def check_pin(uri: str, name: str | None, expected: Digest | None, tree: Tree) -> None:
    """Compare what a source gave with what was promised.

    Raises:
        CorruptContent: they differ.
    """
    if expected is not None and tree.digest != expected:
        raise changed(uri, name, expected, tree.digest)


def changed(uri: str, name: str | None, expected: Digest, found: Digest) -> CorruptContent:
    """Return the error about a source whose bytes are not the promised ones."""
    return CorruptContent(
        f"{uri}: the bytes changed: expected {expected}, found {found}",
        hint=f"if the change is wanted, look at it and run: intaglio update {name or 'NAME'}",
    )


def unreachable(uri: str, why: str, hint: str | None = None) -> SourceUnreachable:
    """Return the error about a source that does not give what it should."""
    return SourceUnreachable(f"{uri}: {why}", hint=hint or "check the address and the network, then run it again")


def offline_refusal(uri: str, name: str | None) -> SourceUnreachable:
    """Return the error about a source that must not be asked."""
    return unreachable(
        uri, "not in the store, and --offline forbids to fetch it", f"run without --offline once (input {name or '?'})"
    )


def _refuse_secrets(uri: str) -> None:
    from intaglio.recipe.secrets import in_uri

    why = in_uri(uri)
    if why:
        raise BadUri(f"{why}: no secret may stand in a recipe")
