"""What a client keeps of the trusted source, as files below its home.

- Nothing is trusted for standing here: roots are verified from the anchor upwards, each time; the rest by who reads it.
- Files have their version in their names and one small file, replaced as a whole, says which belong together: readers
  see the state before a refresh or the one after it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from intaglio import strictjson
from intaglio.dataclass import dataclass
from intaglio.errors import CorruptContent, MachineError, NotVerifiable, VerificationError
from intaglio.trust import freshness, metadata
from intaglio.trust.payload import MAX_BYTES, Root

ANCHOR = "root.json"
"""Name of the anchor in the home."""
FOLDER = "tuf"
"""Name of the folder in the home where metadata is kept."""
STATE = "state.json"
_OLD = 3600.0
"""Seconds after which a kept file that no state names is removed: no reader is still at it."""
_HEAL = "intaglio trust refresh   (fetches it again)"


@dataclass(frozen=True, slots=True)
class State:
    """Which of the kept files belong together, and when they were last seen online."""

    timestamp: int
    """Version of the kept timestamp."""
    root: int
    """Version of the root under which it was believed."""
    seen: datetime | None
    """When a mirror last gave it, unexpired."""
    address: str
    """Where it came from."""

    def write(self) -> bytes:
        """Return the state as a document."""
        seen = None if self.seen is None else freshness.write(self.seen)
        return strictjson.canonical(
            {"timestamp": self.timestamp, "root": self.root, "seen": seen, "address": self.address}
        )

    @classmethod
    def parse(cls, data: bytes, what: str) -> State:
        """Return the state in ``data``.

        Raises:
            CorruptContent: it is none.
        """
        document = strictjson.parse_object(data, what=what)
        stamp, root, address = (document.get(key) for key in ("timestamp", "root", "address"))
        if type(stamp) is not int or type(root) is not int or not isinstance(address, str):
            raise CorruptContent(f"{what}: expected timestamp, root and address", hint=_HEAL)
        return cls(stamp, root, freshness.read(document.get("seen")), address)


class Kept:
    """The files below one home."""

    def __init__(self, home: Path, anchor: bytes | None = None) -> None:
        """Look below ``home``; ``anchor`` stands in for the one there."""
        self.folder = home / FOLDER
        self._place = home / ANCHOR
        self._anchor = anchor

    def root(self, *, version: int | None = None, until_damaged: bool = False) -> Root:
        """Return the newest kept root, or that of ``version``, verified from the anchor upwards.

        ``until_damaged`` stops before a kept root that does not verify, which is then fetched again.
        """
        root = metadata.anchor(self.anchor())
        while version is None or root.version < version:
            name = f"{root.version + 1}.root.json"
            if not self.has(name):
                break
            try:
                root = metadata.next_root(self.read(name), root)
            except VerificationError as error:
                if until_damaged:
                    break
                error.hint = error.hint or _HEAL
                raise
        return root

    def anchor(self) -> bytes:
        """Return the anchor, unverified.

        Raises:
            NotVerifiable: there is none.
        """
        if self._anchor is not None:
            return self._anchor
        try:
            with open(self._place, "rb") as stream:
                return stream.read(MAX_BYTES["root"] + 1)
        except FileNotFoundError:
            raise NotVerifiable(
                f"there is no anchor at {self._place}, and nothing is trusted without one",
                hint="intaglio trust anchor FILE   (a root.json that reached you by a way you trust)",
            ) from None
        except OSError as error:
            raise NotVerifiable(f"anchor {self._place}: {error.strerror}") from None

    def state(self) -> State | None:
        """Return which files belong together; nothing where nothing was fetched."""
        return State.parse(self.read(STATE), str(self.folder / STATE)) if self.has(STATE) else None

    def readable_state(self) -> State | None:
        """Return the state, or nothing where it is damaged."""
        try:
            return self.state()
        except VerificationError:
            return None

    def has(self, name: str) -> bool:
        """Return whether there is a kept file of that name."""
        return (self.folder / name).exists()

    def read(self, name: str) -> bytes:
        """Return a kept file.

        Raises:
            CorruptContent: it is not there, or too large.
        """
        limit = max(MAX_BYTES.values())
        try:
            with open(self.folder / name, "rb") as stream:
                data = stream.read(limit + 1)
        except OSError as error:
            raise CorruptContent(f"{self.folder / name}: {error.strerror}", hint=_HEAL) from None
        if len(data) > limit:
            raise CorruptContent(f"{self.folder / name}: expected at most {limit} bytes, found more", hint=_HEAL)
        return data

    def write(self, name: str, data: bytes) -> None:
        """Keep a file, unless it is there as it should be."""
        from intaglio.content.intake import replace_file

        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (path.exists() and path.read_bytes() == data):
                replace_file(path, data, self.folder)
        except OSError as error:
            raise MachineError(f"{path}: cannot be written: {error.strerror}") from None

    def commit(self, state: State) -> None:
        """Make ``state`` what readers see."""
        self.write(STATE, state.write())

    def sweep(self, used: set[str]) -> None:
        """Remove files that nobody names any more, roots excepted, once no reader can be at them."""
        for path in (*self.folder.glob("*.json"), *self.folder.glob("blobs/*/*")):
            young = time.time() - path.stat().st_mtime < _OLD
            name = str(path.relative_to(self.folder))
            if name not in used and name != STATE and not name.endswith(".root.json") and not young:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget everything that was fetched; the state goes first."""
        (self.folder / STATE).unlink(missing_ok=True)
        for path in (*self.folder.glob("*.json"), *self.folder.glob("blobs/*/*")):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder against every other process that writes to it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise MachineError(f"{self.folder}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


class Draft(Kept):
    """What would be kept: reads what is, and holds what is written in memory; the files stay as they are."""

    def __init__(self, home: Path, anchor: bytes | None = None) -> None:
        """Begin with what is kept below ``home``: with nothing, if it has another anchor than ``anchor``."""
        super().__init__(home, anchor)
        self._written: dict[str, bytes] = {}
        self._empty = anchor is not None and not (self._place.is_file() and self._place.read_bytes() == anchor)

    def has(self, name: str) -> bool:
        """Return whether a file of that name is kept, or would be."""
        return name in self._written or (not self._empty and super().has(name))

    def read(self, name: str) -> bytes:
        """Return a file: see :meth:`Kept.read`."""
        if name in self._written:
            return self._written[name]
        if self._empty:
            raise CorruptContent(f"{name}: is not kept", hint=_HEAL)
        return super().read(name)

    def write(self, name: str, data: bytes) -> None:
        """Hold a file."""
        self._written[name] = data

    def sweep(self, used: set[str]) -> None:
        """Remove nothing."""
