"""``hf:ORG/NAME@REVISION`` — a repository of the Hugging Face Hub, at one commit; ``hf:datasets/ORG/NAME@…`` likewise.

- Only a commit (40 hex digits) names content; a branch is refused, with the commit that it points to now.
- ``#*.json,*.safetensors`` takes only the files that match one of the patterns (``*`` also matches ``/``).
- Each file is checked against what the listing promises: sha256 for LFS files, the git blob's sha1 for the others; and
  the whole against the lock's pin, before any large file is fetched.
- ``HF_ENDPOINT`` names another hub; ``INTAGLIO_HF_MIRRORS`` (addresses, with commas) others that are asked when it does
  not answer. ``HF_TOKEN`` goes to the endpoint and to nobody else.

Source: https://huggingface.co/docs/hub/api, huggingface_hub's ``hf_api.list_repo_tree`` and ``file_download``.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from intaglio import strictjson
from intaglio.content.layout import Store
from intaglio.content.tree import MAX_FILES, File, Tree, check_path
from intaglio.dataclass import dataclass
from intaglio.digest import Digest, hash_stream
from intaglio.errors import CorruptContent, Error, SourceUnreachable, UsageError
from intaglio.progress import Progress, Task
from intaglio.recipe.sources.interface import BadUri, FloatingRevision, check_pin, offline_refusal, present, unreachable

if TYPE_CHECKING:
    from intaglio.recipe.sources.http import Client, Network

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
ENDPOINT = "https://huggingface.co"
"""The public hub."""
PARALLEL = 4
"""Files fetched at once."""
MAX_LISTING = 8 << 20
"""Bytes of one page of a listing."""
MAX_PAGES = 64
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_URI = re.compile(
    rf"hf:(?P<kind>datasets/)?(?P<repo>{_PART}/{_PART}|{_PART})@(?P<revision>[^#?]+)(?:(?:\#|\?include=)(?P<globs>.+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a repository, as the hub lists it."""

    path: str
    size: int
    """Bytes."""
    blob: str
    """The git blob's sha1 (of the pointer, for an LFS file)."""
    lfs: Digest | None
    """The file's sha256, if it is kept by LFS."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the hub at one commit."""

    uri: str
    repository: str
    """With ``datasets/`` in front if it is one."""
    revision: str
    globs: tuple[str, ...] = ()
    name: str | None = None
    digest: Digest | None = None
    """The tree that the recipe promises."""
    network: Network | None = None
    """``None``: as the environment says."""

    @classmethod
    def parse(cls, uri: str, name: str | None, digest: Digest | None) -> HubSource:
        """Return the source that ``uri`` addresses.

        Raises:
            FloatingRevision: a branch or tag instead of a commit.
            BadUri: anything else that is wrong.
        """
        found = _parts(uri)
        if not _COMMIT.fullmatch(found["revision"]):
            raise FloatingRevision(
                f"not pinned: {found['revision']!r} may change; expected @ and a commit of 40 hex digits"
            )
        globs = tuple(glob for glob in (found["globs"] or "").split(",") if glob)
        return cls(uri, (found["kind"] or "") + found["repo"], found["revision"], globs, name, digest)

    def fetch(self, store: Store, *, expected: Digest | None, progress: Progress, offline: bool) -> Tree:
        """Bring the repository's files into ``store``: see :meth:`Source.fetch`."""
        expected = expected or self.digest
        stored = present(store, expected)
        if stored is not None:
            return stored
        if offline:
            raise offline_refusal(self.uri, self.name)
        errors: list[Error] = []
        for hub in _hubs(self.network):
            try:
                return self._fetch(hub, store, expected, progress)
            except (SourceUnreachable, CorruptContent) as error:
                errors.append(error)
                progress.note(f"{hub.endpoint}: {error.message}")
        raise _worst(errors)

    def _fetch(self, hub: _Hub, store: Store, expected: Digest | None, progress: Progress) -> Tree:
        entries = self._chosen(hub.listing(self.repository, self.revision))
        with store.scratch("hf") as folder:
            total = sum(entry.size for entry in entries)
            with progress.task(f"fetching {self.repository}", total) as task:
                small = [entry for entry in entries if entry.lfs is None]
                fetched = _together(small, lambda entry: self._small(hub, entry, folder, task))
                large = [(File(entry.path, entry.lfs, entry.size), entry) for entry in entries if entry.lfs]
                # Every digest is known by now: a repository that differs from the pin is refused before its weights.
                tree = Tree.of([*(file for file, _ in fetched), *(file for file, _ in large)])
                check_pin(self.uri, self.name, expected, tree)
                _together(large, lambda pair: self._large(hub, pair[0], store, task))
            for file, path in fetched:
                store.adopt(path, expected=file.digest, move=True)
        return store.put_tree(tree.files)

    def _chosen(self, entries: Iterable[Entry]) -> list[Entry]:
        everything = list(entries)
        chosen = [
            entry
            for entry in everything
            if not self.globs or any(fnmatch.fnmatchcase(entry.path, glob) for glob in self.globs)
        ]
        for glob in self.globs:
            if not any(fnmatch.fnmatchcase(entry.path, glob) for entry in everything):
                raise unreachable(self.uri, f"no file matches {glob!r}", "check the patterns after #")
        if not chosen:
            raise unreachable(self.uri, "the repository holds no file at this revision")
        if len(chosen) > MAX_FILES:
            raise unreachable(
                self.uri, f"{len(chosen)} files, a tree holds {MAX_FILES}", "choose files by patterns after #"
            )
        return chosen

    def _small(self, hub: _Hub, entry: Entry, folder: Path, task: Task) -> tuple[File, Path]:
        """Fetch a file that git holds itself, and check it against its blob id."""
        place = folder / hashlib.sha256(entry.path.encode()).hexdigest()
        for last in (False, True):
            hub.client.download(hub.file(self.repository, self.revision, entry.path), place, size=entry.size, task=task)
            found = _git_blob(place, entry.size)
            if found == entry.blob:
                with open(place, "rb") as stream:
                    return File(entry.path, *hash_stream(stream)), place
            place.unlink()
            if last:
                break
        raise CorruptContent(
            f"{self.uri}: {entry.path}: expected the git blob {entry.blob}, found {found} twice",
            hint=f"{hub.endpoint} or what stands before it gives wrong bytes",
        )

    def _large(self, hub: _Hub, file: File, store: Store, task: Task) -> None:
        """Fetch an LFS file into the store, going on where an earlier try ended."""
        partial = store.partial(file.digest)
        with store.lock(f"fetch-{file.digest.hex}"):
            if store.has(file.digest, file.size):
                task.advance(file.size)
                return
            partial.parent.mkdir(parents=True, exist_ok=True)
            for last in (False, True):
                url = hub.file(self.repository, self.revision, file.path)
                hub.client.download(url, partial, size=file.size, task=task)
                try:
                    store.adopt(partial, expected=file.digest, move=True)
                    return
                except CorruptContent as error:
                    partial.unlink(missing_ok=True)
                    if last:
                        raise CorruptContent(
                            f"{self.uri}: {file.path}: wrong bytes, twice: {error.message}",
                            hint=f"{hub.endpoint} or what stands before it gives wrong bytes",
                        ) from None


def current_revision(uri: str, network: Network | None = None) -> str | None:
    """Return the commit to which the branch or tag in ``uri`` points now; nothing if no hub tells."""
    try:
        found = _parts(uri)
        repository = (found["kind"] or "") + found["repo"]
    except BadUri:
        return None
    for hub in _hubs(network):
        try:
            return hub.commit(repository, found["revision"])
        except (SourceUnreachable, CorruptContent):
            continue
    return None


@dataclass(frozen=True, slots=True)
class _Hub:
    """One server that speaks the hub's API."""

    endpoint: str
    client: Client

    def file(self, repository: str, revision: str, path: str) -> str:
        return f"{self.endpoint}/{repository}/resolve/{quote(revision, safe='')}/{quote(path)}"

    def commit(self, repository: str, revision: str) -> str:
        url = f"{self._api(repository)}/revision/{quote(revision, safe='')}"
        document = strictjson.parse_object(
            self.client.read(url, max_bytes=MAX_LISTING).body, what=url, max_bytes=MAX_LISTING
        )
        commit = document.get("sha")
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise CorruptContent(f"{url}: expected a commit, found {commit!r}")
        return commit

    def listing(self, repository: str, revision: str) -> Iterator[Entry]:
        """Yield every file of the repository, page by page."""
        url: str | None = f"{self._api(repository)}/tree/{revision}?recursive=true&expand=false"
        for _ in range(MAX_PAGES):
            if url is None:
                return
            page = self.client.read(url, max_bytes=MAX_LISTING)
            entries = strictjson.parse(page.body, what=f"the listing of {repository}", max_bytes=MAX_LISTING)
            if not isinstance(entries, list):
                raise CorruptContent(f"the listing of {repository}: expected an array")
            for entry in entries:
                if isinstance(entry, dict) and entry.get("type") == "directory":
                    continue
                yield _entry(entry, repository)
            url = _next(url, page.headers.get("link", ""))
        raise CorruptContent(f"the listing of {repository}: more than {MAX_PAGES} pages")

    def _api(self, repository: str) -> str:
        return f"{self.endpoint}/api/{repository if repository.startswith('datasets/') else f'models/{repository}'}"


def _parts(uri: str) -> re.Match[str]:
    found = _URI.fullmatch(uri)
    if not found:
        raise BadUri(f"expected hf:org/name@commit, found {uri!r}")
    return found


def _hubs(network: Network | None) -> list[_Hub]:
    """Return the endpoint and the mirrors that the environment names; only the first gets the token."""
    from intaglio.recipe.secrets import in_uri
    from intaglio.recipe.sources.http import Client, Network, check_url, origin

    patience = network or Network.from_environment()
    primary = os.environ.get("HF_ENDPOINT") or ENDPOINT
    others = [mirror.strip() for mirror in os.environ.get("INTAGLIO_HF_MIRRORS", "").split(",") if mirror.strip()]
    hubs: list[_Hub] = []
    for endpoint in [primary.rstrip("/"), *(other.rstrip("/") for other in others)]:
        if in_uri(endpoint):
            raise UsageError("HF_ENDPOINT or INTAGLIO_HF_MIRRORS holds a user name or password", hint="use HF_TOKEN")
        check_url(endpoint)
        token = os.environ.get("HF_TOKEN", "").strip() if not hubs else ""
        hubs.append(_Hub(endpoint, Client(patience, {origin(endpoint): token} if token else {})))
    return hubs


def _entry(value: object, repository: str) -> Entry:
    """Return one line of a listing, checked."""
    what = f"the listing of {repository}"
    if not isinstance(value, dict) or value.get("type") != "file":
        raise CorruptContent(f"{what}: expected a file, found {str(value)[:80]}")
    path, size, blob, lfs = value.get("path"), value.get("size"), value.get("oid"), value.get("lfs")
    if not isinstance(path, str) or type(size) is not int or size < 0:
        raise CorruptContent(f"{what}: expected a path and a size, found {str(value)[:80]}")
    if not isinstance(blob, str) or not _COMMIT.fullmatch(blob):
        raise CorruptContent(f"{what}: {path!r}: expected a git object id, found {blob!r}")
    digest = None
    if lfs is not None:
        oid = lfs.get("oid") if isinstance(lfs, dict) else None
        if not isinstance(oid, str) or lfs.get("size") != size:
            raise CorruptContent(f"{what}: {path!r}: expected a sha256 and the same size twice, found {str(lfs)[:120]}")
        digest = Digest.parse("sha256:" + oid.removeprefix("sha256:"))
    return Entry(check_path(path), size, blob, digest)


def _next(url: str, link: str) -> str | None:
    """Return the next page's address (RFC 8288); it stays on the same server."""
    found = re.search(r'<([^<>]+)>\s*;[^,]*\brel="?next"?', link)
    if not found:
        return None
    target = str(urljoin(url, found[1]))
    if urlsplit(target)[:2] != urlsplit(url)[:2]:
        raise CorruptContent("the hub's listing goes on at another server; refused")
    return target


def _git_blob(path: Path, size: int) -> str:
    """Return the file's name as a git blob (Git, "Object storage")."""
    hasher = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def _together(items: Sequence[_Item], work: Callable[[_Item], _Result]) -> list[_Result]:
    """Run ``work`` over ``items``, a few at a time; the first error ends it."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _worst(errors: list[Error]) -> Error:
    """Return the error to report when no hub helped: wrong bytes before silence."""
    return next((error for error in errors if isinstance(error, CorruptContent)), errors[0])
