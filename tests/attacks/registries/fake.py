"""A small OCI 1.1 registry in memory, with the referrers API, passwords and tokens; and with lies on demand.

``registry.tamper`` sees every reply before it is sent and may change, cut or delay it: every attack is a function.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.images import Draft

from intaglio import strictjson
from intaglio.content.descriptor import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.digest import Digest

NAME = "models/demo"
_ROUTE = re.compile(r"/v2/(?P<name>.+)/(?P<kind>blobs|manifests|referrers|tags)/(?P<what>.+)\Z")


@dataclass
class Reply:
    """What is about to be sent."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Send only so many bytes of the body, then close."""
    stall: float = 0.0
    """Seconds to wait before the body."""
    chunked: bool = False


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""
    kind: str = ""
    """``blobs``, ``manifests``, ``referrers``, ``tags``, ``token``, or empty."""
    what: str = ""
    """The digest or tag."""


Tamper = Callable[[Asked, Reply], Reply]


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that has heard enough hangs up: that is its right, and no fault of the test.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Registry:
    """Runs on loopback until closed; every repository shares the same blobs."""

    def __init__(self, *, referrers_api: bool = False, tls: ssl.SSLContext | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        """By digest or tag: media type and bytes."""
        self.referrers_api = referrers_api
        self.page_size = 1000
        self.basic: tuple[str, str] | None = None
        self.bearer: str | None = None
        """The realm to send clients to, if tokens are asked for; tokens are good if this registry made them."""
        self.tokens: set[str] = set()
        self.tamper: Tamper = lambda asked, reply: reply
        self.requests: list[Asked] = []
        self._uploads = 0
        self._guard = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                outer.handle(self)

            do_GET = do_HEAD = do_PUT = do_POST = handle_any  # noqa: N815 - the base class's names

            def log_message(self, *_: Any) -> None:
                pass

        self._http = _Http(("127.0.0.1", 0), Handler)
        if tls:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.scheme = "https" if tls else "http"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._http.server_port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def reference(self, tag: str = "1") -> str:
        return f"{self.host}/{NAME}:{tag}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- contents ----------------------------------------------------------------------------------------------------

    def load(self, draft: Draft, tag: str = "1") -> Digest:
        """Hold the image and its referrers, as a good client would have pushed them."""
        for digest, blob in draft.blobs().items():
            self.blobs[str(digest)] = blob
        self.put(draft.manifest, tag)
        for referrer in draft.referrers:
            self.put(referrer.manifest)
        listed = [entry.to_json() for entry in self.listing(draft.image.digest)]
        index: strictjson.Object = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": listed}
        if not self.referrers_api:
            self.put(strictjson.canonical(index), f"sha256-{draft.image.digest.hex}", INDEX_TYPE)
        return draft.image.digest

    def put(self, manifest: bytes, tag: str | None = None, media_type: str = MANIFEST_TYPE) -> Digest:
        digest = Digest.of(manifest)
        for name in (str(digest), *([tag] if tag else [])):
            self.manifests[name] = (media_type, manifest)
        return digest

    def listing(self, subject: Digest) -> list[Descriptor]:
        """What refers to ``subject``, with true types and annotations."""
        found = []
        for name, (kind, data) in sorted(self.manifests.items()):
            document = json.loads(data)
            if name.startswith("sha256:") and document.get("subject", {}).get("digest") == str(subject):
                artifact = document.get("artifactType") or document["config"]["mediaType"]
                found.append(Descriptor(kind, Digest(name), len(data), artifact, document.get("annotations", {})))
        return found

    def asked(self, method: str, kind: str) -> list[Asked]:
        return [one for one in self.requests if (one.method, one.kind) == (method, kind)]

    # --- answers -----------------------------------------------------------------------------------------------------

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        declared = int(http.headers.get("Content-Length") or 0)
        body = http.rfile.read(declared)
        if len(body) < declared:  # never completed
            http.close_connection = True
            return
        parts = urlsplit(http.path)
        query = parse_qs(parts.query)
        route = _ROUTE.match(parts.path)
        kind, what = (route["kind"], route["what"]) if route else ("", "")
        headers = {name.lower(): value for name, value in http.headers.items()}
        asked = Asked(http.command, http.path, headers, "token" if parts.path == "/token" else kind, what)
        self.requests.append(asked)
        reply = self._refuse(asked) or self._reply(asked, query, body)
        self._send(http, self.tamper(asked, reply))

    def _send(self, http: BaseHTTPRequestHandler, reply: Reply) -> None:
        http.send_response(reply.status)
        headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        if reply.chunked:
            del headers["Content-Length"]
            headers["Transfer-Encoding"] = "chunked"
        for name, value in headers.items():
            http.send_header(name, value)
        http.end_headers()
        http.wfile.flush()
        if http.command == "HEAD":
            return
        time.sleep(reply.stall)
        body = reply.body if reply.cut is None else reply.body[: reply.cut]
        if reply.chunked:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        http.wfile.write(body)
        http.wfile.flush()
        if reply.cut is not None or reply.stall:
            http.close_connection = True

    def _refuse(self, asked: Asked) -> Reply | None:
        sent = asked.headers.get("authorization", "")
        if asked.kind == "token":
            if self.basic and sent != _basic(*self.basic):
                return Reply(401, _error("UNAUTHORIZED", "no such user"))
            token = f"token-{len(self.tokens)}"
            self.tokens.add(token)
            return Reply(200, json.dumps({"token": token}).encode())
        if self.bearer and sent.removeprefix("Bearer ") not in self.tokens:
            scope = f"repository:{NAME}:pull" if asked.kind else ""
            challenge = f'Bearer realm="{self.bearer}",service="test"' + (f',scope="{scope}"' if scope else "")
            return Reply(401, _error("UNAUTHORIZED", "a token, please"), {"WWW-Authenticate": challenge})
        if self.basic and not self.bearer and sent != _basic(*self.basic):
            challenge = 'Basic realm="test, really", charset="UTF-8"'
            return Reply(401, _error("UNAUTHORIZED", "a password, please"), {"WWW-Authenticate": challenge})
        return None

    def _reply(self, asked: Asked, query: dict[str, list[str]], body: bytes) -> Reply:
        with self._guard:
            if asked.kind == "blobs" and asked.what.startswith("uploads/"):
                return self._upload(asked, query, body)
            if asked.kind == "blobs":
                return self._blob(asked)
            if asked.kind == "manifests":
                return self._manifest(asked, body)
            if asked.kind == "referrers" and self.referrers_api:
                return self._referrers(asked, query)
            if asked.kind == "tags":
                tags = sorted(name for name in self.manifests if not name.startswith("sha256:"))
                after = query.get("last", [""])[0]
                listed = {"name": NAME, "tags": [tag for tag in tags if tag > after]}
                return Reply(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})
        return Reply(200) if asked.path == "/v2/" else Reply(404, b"404 page not found")

    def _upload(self, asked: Asked, query: dict[str, list[str]], body: bytes) -> Reply:
        if asked.method == "POST":
            self._uploads += 1
            return Reply(202, headers={"Location": f"/v2/{NAME}/blobs/uploads/{self._uploads}?state=a%20b"})
        digest = Digest.of(body)
        if query.get("digest") != [str(digest)]:
            return Reply(400, _error("DIGEST_INVALID", "not these bytes"))
        self.blobs[str(digest)] = body
        return Reply(201, headers={"Docker-Content-Digest": str(digest)})

    def _blob(self, asked: Asked) -> Reply:
        body = self.blobs.get(asked.what)
        if body is None:
            return Reply(404, _error("BLOB_UNKNOWN", "no such blob"))
        headers = {"Docker-Content-Digest": asked.what, "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", ""))
        if not wanted:
            return Reply(200, body, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1)
        if first >= len(body):
            return Reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        return Reply(206, body[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(body)}"})

    def _manifest(self, asked: Asked, body: bytes) -> Reply:
        if asked.method == "PUT":
            tag = None if asked.what.startswith("sha256:") else asked.what
            digest = self.put(body, tag, asked.headers["content-type"])
            headers = {"Docker-Content-Digest": str(digest)}
            subject = json.loads(body).get("subject")
            if self.referrers_api and subject:
                headers["OCI-Subject"] = subject["digest"]
            return Reply(201, headers=headers)
        found = self.manifests.get(asked.what)
        if found is None:
            return Reply(404, _error("MANIFEST_UNKNOWN", "no such manifest"))
        return Reply(200, found[1], {"Content-Type": found[0], "Docker-Content-Digest": str(Digest.of(found[1]))})

    def _referrers(self, asked: Asked, query: dict[str, list[str]]) -> Reply:
        listed = [entry.to_json() for entry in self.listing(Digest(asked.what))]
        if "artifactType" in query:
            listed = [entry for entry in listed if entry["artifactType"] in query["artifactType"]]
        first = int(query.get("page", ["0"])[0])
        headers = {"Content-Type": INDEX_TYPE}
        if first + self.page_size < len(listed):
            path = urlsplit(asked.path).path
            headers["Link"] = f'<{path}?page={first + self.page_size}>; rel="next"'
        page = listed[first : first + self.page_size]
        return Reply(
            200, json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": page}).encode(), headers
        )


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()
