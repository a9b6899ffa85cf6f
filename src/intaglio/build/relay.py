"""The relay: connections to this machine's loopback, passed on to a server's Unix socket, bytes and nothing else.

- It listens on 127.0.0.1 alone.
- The server's socket is opened once, without following links, and connected to by that descriptor: a server cannot
  make the relay talk to another socket of this machine.
- The end of one direction is passed on; the other goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from intaglio.errors import MachineError

_HOST = "127.0.0.1"
_CHUNK = 1 << 16
_PROBE = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_PROBE_SECONDS = 5.0
_QUEUE_SECONDS = 60.0
"""How long a connection waits for room in the server's queue, which some servers keep very short."""
_QUEUE_WAIT = 0.01


def listen(port: int) -> socket.socket:
    """Return a socket that listens on ``port`` of the loopback; 0 takes a free one.

    Raises:
        MachineError: the port is taken, or this user may not have it.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise MachineError(f"cannot listen on {_HOST}:{port}: {error.strerror}", hint="choose another --port") from None
    return listener


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
        listener.setblocking(False)
        server = await asyncio.start_server(self._pass, sock=listener)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()

    def close(self) -> None:
        """Let go of the server's socket."""
        if self._socket is not None:
            os.close(self._socket)
            self._socket = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection to the server, once its queue has room for one.

        A full queue is EAGAIN for a Unix socket, which asyncio takes for a connection under way (connect(2)).
        """
        if self._socket is None:
            raise ConnectionRefusedError
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                while client.connect_ex(f"/proc/self/fd/{self._socket}") == errno.EAGAIN:
                    await asyncio.sleep(_QUEUE_WAIT)
            client.getpeername()  # an error, where another kept it from being connected
            return await asyncio.open_unix_connection(sock=client)
        except BaseException:
            client.close()
            raise

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A connection that is open when the relay ends is cut; asyncio would report that as a failure of ours.
        with contextlib.suppress(asyncio.CancelledError):
            await self._both_ways(reader, writer)

    async def _both_ways(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await self._connect()
        except OSError:
            writer.close()
            return
        ways = [asyncio.create_task(_pump(reader, inner_writer)), asyncio.create_task(_pump(inner_reader, writer))]
        try:
            await asyncio.gather(*ways)
        except OSError:
            pass  # one side is gone: the other is closed below
        finally:
            for way in ways:
                way.cancel()
            for end in (writer, inner_writer):
                end.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


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
