"""Downloads: kept for all stores of a user in ``${XDG_CACHE_HOME:-~/.cache}/intaglio``, each named by its digest.

- What is taken from there is hashed on its way into the store; what is not what its name says is removed.
- It saves time and is nothing that anything rests on: where a download cannot be kept, nothing fails.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from intaglio.content.intake import replace_file
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import CorruptContent


def folder(kind: str) -> Path:
    """Return where downloads of that kind are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "intaglio" / kind


def take(path: Path, digest: Digest, store: Store) -> bool:
    """Return whether a whole download was at ``path``, and is in ``store`` now; a damaged one is removed."""
    if not path.is_file():
        return False
    try:
        store.adopt(path, expected=digest, move=False)
    except FileNotFoundError:  # another process has just removed it
        return False
    except CorruptContent:
        path.unlink(missing_ok=True)
        return False
    return True


def keep(path: Path, digest: Digest, store: Store) -> None:
    """Keep a small blob of ``store`` at ``path``: visible when whole, whoever else does the same."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, store.path(digest).read_bytes(), path.parent)
