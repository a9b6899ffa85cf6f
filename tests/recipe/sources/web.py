"""A real HTTP server on loopback, with faults on demand; and a hub that speaks the Hugging Face API on top of it.

A fault is used once for each time it is named: ``server.faults["/path"] = ["503", "stall"]`` spoils two answers.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that will not trust us, or has had enough, hangs up: that is its right, and no fault of the test.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Server:
    """Serves ``pages`` (path → bytes) with ranges, remembers every request, and does what ``faults`` say."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.headers: dict[str, dict[str, str]] = {}
        """Headers to add to the answer, by path."""
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Path (with query) and headers, by lower-case name."""
        self.needs_token: str | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = _Http(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def asked(self, path: str) -> list[dict[str, str]]:
        """The headers of every request for ``path``."""
        return [headers for target, headers in self.requests if target.partition("?")[0] == path]

    def page(self, path: str, query: dict[str, list[str]]) -> tuple[bytes, dict[str, str]] | None:
        """The body and extra headers of ``path``; overridden by the hub."""
        body = self.pages.get(path)
        return None if body is None else (body, {})

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        path = unquote(parts.path)
        self.requests.append((request.path, {name.lower(): value for name, value in request.headers.items()}))
        fault = self.faults[path].pop(0) if self.faults[path] else ""
        if self.needs_token and request.headers.get("Authorization") != f"Bearer {self.needs_token}":
            return self.say(request, 401, b"no")
        if fault.isdigit():
            return self.say(request, int(fault), b"fault", {"Retry-After": "0"})
        if path in self.redirects:
            return self.say(request, 302, b"", {"Location": self.redirects[path]})
        found = self.page(path, parse_qs(parts.query))
        if found is None:
            return self.say(request, 404, b"nothing here")
        body, headers = found
        return self.body(request, body, {**headers, **self.headers.get(path, {})}, fault)

    def body(self, request: BaseHTTPRequestHandler, body: bytes, headers: dict[str, str], fault: str) -> None:
        status, start = 200, 0
        wanted = request.headers.get("Range", "")
        if wanted and fault != "no-range":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.say(request, 416, b"", {"Content-Range": f"bytes */{len(body)}"})
            status = 206
            shown = start + 1 if fault == "wrong-range" else start
            headers["Content-Range"] = f"bytes {shown}-{len(body) - 1}/{len(body)}"
        if fault == "wrong-bytes":
            body = bytes(byte ^ 1 for byte in body)
        if fault == "longer":
            body += b"more"
        if fault == "encoded":
            headers["Content-Encoding"] = "gzip"
        part = body[start:]
        cut = len(part) // 2 if fault in ("close", "stall", "trickle") else len(part)
        self.say(request, status, part[:cut], {**headers, "Content-Length": str(len(part))})
        if fault == "stall":
            time.sleep(2)
        if fault == "trickle":
            for number in range(len(part) - cut):
                request.wfile.write(part[cut + number : cut + number + 1])
                request.wfile.flush()
                time.sleep(0.1)
        if cut < len(part):
            request.close_connection = True
        return None

    @staticmethod
    def say(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)
        request.wfile.flush()


class Hub(Server):
    """Speaks the part of the hub's API that a download uses: listings in pages, files, LFS by redirect to a CDN."""

    REVISION = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, cdn: Server, page_size: int = 3) -> None:
        super().__init__()
        self.cdn = cdn
        self.page_size = page_size
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.lfs: set[str] = set()
        """Paths that are kept by LFS."""
        self.lies: dict[str, dict[str, Any]] = {}
        """What a listing says about a path instead of the truth."""

    def add(self, repository: str, files: dict[str, bytes], lfs: set[str]) -> None:
        self.repositories[repository] = files
        self.lfs |= lfs
        for path, data in files.items():
            resolve = f"/{repository}/resolve/{self.REVISION}/{path}"
            if path in lfs:
                name = "/cdn/" + hashlib.sha256(data).hexdigest()
                self.cdn.pages[name] = data
                self.redirects[resolve] = f"{self.cdn.url}{name}?X-Amz-Signature=topsecret"
            else:
                self.pages[resolve] = data

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        pointer = b"version https://git-lfs.github.com/spec/v1\n"
        blob = pointer if path in self.lfs else data
        entry: dict[str, Any] = {
            "type": "file",
            "oid": hashlib.sha1(b"blob %d\0" % len(blob) + blob, usedforsecurity=False).hexdigest(),
            "size": len(data),
            "path": path,
        }
        if path in self.lfs:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": len(pointer)}
            entry["xetHash"] = "0" * 64
        return {**entry, **self.lies.get(path, {})}

    def page(self, path: str, query: dict[str, list[str]]) -> tuple[bytes, dict[str, str]] | None:
        for repository, files in self.repositories.items():
            api = f"/api/{repository if repository.startswith('datasets/') else f'models/{repository}'}"
            if path == f"{api}/tree/{self.REVISION}":
                folders = {name.rpartition("/")[0] for name in files if "/" in name}
                entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)]
                entries += [self.entry(name, data) for name, data in sorted(files.items())]
                first = int(query.get("cursor", ["0"])[0])
                headers = {}
                if first + self.page_size < len(entries):
                    following = f"{self.url}{path}?recursive=true&cursor={first + self.page_size}"
                    headers["Link"] = f'<{following}>; rel="next"'
                return json.dumps(entries[first : first + self.page_size]).encode(), headers
            if path == f"{api}/revision/main":
                return json.dumps({"id": repository, "sha": self.REVISION, "siblings": []}).encode(), {}
        return super().page(path, query)
