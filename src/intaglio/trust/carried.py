"""The trusted source as it travels: metadata, targets and small files in a folder, such as an unpacked kit.

::

    FOLDER/metadata/            as published, the roots from the anchor of whoever packed it
    FOLDER/targets/             policies, keys, and manifests of what an image was made of
    FOLDER/blobs/sha256/        the files of policies and keys, among an image's blobs

- Trust never comes from the folder: it is read by the client that reads any mirror, under the anchor of this side, and
  may be no older than what this side has seen.
- A folder is no evidence that nothing newer exists. It is as fresh as the later of two moments: when this side last saw
  the source online, and when the timestamp in the folder says that it was signed.
- Judging writes nothing; what is known here advances by :func:`take` alone.

(TUF specification 1.0, section 5; docs/adr/0026.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from intaglio.content.bare import open_regular
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable
from intaglio.trust.kept import ANCHOR, FOLDER, STATE, Draft, Kept
from intaglio.trust.mirror import BLOBS, target_path
from intaglio.trust.target import FILES, Target
from intaglio.trust.tuf import TrustedSource, follow

METADATA = "metadata"
"""Name of the folder's part that holds metadata."""


@dataclass(frozen=True, slots=True)
class CarriedFolder:
    """A folder in which a published source travels; no link is followed out of it."""

    folder: Path

    @property
    def address(self) -> str:
        """The folder's absolute path."""
        return str(self.folder.absolute())

    def fetch(self, path: str, *, max_bytes: int) -> bytes | None:
        """Return the file at ``path``: see :meth:`intaglio.trust.mirror.Mirror.fetch`.

        Raises:
            CorruptContent: metadata that must be there is not; it is no regular file, or larger than ``max_bytes``.
        """
        place = self.folder / path
        if not os.path.lexists(place):
            if path.startswith(f"{METADATA}/") and not path.endswith(".root.json"):
                raise CorruptContent(f"{path}: missing: the metadata that came along is incomplete")
            return None
        with open_regular(place, path) as stream:
            data = stream.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise CorruptContent(f"{path}: expected at most {max_bytes} bytes, found more")
        return data


def present(folder: Path) -> bool:
    """Return whether ``folder`` brings metadata of a trusted source.

    Raises:
        CorruptContent: what should be its folder is something else.
    """
    try:
        with os.scandir(folder / METADATA) as entries:
            return any(entries)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CorruptContent(f"{folder / METADATA}: expected a folder: {error.strerror}") from None


def judge(folder: Path, home: Path, clock: datetime, *, anchor: bytes | None = None) -> TrustedSource:
    """Return the trusted source in ``folder``, verified from the anchor of this side; nothing is written.

    Args:
        folder: holds ``metadata/`` and ``targets/``.
        home: holds the anchor, and what was seen before.
        clock: the time here, with its zone.
        anchor: stands in for the home's; what was seen before counts only if it is the same.

    Raises:
        NotVerifiable: there is no anchor.
        CorruptContent: what came along is malformed or incomplete.
        Untrusted: it is not what the anchor's keys signed, or older than what this side knows.
        Stale: nothing says when it was current.
    """
    return follow(Draft(home, anchor), CarriedFolder(folder), clock)


def take(folder: Path, home: Path, clock: datetime) -> TrustedSource:
    """Let what is kept below ``home`` advance to what ``folder`` brings, judged as by :func:`judge`.

    Raises:
        VerificationError: as :func:`judge` does.
        MachineError: the home cannot be written.
    """
    kept = Kept(home)
    kept.root()  # without an anchor not even a folder is made
    with kept.alone():
        return follow(kept, CarriedFolder(folder), clock)


def files(
    home: Path, clock: datetime, wanted: Iterable[Digest], read: Callable[[Digest], bytes | None]
) -> dict[str, bytes]:
    """Return what of the home's trusted source is to travel, by its path in the folder; nothing where there is none.

    Args:
        home: whose anchor and kept metadata.
        clock: the time here.
        wanted: content whose targets go along, beside all policies and keys.
        read: returns the manifest of that digest, or nothing where it is not at hand.

    Raises:
        VerificationError: what is kept does not verify.
    """
    if not (home / ANCHOR).exists() or not (home / FOLDER / STATE).exists():
        return {}
    kept = Kept(home)
    source = TrustedSource.of(kept, clock)
    first = kept.root(version=0).version
    found = {f"{METADATA}/{first}.root.json": kept.anchor()}
    for version in range(first + 1, source.versions()["root"] + 1):
        found[f"{METADATA}/{version}.root.json"] = kept.read(f"{version}.root.json")
    found.update({f"{METADATA}/{name}": data for name, data in source.metadata().items()})
    asked = set(wanted)
    for target in source.targets():
        if target.kind in FILES and target.status == "active":
            found.update(_small(kept, source, target))
        elif target.digest in asked and (manifest := read(target.digest)) is not None:
            found[target_path(target)] = manifest
    return found


def _small(kept: Kept, source: TrustedSource, target: Target) -> dict[str, bytes]:
    """Return manifest and file of a policy or key; nothing where the mirror never had them."""
    try:
        data = source.file(target.name)
    except NotVerifiable:
        return {}
    manifest = kept.read(f"{BLOBS}/{target.digest.hex}")
    return {target_path(target): manifest, f"{BLOBS}/{Digest.of(data).hex}": data}
