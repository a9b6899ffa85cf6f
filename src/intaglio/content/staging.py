"""Staging: what comes in from elsewhere waits here until it is believed; only then does the store hold it.

- A blob that is whole and has its digest stands in a private folder of this process, on the store's file system.
- What is under way stands in ``partial/``, locked, and is gone on with by the next process after a crash.
- Publishing is by rename: blobs first, then what refers to them. Before it, no other reader of the store sees
  anything of it; after a refusal nothing of it is left.
- What the store has already is hashed again before it counts as had: a damaged blob is fetched anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from intaglio import strictjson
from intaglio.content.descriptor import Descriptor
from intaglio.content.direct import LARGE, WriteBehind
from intaglio.content.intake import BUFFER
from intaglio.content.layout import Store
from intaglio.digest import Digest, hash_stream
from intaglio.errors import CorruptContent


class Staging:
    """Blobs that are not in the store yet, and the referrers among them; make one with :meth:`open`.

    Reads as a store does: what is staged goes before what the store has.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._referrers: dict[Digest, tuple[Digest, Descriptor]] = {}
        self._hashed: set[Digest] = set()

    @classmethod
    @contextlib.contextmanager
    def open(cls, store: Store) -> Iterator[Staging]:
        """Yield a staging area of ``store``; what was not published is gone afterwards."""
        with store.scratch("staging") as folder:
            yield cls(store, folder)

    # --- reading -------------------------------------------------------------------------------------------------

    @property
    def hashed(self) -> frozenset[Digest]:
        """The blobs that this process has hashed itself, from first byte to last, and found good."""
        return frozenset(self._hashed)

    def path(self, digest: Digest) -> Path:
        """Return where the blob stands, whether it does or not."""
        staged = self._folder / digest.hex
        return staged if staged.exists() else self._store.path(digest)

    def read(self, digest: Digest, *, what: str, max_bytes: int = strictjson.MAX_BYTES) -> bytes:
        """Return a small blob, re-hashed.

        Raises:
            NotVerifiable: it is neither here nor in the store.
            CorruptContent: it does not have its digest, or is larger than ``max_bytes``.
        """
        staged = self._folder / digest.hex
        if not staged.exists():
            return self._store.read(digest, what=what, max_bytes=max_bytes)
        with open(staged, "rb") as stream:
            data = stream.read(max_bytes + 1)
        if len(data) > max_bytes or Digest.of(data) != digest:
            raise CorruptContent(f"{what}: {digest} is too large, or damaged")
        return data

    def referrers(self, subject: Digest) -> tuple[Descriptor, ...]:
        """Return the manifests that refer to ``subject``: those of the store and those that came in."""
        found = {one.digest: one for one in self._store.referrers(subject)}
        found |= {digest: described for digest, (about, described) in self._referrers.items() if about == subject}
        return tuple(found.values())

    # --- taking in -----------------------------------------------------------------------------------------------

    def has(self, blob: Descriptor) -> bool:
        """Return whether the blob is here or in the store, whole and undamaged: it is hashed."""
        if blob.digest in self._hashed:
            return True
        try:
            with open(self._store.path(blob.digest), "rb", buffering=0) as stream:
                if os.fstat(stream.fileno()).st_size != blob.size:
                    return False
                found, _ = hash_stream(stream, bytearray(BUFFER))
        except FileNotFoundError:
            return False
        if found == blob.digest:
            self._hashed.add(blob.digest)
        return found == blob.digest

    def put(self, data: bytes) -> Digest:
        """Stage a small blob."""
        digest = Digest.of(data)
        place = self._folder / digest.hex
        if not place.exists():
            fresh = place.with_suffix(".new")
            fresh.write_bytes(data)
            fresh.chmod(0o444)
            os.rename(fresh, place)
        self._hashed.add(digest)
        return digest

    def refer(self, subject: Digest, manifest: Descriptor) -> None:
        """Say that the staged ``manifest`` refers to ``subject``."""
        self._referrers[manifest.digest] = (subject, manifest)

    def incoming(self, blob: Descriptor) -> Incoming:
        """Return a context manager that takes the bytes of ``blob``, after those that an earlier run has left."""
        return Incoming(self._store.partial(blob.digest), self._folder / blob.digest.hex, blob, self._hashed)

    # --- the end -------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Move everything into the store: the blobs, then the referrers, which the index names first."""
        staged = [Digest.from_hex(name) for name in sorted(os.listdir(self._folder))]
        blobs = [digest for digest in staged if digest not in self._referrers]
        # Side by side: the disk brings many files to rest at once as fast as one.
        with ThreadPoolExecutor(4, "sync") as pool:
            list(pool.map(lambda digest: _sync(self._folder / digest.hex), blobs))
        for digest in blobs:
            os.rename(self._folder / digest.hex, self._store.path(digest))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._store.partial(digest))
        _sync(self._store.path(Digest.of(b"")).parent)
        for digest in sorted(self._referrers):
            self._store.put_referrer(self.read(digest, what=f"referrer {digest.short}"), ())

    def discard(self) -> None:
        """Remove everything that came in, also what another run could have gone on with: it was refused."""
        for name in os.listdir(self._folder):
            for place in (self._store.partial(Digest.from_hex(name)), self._folder / name):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(place)


class Incoming:
    """A blob on its way in: a context manager around its file in ``partial/``, which this process alone writes.

    A file of mode 0444 is whole; it is never written again, since it may be the store's own by another name.
    """

    def __init__(self, partial: Path, target: Path, blob: Descriptor, hashed: set[Digest]) -> None:
        self._partial, self._target, self._blob, self._hashed = partial, target, blob, hashed
        self._hasher = hashlib.sha256()
        self._size = 0
        self._fd = -1
        self._behind: WriteBehind | None = None

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self._size

    def __enter__(self) -> Incoming:
        self._partial.parent.mkdir(exist_ok=True)
        self._open()
        with open(self._fd, "rb", buffering=0, closefd=False) as stream:
            buffer = memoryview(bytearray(BUFFER))
            while count := stream.readinto(buffer):
                self._hasher.update(buffer[:count])
                self._size += count
        if os.fstat(self._fd).st_mode & stat.S_IWUSR:
            self._behind = WriteBehind(self._fd, self._blob.size, self._size)
        elif self._size != self._blob.size:
            self.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._behind is not None:
            with contextlib.suppress(OSError):  # what is there is gone on with
                self._behind.settle()
        os.close(self._fd)

    def _open(self) -> None:
        """Open and lock the file; whoever held the lock may have taken the file away meanwhile."""
        while True:
            try:
                fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except PermissionError:  # whole
                fd = os.open(self._partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                here = os.fstat(fd)
                with contextlib.suppress(FileNotFoundError):
                    there = os.lstat(self._partial)
                    if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                        if not stat.S_ISREG(here.st_mode):
                            raise CorruptContent(f"{self._partial}: expected a regular file")
                        self._fd = fd
                        return
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def space(self) -> memoryview:
        """Return where the next bytes go; errors as of :class:`WriteBehind`."""
        assert self._behind is not None  # noqa: S101 - nothing is missing from a file that is whole
        return self._behind.space()

    def filled(self, count: int) -> None:
        """Append the first ``count`` bytes of :meth:`space`."""
        assert self._behind is not None  # noqa: S101
        self._hasher.update(self._behind.space()[:count])
        self._behind.filled(count)
        self._size += count

    def restart(self) -> None:
        """Forget everything, and begin again with another file."""
        if self._behind is not None:
            self._behind.leave()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._partial)
        os.close(self._fd)
        self._open()
        self._hasher = hashlib.sha256()
        self._size = 0
        self._behind = WriteBehind(self._fd, self._blob.size)

    def finish(self) -> None:
        """Stage the blob.

        Raises:
            CorruptContent: the bytes are not those of the blob; they are thrown away.
        """
        found = Digest.from_hex(self._hasher.hexdigest())
        if found != self._blob.digest or self._size != self._blob.size:
            size = self._size
            self.restart()
            raise CorruptContent(
                f"expected {self._blob.digest} of {self._blob.size} bytes, found {found} of {size} bytes"
            )
        if self._behind is not None:
            self._behind.settle()
            self._behind = None
        if self._size >= LARGE:
            os.fsync(self._fd)  # now, beside what others are still fetching
        os.fchmod(self._fd, 0o444)
        with contextlib.suppress(FileExistsError):
            os.link(self._partial, self._target)
        self._hashed.add(found)


def _sync(path: Path) -> None:
    """Bring a file, or a folder's names, to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
