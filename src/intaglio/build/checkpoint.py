"""Checkpoints: where a step that asks for it keeps how far it has come, so that a killed build goes on from there.

- One folder an action, named by its key: what another program, input or parameter left is never seen.
- Not content: nothing of it enters a key, a claim or an output, and the step trusts it only by digests of its own.
- It is gone once the step has ended well; what nobody came back for is removed after :data:`AGE`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path

from intaglio.content.layout import Store
from intaglio.digest import ActionKey

FOLDER = "checkpoints"
AGE = 14 * 24 * 3600.0
"""Seconds since the last change after which a checkpoint is removed."""


def folder(store: Store, key: ActionKey) -> Path:
    """Return the folder of the action ``key``, made if it is not there; the caller holds the action's lock."""
    place = store.root / FOLDER / key.hex
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.utime(place)
    sweep(store)
    return place


def discard(place: Path) -> None:
    """Remove a checkpoint, whatever the step left there."""
    shutil.rmtree(place, ignore_errors=True)


def sweep(store: Store, age: float = AGE) -> None:
    """Remove the checkpoints that have not changed for ``age`` seconds and that nobody is working on."""
    for place in (store.root / FOLDER).glob("*"):
        if not _older(place, age):
            continue
        with open(store.root / "locks" / place.name, "w") as guard, contextlib.suppress(BlockingIOError):
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _older(place, age):
                discard(place)


def _older(place: Path, age: float) -> bool:
    """Return whether nothing directly in the folder came, went or changed within ``age`` seconds."""
    try:
        return time.time() - max(path.lstat().st_mtime for path in (place, *place.iterdir())) >= age
    except OSError:
        return False
