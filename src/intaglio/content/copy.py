"""Moves an image, with everything that refers to it, between the store and a registry.

- Each byte is read once and hashed on the way; what the other side has already does not go over the wire.
- Up: blobs, then the image under its digest, then its referrers, and its tag last: whoever reads the tag finds all.
  What is derived from referrers, for cosign's older tag, goes up besides and is not counted.
- Down: a tag is resolved once, to a digest. Everything waits in a staging area until the caller's check of it has
  passed; a refusal leaves nothing behind, a broken connection leaves what the next try goes on with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

from intaglio import strictjson
from intaglio.content import attestations, remote_referrers
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor, parts_of
from intaglio.content.layout import ListedReferrer, Store
from intaglio.content.modelpack import MODEL_TYPE, ModelImage
from intaglio.content.reference import Reference
from intaglio.content.remote import Repository
from intaglio.content.remote_referrers import MAX_REFERRERS, Attached
from intaglio.content.remote_transfer import Advances
from intaglio.content.runtime_image import open_image
from intaglio.content.staging import Staging
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable, VerificationError
from intaglio.progress import Progress, Task

WORKERS = 3
"""Blobs under way at once: past it, more connections make a fast network slower."""
MAX_ATTACHED = 512 << 20
"""Most bytes of one image's signatures and attestations."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What came of a transfer."""

    image: Digest
    reference: str
    """The name that the image has from now on where it went."""
    bytes: int
    """Bytes of blobs that went over the network."""
    skipped_bytes: int
    """Bytes of blobs that were there already."""

    def to_json(self) -> strictjson.Object:
        """Return the interface of ``push`` and ``pull`` under ``--json``."""
        return {
            "image": str(self.image),
            "reference": self.reference,
            "bytes": self.bytes,
            "skipped_bytes": self.skipped_bytes,
        }

    def summary(self) -> str:
        """Return what went over, for people; bytes in powers of ten."""
        return f"{self.bytes / 1e6:.1f} MB transferred, {self.skipped_bytes / 1e6:.1f} MB were there already"


# --- up ---------------------------------------------------------------------------------------------------------------


def push(store: Store, image: Digest, repository: Repository, tag: str, progress: Progress) -> Transfer:
    """Copy ``image`` and its referrers to ``repository``, and let ``tag`` mean it there.

    Raises:
        CorruptContent: a blob of the store is damaged: then neither manifest nor tag is pushed.
        NotVerifiable: the store does not hold all of it.
        RegistryError: the registry refuses or fails.
    """
    what = f"image {image.short}"
    manifest = store.read(image, what=what)
    described = Descriptor(MANIFEST_TYPE, image, len(manifest))
    parts = parts_of(strictjson.parse_object(manifest, what=what), what)
    attached = list(_referrers(store, described))
    blobs = {part.digest: part for part in (*parts, *(part for one in attached for part in one.parts))}
    for blob in blobs.values():
        if not store.has(blob.digest):
            raise NotVerifiable(f"{what}: {blob.digest} is not in the store {store.root}")

    def one(blob: Descriptor, task: Advances) -> int:
        if repository.has_blob(blob):
            task.advance(blob.size)
            return 0
        repository.push_blob(blob, store.path(blob.digest), task)
        return blob.size

    attested = attestations.derive(store, image)
    moved, skipped = _side_by_side(one, blobs.values(), f"pushing {repository.reference}", progress)
    for data in attested.blobs if attested else ():
        repository.put_blob(Descriptor("", Digest.of(data), len(data)), data)
    repository.put_manifest(image, manifest)
    left = [remote_referrers.attach(repository, described, attached)]
    if attested is not None:
        left.append(remote_referrers.attest(repository, described, attested))
    for occupied in filter(None, left):
        progress.note(f"{repository.reference}:{occupied} cannot hold what cosign looks for there: left as it is")
    repository.put_manifest(tag, manifest)
    return Transfer(image, f"{repository.reference}:{tag}", moved, skipped)


def _referrers(store: Store, image: Descriptor) -> Iterator[Attached]:
    """Yield what refers to ``image``; what is malformed is a stranger's, here as in a registry."""
    for one in store.referrers(image.digest):
        data = store.read(one.digest, what="referrer")
        with contextlib.suppress(VerificationError):
            yield Attached.parse(data, image, f"referrer {one.digest.short}")


# --- down -------------------------------------------------------------------------------------------------------------


def pull(
    repository: Repository,
    reference: Reference,
    store: Store,
    name: str,
    admit: Callable[[Staging, Digest], None],
    progress: Progress,
) -> Transfer:
    """Copy the image that ``reference`` means, with its referrers, into ``store``, and let ``name`` mean it there.

    Args:
        repository: where it is.
        reference: its tag, its digest, or both, which must then agree.
        store: where it goes.
        name: its name there.
        admit: raises unless what was staged may become visible.
        progress: told of the bytes.

    Raises:
        CorruptContent: bytes, a manifest or a digest are not what was promised.
        RegistryError: the registry refuses or fails.
        VerificationError: whatever ``admit`` says.
    """
    found = repository.manifest(reference.tag or reference.digest or "")
    if reference.digest is not None and found.digest != reference.digest:
        raise CorruptContent(f"{reference}: the tag means {found.digest}, expected the digest beside it")
    what = f"{repository.reference}@{found.digest.short}"
    model = open_image(found.data, what)
    kind = MODEL_TYPE if isinstance(model, ModelImage) else None
    image = Descriptor(MANIFEST_TYPE, found.digest, len(found.data), kind)
    with Staging.open(store) as staging:
        staging.put(found.data)

        files = [Descriptor("", file.digest, file.size) for file in model.files]
        own = {part.digest: part.size for part in (model.config, *files)}
        attached = _attached(repository, image, own)
        parts = [model.config, *files, *(part for referrer in attached for part in referrer.parts)]
        blobs = {(blob.digest, blob.size): blob for blob in parts}
        moved, skipped = _side_by_side(
            _fetching(repository, staging, own), blobs.values(), f"pulling {repository.reference}", progress
        )
        for referrer in attached:
            if all(_came(staging, part) for part in referrer.parts):
                staging.put(referrer.manifest)
                staging.refer(found.digest, ListedReferrer.parse(referrer.manifest).manifest)
        try:
            admit(staging, found.digest)
        except VerificationError:
            staging.discard()
            raise
        staging.publish()
    store.tag(name, image, store.referrers(found.digest))
    return Transfer(found.digest, name, moved, skipped)


def _fetching(
    repository: Repository, staging: Staging, own: Collection[Digest]
) -> Callable[[Descriptor, Advances], int]:
    """Return what stages one blob and answers the bytes that came; ``own`` are the image's, which must be there."""

    def fetch(blob: Descriptor, task: Advances) -> int:
        if staging.has(blob):
            task.advance(blob.size)
            return 0
        try:
            with staging.incoming(blob) as sink:
                return repository.fetch_blob(blob, sink, task)
        except CorruptContent:
            if blob.digest in own or repository.has_blob(blob):
                raise
            return 0  # no blob of that size: what names it is a stranger's

    return fetch


def _attached(repository: Repository, image: Descriptor, own: Mapping[Digest, int]) -> list[Attached]:
    """Return what refers to ``image``, as far as it can be evidence; ``own`` are the sizes of the image's own blobs."""
    attached: list[Attached] = []
    total = 0
    for one in remote_referrers.find(repository, image):
        if any(part.size > strictjson.MAX_BYTES for part in one.parts):
            continue  # something large that somebody hung on the image: no signature, no attestation
        if any(own.get(part.digest, part.size) != part.size for part in one.parts):
            continue  # a stranger's: the image knows better
        try:
            ListedReferrer.parse(one.manifest)
        except CorruptContent:
            continue  # a stranger's: the store could not list it
        attached.append(one)
        total += len(one.manifest) + sum(part.size for part in one.parts)
        if len(attached) > MAX_REFERRERS or total > MAX_ATTACHED:
            raise CorruptContent(
                f"{image.digest}: expected at most {MAX_REFERRERS} referrers of {MAX_ATTACHED} bytes, found more",
                hint="whoever may push there can attach as many: remove what is not yours, or pull from elsewhere",
            )
    return attached


def _came(staging: Staging, part: Descriptor) -> bool:
    """Return whether the blob is staged or in the store with the size that ``part`` says."""
    place = staging.path(part.digest)
    return place.is_file() and place.stat().st_size == part.size


class _Brake:
    """A task that stops whoever reports to it: so that no transfer goes on after another has failed."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.stopped = False

    def advance(self, amount: int) -> None:
        if self.stopped:
            raise _StoppedError
        self._task.advance(amount)


class _StoppedError(Exception):
    """Another transfer has failed, or the user has had enough."""


def _side_by_side(
    work: Callable[[Descriptor, Advances], int], blobs: Collection[Descriptor], what: str, progress: Progress
) -> tuple[int, int]:
    """Run ``work`` over ``blobs`` on a few threads; return the bytes that were moved, and those that were not.

    The largest first, so that no worker begins one when the others have ended; the first error ends all.
    """
    total = sum(blob.size for blob in blobs)
    ordered = sorted(blobs, key=lambda blob: (-blob.size, blob.digest))
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="copy")
    with progress.task(what, total) as task:
        brake = _Brake(task)
        futures = [pool.submit(work, blob, brake) for blob in ordered]
        try:
            moved = sum(future.result() for future in as_completed(futures))
        except BaseException as error:
            brake.stopped = True
            # Whoever presses Ctrl-C waits for nobody.
            pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
            raise
        pool.shutdown()
    return moved, max(total - moved, 0)
