"""Verification: gather the evidence about an image, ask the policy, answer with what was checked.

- Whatever the input, a ``Report`` comes back or a ``VerificationError`` is raised, and nothing else.
- Every byte of every file is read and re-hashed, on all cores, and looked into through the same open file.
- Nothing is written and nothing becomes trusted: keys and rules come from the policy alone.
- What an index or a registry says about a referrer is where to look; each one is opened.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import BinaryIO, Protocol

from intaglio import strictjson
from intaglio.content.bare import BareLayout, open_regular
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor, parts_of
from intaglio.content.formats.inspect import inspect
from intaglio.content.modelpack import MODEL_SIG, SIMPLE_SIGNING_TYPE, ModelImage
from intaglio.content.runtime_image import RuntimeImage, open_image
from intaglio.content.tree import File
from intaglio.dataclass import dataclass, replace
from intaglio.digest import Digest, hash_stream
from intaglio.errors import CorruptContent, ExitCode, NotVerifiable, PolicyRefusal, Stale, Untrusted, VerificationError
from intaglio.parallel import each
from intaglio.policy.decide import RuleResult, Verdict, VerdictName, decide
from intaglio.policy.document import Policy
from intaglio.policy.evidence import About, Evidence, FileEvidence, ReferrerEvidence, SourceEvidence
from intaglio.policy.lineage import named_dependencies
from intaglio.policy.listing import Listing
from intaglio.progress import Progress, Silent, Task
from intaglio.strictjson import MAX_BYTES, Object
from intaglio.trust.cosign import Link
from intaglio.trust.signature import BUNDLE_TYPE

MAX_REFERRERS = 1024
"""Most referrers of one image that are opened."""
MAX_ATTACHED = 512 << 20
"""Most bytes of signatures and attestations that are held at once."""
_BUFFER = 256 << 10
_EVIDENCE_TYPES = (BUNDLE_TYPE, SIMPLE_SIGNING_TYPE)


class EvidenceSource(Protocol):
    """Where an image and what refers to it can be read: a store, a bare layout."""

    def read(self, digest: Digest, *, what: str, max_bytes: int = MAX_BYTES) -> bytes:
        """Return a small blob, re-hashed."""

    def path(self, digest: Digest) -> Path:
        """Return where a blob stands."""

    def referrers(self, subject: Digest) -> tuple[Descriptor, ...]:
        """Return the manifests that refer to ``subject``."""


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """A file of a verified image: bytes of this digest are what was checked, wherever they are read next."""

    path: str
    digest: Digest
    size: int
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on one image, rule by rule."""

    verdict: VerdictName
    image: Digest
    rules: tuple[RuleResult, ...]
    files: tuple[VerifiedFile, ...]
    """The image's files; none unless it is verified."""
    exit_code: ExitCode

    def to_json(self) -> Object:
        """Return the interface of ``intaglio verify --json``."""
        rules = [{"rule": one.rule, "result": one.result, "detail": one.detail} for one in self.rules]
        return {"verdict": self.verdict, "image": str(self.image), "rules": rules}

    def require(self) -> Report:
        """Return this report if it says ``verified``.

        Raises:
            VerificationError: it does not; the kind is that of the gravest failure.
        """
        if self.verdict == "verified":
            return self
        kinds = {kind.exit_code: kind for kind in (CorruptContent, Untrusted, PolicyRefusal, Stale)}
        failed = [f"{one.rule}: {one.detail}" for one in self.rules if one.result == "fail"]
        raise kinds.get(self.exit_code, NotVerifiable)(f"{self.image}: {self.verdict}: {'; '.join(failed)}")


def verify_image(
    source: EvidenceSource,
    image: Digest,
    policy: Policy,
    *,
    listing: Listing | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    hashed: Set[Digest] = frozenset(),
    held: Mapping[str, int] | None = None,
) -> Report:
    """Return the verdict of ``policy`` on the image of that digest in ``source``.

    Args:
        source: where to read.
        image: digest of the image's manifest.
        policy: the verifier's own.
        listing: the verifier's own trusted source; one that the policy asks for and that is not given is a failure.
        progress: told about bytes hashed.
        workers: threads that hash; as many as there are cores when not given.
        hashed: files whose bytes the caller has just hashed itself, where nobody else writes: not read whole again.
        held: open descriptors of files (path → number), whose bytes the caller has just found to be those that the
            manifest names: what is looked into is read from there, and not hashed again.

    Raises:
        VerificationError: the image is not there, or could not be checked.
    """

    def check() -> Report:
        known = hashed | {file.digest for file in _files_of(source, image)} if held else hashed
        gathering = _Gathering(source, image, progress or Silent(), workers, known)
        evidence = gathering.evidence(lambda file: _open_held(file, source.path(file.digest), held or None))
        return _report(evidence, policy, listing)

    return _guarded(check)


def verify_layout(
    folder: Path,
    policy: Policy,
    *,
    image: Digest | None = None,
    listing: Listing | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Report:
    """Return the verdict on an image in the OCI layout at ``folder``: the one image in it, or that of the digest.

    What the layout holds beside images and what refers to this one is no evidence, but re-hashed as well: a blob
    without its digest means that the place is damaged.

    Raises:
        VerificationError: no such image, several where none was named, or it could not be checked.
    """

    def check() -> Report:
        layout = BareLayout(folder)
        wanted = image
        if wanted is None:
            images = layout.images()
            if len(images) != 1:
                raise NotVerifiable(
                    f"{folder}: expected one model image, found {len(images)}", hint="name one by its digest"
                )
            wanted = images[0].digest
        gathering = _Gathering(layout, wanted, progress or Silent(), workers)
        evidence = gathering.evidence(lambda file: open_regular(layout.path(file.digest), file.path))
        beside = tuple(_beside(layout, wanted))
        return _report(replace(evidence, damaged=(*evidence.damaged, *beside)), policy, listing)

    return _guarded(check)


def _beside(layout: BareLayout, image: Digest) -> Iterator[VerificationError]:
    """Yield what is wrong with the blobs of manifests that are neither images nor about ``image``."""
    try:
        known = {one.digest for one in (*layout.images(), *layout.referrers(image))}
        manifests = layout.manifests()
    except VerificationError:  # a manifest is damaged: whoever looked for referrers has met and named it
        return
    for described in manifests:
        if described.digest in known:
            continue
        what = f"manifest {described.digest.short}"
        data = layout.read(described.digest, what=what)
        try:
            parts = parts_of(strictjson.parse_object(data, what=what), what)
        except VerificationError:  # a stranger's
            continue
        for part in parts:
            try:
                with open_regular(layout.path(part.digest), f"{what}, its blob") as stream:
                    found, size = hash_stream(stream)
            except VerificationError as error:
                yield error
            else:
                if (found, size) != (part.digest, part.size):
                    yield CorruptContent(f"{what}: expected its blob {part.digest}, found {found}")


def verify_folder(
    source: EvidenceSource,
    image: Digest,
    folder: Path,
    policy: Policy,
    *,
    listing: Listing | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    held: Mapping[str, int] | None = None,
) -> Report:
    """Return the verdict on a plain folder that should hold the image's files, perhaps ``model.sig``, and nothing else.

    The manifest, signatures and claims are read from ``source``; every file is read from ``folder``, or from its open
    descriptor in ``held`` (path → number), whose bytes the caller has just found to be those that the manifest names.

    Raises:
        VerificationError: the image is not in ``source``, or could not be checked.
    """

    def check() -> Report:
        hashed = set() if held is None else {file.digest for file in _files_of(source, image)}
        gathering = _Gathering(source, image, progress or Silent(), workers, hashed)
        evidence = gathering.evidence(lambda file: _open_held(file, folder / file.path, held))
        if isinstance(evidence.model, ModelImage):
            strange, signature = _walk_folder(folder, {file.path: file for file in evidence.model.files})
            evidence = replace(evidence, damaged=(*evidence.damaged, *strange), folder_signature=signature)
        return _report(evidence, policy, listing)

    return _guarded(check)


def _files_of(source: EvidenceSource, image: Digest) -> tuple[File, ...]:
    what = f"image {image.short}"
    return ModelImage.parse(source.read(image, what=what), what).files


def _open_held(file: File, place: Path, held: Mapping[str, int] | None) -> BinaryIO:
    if held is None:
        return open_regular(place, file.path)
    return open(f"/proc/self/fd/{held[file.path]}", "rb")  # a position of its own


def _guarded(check: Callable[[], Report]) -> Report:
    try:
        return check()
    except VerificationError:
        raise
    except OSError as error:
        raise NotVerifiable(f"could not be read: {error.filename or ''}: {error.strerror}") from error
    except Exception as error:  # a fault of the verifier's is a refusal, never a pass
        raise NotVerifiable(f"the check itself failed: {type(error).__name__}: {error}") from error


def _report(evidence: Evidence, policy: Policy, listing: Listing | None) -> Report:
    if listing is not None:
        asked = sorted(named_dependencies(evidence.attachments()))
        found = {digest: listing.lookup(digest) for digest in asked}
        listed = {digest: one for digest, one in found.items() if one is not None}
        evidence = replace(evidence, source=SourceEvidence(listing.age, listed))
    verdict: Verdict = decide(evidence, policy)
    files: tuple[VerifiedFile, ...] = ()
    if verdict.verdict == "verified":
        checked = (one.file for one in evidence.files)
        files = tuple(VerifiedFile(file.path, file.digest, file.size, file.executable) for file in checked)
    return Report(verdict.verdict, evidence.image, verdict.rules, files, verdict.exit_code)


# --- gathering -------------------------------------------------------------------------------------------------------


class _Gathering:
    """Reads what there is about one image; faults become evidence, so that the report can name them all."""

    def __init__(
        self,
        source: EvidenceSource,
        image: Digest,
        progress: Progress,
        workers: int | None,
        hashed: Set[Digest] = frozenset(),
    ) -> None:
        self._source = source
        self._image = image
        self._progress = progress
        self._workers = workers or len(os.sched_getaffinity(0))
        self._hashed = hashed
        self._attached = 0

    def evidence(self, open_file: Callable[[File], BinaryIO]) -> Evidence:
        """Return the evidence, each file read from what ``open_file`` gives."""
        try:
            data = self._source.read(self._image, what=f"image {self._image.short}")
        except CorruptContent as error:
            return Evidence(self._image, error)
        damaged: list[VerificationError] = []
        referrers = self._referrers(len(data), damaged)
        try:
            model = open_image(data, f"image {self._image.short}")
            what = f"config of {self._image.short}"
            config = self._source.read(model.config.digest, what=what)
            if len(config) != model.config.size:
                raise CorruptContent(f"{what}: expected {model.config.size} bytes, found {len(config)}")
            said = model.check_config(config, what)
            about = About.of(said, model.annotations) if isinstance(model, ModelImage) else None
        except VerificationError as error:
            return Evidence(self._image, error, (), referrers, tuple(damaged))
        return Evidence(self._image, model, self._files(model, open_file), referrers, tuple(damaged), about=about)

    def _files(
        self, model: ModelImage | RuntimeImage, open_file: Callable[[File], BinaryIO]
    ) -> tuple[FileEvidence, ...]:
        # The largest first, so that no core waits for one that began the largest last.
        ordered = sorted(model.files, key=lambda file: -file.size)
        total = sum(file.size for file in ordered)
        looked_into = isinstance(model, ModelImage)
        with self._progress.task("verifying", total) as task:
            checked = each(lambda file: self._check(file, open_file, task, looked_into), ordered, self._workers)
        by_path = {one.file.path: one for one in checked}
        return tuple(by_path[file.path] for file in model.files)

    def _check(self, file: File, open_file: Callable[[File], BinaryIO], task: Task, looked_into: bool) -> FileEvidence:
        """Hash and look into one file, both through one open descriptor; a runtime image's layers are only hashed."""
        try:
            with open_file(file) as stream:
                fault = _measure(stream, file, task) if file.digest in self._hashed else _hash(stream, file, task)
                if fault is not None or not looked_into:
                    return FileEvidence(file, fault, None)
                try:
                    return FileEvidence(file, None, inspect(stream, file.size, file.path))
                except VerificationError as error:
                    return FileEvidence(file, None, error)
        except OSError as error:
            return FileEvidence(file, NotVerifiable(f"{file.path}: {error.strerror}"), None)
        except VerificationError as error:
            return FileEvidence(file, error, None)

    def _referrers(self, size: int, damaged: list[VerificationError]) -> tuple[ReferrerEvidence, ...]:
        """Return what refers to the image; what lacks its digest is damage, what is malformed is a stranger's."""
        try:
            listed = self._source.referrers(self._image)
        except VerificationError as error:
            damaged.append(error)
            return ()
        if len(listed) > MAX_REFERRERS:
            raise NotVerifiable(f"expected at most {MAX_REFERRERS} referrers of one image, found {len(listed)}")
        found = []
        subject = Descriptor(MANIFEST_TYPE, self._image, size)
        for descriptor in sorted(listed, key=lambda one: one.digest):
            try:
                what = f"referrer {descriptor.digest.short}"
                data = self._source.read(descriptor.digest, what=what)
            except VerificationError as error:
                damaged.append(error)
                continue
            try:
                link = Link.parse(data, what)
            except VerificationError:
                continue
            if link.subject == subject:
                found.append(ReferrerEvidence(descriptor.digest, self._layers(link, what, damaged)))
        return tuple(found)

    def _layers(self, link: Link, what: str, damaged: list[VerificationError]) -> tuple[tuple[Descriptor, bytes], ...]:
        """Return the layers that can be evidence; the other parts are only re-hashed, so that no flipped bit stays."""
        layers = []
        for part in (link.config, *link.layers):
            if part.size > MAX_BYTES:
                continue  # no bundle is as large
            self._attached += part.size
            if self._attached > MAX_ATTACHED:
                raise NotVerifiable(f"expected at most {MAX_ATTACHED} bytes of signatures and attestations, found more")
            try:
                data = self._source.read(part.digest, what=f"{what}, its blob")
                if len(data) != part.size:
                    raise CorruptContent(f"{what}: its blob has {len(data)} bytes, expected {part.size}")
            except VerificationError as error:
                damaged.append(error)
            else:
                layers.append((part, data))
        return tuple((layer, data) for layer, data in layers if layer.media_type in _EVIDENCE_TYPES)


def _measure(stream: BinaryIO, file: File, task: Task) -> CorruptContent | None:
    """Return why the stream is not the file, as far as its size tells; its bytes were hashed by the caller."""
    found = os.fstat(stream.fileno()).st_size
    task.advance(file.size)
    return None if found == file.size else CorruptContent(f"{file.path}: expected {file.size} bytes, found {found}")


def _hash(stream: BinaryIO, file: File, task: Task) -> CorruptContent | None:
    """Return why the stream is not the file; reads one byte past its size at most, so that nothing can be endless."""
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER))
    left = file.size
    while left:
        count = stream.readinto(buffer[: min(left, _BUFFER)])  # type: ignore[attr-defined]
        if not count:
            return CorruptContent(f"{file.path}: expected {file.size} bytes, found {file.size - left}")
        hasher.update(buffer[:count])
        left -= count
        task.advance(count)
    if stream.read(1):
        return CorruptContent(f"{file.path}: expected {file.size} bytes, found more")
    found = Digest.from_hex(hasher.hexdigest())
    return None if found == file.digest else CorruptContent(f"{file.path}: expected {file.digest}, found {found}")


def _walk_folder(folder: Path, names: Mapping[str, File]) -> tuple[list[VerificationError], bytes | None]:
    """Return what in ``folder`` is not one of ``names``, and the signature beside them."""
    faults: list[VerificationError] = []
    signature: bytes | None = None
    parents = {name[:place] for name in names for place, char in enumerate(name) if char == "/"}
    pending = [(folder, "")]
    while pending and len(faults) < 100:
        place, prefix = pending.pop()
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                name = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
                if entry.is_symlink():
                    faults.append(CorruptContent(f"{name}: a symbolic link"))
                elif entry.is_dir(follow_symlinks=False) and name in parents:
                    pending.append((Path(entry.path), f"{name}/"))
                elif name == MODEL_SIG and name not in names:
                    with open_regular(Path(entry.path), name) as stream:
                        signature = stream.read(MAX_BYTES + 1)
                elif name not in names:
                    faults.append(CorruptContent(f"{name}: not in the image"))
                elif not _mode_fits(entry.stat(follow_symlinks=False).st_mode, names[name]):
                    faults.append(CorruptContent(f"{name}: its mode is not the image's"))
    return faults, signature


def _mode_fits(mode: int, file: File) -> bool:
    """Return whether the permissions are the file's: readable to whom its owner likes, executable only if it was."""
    special = mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX)
    return not special and bool(mode & 0o111) == file.executable
