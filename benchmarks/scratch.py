"""Scratch space outside the checkout, gone afterwards however the run ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

DEFAULT = Path("/var/tmp")  # noqa: S108 - only the parent; the folder itself is private and has a random name
"""A place on disk: ``/tmp`` is memory on many machines, and what is measured is the disk."""


@contextlib.contextmanager
def folder(parent: Path = DEFAULT) -> Iterator[Path]:
    """Yield a new folder below ``parent``; it is removed at the end, at SIGTERM too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="intaglio-bench-", dir=parent))
    try:
        yield place
    finally:
        discard(place)


def discard(place: Path) -> None:
    """Remove a folder; realised environments in it are read-only."""
    for path, names, _ in os.walk(place):
        for name in names:
            inner = Path(path, name)
            if not inner.is_symlink():
                inner.chmod(0o700)
    shutil.rmtree(place, ignore_errors=True)
