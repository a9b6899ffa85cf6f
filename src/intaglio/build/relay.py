"""The way from this machine's loopback to a server's Unix socket, and the question whether it answers.

- It listens on 127.0.0.1 alone.
- The server's socket is opened once, without following links, and connected to by that descriptor: a server cannot
  make the relay talk to another socket of this machine.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

from intaglio.guard import relay

_HOST = "127.0.0.1"
_PROBE = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_PROBE_SECONDS = 5.0


def listen(port: int) -> socket.socket:
    """Return a socket that listens on ``port`` of the loopback; 0 takes a free one.

    Raises:
        MachineError: the port is taken, or this user may not have it.
    """
    return relay.listen(_HOST, port)


def address(listener: socket.socket) -> str:
    """Return where the API behind ``listener`` is, as in ``http://127.0.0.1:8000/v1``."""
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}/v1"


class Relay:
    """The way to one server, which listens, sooner or later, on the Unix socket at ``place``."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._socket: int | None = None

    async def answers(self) -> bool:
        """Return whether the server lists its model by now."""
        if self._socket is None:
            self._socket = _open_socket(self._place)
        try:
            reader, writer = await self._connect()
        except OSError:
            return False
        try:
            writer.write(_PROBE)
            line = await asyncio.wait_for(reader.readline(), _PROBE_SECONDS)
        except (OSError, ValueError, TimeoutError):
            return False
        finally:
            writer.close()
        return line.startswith(b"HTTP/1.") and line.split()[1:2] == [b"200"]

    async def serve(self, listener: socket.socket) -> None:
        """Pass every connection on, for ever: until this is cancelled."""
        await relay.serve(listener, self._connect)

    def close(self) -> None:
        """Let go of the server's socket."""
        if self._socket is not None:
            os.close(self._socket)
            self._socket = None

    async def _connect(self) -> relay.Connection:
        if self._socket is None:
            raise ConnectionRefusedError
        return await relay.connect(f"/proc/self/fd/{self._socket}")


def _open_socket(place: Path) -> int | None:
    """Return a descriptor of the socket itself; ``None`` where there is none yet, or something else."""
    try:
        descriptor = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None
