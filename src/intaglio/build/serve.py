"""Serving: a server program in the sandbox, over verified bytes, behind a relay on loopback.

- The server sees the model as sealed files in memory (:mod:`intaglio.guard.memory`): what it loads is what was
  verified, whatever happens to the store meanwhile.
- It has no network but a loopback of its own. It listens on a Unix socket in a private folder, which the relay
  (:mod:`intaglio.build.relay`) passes connections on to.
- When :func:`serve` returns, the server and everything it started are dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from intaglio import strictjson
from intaglio.build import relay
from intaglio.build.sandbox import FIRST_DESCRIPTOR, Limits, Mount, SandboxSpec, run
from intaglio.build.supervisor import Outcome, Stop
from intaglio.dataclass import dataclass
from intaglio.errors import LimitReached, StepFailed
from intaglio.guard.memory import HeldFile
from intaglio.strictjson import Object

SOCKET = "/run/intaglio/server.sock"
"""Where the server listens, inside."""
_MODEL = "/model"
_GRACE = 10.0
"""Seconds that a server gets to end when asked."""


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
    interfaces: bool = False
    """Whether it may list its network interfaces."""


def serve(
    *,
    held: Sequence[HeldFile],
    service: Service,
    name: str,
    listener: socket.socket,
    log: Path,
    ready: Callable[[str], None],
) -> int:
    """Serve the files that are ``held``, and verified, as the model ``name`` until SIGINT or SIGTERM; return 0.

    Must be called from the main thread. Connections are taken from ``listener``, on loopback; ``ready`` is given its
    address, as in ``http://127.0.0.1:8000/v1``, once the server answers. The server's output is appended to ``log``.

    Raises:
        MachineError: the sandbox does not work.
        StepFailed: the server ended by itself or never answered; the message ends with its last lines.
        LimitReached: it reached one of its limits.
    """
    with tempfile.TemporaryDirectory(prefix="intaglio-serve-") as folder:
        place = Path(folder)
        spec = _spec(service, held, name, place)
        return asyncio.run(_Session(service, spec, place / "run", log, ready).serve(listener))


def _spec(service: Service, held: Sequence[HeldFile], name: str, place: Path) -> SandboxSpec:
    """Return the server's sandbox; its folders and its request are made in ``place``."""
    for folder in ("run", "work"):
        (place / folder).mkdir(mode=0o700)
    inside = {file.path: f"{_MODEL}/{file.path}" for file in held}
    request: Object = {
        "protocol": 1,
        "model": {"files": inside, "folder": _MODEL},
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
        interfaces=service.interfaces,
    )


class _Session:
    """One server, from its start to its end, and the relay before it."""

    def __init__(
        self, service: Service, spec: SandboxSpec, folder: Path, log: Path, ready: Callable[[str], None]
    ) -> None:
        self._service = service
        self._spec = spec
        self._relay = relay.Relay(folder / os.path.basename(SOCKET))
        self._log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        self._ready = ready

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
            self._relay.close()
        if serving.done() and not serving.cancelled() and (error := serving.exception()) is not None:
            raise error
        if early and not asked.is_set():
            raise self._ended(outcome)
        return 0

    async def _relay_all(self, listener: socket.socket) -> None:
        """Wait for the server, then relay every connection, for ever."""
        try:
            async with asyncio.timeout(self._service.startup):
                while not await self._relay.answers():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise StepFailed(
                f"the server did not answer within {self._service.startup:g} s{self._last_lines()}",
                hint=f"its whole log: {self._log}",
            ) from None
        self._ready(relay.address(listener))
        await self._relay.serve(listener)

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
