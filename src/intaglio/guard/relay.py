"""A relay: TCP connections passed on to a server's Unix socket, bytes both ways and nothing else.

- It knows no HTTP and holds nothing; the end of one direction is passed on, and the other goes on.
- In a container that publishes a port, it is a process of its own that ends when the server does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from intaglio.errors import MachineError

Connection: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_CHUNK = 1 << 16
_QUEUE_SECONDS = 60.0
"""How long a connection waits for room in the server's queue, which some servers keep very short."""
_QUEUE_WAIT = 0.01
_PR_SET_PDEATHSIG = 1


def start(port: int, path: str) -> None:
    """Listen on ``port`` of every address and relay to the socket at ``path``, in a child process.

    Raises:
        MachineError: the port cannot be listened on.
    """
    listener = listen("0.0.0.0", port)  # noqa: S104 - a container's own network, which publishes what it likes
    parent = os.getpid()
    if os.fork():
        listener.close()
        return
    try:
        gc.enable()  # a guard that is short-lived may go without; a relay is not
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            asyncio.run(serve(listener, lambda: connect(path)))
    finally:
        os._exit(1)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on ``port`` of the address ``host``; 0 takes a free one.

    Raises:
        MachineError: the port is taken, or this user may not have it.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise MachineError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another port: --port, or INTAGLIO_PORT"
        ) from None
    return listener


async def connect(path: str) -> Connection:
    """Return a connection to the socket at ``path``, once the server's queue has room for one.

    A full queue is EAGAIN for a Unix socket, which asyncio takes for a connection under way (connect(2)).

    Raises:
        OSError: there is none, or no room for a minute.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(_QUEUE_SECONDS):
            while client.connect_ex(path) == errno.EAGAIN:
                await asyncio.sleep(_QUEUE_WAIT)
        client.getpeername()  # an error, where another kept it from being connected
        return await asyncio.open_unix_connection(sock=client)
    except BaseException:
        client.close()
        raise


async def serve(listener: socket.socket, connected: Callable[[], Awaitable[Connection]]) -> None:
    """Pass every connection on to one that ``connected`` makes, for ever: until this is cancelled."""
    going: set[object] = set()  # asyncio holds tasks weakly: once a client has said all, one could be collected

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A connection that is open when the relay ends is cut; asyncio would report that as a failure of ours.
        task = asyncio.current_task()
        going.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await _both_ways(reader, writer, connected)
        finally:
            going.discard(task)

    listener.setblocking(False)
    server = await asyncio.start_server(passed, sock=listener)
    try:
        await asyncio.Event().wait()
    finally:
        server.close()


async def _both_ways(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connected: Callable[[], Awaitable[Connection]]
) -> None:
    try:
        inner_reader, inner_writer = await connected()
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
