"""Passports: all that is needed to verify a model but the model, in a folder to mount beside it.

- A passport is an OCI layout with the model's manifest, config, signatures, attestations and lineage; the layers of the
  model itself are left out. Beside it travel the trusted source's ``metadata/`` and ``targets/``.
- It brings no trust of its own: a guard judges it by its own anchor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from intaglio import strictjson
from intaglio.content.descriptor import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.content.export import appearing
from intaglio.content.layout import Store
from intaglio.content.modelpack import ModelImage
from intaglio.digest import Digest
from intaglio.errors import NotVerifiable, VerificationError
from intaglio.trust.cosign import Link


def contents(store: Store, image: Digest) -> dict[str, bytes]:
    """Return the files of the passport of ``image``, without the trusted source's, by their paths.

    Raises:
        CorruptContent: no model image, or a blob that is damaged.
        NotVerifiable: a blob is not in the store.
    """
    what = f"image {image.short}"
    manifest = store.read(image, what=what)
    model = ModelImage.parse(manifest, what)
    blobs = {image: manifest, model.config.digest: store.read(model.config.digest, what=what)}
    entries = [_entry(image, manifest)]
    for referrer in sorted(store.referrers(image), key=lambda one: one.digest):
        for digest, data in _referrer(store, referrer.digest):
            blobs[digest] = data
        entries.append(_entry(referrer.digest, blobs[referrer.digest]))
    index: strictjson.Object = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [entry.to_json() for entry in entries],
    }
    files = {f"blobs/sha256/{digest.hex}": data for digest, data in blobs.items()}
    return {**files, "index.json": strictjson.canonical(index), "oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}


def write(store: Store, image: Digest, target: Path, home: Path, clock: datetime) -> None:
    """Write the passport of ``image`` into the folder ``target``, with what the home keeps of its trusted source.

    Raises:
        UsageError: ``target`` is there and not an empty folder.
        VerificationError: the image is damaged or not whole, or what the home keeps does not verify.
    """
    from intaglio.build.kits import listed
    from intaglio.trust import carried

    with appearing(target) as folder:
        travelling = carried.files(home, clock, listed(store, image), _reader(store))
        for path, data in {**contents(store, image), **travelling}.items():
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            place.chmod(0o644)


def _reader(store: Store) -> Callable[[Digest], bytes | None]:
    def read(digest: Digest) -> bytes | None:
        try:
            return store.read(digest, what=f"manifest {digest.short}")
        except NotVerifiable:
            return None

    return read


def _referrer(store: Store, digest: Digest) -> Iterator[tuple[Digest, bytes]]:
    """Yield a referrer's manifest and blobs; what is no evidence for anybody, or too large for it, stays behind."""
    what = f"referrer {digest.short}"
    data = store.read(digest, what=what)
    yield digest, data
    try:
        link = Link.parse(data, what)
    except VerificationError:
        return
    for part in (link.config, *link.layers):
        if part.size <= strictjson.MAX_BYTES:
            yield part.digest, store.read(part.digest, what=what)


def _entry(digest: Digest, manifest: bytes) -> Descriptor:
    kind = strictjson.parse_object(manifest, what=f"manifest {digest.short}").get("artifactType")
    return Descriptor(MANIFEST_TYPE, digest, len(manifest), kind)
