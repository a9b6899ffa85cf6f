"""Evidence: everything that was gathered about one image, as values; the rules read it and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta

from intaglio.content.descriptor import Descriptor
from intaglio.content.formats.inspect import Inspected
from intaglio.content.modelpack import ModelImage
from intaglio.content.runtime_image import RuntimeImage
from intaglio.content.tree import File
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import VerificationError
from intaglio.policy.listing import Listed
from intaglio.strictjson import Object
from intaglio.trust.signature import BUNDLE_TYPE

_TITLE = "org.opencontainers.image.title"
_VENDOR = "org.opencontainers.image.vendor"


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
class About:
    """What an image says about itself: under which names it goes, and its licences."""

    names: tuple[tuple[str, str], ...]
    """(where it stands, what it says) of each model name."""
    publishers: tuple[tuple[str, str], ...] = ()
    """The same of each name of who publishes it, beside those in the model names."""
    licences: tuple[str, ...] = ()
    """SPDX expressions, all of which hold."""

    @classmethod
    def of(cls, config: Object, annotations: Mapping[str, str]) -> About:
        """Return what the checked ModelPack ``config`` and the manifest's ``annotations`` say."""
        descriptor = config["descriptor"]
        said = [("name", descriptor.get("name")), ("title", descriptor.get("title"))]
        said.append((_TITLE, annotations.get(_TITLE)))
        by = [("vendor", descriptor.get("vendor")), (_VENDOR, annotations.get(_VENDOR))]
        return cls(
            tuple((where, text) for where, text in said if text),
            tuple((where, text) for where, text in by if text),
            tuple(descriptor.get("licenses", ())),
        )


@dataclass(frozen=True, slots=True)
class SourceEvidence:
    """What the verifier's trusted source says about the inputs that claims name."""

    age: timedelta
    """How long ago the source is known to have been current."""
    listed: Mapping[Digest, Listed]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the rules decide on."""

    image: Digest
    model: ModelImage | RuntimeImage | VerificationError
    """The image as its manifest and config have it, or why they cannot be read."""
    files: tuple[FileEvidence, ...] = ()
    referrers: tuple[ReferrerEvidence, ...] = ()
    damaged: tuple[VerificationError, ...] = ()
    """What is wrong with the place: blobs beside the files that are missing or altered, files that nobody signed."""
    folder_signature: bytes | None = None
    """The ``model.sig`` found beside a plain folder's files."""
    about: About | None = None
    """What the image says about itself; ``None`` when its config cannot be read."""
    source: SourceEvidence | None = None
    """``None`` when the verifier has no trusted source at hand."""

    def attachments(self) -> Iterator[tuple[str, bytes]]:
        """Yield (name for errors, bytes) of every bundle in every referrer, whatever the referrer calls itself."""
        for referrer in self.referrers:
            for layer, data in referrer.layers:
                if layer.media_type == BUNDLE_TYPE:
                    yield f"bundle in {referrer.digest.short}", data
