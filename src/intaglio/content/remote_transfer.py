"""Blobs on their way between a file and a registry: what takes them, what counts them, what gives them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from intaglio.content.descriptor import Descriptor
from intaglio.content.remote_http import pieces
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent

_STEP = 1 << 20
"""Bytes between two reports of progress, at most."""
_OFTEN = 0.2
"""Seconds between two reports of progress, at most: whoever is to stop is told by the answer."""


class Advances(Protocol):
    """What is told of bytes that went through."""

    def advance(self, amount: int) -> None:
        """Report ``amount`` more bytes."""


class Sink(Protocol):
    """What takes a blob while it comes in."""

    @property
    def size(self) -> int:
        """Bytes that are there."""

    def space(self) -> memoryview:
        """Return where the next bytes go; never empty."""

    def filled(self, count: int) -> None:
        """Append the first ``count`` bytes of :meth:`space`."""

    def restart(self) -> None:
        """Forget everything."""

    def finish(self) -> None:
        """Check the digest and keep the blob; ``CorruptContent`` when it is another's."""


@dataclass
class Watch:
    """Tells a task of each byte once, however often it is transferred, and not for every few bytes."""

    task: Advances
    seen: int = 0
    said: int = 0
    at: float = 0.0

    def reached(self, count: int, *, end: bool = False) -> None:
        """Say that ``count`` bytes are through."""
        self.seen = max(self.seen, count)
        now = time.monotonic()
        if self.seen - self.said >= _STEP or now - self.at > _OFTEN or end:
            self.task.advance(self.seen - self.said)
            self.said, self.at = self.seen, now


def hashed_pieces(path: Path, blob: Descriptor, watch: Watch) -> Iterator[memoryview]:
    """Yield the file in pieces; the last one only when all of them together are the blob.

    Raises:
        CorruptContent: they are not.
    """
    hasher = hashlib.sha256()
    done = 0
    size = path.stat().st_size
    fault = CorruptContent(
        f"{path}: does not have its digest {blob.digest}; nothing was completed",
        hint="intaglio store verify --repair   (removes what is damaged; the next build makes it again)",
    )
    if size != blob.size or (not size and blob.digest != Digest.of(b"")):
        raise fault
    for piece in pieces(path, size):
        hasher.update(piece)
        done += len(piece)
        if done == size and Digest.from_hex(hasher.hexdigest()) != blob.digest:
            raise fault
        yield piece
        watch.reached(done)
    if done != size:
        raise fault
