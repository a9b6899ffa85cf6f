"""The store: an OCI image layout that any OCI tool can read, safe against crashes and other processes.

- A blob becomes visible by one rename, after it was hashed and brought to disk: never half-written, never unverified.
- Blobs are read-only (0444) and never change; trees enter a sandbox by hard link and leave to users by copy.
- ``index.json`` names the tagged images; everything else is found through the index, which the blobs can rebuild.
- Nothing that a reader gets back is trusted because it stands here: small blobs are re-hashed when they are read.

(OCI image specification 1.1, "Image Layout".)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from intaglio import strictjson
from intaglio.content import intake
from intaglio.content.descriptor import EMPTY, INDEX_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.content.index import Index
from intaglio.content.intake import BlobWriter, DamagedBlob
from intaglio.content.tree import File, Tree
from intaglio.dataclass import dataclass
from intaglio.digest import ActionKey, Digest
from intaglio.errors import CorruptContent, MachineError, NotVerifiable, UsageError
from intaglio.progress import Progress, Silent

REF_NAME = "org.opencontainers.image.ref.name"
ACTION = "dev.intaglio.action"
"""Annotation of a claim's manifest: the action it is about. A hint for the index, believed only when signed inside."""
_LAYOUT_FILE = b'{"imageLayoutVersion":"1.0.0"}'
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,511}\Z")
_SMALL = strictjson.MAX_BYTES
_LISTED = 4096
"""Most bytes of a referrer's entry in an index: a thousand strangers' leave ``index.json`` readable."""
ABANDONED = 14 * 24 * 3600
"""Seconds after which an unfinished download that nobody went on with is thrown away."""


@dataclass(frozen=True, slots=True)
class ListedReferrer:
    """A referrer as an index lists it: what its manifest says of itself, not what that is worth."""

    subject: Digest
    manifest: Descriptor
    """The referrer itself, described by its own manifest."""
    action: ActionKey | None
    """The action that it says it is a claim about."""

    @classmethod
    def parse(cls, data: bytes) -> ListedReferrer:
        """Return the referrer whose manifest is ``data``.

        Raises:
            CorruptContent: it has no subject, or what an index would repeat of it is malformed or large: that index
                could not be read again. An action that is none is a hint that leads nowhere, and no fault.
        """
        digest = Digest.of(data)
        what = f"referrer {digest.short}"
        document = strictjson.parse_object(data, what=what)
        if document.get("subject") is None:
            raise CorruptContent(f"{what}: has no subject")
        subject = Descriptor.parse(document["subject"], f"{what}, its subject")
        itself = {"mediaType": MANIFEST_TYPE, "digest": str(digest), "size": len(data)}
        itself |= {key: document[key] for key in ("artifactType", "annotations") if key in document}
        manifest = Descriptor.parse(itself, what)
        if len(strictjson.canonical(manifest.to_json())) > _LISTED:
            raise CorruptContent(f"{what}: expected annotations of at most {_LISTED} bytes, found more")
        try:
            action = ActionKey(manifest.annotations.get(ACTION, ""))
        except CorruptContent:
            action = None
        return cls(subject.digest, manifest, action)


def check_name(name: str) -> str:
    """Return ``name`` if an image may have it: what OCI tools take as a reference, and no digest.

    Raises:
        UsageError: it is none.
    """
    if not _NAME.match(name) or name.startswith("sha256:"):
        raise UsageError(f"expected a name such as team/model:1.0 for --tag, found {name[:80]!r}")
    return name


class Store:
    """One OCI image layout with its index; open it with :meth:`open`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._index: Index | None = None

    @classmethod
    def open(cls, root: Path) -> Store:
        """Return the store at ``root``, made first where there is none.

        Raises:
            MachineError: the folder holds something else, or cannot be written.
        """
        store = cls(root.absolute())
        marker = root / "oci-layout"
        fresh = not marker.exists()
        if fresh:
            if root.is_dir() and any(root.iterdir()) and not (root / "blobs").is_dir():
                raise MachineError(
                    f"{root}: expected a store or an empty folder, found other files",
                    hint="name another folder with --store or INTAGLIO_HOME",
                )
        elif _layout_version(marker) != "1.0.0":
            raise MachineError(f"{marker}: not a layout of version 1.0.0")
        # A layout that another tool wrote becomes a store by these.
        for folder in (store._blobs, root / "tmp", root / "locks", root / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            with store.lock("layout"):
                if not (root / "index.json").exists():
                    store._write_index_json([])
                intake.replace_file(marker, _LAYOUT_FILE, root / "tmp")
        return store

    @property
    def index(self) -> Index:
        """The index, opened on first use and filled from the blobs when its file is new."""
        if self._index is None:
            with self.lock("index"):
                self._index = Index(self.root / "index.sqlite")
                if self._index.fresh:
                    self.rebuild_index()
        return self._index

    # --- blobs ---------------------------------------------------------------------------------------------------

    def path(self, digest: Digest) -> Path:
        """Return where the blob stands, whether it does or not."""
        return self._blobs / digest.hex

    def has(self, digest: Digest, size: int | None = None) -> bool:
        """Return whether the blob is there and, if asked, has ``size`` bytes."""
        try:
            found = os.stat(self._blobs / digest.hex).st_size
        except FileNotFoundError:
            return False
        return size is None or found == size

    def read(self, digest: Digest, *, what: str, max_bytes: int = _SMALL) -> bytes:
        """Return a small blob, re-hashed.

        Raises:
            NotVerifiable: it is not in the store.
            CorruptContent: it does not have its digest, or is larger than ``max_bytes``.
        """
        try:
            with open(self.path(digest), "rb") as stream:
                data = stream.read(max_bytes + 1)
        except FileNotFoundError:
            raise NotVerifiable(f"{what}: {digest} is not in the store {self.root}") from None
        if len(data) > max_bytes:
            raise CorruptContent(f"{what}: expected at most {max_bytes} bytes, found more ({digest})")
        if Digest.of(data) != digest:
            raise CorruptContent(
                f"{what}: the blob does not have its digest {digest}", hint="see `intaglio store verify`"
            )
        return data

    def holds(self, data: bytes) -> bool:
        """Return whether ``data`` is there, byte for byte."""
        digest = Digest.of(data)
        return self.has(digest, len(data)) and self.path(digest).read_bytes() == data

    def put(self, data: bytes) -> Digest:
        """Store ``data`` and return its digest; an intact copy that is there already is kept."""
        digest = Digest.of(data)
        if self.holds(data):
            return digest
        with self.writer(expected=digest) as writer:
            writer.write(data)
            writer.commit()
        return digest

    def writer(self, *, expected: Digest | None = None) -> BlobWriter:
        """Return a context manager that takes chunks and makes them a blob on ``commit``."""
        return BlobWriter(self._blobs, self.root / "tmp", expected)

    def adopt(self, path: Path, *, expected: Digest | None = None, move: bool) -> tuple[Digest, int]:
        """Bring one regular file into the store, hashed while it streams; return its digest and size in bytes.

        ``move`` renames it (it must lie on the store's file system and belong to nobody else); else it is copied.

        Raises:
            CorruptContent: not a regular file, or not of the ``expected`` digest: then nothing is kept.
        """
        return intake.adopt(path, self._blobs, self.root / "tmp", expected=expected, move=move)

    def partial(self, digest: Digest) -> Path:
        """Return where a resumable download of the blob keeps its bytes until :meth:`adopt` takes them."""
        return self.root / "partial" / digest.hex

    # --- trees ---------------------------------------------------------------------------------------------------

    def ingest(self, root: Path, *, move: bool, progress: Progress | None = None) -> Tree:
        """Bring a folder's files, or a single file, into the store; all cores hash.

        Raises:
            CorruptContent: a link, device or other thing that is no regular file; a hard link when moving; a path
                that trees refuse; no file at all, or too many.
        """
        files = intake.ingest(root, self._blobs, self.root / "tmp", move=move, progress=progress or Silent())
        return self.put_tree(files)

    def put_tree(self, files: Iterable[File]) -> Tree:
        """Store and return the tree of ``files``, whose blobs must be there."""
        tree = Tree.of(files)
        for file in tree.files:
            if not self.has(file.digest, file.size):
                raise NotVerifiable(f"{file.path}: {file.digest} with {file.size} bytes is not in the store")
        self.put(EMPTY)
        self.put(tree.manifest())
        return tree

    def tree(self, digest: Digest) -> Tree:
        """Return the tree whose manifest has ``digest``."""
        return Tree.parse(self.read(digest, what="tree"), f"tree {digest.short}")

    def has_tree(self, digest: Digest) -> bool:
        """Return whether the tree and every file of it are there with their sizes (bytes are not read again)."""
        try:
            return all(self.has(file.digest, file.size) for file in self.tree(digest).files)
        except (NotVerifiable, CorruptContent):
            return False

    def check_tree(self, tree: Tree) -> None:
        """Re-hash every file of ``tree`` on all cores: for whoever uses the blobs where they stand.

        Raises:
            CorruptContent: a blob is gone, or does not have its digest.
        """
        digests = {file.digest: file.path for file in tree.files}
        faults = intake.check_blobs([self.path(digest) for digest in digests])
        if faults:
            path = digests[Digest.from_hex(faults[0].path.name)]
            raise CorruptContent(
                f"{path}: a blob of the store is damaged: {faults[0].message}",
                hint="intaglio store verify --repair   (removes what is damaged; the next build makes it again)",
            )

    def link_tree(self, tree: Tree, target: Path) -> None:
        """Make ``target`` a folder of hard links to the tree's blobs: for sandboxes, which see it read-only."""
        for file in tree.files:
            place = target / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.executable:
                self._copy(file, place, 0o555)
                continue
            try:
                os.link(self.path(file.digest), place)
            except OSError:
                self._copy(file, place, 0o444)

    def copy_tree(self, tree: Tree, target: Path) -> None:
        """Copy the tree's files into the folder ``target``, checked on the way, for a user to keep.

        Raises:
            CorruptContent: a blob does not have its digest.
        """
        for file in tree.files:
            place = target / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            self._copy(file, place, 0o755 if file.executable else 0o644)

    def _copy(self, file: File, place: Path, mode: int) -> None:
        with open(self.path(file.digest), "rb") as source, open(place, "xb") as sink:
            digest, _ = intake.copy_stream(source, sink)
            os.fchmod(sink.fileno(), mode)
        if digest != file.digest:
            raise CorruptContent(f"{file.path}: expected {file.digest}, found {digest} in {self.path(file.digest)}")

    # --- referrers and claims ------------------------------------------------------------------------------------

    def put_referrer(self, manifest: bytes, blobs: Iterable[bytes]) -> Digest:
        """Store a manifest that has a subject, with its blobs; index it, and return its digest."""
        listed = ListedReferrer.parse(manifest)
        for blob in blobs:
            self.put(blob)
        self.index.add_referrer(listed.subject, listed.manifest.digest, listed.action)
        self.put(manifest)
        return listed.manifest.digest

    def referrers(self, subject: Digest) -> tuple[Descriptor, ...]:
        """Return the manifests that refer to ``subject``; each one opened, none taken at the index's word.

        Raises:
            CorruptContent: one does not have its digest; one that is malformed is a stranger's and passed over.
        """
        found = []
        for digest in self.index.referrers(subject):
            if not self.has(digest):
                continue
            data = self.read(digest, what="referrer")
            with contextlib.suppress(CorruptContent):
                listed = ListedReferrer.parse(data)
                if listed.subject == subject:
                    found.append(listed.manifest)
        return tuple(found)

    def claims(self, action: ActionKey) -> tuple[Digest, ...]:
        """Return the manifests that stand in the index as claims about ``action`` and are there."""
        return tuple(digest for digest in self.index.claims(action) if self.has(digest))

    def rebuild_index(self) -> int:
        """Gather every referrer from the blobs anew; return how many there are."""
        count = 0
        index = self._index or self.index
        with index.transaction():
            index.forget_referrers()
            for digest, data in self._manifests():
                try:
                    listed = ListedReferrer.parse(data)
                except CorruptContent:
                    continue
                index.add_referrer(listed.subject, digest, listed.action)
                count += 1
            index.filled()
        return count

    def _manifests(self) -> Iterator[tuple[Digest, bytes]]:
        """Yield the blobs that may be manifests."""
        with os.scandir(self._blobs) as entries:
            for entry in entries:
                if len(entry.name) == 64 and entry.stat().st_size <= _SMALL:
                    with open(entry.path, "rb") as stream:
                        if stream.read(1) == b"{":
                            yield Digest.from_hex(entry.name), b"{" + stream.read()

    # --- tags ----------------------------------------------------------------------------------------------------

    def tags(self) -> dict[str, Descriptor]:
        """Return the tagged images by name."""
        return {
            descriptor.annotations[REF_NAME]: descriptor
            for descriptor in self._read_index_json()
            if REF_NAME in descriptor.annotations
        }

    def resolve(self, reference: str) -> Digest:
        """Return the image that ``reference`` means now: a name, or a digest, which means itself.

        Raises:
            NotVerifiable: nothing here has that name.
        """
        if reference.startswith("sha256:"):
            try:
                digest = Digest.parse(reference)
            except CorruptContent as error:
                raise NotVerifiable(error.message) from None
            if not self.has(digest):
                raise NotVerifiable(f"{reference} is not in the store {self.root}")
            return digest
        tags = self.tags()
        if reference not in tags:
            from difflib import get_close_matches

            near = get_close_matches(reference, tags, 1)
            hint = f"did you mean {near[0]}?" if near else "`intaglio store list` shows what is there"
            raise NotVerifiable(f"no image {reference!r} in the store {self.root}", hint=hint)
        return tags[reference].digest

    def tag(self, name: str, image: Descriptor, beside: Iterable[Descriptor] = ()) -> None:
        """Let ``name`` mean ``image`` from now on; ``beside`` are its referrers, listed for other tools."""
        named = Descriptor(image.media_type, image.digest, image.size, image.artifact_type, {REF_NAME: name})
        with self.lock("index.json"):
            entries = [entry for entry in self._read_index_json() if entry.annotations.get(REF_NAME) != name]
            known = {(entry.digest, entry.annotations.get(REF_NAME)) for entry in entries}
            entries.append(named)
            entries.extend(entry for entry in beside if (entry.digest, None) not in known)
            self._write_index_json(entries)

    def _read_index_json(self) -> list[Descriptor]:
        data = (self.root / "index.json").read_bytes()
        what = f"{self.root / 'index.json'}"
        document = strictjson.parse_object(data, what=what, max_bytes=64 << 20)
        return [Descriptor.parse(entry, what) for entry in document.get("manifests", [])]

    def _write_index_json(self, entries: list[Descriptor]) -> None:
        document: Mapping[str, strictjson.Json] = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [entry.to_json() for entry in entries],
        }
        intake.replace_file(self.root / "index.json", strictjson.canonical(document), self.root / "tmp")

    # --- scratch and locks ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def scratch(self, prefix: str) -> Iterator[Path]:
        """Yield a private folder on the store's file system; it is gone afterwards."""
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=self.root / "tmp"))
        # A lock held for the folder's life tells the living from what a crash left behind.
        with open(folder / ".lock", "w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            inner = folder / "d"
            inner.mkdir()
            try:
                yield inner
            finally:
                intake.remove(folder)

    def sweep(self) -> None:
        """Remove what crashes left: scratch and temporary files whose process is gone, and old unfinished downloads.

        As far as it can: a store that is read-only, or in part another user's, is no worse with what a crash left.
        """
        with contextlib.suppress(OSError):
            intake.sweep(self.root / "tmp")
        with contextlib.suppress(OSError):
            _age_out(self.root / "partial")

    @contextlib.contextmanager
    def lock(self, name: str, waiting: Progress | None = None) -> Iterator[None]:
        """Hold the lock ``name`` against every other process and thread; a crash releases it."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    waiting.note("waiting for another build of the same action")
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def verify(self, progress: Progress | None = None) -> tuple[int, tuple[DamagedBlob, ...]]:
        """Re-hash every blob; return how many there are, and what is wrong."""
        return intake.verify_blobs(self._blobs, progress or Silent())

    def usage(self) -> dict[str, int]:
        """Return the bytes on disk by part of the store; a file with several names counts once."""
        seen: set[int] = set()
        sizes: dict[str, int] = {}
        for folder in ("blobs", "environments", "partial", "tmp", "logs"):
            sizes[folder] = 0
            for path, _, names in os.walk(self.root / folder):
                for name in names:
                    status = os.lstat(f"{path}/{name}")
                    if status.st_ino not in seen:
                        seen.add(status.st_ino)
                        sizes[folder] += status.st_blocks * 512
        return sizes


def _layout_version(marker: Path) -> object:
    try:
        return strictjson.parse_object(marker.read_bytes(), what=str(marker)).get("imageLayoutVersion")
    except CorruptContent:
        return None


def _age_out(partial: Path) -> None:
    """Remove the downloads that nobody has gone on with for a while, and nobody writes."""
    for entry in list(os.scandir(partial)):
        with contextlib.suppress(FileNotFoundError, BlockingIOError, PermissionError):
            if time.time() - entry.stat(follow_symlinks=False).st_mtime < ABANDONED:
                continue
            if entry.is_symlink() or not entry.is_file():
                continue  # nothing of ours
            with open(entry.path, "rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)
