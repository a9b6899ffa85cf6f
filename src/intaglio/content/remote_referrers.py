"""Signatures and attestations in a registry: how an image's referrers are found there, and how they are put there.

- Where the registry lists referrers itself, it is asked; else the fallback tag ``sha256-…`` holds an index of them,
  which is written, read back and written again, since writers race for it. Each has a tag of its own as well: what
  the race loses is found by it, and no garbage collection takes it for waste.
- cosign's older signatures stand under ``sha256-….sig`` besides. What others signed there is kept.
- No list is believed: every manifest that one names is opened, and counts only if its own subject is the image.

Source: OCI distribution specification 1.1, "Listing Referrers" and "Referrers Tag Schema"; cosign's signature
specification, "Tag-based discovery".
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from intaglio import strictjson
from intaglio.content.descriptor import INDEX_TYPE, MANIFEST_TYPE, Descriptor, parse_annotations
from intaglio.content.modelpack import SIMPLE_SIGNING_TYPE
from intaglio.content.remote import Manifest, Repository, entries
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, RegistryError, VerificationError
from intaglio.strictjson import Object

MAX_REFERRERS = 1024
"""Most referrers of one image that are opened: as many as verification looks at."""
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_TRIES = 8
_SHORT = 16
"""Hex digits of a referrer in its own tag."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A manifest that refers to an image, and what it needs beside it."""

    manifest: bytes
    parts: tuple[Descriptor, ...]
    """Config and layers."""
    artifact_type: str | None = None

    @classmethod
    def parse(cls, data: bytes, image: Descriptor, what: str) -> Attached:
        """Return the referrer in ``data``.

        Raises:
            CorruptContent: malformed, or about something else than ``image``.
        """
        document = strictjson.parse_object(data, what=what)
        subject = Descriptor.parse(document.get("subject"), f"{what}, its subject")
        if subject != Descriptor(MANIFEST_TYPE, image.digest, image.size):
            raise CorruptContent(f"{what}: is about {subject.digest}, not about {image.digest}")
        kind = document.get("artifactType")
        return cls(data, parts_of(document, what), kind if isinstance(kind, str) else None)

    @property
    def descriptor(self) -> Descriptor:
        """What a list of referrers says about it: taken from the manifest itself."""
        document = strictjson.parse_object(self.manifest, what="referrer")
        marks = parse_annotations(document.get("annotations"), "referrer")
        kind = self.artifact_type or self.parts[0].media_type
        return Descriptor(MANIFEST_TYPE, Digest.of(self.manifest), len(self.manifest), kind, marks)

    @property
    def signatures(self) -> tuple[Descriptor, ...]:
        """The layers that hold signatures in cosign's older form."""
        return tuple(part for part in self.parts[1:] if part.media_type == SIMPLE_SIGNING_TYPE)


def parts_of(document: Object, what: str) -> tuple[Descriptor, ...]:
    """Return config and layers of an image manifest.

    Raises:
        CorruptContent: it is none.
    """
    layers = document.get("layers")
    if document.get("mediaType") != MANIFEST_TYPE or "manifests" in document or not isinstance(layers, list):
        raise CorruptContent(f"{what}: expected an OCI image manifest")
    return tuple(Descriptor.parse(part, what) for part in (document.get("config"), *layers))


# --- finding ----------------------------------------------------------------------------------------------------------


def find(repository: Repository, image: Descriptor) -> Iterator[Attached]:
    """Yield what refers to ``image``, each once; what is malformed, gone or about another image is a stranger's.

    Raises:
        CorruptContent: a list is malformed or too long, or a manifest does not have the digest that it is listed by.
        RegistryError: the registry refuses or fails.
    """
    seen: set[Digest] = set()
    for found in _listed(repository, image.digest):
        if found.digest in seen:
            continue
        seen.add(found.digest)
        try:
            yield Attached.parse(found.data, image, f"referrer {found.digest.short}")
        except VerificationError:
            continue
    older = repository.find_manifest(_tag(image.digest, ".sig"))
    if older is not None and older.digest not in seen:
        try:
            yield _with_subject(older, image)
        except VerificationError:
            return


def _listed(repository: Repository, image: Digest) -> Iterator[Manifest]:
    listed = repository.referrers(image)
    names: list[str | Digest] = []
    if listed is None:
        index = repository.find_manifest(_tag(image))
        listed = entries(index.document, f"tag {_tag(image)}") if index else []
        names += [tag for tag in repository.tags(_tag(image, ".")) if not tag.endswith((".sig", ".att", ".sbom"))]
    names = [*dict.fromkeys(Digest.parse(entry["digest"]) for entry in listed), *names]
    if len(names) > 2 * MAX_REFERRERS:
        raise CorruptContent(f"{image}: expected at most {MAX_REFERRERS} referrers, the registry lists {len(names)}")
    digests = {name.hex[:_SHORT] for name in names if isinstance(name, Digest)}
    for name in names:
        if isinstance(name, str) and name.rpartition("-")[2] in digests:
            continue  # the tag of one that the index lists
        found = repository.find_manifest(name)
        if found is not None:
            yield found


def _with_subject(older: Manifest, image: Descriptor) -> Attached:
    """Return cosign's older signatures of ``image`` as a referrer, which is the only form that the store keeps."""
    what = f"tag {_tag(image.digest, '.sig')}"
    if "subject" in older.document:
        return Attached.parse(older.data, image, what)
    parts = parts_of(older.document, what)
    return Attached.parse(_signatures(image, parts[0], parts[1:]), image, what)


# --- putting ----------------------------------------------------------------------------------------------------------


def attach(repository: Repository, image: Descriptor, attached: Iterable[Attached]) -> None:
    """Put referrers, whose blobs are there, where other tools and :func:`find` look for them.

    Raises:
        RegistryError: the registry refuses, or others keep writing the fallback index.
        CorruptContent: what stands under the fallback tag is no index.
    """
    unlisted = []
    signed: list[Attached] = []
    for one in attached:
        listed = repository.put_manifest(one.descriptor.digest, one.manifest)
        if not listed:
            tag = f"{_tag(image.digest, '.')}{'referrer-'}{one.descriptor.digest.hex[:_SHORT]}"
            repository.put_manifest(tag, one.manifest)
            unlisted.append(one.descriptor)
        if one.signatures:
            signed.append(one)
    if unlisted:
        _list(repository, image.digest, unlisted)
    if signed:
        _sign(repository, image, signed)


def _list(repository: Repository, image: Digest, wanted: list[Descriptor]) -> None:
    """Bring ``wanted`` into the fallback index and look whether they stay there."""
    tag = _tag(image)
    for attempt in range(_TRIES):
        index = repository.find_manifest(tag)
        listed = entries(index.document, f"tag {tag}") if index else []
        there = {entry["digest"] for entry in listed}
        missing = [one.to_json() for one in wanted if str(one.digest) not in there]
        if not missing:
            return
        if attempt:
            time.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311 - only to get out of another's way
        document: Object = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*listed, *missing]}
        repository.put_manifest(tag, strictjson.canonical(document), INDEX_TYPE)
    raise RegistryError(f"{repository.reference}: others keep writing the tag {tag}", hint="push again in a moment")


def _sign(repository: Repository, image: Descriptor, signed: list[Attached]) -> None:
    """Let cosign's older tag hold our signatures, beside those of others that it holds already."""
    tag = _tag(image.digest, ".sig")
    older = repository.find_manifest(tag)
    there = parts_of(older.document, f"tag {tag}")[1:] if older else ()
    have = {(layer.digest, tuple(sorted(layer.annotations.items()))) for layer in there}
    fresh = [
        layer
        for one in signed
        for layer in one.signatures
        if (layer.digest, tuple(sorted(layer.annotations.items()))) not in have
    ]
    if not fresh:
        return
    if not there and len(signed) == 1:
        repository.put_manifest(tag, signed[0].manifest)
        return
    layers = (*there, *fresh)
    rootfs: Object = {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]}
    config = strictjson.canonical({"architecture": "", "os": "", "config": {}, "rootfs": rootfs})
    described = Descriptor(_CONFIG_TYPE, Digest.of(config), len(config))
    repository.put_blob(described, config)
    repository.put_manifest(tag, _signatures(image, described, layers))


def _signatures(image: Descriptor, config: Descriptor, layers: Iterable[Descriptor]) -> bytes:
    return strictjson.canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
            "subject": Descriptor(MANIFEST_TYPE, image.digest, image.size).to_json(),
        }
    )


def _tag(image: Digest, suffix: str = "") -> str:
    return f"sha256-{image.hex}{suffix}"
