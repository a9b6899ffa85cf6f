"""HTTP as registries speak it: pooled connections, bodies that stream through one small buffer, patience with faults.

- ``https:`` always; ``http:`` only where the caller says so for one host, or on this machine's own loopback.
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
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeAlias, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from intaglio.errors import CorruptContent, MachineError, RegistryError

_Result = TypeVar("_Result")
CA_FILE = "INTAGLIO_CA_FILE"
"""Environment variable: a PEM file of the only authorities to trust."""
BUFFER = 64 << 10
"""Bytes a read: small enough to stay in the processor's cache between socket, hash and file."""
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_CLEAR = re.compile(r"[\x00-\x20\x7f-\uffff]")
"""What must not stand in an address."""
Body: TypeAlias = "Callable[[], Iterable[bytes | memoryview]]"
"""Gives the pieces of a request's body; called once for each time that it is sent."""


@dataclass(frozen=True, slots=True)
class Network:
    """How patient to be, and whom to trust."""

    timeout: float = 30.0
    """Seconds without a byte, or with too few, after which a connection counts as stalled."""
    commit: float = 300.0
    """Seconds that a registry may take to answer once it has a whole blob."""
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
    body: Body | None = None
    length: int = 0
    """Bytes of the body."""

    def at(self, url: str) -> Request:
        """Return the same request for another address."""
        return Request(self.method, url, self.headers, self.body, self.length)


class Answer:
    """A server's answer; a context manager that gives its connection back, or closes it if bytes are left over."""

    def __init__(
        self, pool: Transport, wire: http.client.HTTPConnection, url: str, response: http.client.HTTPResponse
    ) -> None:
        self._pool, self._wire, self._response = pool, wire, response
        self._socket: socket.socket | None = wire.sock
        self._left = response.length
        self.url = url
        self.status = response.status
        self.length = response.length
        """Bytes of the body, where the server says so."""
        self._window, self._count = time.monotonic(), 0

    def header(self, name: str) -> str:
        """Return a header's value, or an empty string."""
        return self._response.headers.get(name, "") or ""

    def headers(self, name: str) -> list[str]:
        """Return every value of a header that may come several times."""
        return self._response.headers.get_all(name) or []

    def readinto(self, view: memoryview) -> int:
        """Fill a part of ``view`` and return how much; nothing at the end of the body.

        Raises:
            Passing: the connection broke, stalled, or the body ended early.
        """
        try:
            count = self._read_some(view)
        except TimeoutError:
            raise Passing(f"no byte for {self._pool.network.timeout:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Passing(f"the connection broke: {type(error).__name__}") from None
        if self._left is not None:
            self._left -= count
            if not count and self._left:
                raise Passing(f"the body ended {self._left} bytes early")
        self._watch(count)
        return count

    def _read_some(self, view: memoryview) -> int:
        if self._left is None or self._socket is None:
            return self._response.readinto(view) if len(view) else 0
        view = view[: self._left]
        if not len(view):
            return 0
        if self._response.fp is not None and (early := self._response.fp.peek()):
            # What came in one packet with the headers; after it the socket itself is read, without a second buffer.
            view[: len(early)] = early[: len(view)]
            return len(self._response.fp.read1(min(len(early), len(view))))
        return 0

    def _watch(self, count: int) -> None:
        self._count += count
        now = time.monotonic()
        network = self._pool.network
        if now - self._window >= network.timeout:
            if self._count < network.slowest * network.timeout:
                raise Passing(f"only {self._count} bytes in {now - self._window:.0f} s")
            self._window, self._count = now, 0

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
