"""HTTP as registries speak it: pooled connections, bodies that stream through one small buffer, patience with faults.

- ``https:`` always; ``http:`` only for this machine's own loopback, or for one host that the caller names.
- A redirect never leaves ``https:``, and takes no credential to another origin.
- Certificates are checked against ``INTAGLIO_CA_FILE`` if set, else against the system's authorities. The variables
  that other tools listen to (``SSL_CERT_FILE``, ``REQUESTS_CA_BUNDLE``, …) change nothing.
- 429, 5xx, a body that ends early, a stall, a trickle: tried again after a wait. What comes back is not trusted.
- No address is shown with its query, which may hold a key; no header is ever shown.

Source: RFC 9110 (redirection: section 15.4; Retry-After: 10.2.3), RFC 9112.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeAlias, TypeVar
from urllib.parse import urljoin, urlsplit

from intaglio.dataclass import dataclass, field, replace
from intaglio.errors import CorruptContent, MachineError, RegistryError

_Result = TypeVar("_Result")
CA_FILE = "INTAGLIO_CA_FILE"
"""Environment variable: a PEM file of the only authorities to trust."""
BUFFER = 64 << 10
"""Bytes a read: small enough to stay in the processor's cache between socket, hash and file."""
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_SAME_METHOD = (307, 308)
_UNPRINTABLE = re.compile(r"[^\x21-\x7e]")
"""What must not stand in an address."""
_HELPED = 1 << 20
"""Bytes after which an attempt counts as progress, not as one more failure."""
Pieces: TypeAlias = Callable[[], Iterable[bytes | memoryview]]
"""Gives a body in pieces; called once for each time that it is sent."""


@dataclass(frozen=True, slots=True)
class Network:
    """How patient to be, and whom to trust."""

    timeout: float = 30.0
    """Seconds without a byte, or with too few, after which a connection counts as stalled."""
    commit: float = 300.0
    """Seconds that a registry may take to answer once it was sent a body."""
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
    plain: str | None = None
    """The one ``host[:port]`` beyond loopback that may be asked over ``http:``."""

    @classmethod
    def from_environment(cls) -> Network:
        """Return the defaults, with the authorities that the environment names."""
        ca_file = os.environ.get(CA_FILE)
        return cls(ca_file=Path(ca_file) if ca_file else None)


class Passing(Exception):
    """A fault that may pass; ``wait`` is what the server asks for, in seconds."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a server."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Pieces | None = None
    length: int = 0
    """Bytes of the body."""


class Answer:
    """A server's answer; a context manager that gives its connection back, or closes it when bytes are left over."""

    def __init__(self, transport: Transport, wire: _Wire, url: str, response: http.client.HTTPResponse) -> None:
        self._transport, self._wire, self._response = transport, wire, response
        self._left = response.length
        self._early: int | None = None
        self._since, self._count = time.monotonic(), 0
        self.url = url
        self.status = response.status
        self.length = response.length
        """Bytes of the body, where the server says."""

    def header(self, name: str) -> str:
        """Return a header's value, or an empty string."""
        return self._response.headers.get(name) or ""

    def headers(self, name: str) -> list[str]:
        """Return every value of a header that may come several times."""
        return self._response.headers.get_all(name) or []

    def readinto(self, view: memoryview) -> int:
        """Fill a part of ``view`` and return how many bytes; none at the end of the body.

        Raises:
            Passing: the connection broke or stalled, or the body ended early.
        """
        try:
            count = self._some(view)
        except TimeoutError:
            raise Passing(f"no byte for {self._transport.network.timeout:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Passing(f"the connection broke: {type(error).__name__}") from None
        if self._left is not None:
            self._left -= count
            if not count and self._left:
                raise Passing(f"the body ended {self._left} bytes early")
        self._watch(count)
        return count

    def _some(self, view: memoryview) -> int:
        if self._left is None:
            return self._response.readinto(view)
        view = view[: self._left]
        stream = self._response.fp
        if not view or stream is None:
            return 0
        if self._early is None:
            # What came with the headers; after it the socket itself is read, without a second buffer in between.
            self._early = min(len(stream.peek(1)), self._left)
        if self._early:
            early = stream.read1(min(self._early, len(view)))
            view[: len(early)] = early
            self._early -= len(early)
            return len(early)
        return self._wire.socket.recv_into(view)

    def _watch(self, count: int) -> None:
        self._count += count
        now, network = time.monotonic(), self._transport.network
        if now - self._since >= network.timeout:
            if self._count < network.slowest * network.timeout:
                raise Passing(f"only {self._count} bytes in {now - self._since:.0f} s")
            self._since, self._count = now, 0

    def read(self, max_bytes: int, what: str) -> bytes:
        """Return a small body.

        Raises:
            CorruptContent: it has more than ``max_bytes``.
            Passing: the connection broke.
        """
        data = bytearray()
        view = memoryview(bytearray(BUFFER))
        while count := self.readinto(view):
            data += view[:count]
            if len(data) > max_bytes:
                raise CorruptContent(f"{what}: expected at most {max_bytes} bytes, the registry sends more")
        return bytes(data)

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = self._left == 0 or self._response.isclosed()
        keep = whole and kind is None and not self._response.will_close
        self._response.close()
        self._transport.give_back(self._wire, keep=keep)


@dataclass
class _Wire:
    """One connection."""

    origin: str
    connection: http.client.HTTPConnection
    used: bool = False
    _socket: socket.socket | None = None

    @property
    def socket(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionError("closed")
        return self._socket

    def send(self, request: Request, headers: Mapping[str, str], network: Network) -> http.client.HTTPResponse:
        """Send one request and return the head of the answer."""
        parts = urlsplit(request.url)
        wire = self.connection
        wire.putrequest(
            request.method, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), skip_accept_encoding=True
        )
        for name, value in headers.items():
            wire.putheader(name, value)
        if request.body is not None or request.method in ("POST", "PUT"):
            wire.putheader("Content-Length", str(request.length))
        wire.endheaders()
        self._socket = wire.sock
        self.socket.settimeout(network.timeout)
        # A server that has heard enough answers and hangs up: its answer says more than our broken pipe.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in request.body() if request.body is not None else ():
                self.socket.sendall(piece)
        if request.length:
            self.socket.settimeout(network.commit)
        response = wire.getresponse()
        self.socket.settimeout(network.timeout)
        return response


class Transport:
    """Sends requests, over connections that it keeps; safe to use from many threads."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._idle: dict[str, list[_Wire]] = {}
        self._guard = threading.Lock()
        self._tls: ssl.SSLContext | None = None

    def open(self, request: Request, authorize: Callable[[str], str | None] = lambda _: None) -> Answer:
        """Return the answer to ``request``, redirects followed; ``authorize`` gives the credential for an origin.

        Raises:
            Passing: a fault that may pass.
            RegistryError: one that will not.
        """
        for _ in range(self.network.redirects + 1):
            answer = self.ask(request, authorize(origin(request.url)))
            if answer.status not in _REDIRECTS:
                if answer.status in _TRANSIENT:
                    wait = answer.header("Retry-After")
                    with answer:
                        raise Passing(f"the server answers {answer.status}", float(wait) if wait.isdigit() else 0.0)
                return answer
            with answer:
                if request.method not in ("GET", "HEAD") and answer.status not in _SAME_METHOD:
                    raise RegistryError(
                        f"{shown(request.url)}: redirects a {request.method} ({answer.status}); refused"
                    )
                request = replace(request, url=self.follow(request.url, answer.header("Location")))
        raise RegistryError(f"{shown(request.url)}: more than {self.network.redirects} redirects")

    def follow(self, url: str, location: str) -> str:
        """Return the address that an answer of ``url`` names in its ``Location``.

        Raises:
            RegistryError: it leaves ``https:``, or may not be asked.
        """
        target = join(url, location)
        if url.startswith("https:") and not target.startswith("https:"):
            raise RegistryError(f"{shown(url)}: leads from https: to {shown(target)}; refused")
        self.check(target)
        return target

    def check(self, url: str) -> None:
        """Check that ``url`` may be asked.

        Raises:
            RegistryError: neither ``https:`` nor an allowed ``http:``.
        """
        scheme, _, rest = origin(url).partition("://")
        host = rest.rpartition(":")[0]
        allowed = scheme == "http" and (is_loopback(host) or self.network.plain in (rest, host, f"{host}:80"))
        if scheme != "https" and not allowed:
            raise RegistryError(
                f"{shown(url)}: expected an https: address", hint="http: can be read and changed by others"
            )

    def ask(self, request: Request, authorization: str | None = None) -> Answer:
        """Return the answer to ``request`` itself, whatever it is; errors as in :meth:`open`."""
        headers = {"User-Agent": "intaglio", "Accept-Encoding": "identity", **request.headers}
        if authorization:
            headers["Authorization"] = authorization
        while True:
            wire = self._take(origin(request.url))
            fresh = not wire.used
            try:
                response = wire.send(request, headers, self.network)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.give_back(wire, keep=False)
                # One that was kept may have been closed by the server meanwhile: that is no fault.
                if not fresh and isinstance(error, (ConnectionError, http.client.BadStatusLine)):
                    continue
                raise self._fault(request.url, error) from None
            except BaseException:
                self.give_back(wire, keep=False)
                raise
            wire.used = True
            return Answer(self, wire, request.url, response)

    def _fault(self, url: str, error: Exception) -> Exception:
        if isinstance(error, ssl.SSLCertVerificationError):
            return RegistryError(
                f"{shown(url)}: its certificate is not trusted: {error.verify_message}",
                hint=f"let {CA_FILE} name a PEM file with your authority",
            )
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return RegistryError(
                f"{shown(url)}: no TLS: {error.reason or error}",
                hint="a registry without TLS is asked with --plain-http",
            )
        if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
            return RegistryError(f"{shown(url)}: no such host", hint="check the address, the network and the proxy")
        if isinstance(error, ConnectionRefusedError):
            return RegistryError(f"{shown(url)}: nothing answers there", hint="check the address; is the registry up?")
        if isinstance(error, TimeoutError):
            return Passing(f"no answer for {self.network.timeout:g} s")
        why = (error.strerror or str(error)) if isinstance(error, OSError) else ""
        return Passing(f"no answer: {why[:200] or type(error).__name__}")

    def _take(self, where: str) -> _Wire:
        with self._guard:
            idle = self._idle.get(where)
            if idle:
                return idle.pop()
        return _Wire(where, self._connect(where))

    def give_back(self, wire: _Wire, *, keep: bool) -> None:
        """Take a connection back, to be used again or closed."""
        if keep:
            with self._guard:
                self._idle.setdefault(wire.origin, []).append(wire)
        else:
            wire.connection.close()

    def close(self) -> None:
        """Close every kept connection."""
        with self._guard:
            wires = [wire for idle in self._idle.values() for wire in idle]
            self._idle.clear()
        for wire in wires:
            wire.connection.close()

    def _connect(self, where: str) -> http.client.HTTPConnection:
        scheme, _, rest = where.partition("://")
        host, _, port = rest.rpartition(":")
        host = host.strip("[]")
        if scheme == "http":
            return http.client.HTTPConnection(host, int(port), timeout=self.network.timeout)
        with self._guard:
            self._tls = self._tls or _context(self.network.ca_file)
        proxy = _proxy(host)
        if proxy is None:
            return http.client.HTTPSConnection(host, int(port), timeout=self.network.timeout, context=self._tls)
        wire = http.client.HTTPSConnection(proxy[0], proxy[1], timeout=self.network.timeout, context=self._tls)
        wire.set_tunnel(host, int(port), proxy[2])
        return wire


def patiently(
    network: Network, what: str, work: Callable[[], _Result], progress: Callable[[], int] = lambda: 0
) -> _Result:
    """Return what ``work`` returns, tried again while its faults may pass; ``progress`` counts the bytes it has moved.

    Raises:
        RegistryError: too many faults in a row.
    """
    failures, before = 0, 0
    while True:
        try:
            return work()
        except Passing as fault:
            moved = progress()
            failures = 1 if moved - before >= _HELPED else failures + 1
            before = moved
            if failures >= network.attempts:
                raise RegistryError(
                    f"{what}: {fault} ({failures} tries)", hint="try again later; what was transferred is kept"
                ) from None
            time.sleep(min(max(fault.wait, network.backoff * 2 ** (failures - 1)), network.longest_wait))


def speaks_tls(host: str, network: Network) -> bool:
    """Return whether a registry on this machine's loopback speaks TLS; ``host`` is ``name[:port]``.

    Raises:
        RegistryError: nothing answers there.
    """
    parts = urlsplit(f"//{host}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only asked whether there is TLS; nothing is sent over this connection
    try:
        with (
            socket.create_connection((parts.hostname or "", parts.port or 443), timeout=network.timeout) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname),
        ):
            return True
    except ssl.SSLError:
        return False
    except ConnectionRefusedError:
        raise RegistryError(f"{host}: nothing answers there", hint="check the address; is the registry up?") from None
    except OSError as error:
        raise RegistryError(f"{host}: no answer: {error}") from None


def join(url: str, location: str) -> str:
    """Return ``location``, which may be relative, as an address seen from ``url``.

    Raises:
        RegistryError: there is none, or it is malformed.
    """
    if not location or _UNPRINTABLE.search(location):
        raise RegistryError(f"{shown(url)}: the registry names no address to go on at")
    try:
        target = urljoin(url, location)
        origin(target)
    except ValueError:
        raise RegistryError(f"{shown(url)}: the registry names a malformed address") from None
    return target


def origin(url: str) -> str:
    """Return scheme, host and port of ``url`` (RFC 6454): where a credential may go."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def shown(url: str) -> str:
    """Return ``url`` without what may be secret: user, password, query, fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_loopback(host: str) -> bool:
    """Return whether ``host`` (a name or address, without port) is this machine itself."""
    host = host.strip("[]")
    return host in ("localhost", "::1") or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))


def _proxy(host: str) -> tuple[str, int, dict[str, str]] | None:
    """Return host, port and headers of the proxy that the environment names for ``https:``."""
    import base64
    import urllib.request
    from urllib.parse import unquote

    address = urllib.request.getproxies().get("https")
    if not address or is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    headers = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    if parts.scheme != "http" or not parts.hostname:
        raise RegistryError(f"the proxy {shown(address)} cannot be used: expected http://host:port")
    return parts.hostname, parts.port or 8080, headers


def _context(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise MachineError(f"{ca_file}: not a file of authorities: {error}", hint=f"see {CA_FILE}") from None
        return context
    for bundle in _BUNDLES:
        if Path(bundle).is_file():
            context.load_verify_locations(bundle)
            return context
    # The folder that OpenSSL was built with, not the one that SSL_CERT_DIR names.
    context.load_verify_locations(capath=ssl.get_default_verify_paths().openssl_capath)
    return context


def pieces(path: Path, length: int) -> Iterator[memoryview]:
    """Yield the bytes of a file through one buffer; each piece is good until the next is asked for."""
    buffer = memoryview(bytearray(BUFFER))
    with open(path, "rb", buffering=0) as stream:
        while length and (count := stream.readinto(buffer[: min(length, BUFFER)])):
            yield buffer[:count]
            length -= count
