"""Fetching over HTTP against a promise: resumable, patient with faults, careful with credentials.

- Only ``https:``; ``http:`` for this machine's own loopback alone, and never after ``https:``.
- A credential goes to the origin it was given for, and to no other, whatever redirects say.
- Certificates are checked against ``INTAGLIO_CA_FILE`` if set, else against the system's authorities. The variables
  that other tools listen to (``SSL_CERT_FILE``, ``REQUESTS_CA_BUNDLE``, …) change nothing.
- 429, 5xx, a body that ends early, a stall: tried again after a wait, from where it ended. Proxies as in the
  environment (``HTTPS_PROXY``, ``NO_PROXY``).
- What comes back is not trusted: who calls compares digests. No address is shown with its query, which may hold a key.

Source: RFC 9110 (ranges: section 14; redirection: 15.4; Retry-After: 10.2.3).
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin, urlsplit

from intaglio.dataclass import dataclass, field
from intaglio.errors import MachineError, SourceUnreachable
from intaglio.progress import Task

if TYPE_CHECKING:
    import http.client
    import ssl
    import urllib.request

_Result = TypeVar("_Result")
CA_FILE = "INTAGLIO_CA_FILE"
"""Environment variable: a PEM file of the only authorities to trust."""
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 64 << 10
_HELPED = 1 << 20
"""Bytes after which an attempt counts as progress, not as one more failure."""


@dataclass(frozen=True, slots=True)
class Network:
    """How patient to be, and whom to trust."""

    timeout: float = 30.0
    """Seconds without a byte, or with too few, after which a connection counts as stalled."""
    slowest: int = 1024
    """Bytes a second below which it is too few."""
    attempts: int = 5
    """Tries without progress."""
    backoff: float = 0.5
    """Seconds before the second try; doubled each time."""
    longest_wait: float = 30.0
    """Seconds that a wait lasts at most, also when the server asks for more."""
    redirects: int = 5
    ca_file: Path | None = None
    """PEM file of authorities; ``None``: the system's."""

    @classmethod
    def from_environment(cls) -> Network:
        """Return the defaults, with the authorities that the environment names."""
        ca_file = os.environ.get(CA_FILE)
        return cls(ca_file=Path(ca_file) if ca_file else None)


@dataclass(frozen=True, slots=True)
class Document:
    """A small body and its headers."""

    body: bytes
    headers: Mapping[str, str]
    """By lower-case name."""


class _TryAgainError(Exception):
    """A fault that may pass; ``wait`` is what the server asks for, in seconds."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass
class _Watch:
    """Tells a task of each byte once, however often it is fetched."""

    task: Task
    seen: int = 0

    def reached(self, count: int) -> None:
        if count > self.seen:
            self.task.advance(count - self.seen)
            self.seen = count


@dataclass
class Client:
    """Speaks HTTP for the sources."""

    network: Network
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Bearer tokens by the :func:`origin` that each is for."""

    def read(self, url: str, *, max_bytes: int) -> Document:
        """Return a small document.

        Raises:
            SourceUnreachable: no answer, a refusal, or more than ``max_bytes``.
        """
        return self._patiently(url, lambda: self._read(url, max_bytes))

    def download(self, url: str, target: Path, *, size: int | None, task: Task) -> None:
        """Bring the body of ``url`` into ``target``, going on after the bytes that stand there already.

        Args:
            url: where it is.
            target: grows; what stands there after an error is where the next call goes on.
            size: how many bytes it must be; never more are written.
            task: told of every byte that is there for the first time.

        Raises:
            SourceUnreachable: no answer, a refusal, or another size than ``size``.
            MachineError: the disk is full.
        """
        watch = _Watch(task)
        self._patiently(url, lambda: self._append(url, target, size, watch), progress=lambda: watch.seen)

    def _patiently(self, url: str, work: Callable[[], _Result], progress: Callable[[], int] = lambda: 0) -> _Result:
        failures, before = 0, 0
        while True:
            try:
                return work()
            except _TryAgainError as fault:
                failures = 1 if progress() - before >= _HELPED else failures + 1
                before = progress()
                if failures >= self.network.attempts:
                    raise SourceUnreachable(
                        f"{plain(url)}: {fault} ({failures} tries)", hint="try again later; what was fetched is kept"
                    ) from None
                wait = max(fault.wait, self.network.backoff * 2 ** (failures - 1))
                time.sleep(min(wait, self.network.longest_wait))

    def _read(self, url: str, max_bytes: int) -> Document:
        with closing(self._open(url, {})) as response:
            if response.status != 200:
                raise self._refusal(url, response.status)
            body = bytearray()
            for chunk in self._chunks(response):
                body += chunk
                if len(body) > max_bytes:
                    raise SourceUnreachable(f"{plain(url)}: expected at most {max_bytes} bytes, the server sends more")
            return Document(bytes(body), {name.lower(): value for name, value in response.getheaders()})

    def _append(self, url: str, target: Path, size: int | None, watch: _Watch) -> None:
        have = target.stat().st_size if target.exists() else 0
        if size is not None and have > size:
            os.truncate(target, 0)
            have = 0
        if size is not None and have == size and have:
            watch.reached(have)
            return
        with closing(self._open(url, {"Range": f"bytes={have}-"} if have else {})) as response:
            start = self._start(url, target, have, size, response)
            length = response.length
            if size is not None and length is not None and start + length != size:
                raise SourceUnreachable(f"{plain(url)}: expected {size} bytes, the server offers {start + length}")
            if size is None and length is not None:
                watch.task.total(start + length, "B")
            at = start
            try:
                with open(target, "r+b" if start else "wb") as sink:
                    sink.seek(start)
                    watch.reached(start)
                    for chunk in self._chunks(response):
                        if size is not None and at + len(chunk) > size:
                            raise SourceUnreachable(f"{plain(url)}: expected {size} bytes, the server sends more")
                        sink.write(chunk)
                        at += len(chunk)
                        watch.reached(at)
            except OSError as error:
                raise _disk(error, target) from None
        if size is not None and at < size:
            raise _TryAgainError(f"the body ended after {at} of {size} bytes")

    def _start(self, url: str, target: Path, have: int, size: int | None, response: http.client.HTTPResponse) -> int:
        """Return the offset at which the body begins: where we asked, or 0 when the server starts over."""
        if response.status == 200:
            return 0
        if response.status == 206 and have:
            found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
            total = int(found[3]) if found and found[3] != "*" else None
            if found and int(found[1]) == have and (size is None or total in (size, None)):
                return have
            os.truncate(target, 0)
            raise _TryAgainError("the server answered with another range than was asked for")
        if response.status == 416 and have:
            os.truncate(target, 0)
            raise _TryAgainError("the server has fewer bytes than are here already")
        raise self._refusal(url, response.status)

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """Yield the body; an early end, a stall or a trickle is a fault that may pass."""
        import http.client

        left = response.length
        window, count = time.monotonic(), 0
        while True:
            try:
                chunk = response.read1(_CHUNK)
            except TimeoutError:
                raise _TryAgainError(f"no byte for {self.network.timeout:g} s") from None
            except (OSError, http.client.HTTPException) as error:
                raise _TryAgainError(f"the connection broke: {type(error).__name__}") from None
            if not chunk:
                break
            yield chunk
            left = None if left is None else left - len(chunk)
            count += len(chunk)
            now = time.monotonic()
            if now - window >= self.network.timeout:
                if count < self.network.slowest * self.network.timeout:
                    raise _TryAgainError(f"{count} bytes in {now - window:.0f} s")
                window, count = now, 0
        if left:
            raise _TryAgainError(f"the body ended {left} bytes early")

    def _open(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Ask for ``url``, following redirects; the caller closes the answer."""
        for _ in range(self.network.redirects + 1):
            check_url(url)
            response = self._ask(url, headers)
            if response.status not in _REDIRECTS:
                if response.status in _TRANSIENT:
                    wait = response.headers.get("Retry-After", "")
                    response.close()
                    raise _TryAgainError(f"the server answers {response.status}", float(wait) if wait.isdigit() else 0)
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    response.close()
                    raise SourceUnreachable(f"{plain(url)}: the server encodes what must come as it is")
                return response
            target = urljoin(url, response.headers.get("Location", ""))
            response.close()
            if url.startswith("https:") and not target.startswith("https:"):
                raise SourceUnreachable(f"{plain(url)}: redirects from https: to {plain(target)}; refused")
            url = target
        raise SourceUnreachable(f"{plain(url)}: more than {self.network.redirects} redirects")

    def _ask(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        import http.client
        import socket
        import ssl
        import urllib.error
        import urllib.request

        sent = {"User-Agent": "intaglio", "Accept-Encoding": "identity", **headers}
        request = urllib.request.Request(url, headers=sent)  # noqa: S310 - check_url has seen it
        token = self.tokens.get(origin(url))
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            response = self._opener(url).open(request, timeout=self.network.timeout)
        except urllib.error.URLError as error:
            reason = error.reason
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise SourceUnreachable(
                    f"{plain(url)}: its certificate is not trusted: {reason.verify_message}",
                    hint=f"let {CA_FILE} name a PEM file with your authority",
                ) from None
            if isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN:
                raise SourceUnreachable(
                    f"{plain(url)}: no such host", hint="check the address, the network and the proxy"
                ) from None
            raise _TryAgainError(f"cannot connect: {reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgainError(f"no answer: {error or type(error).__name__}") from None
        if not isinstance(response, http.client.HTTPResponse):
            raise SourceUnreachable(f"{plain(url)}: no answer over HTTP")
        return response

    def _opener(self, url: str) -> urllib.request.OpenerDirector:
        import urllib.request

        opener = urllib.request.OpenerDirector()
        if urlsplit(url).hostname not in _LOOPBACK:
            opener.add_handler(urllib.request.ProxyHandler())
        opener.add_handler(urllib.request.HTTPHandler())
        if url.startswith("https:"):
            opener.add_handler(urllib.request.HTTPSHandler(context=_context(self.network.ca_file)))
        return opener

    def _refusal(self, url: str, status: int) -> SourceUnreachable:
        if status in (401, 403):
            given = "was refused" if self.tokens.get(origin(url)) else "is missing"
            return SourceUnreachable(
                f"{plain(url)}: the server answers {status}: the permission {given}",
                hint="a token is taken from the environment (HF_TOKEN for hf:), never from a recipe",
            )
        what = "does not have it" if status in (404, 410) else "refuses"
        return SourceUnreachable(f"{plain(url)}: the server {what} ({status})", hint="check the address")


def check_url(url: str) -> None:
    """Check that ``url`` may be asked.

    Raises:
        SourceUnreachable: neither ``https:`` nor ``http:`` of this machine.
    """
    parts = urlsplit(url)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)):
        raise SourceUnreachable(
            f"{plain(url)}: expected an https: address", hint="http: can be read and changed by others"
        )


def origin(url: str) -> str:
    """Return scheme, host and port of ``url`` (RFC 6454): where a credential may go."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def plain(url: str) -> str:
    """Return ``url`` without what may be secret: user, password, query, fragment."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _context(ca_file: Path | None) -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise MachineError(f"{ca_file}: not a file of authorities: {error}", hint=f"see {CA_FILE}") from None
        return context
    paths = ssl.get_default_verify_paths()
    for bundle in (paths.openssl_cafile, *_BUNDLES):
        if Path(bundle).is_file():
            context.load_verify_locations(bundle)
            return context
    context.load_verify_locations(capath=paths.openssl_capath)
    return context


def _disk(error: OSError, target: Path) -> MachineError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(f"{target}: the disk is full", hint="make room and run it again; what was fetched is kept")
    return MachineError(f"{target}: cannot be written: {error.strerror}")
