"""Signatures and attestations in a registry: how an image's referrers are found there, and how they are put there.

- Where the registry lists referrers itself, it is asked; else the fallback tag ``sha256-…`` holds an index of them,
  which is written, read back and written again, since writers race for it. Each has a tag of its own as well: what
  the race loses is found by it, and no garbage collection takes it for waste.
- In cosign's older form signatures stand under ``sha256-….sig`` besides, attestations under ``sha256-….att``. What
  others put there is kept. Attestations are not looked for there: those that count are referrers.
- No list is believed: every manifest that one names is opened, and counts only if its own subject is the image.

Source: OCI distribution specification 1.1, "Listing Referrers" and "Referrers Tag Schema"; cosign's signature
specification, "Tag-based discovery".
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from intaglio import strictjson
from intaglio.content.attestations import Attestations
from intaglio.content.cosign_tag import ATTESTATIONS, ATTESTED, MAX_LAYERS, SIGNATURES, Form, config_of, manifest_of
from intaglio.content.descriptor import INDEX_TYPE, MANIFEST_TYPE, Descriptor, parse_annotations, parts_of
from intaglio.content.modelpack import SIMPLE_SIGNING_TYPE
from intaglio.content.remote import Manifest, Repository, entries
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, RegistryError, VerificationError
from intaglio.strictjson import Json, Object

MAX_REFERRERS = 1024
"""Most referrers of one image that are opened: as many as verification looks at."""
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
    older = repository.find_manifest(SIGNATURES.tag(image.digest))
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
    what = f"tag {SIGNATURES.tag(image.digest)}"
    if "subject" in older.document:
        return Attached.parse(older.data, image, what)
    parts = parts_of(older.document, what)
    return Attached.parse(manifest_of(parts[0], parts[1:], _about(image)), image, what)


# --- putting ----------------------------------------------------------------------------------------------------------


def attach(repository: Repository, image: Descriptor, attached: Iterable[Attached]) -> str | None:
    """Put referrers, whose blobs are there, where other tools and :func:`find` look for them.

    Returns:
        cosign's older tag, where something stands under it that is not cosign's: it was left as it is.

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
    if not signed:
        return None
    layers = [layer for one in signed for layer in one.signatures]
    alone = signed[0].manifest if len(signed) == 1 else None
    return _join(repository, image, SIGNATURES, layers, _about(image), alone)


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


def attest(repository: Repository, image: Descriptor, attestations: Attestations) -> str | None:
    """Let cosign's older tag hold the attestations, whose blobs are there; as :func:`attach`."""
    return _join(repository, image, ATTESTATIONS, attestations.layers, ATTESTED, attestations.manifest)


def _join(
    repository: Repository,
    image: Descriptor,
    form: Form,
    layers: Sequence[Descriptor],
    rest: Mapping[str, Json],
    alone: bytes | None,
) -> str | None:
    """Let cosign's older tag hold ``layers``, beside those of others that it holds already.

    What stands there in another form, or has no room, is a stranger's: it is kept, and the tag returned. ``rest`` is
    what else stands in the manifest, ``alone`` the one that holds these layers and no others, where there is one.
    """
    tag = form.tag(image.digest)
    try:
        older = repository.find_manifest(tag)
        there = form.layers(older.document, f"tag {tag}") if older else ()
    except VerificationError:
        return tag
    have = {_marked(layer) for layer in there}
    fresh = [layer for layer in layers if _marked(layer) not in have]
    if not fresh:
        return None
    if older is None and alone is not None:
        repository.put_manifest(tag, alone)
        return None
    joined = (*there, *fresh)
    config, data = config_of(joined)
    manifest = manifest_of(config, joined, {**(older.document if older else {}), **rest})
    if len(joined) > MAX_LAYERS or len(manifest) > strictjson.MAX_BYTES:
        return tag
    repository.put_blob(config, data)
    repository.put_manifest(tag, manifest)
    return None


def _marked(layer: Descriptor) -> tuple[Digest, tuple[tuple[str, str], ...]]:
    """Return what tells two layers apart: the same payload may be signed twice."""
    return layer.digest, tuple(sorted(layer.annotations.items()))


def _about(image: Descriptor) -> Object:
    return {"subject": Descriptor(MANIFEST_TYPE, image.digest, image.size).to_json()}


def _tag(image: Digest, suffix: str = "") -> str:
    return f"sha256-{image.hex}{suffix}"
