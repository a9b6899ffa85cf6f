"""Verified files, held so that what is served is what was verified.

- Bytes that a writer of our own user could change are copied, while they are hashed, into memory that nobody can change
  any more, ourselves included: sealed in-memory files (memfd_create(2), fcntl(2) "File Sealing").
- Where blob, folder and every folder above belong to another user and are closed to us, the open file is held as it
  is: only its owner, who could as well have chosen the bytes, can change it or put another in its place.
- Copies that memory has no room for are refused before the first byte is copied: by what the container may take, too.
- Either way the bytes are hashed here, and a file that is not the one that its image names is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from intaglio.dataclass import dataclass
from intaglio.digest import CHUNK, Digest
from intaglio.errors import CorruptContent, MachineError
from intaglio.guard.available import available
from intaglio.parallel import each
from intaglio.progress import Progress, Silent, Task

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_EXEC_OFF = 0x0008
"""MFD_NOEXEC_SEAL (Linux 6.3): not executable, and never to become so."""
_MAX_LINKS = 40
"""What the kernel follows (path_resolution(7))."""


class VerifiedFile(Protocol):
    """A file as an image's manifest promises it."""

    @property
    def path(self) -> str:
        """Name within the image."""

    @property
    def digest(self) -> Digest:
        """Digest of its bytes."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def source(self) -> Path:
        """Where its bytes stand on this machine."""


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file that stays what it is."""

    path: str
    """Name within the image."""
    size: int
    """Bytes."""
    descriptor: int
    """Open for reading, valid as long as the file is held; not inherited by other programs."""
    copied: bool
    """In memory of its own and sealed; otherwise the blob itself, which another user owns."""


@contextlib.contextmanager
def hold(files: Sequence[VerifiedFile], *, progress: Progress | None = None) -> Iterator[tuple[HeldFile, ...]]:
    """Hash the files, each once and in parallel, and hold them until the context ends.

    Raises:
        CorruptContent: a file has other bytes than its digest says.
        MachineError: there is not enough memory for the copies, or a file cannot be read.
    """
    total = sum(file.size for file in files)
    with contextlib.ExitStack() as stack, (progress or Silent()).task("securing", total) as task:
        opened = []
        for file in files:
            descriptor = _open(file)
            stack.callback(os.close, descriptor)
            opened.append(descriptor)
        ours = [not _theirs(file.source, descriptor) for file, descriptor in zip(files, opened, strict=True)]
        _require_memory(sum(file.size for file, copy in zip(files, ours, strict=True) if copy))
        copies = []
        for file, copy in zip(files, ours, strict=True):
            copies.append(_memory(file.path) if copy else None)
            if copies[-1] is not None:
                stack.callback(os.close, copies[-1])
        work = list(zip(files, opened, copies, strict=True))
        work.sort(key=lambda one: -one[0].size)  # so that no core waits for one that began the largest last
        each(lambda one: _hash(*one, task), work, len(os.sched_getaffinity(0)))
        yield tuple(
            HeldFile(file.path, file.size, descriptor if copy is None else copy, copied=copy is not None)
            for file, descriptor, copy in zip(files, opened, copies, strict=True)
        )


def _open(file: VerifiedFile) -> int:
    try:
        descriptor = os.open(file.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            found = "none" if error.errno != errno.ELOOP else "a symbolic link"
            raise CorruptContent(f"{file.path}: expected a regular file at {file.source}, found {found}") from None
        raise MachineError(f"{file.path}: cannot be read: {error.strerror}", hint="verify it again") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptContent(f"{file.path}: expected a regular file where it was verified, found something else")
    return descriptor


def _theirs(source: Path, descriptor: int) -> bool:
    """Return whether only another user can change the open file, or put another in its place.

    Neither it nor its folder may be ours or writable to us. The folders above, links on the way, and the folders that
    those stand in, must be such that we cannot rename or replace them: another's, and folders closed to us or sticky.
    """
    user = os.geteuid()
    if user == 0 or os.fstat(descriptor).st_uid == user:
        return False
    if os.access(f"/proc/self/fd/{descriptor}", os.W_OK, effective_ids=True):
        return False
    near = source.parent.resolve()
    return all(_closed(place, user, sticky=place != near) for place in _passed(source))


def _passed(source: Path) -> Iterator[Path]:
    """Yield every folder that is looked into on the way to ``source``, and every link on it."""
    folder, links = Path("/"), 0
    pending = _names(Path.cwd() / source)
    while pending:
        yield folder
        name = pending.pop()
        place = folder.parent if name == ".." else folder / name  # no link stands in folder: its parent is its parent
        if not place.is_symlink():
            folder = place
            continue
        yield place
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(source))
        target = place.readlink()
        pending += _names(target)
        folder = Path("/") if target.is_absolute() else folder


def _names(path: Path) -> list[str]:
    """Return the names in ``path``, the first one last."""
    return [part for part in reversed(path.parts) if part != "/"]


def _closed(place: Path, user: int, *, sticky: bool) -> bool:
    """Return whether a folder or link is another's, in whose folder ``user`` can replace nothing of another's."""
    about = place.lstat()
    if about.st_uid == user:
        return False
    if stat.S_ISLNK(about.st_mode) or (sticky and about.st_mode & stat.S_ISVTX):
        return True
    return not os.access(place, os.W_OK, effective_ids=True)


def _require_memory(needed: int) -> None:
    found = available() if needed else 0
    if needed > found:
        raise MachineError(
            f"not enough memory for the model's verified copy: expected {needed} bytes, found {found} available "
            "to this process",
            hint="give the container more (--memory), or serve files that another user owns and this one cannot write "
            "to: they are then not copied",
        )


def sealed(name: str, data: bytes) -> int:
    """Return a new descriptor of an in-memory file that holds ``data`` for good; other programs inherit it."""
    descriptor = _memory(name)
    _write(descriptor, memoryview(data))
    _seal(descriptor)
    os.set_inheritable(descriptor, True)
    return descriptor


def _memory(name: str) -> int:
    label = name.rpartition("/")[2][:200]
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(label, flags | _EXEC_OFF)
    except OSError:
        return os.memfd_create(label, flags)


def _hash(file: VerifiedFile, source: int, copy: int | None, task: Task) -> None:
    """Hash the open file, into its copy where it has one, and refuse it where it is another."""
    hasher = hashlib.sha256()
    view = memoryview(bytearray(CHUNK))
    size = 0
    with open(source, "rb", buffering=0, closefd=False) as stream:
        while count := stream.readinto(view):
            hasher.update(view[:count])
            size += count
            if size > file.size:
                break
            if copy is not None:
                _write(copy, view[:count])
            task.advance(count)
    found = Digest.from_hex(hasher.hexdigest())
    if size != file.size or found != file.digest:
        raise CorruptContent(
            f"{file.path}: expected {file.digest} ({file.size} bytes), "
            f"found {found if size == file.size else f'{size} bytes or more'}",
            hint="these are not the image's bytes, or something changed them; `intaglio store verify` checks a store",
        )
    if copy is not None:
        _seal(copy)


def _seal(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
