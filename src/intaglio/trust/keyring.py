"""Where keys live: ``<home>/keys/NAME.key`` (0600) and ``NAME.pub`` beside it.

- A key is written whole or not at all, and never over another.
- A passphrase is asked for only when a key is encrypted, and is never kept, logged or repeated in an error.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from intaglio.dataclass import dataclass, field
from intaglio.errors import MachineError, UsageError
from intaglio.trust.key import PrivateKey, PublicKey, is_encrypted

BUILDER = "builder"
RELEASE = "release"
EVALUATOR = "evaluator"
VARIABLE = "INTAGLIO_PASSPHRASE"
FILE_VARIABLE = "INTAGLIO_PASSPHRASE_FILE"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class PassphraseSource:
    """Where a passphrase comes from: a file that was named, else the environment, else whoever can be asked."""

    file: Path | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    prompt: Callable[[str], str] | None = field(default=None, repr=False)
    """Asks a person; gets the question without a colon. ``None`` where nobody can be asked."""

    def get(self, question: str) -> bytes | None:
        """Return the passphrase, or nothing where no source has one.

        Raises:
            MachineError: the file cannot be read.
        """
        named = self.file or (Path(found) if (found := self.environment.get(FILE_VARIABLE)) else None)
        if named is not None:
            try:
                first = named.read_bytes()[:_MAX_BYTES].split(b"\n", 1)[0].removesuffix(b"\r")
            except OSError as error:
                raise MachineError(f"passphrase file {named}: {error.strerror}") from None
            return first or None
        if VARIABLE in self.environment:
            return os.fsencode(self.environment[VARIABLE]) or None
        return (self.prompt(question).encode("utf-8", "surrogateescape") or None) if self.prompt else None


def create(home: Path, name: str, passphrase: bytes | None = None) -> PublicKey:
    """Make the key ``name`` below ``home`` and return its public half.

    Raises:
        UsageError: ``name`` is no name, or there is such a key.
        MachineError: the folder cannot be written.
    """
    private, public = _paths(home, name)
    key = PrivateKey.generate()
    try:
        private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(private.parent):
            if private.exists():
                hint = "keys are never overwritten; name another"
                raise UsageError(f"there is a key {name!r} already: {private}", hint=hint)
            # The private half last: a crash in between leaves a public file that the next try replaces.
            _write(public, key.public.pem.encode("ascii"), 0o644)
            _write(private, key.to_pem(passphrase), 0o600)
    except OSError as error:
        raise MachineError(f"key {name!r} cannot be written to {private.parent}: {error.strerror}") from None
    return key.public


def load_private(home: Path, name: str, passphrase: PassphraseSource | None = None) -> PrivateKey:
    """Return the private key ``name``; the passphrase is asked for only when the key is encrypted.

    Raises:
        MachineError: there is no such key, or its file cannot be read.
        Untrusted: the passphrase is missing or wrong.
    """
    pem = _read(_paths(home, name)[0], name)
    secret = (passphrase or PassphraseSource()).get(f"Passphrase for key {name}") if is_encrypted(pem) else None
    return PrivateKey.load(pem, secret)


def load_public(home: Path, name: str) -> PublicKey:
    """Return the public half of the key ``name``.

    Raises:
        MachineError: there is no such key.
        NotVerifiable: the file is not a P-256 public key.
    """
    return PublicKey.from_pem(_read(_paths(home, name)[1], name), what=f"key {name!r}")


def exists(home: Path, name: str) -> bool:
    """Return whether there is a private key ``name``."""
    return _paths(home, name)[0].exists()


def _paths(home: Path, name: str) -> tuple[Path, Path]:
    if not _NAME.match(name):
        raise UsageError(f"{name!r} is not a key's name", hint="use a-z, 0-9, dot, dash and underscore, 64 at most")
    return home / "keys" / f"{name}.key", home / "keys" / f"{name}.pub"


def _read(path: Path, name: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(_MAX_BYTES)
    except FileNotFoundError:
        raise MachineError(
            f"there is no key {name!r}: expected {path}", hint="`intaglio init` makes builder, release and evaluator"
        ) from None
    except OSError as error:
        raise MachineError(f"key {name!r}: {path}: {error.strerror}") from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder of keys against every other process that makes one."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write ``data`` to ``path``: whole, on disk, and visible only then."""
    fd, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as stream:
            os.fchmod(fd, mode)
            stream.write(data)
            stream.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
