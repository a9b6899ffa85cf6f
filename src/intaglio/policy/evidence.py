"""Evidence: everything that was gathered about one image, as values; the rules read it and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from intaglio.content.descriptor import Descriptor
from intaglio.content.formats.inspect import Inspected
from intaglio.content.modelpack import ModelImage
from intaglio.content.tree import File
from intaglio.digest import Digest
from intaglio.errors import VerificationError
from intaglio.trust.signature import BUNDLE_TYPE


@dataclass(frozen=True, slots=True)
class FileEvidence:
    """One file of the image, re-hashed and looked into."""

    file: File
    content: VerificationError | None
    """Why its bytes are not what the manifest promises; ``None`` when they are."""
    inspected: Inspected | VerificationError | None
    """What it turned out to be, or why it may not be there; ``None`` when its bytes are wrong anyway."""


@dataclass(frozen=True, slots=True)
class ReferrerEvidence:
    """One manifest that refers to the image, with those layers that can be evidence; all have their digests."""

    digest: Digest
    layers: tuple[tuple[Descriptor, bytes], ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the rules decide on."""

    image: Digest
    model: ModelImage | VerificationError
    """The image as its manifest and config have it, or why they cannot be read."""
    files: tuple[FileEvidence, ...] = ()
    referrers: tuple[ReferrerEvidence, ...] = ()
    damaged: tuple[VerificationError, ...] = ()
    """What is wrong with the place: blobs beside the files that are missing or altered, files that nobody signed."""
    folder_signature: bytes | None = None
    """The ``model.sig`` found beside a plain folder's files."""

    def attachments(self) -> Iterator[tuple[str, bytes]]:
        """Yield (name for errors, bytes) of every bundle in every referrer, whatever the referrer calls itself."""
        for referrer in self.referrers:
            for layer, data in referrer.layers:
                if layer.media_type == BUNDLE_TYPE:
                    yield f"bundle in {referrer.digest.short}", data
