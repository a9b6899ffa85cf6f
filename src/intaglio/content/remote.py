"""A repository in a registry: manifests, blobs and tags over the OCI distribution protocol.

- What a registry says is no evidence: digests are computed here, and its headers may only agree with them.
- A blob is read to its declared size and not a byte further; it goes on where it broke off, never past its end.
- An upload is hashed while it streams: a damaged file is noticed before its last bytes leave, and never completed.

Source: OCI distribution specification 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote

from intaglio import strictjson
from intaglio.content.credentials import Credential
from intaglio.content.descriptor import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.content.reference import Reference
from intaglio.content.remote_auth import Authorizer
from intaglio.content.remote_http import (
    BUFFER,
    Answer,
    Network,
    Passing,
    Pieces,
    Request,
    Transport,
    is_loopback,
    origin,
    patiently,
    shown,
    speaks_tls,
)
from intaglio.content.remote_transfer import Advances, Sink, Watch, hashed_pieces
from intaglio.dataclass import dataclass, replace
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, RegistryError
from intaglio.strictjson import Object

_Result = TypeVar("_Result")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")
_LINK = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')
_MAX_PAGES = 64
_SAID = 16 << 10
"""Bytes of an error's body that are looked at."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as a registry gave it; its digest was computed from its bytes."""

    data: bytes
    digest: Digest
    media_type: str
    document: Object


class Repository:
    """One repository of a registry; threads may share it."""

    def __init__(
        self,
        reference: Reference,
        find: Callable[[str], Credential | None],
        *,
        network: Network | None = None,
        writing: bool = False,
        plain_http: bool = False,
    ) -> None:
        """Prepare to speak with the registry; nothing is asked but whether a loopback address has TLS.

        Args:
            reference: which repository; its tag and digest do not matter here.
            find: gives the credential for a host, when the registry asks for one.
            network: how patient to be, and whom to trust.
            writing: whether to ask for the permission to push.
            plain_http: ask without TLS. A loopback address without TLS is asked so unbidden, but then no credential is
                sent: whoever listens there may be anyone, and may have made the TLS fail.

        Raises:
            RegistryError: nothing answers at a loopback address.
        """
        host = reference.registry
        network = network or Network.from_environment()
        guessed = not plain_http and is_loopback(reference.hostname) and not speaks_tls(host, network)
        if plain_http:
            network = replace(network, plain=host)
        scheme = "http" if plain_http or guessed else "https"
        self.reference = Reference(reference.host, reference.name)
        self._root = f"{scheme}://{host}/v2/"
        self._base = f"{self._root}{reference.name}"
        self._transport = Transport(network)
        scope = f"repository:{reference.name}:{'pull,push' if writing else 'pull'}"
        self._authorizer = Authorizer(
            self._transport, self._root, lambda: _withheld(host, find(host)) if guessed else find(host), scope
        )

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.close()

    # --- manifests and tags --------------------------------------------------------------------------------------

    def manifest(self, name: str | Digest) -> Manifest:
        """Return the manifest with that tag or digest.

        Raises:
            RegistryError: it is not there, or the registry does not let us.
            CorruptContent: too large, not one strict JSON document, or disagreeing with its digest or media type.
        """
        found = self.find_manifest(name)
        if found is None:
            raise RegistryError(
                f"{self._called(name)}: the registry does not have it (404)",
                hint="check the name, the tag and the host",
            )
        return found

    def find_manifest(self, name: str | Digest) -> Manifest | None:
        """Return the manifest with that tag or digest, or nothing; errors as in :meth:`manifest`."""
        what = self._called(name)
        kinds = {"Accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}"}
        request = Request("GET", f"{self._base}/manifests/{name}", kinds)

        def get() -> Manifest | None:
            with self._open(request) as answer:
                if answer.status == 404:
                    return None
                self._require(answer, what, 200)
                return _manifest(answer, what, name if isinstance(name, Digest) else None)

        return _twice(lambda: self._patiently(what, get))

    def put_manifest(self, name: str | Digest, data: bytes, media_type: str = MANIFEST_TYPE) -> bool:
        """Put a manifest under a tag or its digest; return whether the registry keeps referrers by their subject.

        Raises:
            RegistryError: the registry refuses.
            CorruptContent: it says that it took something else.
        """
        what = self._called(name)
        kind = {"Content-Type": media_type}
        request = Request("PUT", f"{self._base}/manifests/{name}", kind, lambda: (data,), len(data))

        def put() -> bool:
            with self._open(request) as answer:
                self._require(answer, what, 201, 200, 202)
                _agrees(answer, Digest.of(data), what)
                return bool(answer.header("OCI-Subject"))

        return self._patiently(what, put)

    def tags(self, prefix: str) -> list[str]:
        """Return the tags that begin with ``prefix``, as far as the registry tells.

        Raises:
            CorruptContent: the list is malformed, or too large.
        """
        found: list[str] = []
        url: str | None = f"{self._base}/tags/list?n=1000&last={quote(prefix)}"
        for _ in range(_MAX_PAGES):
            if url is None:
                break
            document, url = self._page(url, ("application/json",), "tags")
            names = (document or {}).get("tags") or []
            if not isinstance(names, list) or not all(isinstance(tag, str) for tag in names):
                raise CorruptContent(f"{self.reference}: its tags are not an array of strings")
            found += [tag for tag in names if tag.startswith(prefix)]
            if names and names[-1] > prefix and not names[-1].startswith(prefix):
                break  # the list is sorted: what follows is not of interest
        return found

    def referrers(self, subject: Digest) -> list[Object] | None:
        """Return what the referrers API lists about ``subject``; ``None`` where the registry has no such API.

        Raises:
            CorruptContent: the list is malformed, or too large.
        """
        found: list[Object] = []
        url: str | None = f"{self._base}/referrers/{subject}"
        for _ in range(_MAX_PAGES):
            if url is None:
                break
            document, url = self._page(url, (INDEX_TYPE,), "referrers")
            if document is None:
                return None
            found += entries(document, f"{self._called(subject)}: its referrers")
        return found

    def _page(self, url: str, kinds: tuple[str, ...], what: str) -> tuple[Object | None, str | None]:
        """Return one page of a list, and where the next is; nothing where there is no such list."""
        what = f"{self.reference}: {what}"

        def get() -> tuple[Object | None, str | None]:
            with self._open(Request("GET", url, {"Accept": ", ".join(kinds)})) as answer:
                if answer.status in (400, 404, 405, 406, 501) or (answer.status == 200 and _kind(answer) not in kinds):
                    return None, None
                self._require(answer, what, 200)
                document = strictjson.parse_object(answer.read(strictjson.MAX_BYTES, what), what=what)
                link = _LINK.search(answer.header("Link"))
                following = self._transport.follow(url, link[1]) if link else None
                if following is not None and origin(following) != origin(url):
                    raise RegistryError(f"{what}: the list goes on at another host; refused")
                return document, following

        return self._patiently(what, get)

    # --- blobs ---------------------------------------------------------------------------------------------------

    def has_blob(self, blob: Descriptor) -> bool:
        """Return whether the registry has the blob, with that size where it says one."""

        def head() -> bool:
            with self._open(Request("HEAD", f"{self._base}/blobs/{blob.digest}")) as answer:
                if answer.status in (404, 405):
                    return False
                self._require(answer, f"blob {blob.digest}", 200)
                return answer.header("Content-Length") in ("", str(blob.size))

        return self._patiently(f"{self.reference}: blob {blob.digest.short}", head)

    def fetch_blob(self, blob: Descriptor, sink: Sink, task: Advances) -> int:
        """Bring a blob into ``sink``, going on after what is there; return how many bytes came over the network.

        Raises:
            RegistryError: it is not there, or the registry fails again and again.
            CorruptContent: other bytes than promised, twice.
        """
        what = f"{self.reference}: blob {blob.digest.short}"
        watch = Watch(task)
        moved = [0]

        def fetch() -> None:
            if sink.size > blob.size:
                sink.restart()
            if sink.size < blob.size:
                self._append(blob, sink, watch, moved, what)
            watch.reached(sink.size, end=True)
            sink.finish()

        _twice(lambda: self._patiently(what, fetch, lambda: moved[0]))
        return moved[0]

    def _append(self, blob: Descriptor, sink: Sink, watch: Watch, moved: list[int], what: str) -> None:
        asked = sink.size
        headers = {"Range": f"bytes={asked}-{blob.size - 1}"} if asked else {}
        with self._open(Request("GET", f"{self._base}/blobs/{blob.digest}", headers)) as answer:
            if answer.status == 416 and asked:
                sink.restart()
                raise Passing("the registry does not have the rest of what is here")
            self._require(answer, what, 200, 206)
            if answer.status == 200 and asked:
                sink.restart()
            elif answer.status == 206:
                found = _RANGE.match(answer.header("Content-Range"))
                given = (int(found[1]), int(found[2]), found[3]) if found else None
                if not asked or given not in ((asked, blob.size - 1, str(blob.size)), (asked, blob.size - 1, "*")):
                    sink.restart()
                    raise Passing("the registry answers with another range than was asked for")
            left = blob.size - sink.size
            if answer.length is not None and answer.length != left:
                raise CorruptContent(f"{what}: expected {left} bytes, the registry offers {answer.length}")
            while left:
                count = answer.readinto(sink.space()[: min(left, BUFFER)])
                if not count:
                    raise Passing(f"the body ended {left} bytes early")
                sink.filled(count)
                left -= count
                moved[0] += count
                watch.reached(sink.size)
            if answer.length is None and answer.readinto(memoryview(bytearray(1))):
                sink.restart()
                raise CorruptContent(f"{what}: expected {blob.size} bytes, the registry sends more")

    def push_blob(self, blob: Descriptor, path: Path, task: Advances) -> None:
        """Upload the file at ``path`` as ``blob``, hashed on the way.

        Raises:
            CorruptContent: the file is not that blob: then nothing is completed.
            RegistryError: the registry refuses, or fails again and again.
        """
        watch = Watch(task)
        what = f"{self.reference}: blob {blob.digest.short}"
        self._upload(blob, lambda: hashed_pieces(path, blob, watch), what, lambda: watch.seen)
        watch.reached(blob.size, end=True)

    def _upload(self, blob: Descriptor, body: Pieces, what: str, progress: Callable[[], int] = lambda: 0) -> None:
        again = False

        def push() -> None:
            nonlocal again
            if again and self.has_blob(blob):
                return  # it had arrived; only the answer had not
            again = True
            with self._open(Request("POST", f"{self._base}/blobs/uploads/")) as answer:
                self._require(answer, what, 202)
                place = self._transport.follow(answer.url, answer.header("Location"))
            url = f"{place}{'&' if '?' in place else '?'}digest={quote(str(blob.digest), safe='')}"
            headers = {"Content-Type": "application/octet-stream"}
            with self._open(Request("PUT", url, headers, body, blob.size)) as answer:
                self._require(answer, what, 201, 204)
                _agrees(answer, blob.digest, what)

        self._patiently(what, push, progress)

    def put_blob(self, blob: Descriptor, data: bytes) -> None:
        """Upload a small blob from memory, unless it is there; errors as in :meth:`push_blob`."""
        if not self.has_blob(blob):
            self._upload(blob, lambda: iter((memoryview(data),)), f"{self.reference}: blob {blob.digest.short}")

    # --- asking --------------------------------------------------------------------------------------------------

    def check_access(self) -> None:
        """Ask the registry for nothing but to be let in.

        Raises:
            RegistryError: the credential is missing or refused, or no registry answers.
        """
        self._authorizer.scope = ""

        def ask() -> None:
            with self._open(Request("GET", self._root)) as answer:
                self._require(answer, shown(self._root), 200)

        self._patiently(shown(self._root), ask)

    def _open(self, request: Request) -> Answer:
        """Return the answer to ``request``, with the credential that the registry asks for."""
        home = origin(self._root)
        for _ in range(2):
            sent = self._authorizer.header(home)
            answer = self._transport.open(request, self._authorizer.header)
            if answer.status != 401 or origin(answer.url) != home:
                return answer
            with answer:
                self._authorizer.refused(answer, sent)
        return self._transport.open(request, self._authorizer.header)

    def _require(self, answer: Answer, what: str, *expected: int) -> None:
        """Check the status of an answer, and that its body comes as it is.

        Raises:
            RegistryError: it is another; the message holds what the registry says, shortened.
        """
        if answer.status in expected:
            if answer.header("Content-Encoding") not in ("", "identity"):
                raise RegistryError(f"{what}: the registry encodes what must come as it is")
            return
        said = _said(answer)
        hints = {
            401: "check the credential: `intaglio login HOST`",
            403: "the credential does not give this permission: `intaglio login HOST` takes another",
            404: "check the name and the host",
            413: "the registry takes nothing as large",
        }
        if answer.status == 400 and said.startswith("DIGEST_INVALID"):
            # What left here has its digest: it was changed on the way, or the registry lost a race with itself.
            raise Passing(f"the registry answers {said}")
        raise RegistryError(
            f"{what}: the registry answers {answer.status}" + (f": {said}" if said else ""),
            hint=hints.get(answer.status),
        )

    def _patiently(self, what: str, work: Callable[[], _Result], progress: Callable[[], int] = lambda: 0) -> _Result:
        return patiently(self._transport.network, what, work, progress)

    def _called(self, name: str | Digest) -> str:
        return f"{self.reference}{'@' if isinstance(name, Digest) else ':'}{name}"


def _withheld(host: str, credential: Credential | None) -> None:
    """Refuse to send ``credential`` over a connection of which nobody said that it may be without TLS.

    Raises:
        RegistryError: there is one.
    """
    if credential is not None:
        raise RegistryError(
            f"{host}: asks for the credential, and speaks no TLS: not sent",
            hint="--plain-http   (if it is your registry, and known to have no TLS)",
        )


def entries(document: Object, what: str) -> list[Object]:
    """Return the descriptors that an index lists; nothing in them is checked but that they name a digest.

    Raises:
        CorruptContent: it is no index.
    """
    listed = document.get("manifests")
    if document.get("mediaType", INDEX_TYPE) != INDEX_TYPE or "layers" in document or not isinstance(listed, list):
        raise CorruptContent(f"{what}: expected an OCI image index")
    for entry in listed:
        if not isinstance(entry, dict):
            raise CorruptContent(f"{what}: expected descriptors, found {type(entry).__name__}")
        Digest.parse(entry.get("digest"))
    return listed


def _twice(work: Callable[[], _Result]) -> _Result:
    """Do it once more where other bytes came than promised: what changed them on the way may be gone."""
    try:
        return work()
    except CorruptContent:
        return work()


def _manifest(answer: Answer, what: str, digest: Digest | None) -> Manifest:
    data = answer.read(strictjson.MAX_BYTES, what)
    found = Digest.of(data)
    if digest is not None and found != digest:
        raise CorruptContent(f"{what}: expected {digest}, the registry sends {found}")
    _agrees(answer, found, what)
    document = strictjson.parse_object(data, what=what)
    kind = _kind(answer)
    if document.get("mediaType", kind) != kind:
        raise CorruptContent(f"{what}: its media type is {document.get('mediaType')!r}, the registry says {kind!r}")
    return Manifest(data, found, kind, document)


def _agrees(answer: Answer, digest: Digest, what: str) -> None:
    """Check that the registry, where it names a digest, names the one that was computed here."""
    said = answer.header("Docker-Content-Digest")
    if said and said != str(digest):
        raise CorruptContent(f"{what}: the bytes have {digest}, the registry says {said[:80]!r}")


def _kind(answer: Answer) -> str:
    return answer.header("Content-Type").partition(";")[0].strip().lower()


def _said(answer: Answer) -> str:
    """Return what the registry says about an error: its own words, one line, no control characters."""
    try:
        data = answer.read(_SAID, "error")
        errors = strictjson.parse_object(data, what="error").get("errors")
        first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
        said = " ".join(str(first[key]) for key in ("code", "message") if first.get(key))
    except (CorruptContent, Passing):
        return ""
    return "".join(char if char.isprintable() else " " for char in said)[:200]
