"""A relay from a TCP port to the server's Unix socket: for containers that publish ports.

- It passes bytes, nothing else, both ways; it knows no HTTP and holds nothing.
- It is a process of its own that ends when the server does.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket

from intaglio.errors import MachineError

_CHUNK = 1 << 16
_PR_SET_PDEATHSIG = 1


def start(port: int, path: str) -> None:
    """Listen on ``port`` of every address and relay to the socket at ``path``, in a child process.

    Raises:
        MachineError: the port cannot be listened on.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", port))  # noqa: S104 - a container's own network, which publishes what it likes
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise MachineError(f"cannot listen on port {port}: {error.strerror}") from None
    parent = os.getpid()
    if os.fork():
        listener.close()
        return
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            asyncio.run(_serve(listener, path))
    finally:
        os._exit(1)


async def _serve(listener: socket.socket, path: str) -> None:
    listener.setblocking(False)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(path)
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

    server = await asyncio.start_server(relay, sock=listener)
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
