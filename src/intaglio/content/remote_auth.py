"""Answers to a registry's challenge: a password by ``Basic``, or an access token by ``Bearer``.

- A credential is given to the registry that it is for, and to the token service that this registry itself names.
- A token service is asked over ``https:`` unless the registry itself is asked over ``http:``.
- Tokens live in memory, for as long as one command.

Source: RFC 9110, section 11; the distribution project's token authentication (``token``, ``oauth2``).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlencode, urlsplit

from intaglio import strictjson
from intaglio.content.credentials import Credential
from intaglio.content.remote_http import Answer, Passing, Request, Transport, join, origin, shown
from intaglio.dataclass import dataclass, field
from intaglio.errors import CorruptContent, RegistryError

_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9._-]*)(?:\s+(?=[^=\s]+\s*=)|\s*(?=,|\Z))")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z0-9._-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_HINT = "intaglio login HOST   (or put the credential into docker's config.json)"


@dataclass
class Authorizer:
    """Holds what to send to one registry; threads share it."""

    transport: Transport
    base: str
    """The registry's own address."""
    find: Callable[[], Credential | None] = field(repr=False)
    """Looks for the credential, once it is asked for."""
    scope: str = ""
    """What is asked for, as in ``repository:org/model:pull``."""
    _header: str | None = field(default=None, repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def header(self, where: str) -> str | None:
        """Return the ``Authorization`` for the origin ``where``: nothing for any but the registry's own."""
        return self._header if where == origin(self.base) else None

    def refused(self, answer: Answer, sent: str | None) -> None:
        """Make a new header after the registry answered 401 to the one that was ``sent``.

        Raises:
            RegistryError: there is no credential, or it was refused.
            Passing: the token service does not answer now.
        """
        with self._guard:
            if self._header != sent:
                return  # another thread has a newer one already
            offered = challenges(answer.headers("WWW-Authenticate"))
            credential = self.find()
            if "bearer" in offered:
                fresh = f"Bearer {self._token(offered['bearer'], credential)}"
            elif "basic" in offered and credential is not None and not credential.token:
                fresh = credential.basic()
            else:
                raise self.error(answer.url, credential)
            if fresh == sent:
                raise self.error(answer.url, credential)
            self._header = fresh

    def error(self, url: str, credential: Credential | None) -> RegistryError:
        """Return the error of whoever is not let in."""
        why = "the credential was refused" if credential else "a credential is needed, and there is none"
        return RegistryError(f"{shown(url)}: {why} (401)", hint=_HINT)

    def _token(self, challenge: Mapping[str, str], credential: Credential | None) -> str:
        realm = join(self.base, challenge.get("realm", ""))
        if self.base.startswith("https:"):
            self.transport.follow(self.base, realm)
        else:
            self.transport.check(realm)
        scopes = [self.scope] if self.scope else []
        wanted = challenge.get("scope", "")
        if wanted and not _covers(self.scope, wanted):
            scopes.append(wanted)
        service = challenge.get("service", "")
        if credential is not None and credential.token:
            form = {"grant_type": "refresh_token", "refresh_token": credential.token, "service": service}
            body = urlencode({**form, "client_id": "intaglio", "scope": " ".join(scopes)}).encode()
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            request = Request("POST", realm, kind, lambda: (body,), len(body))
        else:
            query = urlencode([("service", service)] * bool(service) + [("scope", one) for one in scopes])
            headers = {"Authorization": credential.basic()} if credential else {}
            request = Request("GET", realm + ("&" if urlsplit(realm).query else "?") * bool(query) + query, headers)
        return self._fetch(request, credential)

    def _fetch(self, request: Request, credential: Credential | None) -> str:
        # The credential goes with this one request; a redirect is not followed, so it goes nowhere else.
        with self.transport.ask(request) as answer:
            if answer.status in (400, 401, 403):
                raise self.error(request.url, credential)
            if answer.status == 429 or answer.status >= 500:
                raise Passing(f"the token service answers {answer.status}")
            if answer.status != 200:
                raise RegistryError(f"{shown(request.url)}: the token service answers {answer.status}")
            data = answer.read(1 << 20, "the token service's answer")
        try:
            document = strictjson.parse_object(data, what="the token service's answer", max_bytes=1 << 20)
        except CorruptContent:
            document = {}  # its text may hold a token: not repeated
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RegistryError(f"{shown(request.url)}: the token service gives no token")
        return token


def challenges(headers: list[str]) -> dict[str, dict[str, str]]:
    """Return the parameters of each challenge in ``WWW-Authenticate`` by its scheme, in lower case."""
    found: dict[str, dict[str, str]] = {}
    for header in headers:
        for scheme, parameters in _parse(header):
            found.setdefault(scheme, parameters)
    return found


def _parse(header: str) -> Iterator[tuple[str, dict[str, str]]]:
    place = 0
    while match := _SCHEME.match(header, place):
        place = match.end()
        parameters: dict[str, str] = {}
        while pair := _PARAMETER.match(header, place):
            place = pair.end()
            quoted = pair[2]
            parameters[pair[1].lower()] = pair[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        yield match[1].lower(), parameters


def _covers(held: str, wanted: str) -> bool:
    """Return whether the scope ``held`` gives all that ``wanted`` names, as ``repository:name:pull,push`` does."""
    resource, _, actions = held.rpartition(":")
    other, _, needed = wanted.rpartition(":")
    return resource == other and set(needed.split(",")) <= set(actions.split(","))
