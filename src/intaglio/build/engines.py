"""Container engines on this machine: where their sockets stand, and what answers there.

- Docker and podman speak one protocol on a Unix socket; what is asked here is only who answers.
- ``DOCKER_HOST`` names the socket where it is set; else the usual places are tried, the user's own before the system's.
- A socket over the network is none of ours: images are streamed and folders mounted, which needs this machine.

Source: Docker Engine API 1.41, ``GET /version``; docker-context(1) and podman-system-service(1) for the places.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from intaglio.dataclass import dataclass
from intaglio.errors import MachineError

VARIABLE = "DOCKER_HOST"
_SCHEME = "unix://"
_HINT = "start Docker, or podman's socket (systemctl --user start podman.socket); --engine-socket names another"
_TIMEOUT = 10.0
_MAX_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine that answers."""

    name: str
    """``docker`` or ``podman``."""
    version: str
    socket: Path


def places(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Return where an engine's socket may stand, the likeliest first; whether one does is not looked at.

    Raises:
        MachineError: ``DOCKER_HOST`` names something else than a Unix socket.
    """
    named = environment.get(VARIABLE)
    if named:
        return (_path(named),)
    runtime = environment.get("XDG_RUNTIME_DIR")
    own = (Path(runtime, "docker.sock"), Path(runtime, "podman", "podman.sock")) if runtime else ()
    return (*own, Path("/run/docker.sock"), Path("/run/podman/podman.sock"))


def _path(address: str) -> Path:
    """Return the path of a Unix socket's address: ``unix:///run/docker.sock``, or the path alone."""
    path = Path(address.removeprefix(_SCHEME))
    if not path.is_absolute():
        raise MachineError(
            f"expected the engine's Unix socket, as in {_SCHEME}/run/docker.sock, found {address!r}",
            hint="an engine on another machine sees neither the store nor the model: run intaglio there",
        )
    return path


def find(environment: Mapping[str, str], named: str | None = None) -> Engine:
    """Return the engine at the socket ``named``, or else the first that answers.

    Raises:
        MachineError: none does.
    """
    tried = []
    for place in (_path(named),) if named else places(environment):
        try:
            return ask(place)
        except MachineError as error:
            tried.append(error.message)
    raise MachineError(f"no container engine answers: {'; '.join(tried)}", hint=_HINT)


def ask(place: Path) -> Engine:
    """Return the engine that answers at the socket ``place``.

    Raises:
        MachineError: none does, or this user may not ask it.
    """
    connection = _Connection(place)
    try:
        connection.request("GET", "/version")
        answer = connection.getresponse()
        document = json.loads(answer.read(_MAX_ANSWER))
    except FileNotFoundError:
        raise MachineError(f"{place}: no socket") from None
    except PermissionError:
        raise MachineError(f"{place}: this user may not use it", hint="ask for membership in its group") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise MachineError(f"{place}: no answer: {error}") from None
    finally:
        connection.close()
    if not isinstance(document, dict) or not isinstance(document.get("Version"), str):
        raise MachineError(f"{place}: what answers is no container engine")
    components = document.get("Components")
    podman = "podman" in json.dumps(components).lower()
    return Engine("podman" if podman else "docker", document["Version"], place)


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, place: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._place = os.fspath(place)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._place)
