"""Serving: a server program in the sandbox, over verified bytes, behind a relay on loopback.

- The server sees the model as sealed files in memory (:mod:`intaglio.guard.memory`): what it loads is what was
  verified, whatever happens to the store meanwhile.
- It has no network but a loopback of its own. It listens on a Unix socket in a private folder; the relay here takes
  connections on 127.0.0.1 and passes bytes, nothing else, both ways.
- The socket is opened once, without following links, and connected to by that descriptor: the server cannot make the
  relay talk to another socket of this machine.
- When :func:`serve` returns, the server and everything it started are dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from intaglio import strictjson
from intaglio.build.sandbox import FIRST_DESCRIPTOR, Limits, Mount, SandboxSpec, run
from intaglio.build.supervisor import Outcome, Stop
from intaglio.errors import LimitReached, MachineError, StepFailed
from intaglio.guard.memory import HeldFile, VerifiedFile, hold
from intaglio.progress import Progress
from intaglio.strictjson import Object

SOCKET = "/run/intaglio/server.sock"
"""Where the server listens, inside."""
_HOST = "127.0.0.1"
_GRACE = 10.0
"""Seconds that a server gets to end when asked."""
_CHUNK = 1 << 16
_PROBE = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Service:
    """A server program with all that it needs to run."""

    program: Path
    """Folder with ``server.py`` and its ``lib/``."""
    python: str
    """The interpreter, as a path inside."""
    mounts: tuple[Mount, ...]
    """Its environment and the interpreter's own mounts."""
    environment: Mapping[str, str]
    limits: Limits
    context: int | None = None
    """Tokens of context; ``None``: what the model says."""
    startup: float = 120.0
    """Seconds within which it must answer."""


def serve(
    *,
    files: Sequence[VerifiedFile],
    service: Service,
    name: str,
    port: int,
    log: Path,
    ready: Callable[[str], None],
    progress: Progress | None = None,
) -> int:
    """Serve the verified ``files`` as the model ``name`` until SIGINT or SIGTERM; return 0.

    Must be called from the main thread. ``port`` 0 takes a free one; ``ready`` is given the address, as in
    ``http://127.0.0.1:8000/v1``, once the server answers. The server's output is appended to ``log``.

    Raises:
        CorruptContent: a file has other bytes than those that were verified.
        MachineError: the port is taken, the sandbox does not work, or there is not enough memory.
        StepFailed: the server ended by itself or never answered; the message ends with its last lines.
        LimitReached: it reached one of its limits.
    """
    with (
        _listen(port) as listener,
        hold(files, progress=progress) as held,
        tempfile.TemporaryDirectory(prefix="intaglio-serve-") as folder,
    ):
        place = Path(folder)
        spec = _spec(service, held, name, place)
        return asyncio.run(_Session(service, spec, place / "run", log, ready).serve(listener))


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise MachineError(f"cannot listen on {_HOST}:{port}: {error.strerror}", hint="choose another --port") from None
    return listener


def _spec(service: Service, held: Sequence[HeldFile], name: str, place: Path) -> SandboxSpec:
    """Return the server's sandbox; its folders and its request are made in ``place``."""
    for folder in ("run", "work"):
        (place / folder).mkdir(mode=0o700)
    inside = {file.path: f"/model/{file.path}" for file in held}
    request: Object = {
        "protocol": 1,
        "model": {"files": inside},
        "name": name,
        "socket": SOCKET,
        "context": service.context,
    }
    (place / "request.json").write_bytes(strictjson.canonical(request))
    links = tuple((inside[file.path], f"/proc/1/fd/{FIRST_DESCRIPTOR + index}") for index, file in enumerate(held))
    return SandboxSpec(
        argv=(service.python, "-B", "-s", "-P", "/step/program/server.py", "/step/request.json"),
        mounts=(
            *service.mounts,
            Mount(service.program, "/step/program"),
            Mount(place / "request.json", "/step/request.json"),
            Mount(place / "run", os.path.dirname(SOCKET), writable=True),
            Mount(place / "work", "/work", writable=True),
        ),
        environment=service.environment,
        limits=service.limits,
        links=links,
        descriptors=tuple(file.descriptor for file in held),
        grace=_GRACE,
    )


class _Session:
    """One server, from its start to its end, and the relay before it."""

    def __init__(
        self, service: Service, spec: SandboxSpec, folder: Path, log: Path, ready: Callable[[str], None]
    ) -> None:
        self._service = service
        self._spec = spec
        self._folder = folder
        self._log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        self._ready = ready
        self._socket: int | None = None

    async def serve(self, listener: socket.socket) -> int:
        """Run the server and relay to it, until a signal or its end."""
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, asked.set)
        stop = Stop()
        server = asyncio.create_task(
            asyncio.to_thread(run, self._spec, log=self._log, on_event=lambda _: None, stop=stop)
        )
        quitting = asyncio.create_task(asked.wait())
        serving = asyncio.create_task(self._relay_all(listener))
        try:
            await asyncio.wait((server, quitting, serving), return_when=asyncio.FIRST_COMPLETED)
            early = server.done()
        finally:
            serving.cancel()
            quitting.cancel()
            with contextlib.suppress(asyncio.CancelledError, StepFailed):
                await serving
            stop.set()
            outcome = await server
            if self._socket is not None:
                os.close(self._socket)
        if serving.done() and not serving.cancelled() and (error := serving.exception()) is not None:
            raise error
        if early and not asked.is_set():
            raise self._ended(outcome)
        return 0

    async def _relay_all(self, listener: socket.socket) -> None:
        """Wait for the server, then relay every connection, for ever."""
        try:
            async with asyncio.timeout(self._service.startup):
                while not await self._answers():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise StepFailed(
                f"the server did not answer within {self._service.startup:g} s{self._last_lines()}",
                hint=f"its whole log: {self._log}",
            ) from None
        listener.setblocking(False)
        server = await asyncio.start_server(self._relay, sock=listener)
        host, port = listener.getsockname()[:2]
        self._ready(f"http://{host}:{port}/v1")
        try:
            await asyncio.Event().wait()
        finally:
            server.close()

    async def _answers(self) -> bool:
        """Return whether the server lists its model by now."""
        if self._socket is None:
            self._socket = _open_socket(self._folder / os.path.basename(SOCKET))
        try:
            reader, writer = await self._connect()
        except OSError:
            return False
        try:
            writer.write(_PROBE)
            line = await asyncio.wait_for(reader.readline(), 5.0)
        except (OSError, ValueError, TimeoutError):
            return False
        finally:
            writer.close()
        return line.startswith(b"HTTP/1.") and line.split()[1:2] == [b"200"]

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._socket is None:
            raise ConnectionRefusedError
        return await asyncio.open_unix_connection(f"/proc/self/fd/{self._socket}")

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection's bytes both ways; the end of one direction is passed on, the other goes on."""
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

    def _ended(self, outcome: Outcome) -> StepFailed:
        hint = f"its whole log: {self._log}"
        if outcome.limit is not None:
            return LimitReached(f"the server reached its limit of {outcome.limit}{self._last_lines()}", hint=hint)
        return StepFailed(f"the server ended by itself with status {outcome.status}{self._last_lines()}", hint=hint)

    def _last_lines(self) -> str:
        """Return the last lines of what this server wrote, to stand at the end of a message."""
        try:
            with open(self._log, "rb") as stream:
                stream.seek(max(self._log_start, os.fstat(stream.fileno()).st_size - (16 << 10)))
                lines = stream.read().decode(errors="replace").splitlines()[-15:]
        except OSError:
            return ""
        return "\n  " + "\n  ".join(lines) if lines else "; it wrote nothing"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _open_socket(path: Path) -> int | None:
    """Return a descriptor of the socket itself; ``None`` where there is none yet, or something else."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None
