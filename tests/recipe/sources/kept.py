"""What a store holds, for tests that nothing wrong was kept."""

from __future__ import annotations

from intaglio.content.descriptor import EMPTY
from intaglio.content.layout import Store
from intaglio.digest import Digest


def blobs(store: Store) -> set[bytes]:
    """Every visible blob but the empty config, each checked against its name."""
    found = set()
    for path in (store.root / "blobs" / "sha256").iterdir():
        data = path.read_bytes()
        assert Digest.of(data).hex == path.name
        found.add(data)
    return found - {EMPTY}


def leftovers(store: Store) -> list[str]:
    """Temporary files that nobody cleared away."""
    return sorted(path.name for path in (store.root / "tmp").iterdir())
