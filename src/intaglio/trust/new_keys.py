"""The keys that a trusted source begins with: planned, checked, then written together or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from intaglio.content.intake import sync_folder
from intaglio.errors import MachineError, UsageError
from intaglio.trust.key import PrivateKey, PublicKey

_HINT = "no key is overwritten; name --keys FOLDER"


class NewKeys:
    """Makes keys, and writes them; a key is whole under its name, or not there."""

    def __init__(self, folder: Path, passphrase: bytes | None) -> None:
        self._folder = folder
        self._passphrase = passphrase
        self._planned: dict[Path, PrivateKey] = {}

    def plan(self, place: str, name: str) -> PublicKey:
        """Make the key ``name`` and return its public half; nothing is written yet."""
        key = PrivateKey.generate()
        self._planned[self._folder / place / f"{name}.key"] = key
        return key.public

    def check(self) -> None:
        """Check that no key stands where one would be written.

        Raises:
            UsageError: one does.
        """
        for path in self._planned:
            if path.exists():
                raise UsageError(f"there is a key already: {path}", hint=_HINT)

    @contextlib.contextmanager
    def written(self) -> Iterator[list[Path]]:
        """Write each key (0600) with its public half beside it, and yield where they are.

        What was written is removed again when that, or the body, fails.

        Raises:
            UsageError: a key stands there already.
            MachineError: one cannot be written.
        """
        made: list[Path] = []
        try:
            for path, key in self._planned.items():
                made.append(_write_new(path, key.to_pem(self._passphrase), 0o600))
                made.append(_write_new(path.with_suffix(".pub"), key.public.pem.encode("ascii"), 0o644))
            yield list(self._planned)
        except BaseException:
            for path in made:
                path.unlink(missing_ok=True)
            raise


def _write_new(path: Path, data: bytes, mode: int) -> Path:
    """Write ``data`` under a name that is not there yet: all of it, or nothing.

    Raises:
        UsageError: it is there.
        MachineError: it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(fresh, path)  # a rename would write over what another has put there meanwhile
        sync_folder(path.parent)
    except OSError as error:
        if path.exists():
            raise UsageError(f"there is a key already: {path}", hint=_HINT) from None
        raise MachineError(f"{path}: the key cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()
    return path
