"""The request a server program is started with, and what all of them keep to.

Protocol 1: ``{"protocol": 1, "model": {"files": {"model.gguf": "/model/model.gguf"}, "folder": "/model"}, "name": "…",
"socket": "/run/intaglio/server.sock", "context": null}``. The files are links to memory that nobody can change; the
folder holds every one of them under its own name. The path of the request is the first argument.

* The server listens on the socket alone, and answers ``GET /v1/models`` with 200 and ``name`` once it can generate.
* SIGTERM and SIGINT end it with 0. Whatever else ends it, at start or later, is a failure, said on standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Fault(Exception):
    """The model or the request is at fault: said in one line, exit status 1, no traceback."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to serve, under which name, and where to listen."""

    files: dict[str, str]
    """Where each file of the model stands."""
    folder: Path
    """Where all of them stand under their own names."""
    name: str
    socket: str
    context: int | None
    """Tokens; ``None``: as many as the model was made for."""

    @classmethod
    def load(cls, path: Path) -> Request:
        """Read a request file.

        Raises:
            Fault: the file speaks another protocol, or the socket could not be listened on.
        """
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("protocol") != 1:
            raise Fault(f"expected protocol 1, found {document.get('protocol')!r}")
        socket = str(document["socket"])
        if not socket.endswith(".sock"):
            raise Fault(f"socket: expected a path that ends in .sock, found {socket!r}")
        model = document["model"]
        return cls(dict(model["files"]), Path(model["folder"]), str(document["name"]), socket, document.get("context"))


def run(serve: Callable[[Request], None]) -> int:
    """Serve what the first argument asks for; return the exit status."""
    os.environ.update(OFFLINE)
    # Idle threads sleep: spinning gains a few per cent on a quiet machine and costs twice the time on a busy one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        request = Request.load(Path(sys.argv[1] if len(sys.argv) > 1 else "/step/request.json"))
        Path(request.socket).unlink(missing_ok=True)
        serve(request)
    except Fault as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    return 0
