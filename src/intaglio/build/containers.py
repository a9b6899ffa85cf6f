"""Containers: one server in a runtime image, shut off from everything but its socket.

- The image is known to the engine by its id, the digest of the config that was verified, or of a manifest over it where
  containerd keeps the images; what was loaded under another id is never started, whatever it is tagged.
- No network; a read-only root; no capabilities, no new privileges; the image's own user; model and passport
  read-only. The one way in is a Unix socket in a folder that only this user can enter, behind a relay on loopback.
- When :func:`serve` returns, the container is gone. What a killed process left behind, the next one removes.
- A refusal of the guard in the container comes out as the error that it is, with the line it said.

Source: Docker Engine API 1.41, which podman speaks as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from intaglio.build.engines import Engine
from intaglio.build.relay import Relay, address
from intaglio.dataclass import dataclass, field
from intaglio.digest import Digest
from intaglio.errors import (
    CorruptContent,
    Error,
    InternalError,
    MachineError,
    NotVerifiable,
    PolicyRefusal,
    Stale,
    StepFailed,
    Untrusted,
    UsageError,
)

SOCKET_FOLDER = "/run/intaglio"
"""Where the server makes its socket, inside."""
SOCKET = "server.sock"
LABEL = "dev.intaglio.run"
"""Label of a container: the folder on this side that lives as long as the process that started it."""
_SHARED = 1 << 30
"""Bytes of shared memory: vLLM's processes talk through it."""
_GRACE = 10
"""Seconds that a server gets to end when asked."""
_TIMEOUT = 600
"""Seconds without an answer of the engine's: it may be unpacking gigabytes."""
_LINES = 200
"""Last lines of a container's log that are looked at."""
_SDK_HINT = "pip install 'intaglio[run]'   (Python's docker package)"
_GUARDS = (UsageError, CorruptContent, Untrusted, PolicyRefusal, Stale, NotVerifiable, MachineError, InternalError)
_REFUSALS: dict[int, type[Error]] = {kind.exit_code: kind for kind in _GUARDS}
"""Statuses that the guard ends with, its own fault among them."""


@dataclass(frozen=True, slots=True)
class Order:
    """One container, as it is wanted."""

    image: Digest
    """The image's id in the engine."""
    folders: Mapping[str, Path]
    """Path inside → folder on this side, read-only."""
    private: Path
    """A folder that only this user can enter, for the socket."""
    memory: int
    """Bytes."""
    processes: int
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"intaglio-{secrets.token_hex(4)}")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container ended."""

    status: int
    said: str
    """The last lines of what it wrote to standard error and output."""


class Host(Protocol):
    """A container engine, as far as it is used."""

    def has(self, image: Digest) -> bool:
        """Return whether it has the image of that id."""

    def load(self, archive: Iterable[bytes]) -> None:
        """Take the image in ``archive``."""

    def sweep(self, below: Path) -> None:
        """Remove containers whose process, which had a folder ``below``, is gone."""

    def start(self, order: Order) -> str:
        """Make and start a container; return its id."""

    def wait(self, container: str) -> Ended:
        """Return how it ended, once it has."""

    def stop(self, container: str) -> None:
        """End it, if it runs."""

    def remove(self, container: str) -> None:
        """Remove it, whatever its state; nothing where it is gone."""


def install(host: Host, ids: Sequence[Digest], archive: Iterable[bytes]) -> Digest:
    """Let the engine have the image that it knows by one of ``ids``, and return that one.

    ``archive`` is read only where it does not have it.

    Raises:
        CorruptContent: what the engine has afterwards is another image.
        MachineError: the engine refuses.
    """
    found = next(filter(host.has, ids), None)
    if found is None:
        host.load(archive)
        found = next(filter(host.has, ids), None)
    if found is None:
        raise CorruptContent(f"the engine has no image {ids[0]} after it was loaded: it has read it differently")
    return found


def serve(
    host: Host, order: Order, listener: socket.socket, *, startup: float, ready: Callable[[str, str], None]
) -> int:
    """Run the container and relay to it until SIGINT or SIGTERM; return 0.

    Must be called from the main thread. ``startup`` is how many seconds it may take until it answers, its own
    verification included; ``ready`` is given the address and the container's id once it does.

    Raises:
        VerificationError: the guard inside refused.
        StepFailed: the server ended by itself, or never answered.
        MachineError: the engine refuses.
    """
    place = order.private / "socket"
    place.mkdir(mode=0o700)
    # Who the server is on this side depends on the engine; the folder above keeps everyone else out.
    place.chmod(0o777)
    return asyncio.run(_Session(host, order, place, startup, ready).serve(listener))


class _Session:
    """One container, from its start to its end, and the relay before it."""

    def __init__(
        self, host: Host, order: Order, place: Path, startup: float, ready: Callable[[str, str], None]
    ) -> None:
        self._host = host
        self._order = order
        self._startup = startup
        self._ready = ready
        self._relay = Relay(place / SOCKET)

    async def serve(self, listener: socket.socket) -> int:
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, asked.set)
        container = await asyncio.to_thread(self._host.start, self._order)
        tasks: list[asyncio.Task[Any]] = []
        try:
            ended = asyncio.create_task(asyncio.to_thread(self._host.wait, container))
            quitting = asyncio.create_task(asked.wait())
            serving = asyncio.create_task(self._serve(listener, container))
            tasks = [serving, quitting, ended]
            await asyncio.wait((ended, quitting, serving), return_when=asyncio.FIRST_COMPLETED)
            if quitting.done():
                return 0
            if serving.done():
                serving.result()
            raise _error(await ended)
        finally:
            for task in tasks[:2]:
                task.cancel()
            await asyncio.to_thread(self._end, container)
            await asyncio.gather(*tasks, return_exceptions=True)  # what waits for the container ends with it
            self._relay.close()

    async def _serve(self, listener: socket.socket, container: str) -> None:
        """Wait for the server, then relay every connection, for ever."""
        try:
            async with asyncio.timeout(self._startup):
                while not await self._relay.answers():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise StepFailed(
                f"the server did not answer within {self._startup:g} s", hint="--startup gives it longer"
            ) from None
        self._ready(address(listener), container)
        await self._relay.serve(listener)

    def _end(self, container: str) -> None:
        with contextlib.suppress(MachineError):
            self._host.stop(container)
        self._host.remove(container)


def _error(ended: Ended) -> Error:
    """Return what the end of a container means: the guard's refusal, or a server that failed."""
    refusal = _refusal(ended)
    if refusal is not None:
        kind, line = refusal
        rule, detail, hint = (line.get(key) for key in ("rule", "detail", "hint"))
        said = ": ".join(str(part) for part in (rule, detail) if part)
        return kind(f"the guard refused: {said}", hint=hint if isinstance(hint, str) else None)
    lines = ended.said.strip().splitlines()[-15:]
    tail = "\n  " + "\n  ".join(lines) if lines else "; it wrote nothing"
    return StepFailed(f"the server ended by itself with status {ended.status}{tail}")


def _refusal(ended: Ended) -> tuple[type[Error], dict[str, Any]] | None:
    """Return the guard's refusal, which is its one line and its exit status in agreement."""
    kind = _REFUSALS.get(ended.status)
    for line in reversed(ended.said.splitlines()):
        with contextlib.suppress(ValueError):
            document = json.loads(line)
            if kind is not None and isinstance(document, dict) and document.get("exit_code") == ended.status:
                return kind, document
    return None


# --- the engine, by the docker SDK -----------------------------------------------------------------------------------


class DockerHost:
    """Docker or podman, asked through the ``docker`` SDK."""

    def __init__(self, engine: Engine) -> None:
        """Connect.

        Raises:
            MachineError: the SDK is not installed, or the engine does not answer.
        """
        try:
            import docker
        except ImportError:
            raise MachineError("Python's docker package is not installed", hint=_SDK_HINT) from None
        self.engine = engine
        with _asking(engine):
            self._client = docker.APIClient(f"unix://{engine.socket}", version="auto", timeout=_TIMEOUT)
            self._can = self._client.info()

    def has(self, image: Digest) -> bool:
        """Return whether the engine has the image of that id."""
        from docker.errors import ImageNotFound

        with _asking(self.engine):
            try:
                found: str = self._client.inspect_image(image.value)["Id"]
            except ImageNotFound:
                return False
        return found.removeprefix("sha256:") == image.hex

    def load(self, archive: Iterable[bytes]) -> None:
        """Take the image in ``archive``.

        Raises:
            MachineError: the engine refuses it.
        """
        with _asking(self.engine):
            for said in self._client.load_image(archive):
                if isinstance(said, dict) and said.get("error"):
                    raise MachineError(f"{self.engine.name} does not take the runtime image: {said['error']}")

    def sweep(self, below: Path) -> None:
        """Remove containers whose process, which had a folder ``below``, is gone: told by the lock on that folder."""
        with _asking(self.engine):
            found = self._client.containers(all=True, filters={"label": [LABEL]})
        for one in found:
            folder = Path(one["Labels"][LABEL])
            if folder.is_relative_to(below) and not _held(folder):
                self.remove(one["Id"])

    def start(self, order: Order) -> str:
        """Make and start a container; return its id."""
        with _asking(self.engine):
            made = self._client.create_container(
                image=order.image.value,
                name=order.name,
                hostname="model",
                environment=dict(order.environment),
                labels={LABEL: str(order.private)},
                host_config=self._host_config(order),
            )
            container: str = made["Id"]
            try:
                self._client.start(container)
            except BaseException:
                self.remove(container)
                raise
        return container

    def _host_config(self, order: Order) -> Any:
        from docker.types import LogConfig, Mount

        mounts = [Mount(inside, str(folder), type="bind", read_only=True) for inside, folder in order.folders.items()]
        mounts.append(Mount(SOCKET_FOLDER, str(order.private / "socket"), type="bind"))
        limits: dict[str, Any] = {"mem_limit": order.memory} if self._can.get("MemoryLimit") else {}
        limits |= {"memswap_limit": order.memory} if limits and self._can.get("SwapLimit") else {}
        limits |= {"pids_limit": order.processes} if self._can.get("PidsLimit") else {}
        return self._client.create_host_config(
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            mounts=mounts,
            tmpfs={"/tmp": "rw,nosuid,nodev,mode=1777"},  # noqa: S108 - the container's own
            shm_size=_SHARED,
            log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": "10m"}),
            **limits,
        )

    def wait(self, container: str) -> Ended:
        """Return how the container ended, once it has."""
        with _asking(self.engine):
            status = self._client.wait(container, timeout=None)["StatusCode"]
            said: bytes = self._client.logs(container, stdout=True, stderr=True, tail=_LINES)
        return Ended(int(status), said.decode(errors="replace"))

    def stop(self, container: str) -> None:
        """End the container, if it runs."""
        with _asking(self.engine):
            self._client.stop(container, timeout=_GRACE)

    def remove(self, container: str) -> None:
        """Remove the container, whatever its state; nothing where it is gone."""
        from docker.errors import NotFound

        with _asking(self.engine), contextlib.suppress(NotFound):
            self._client.remove_container(container, v=True, force=True)


@contextlib.contextmanager
def _asking(engine: Engine) -> Iterator[None]:
    """Turn what the SDK raises into an error of ours."""
    from docker.errors import APIError, DockerException

    try:
        yield
    except APIError as error:
        raise MachineError(f"{engine.name} at {engine.socket}: {error.explanation or error}") from None
    except (DockerException, OSError) as error:  # what the SDK lets through of its HTTP library is an OSError
        raise MachineError(f"{engine.name} at {engine.socket}: {error}", hint="is it still running?") from None


def _held(folder: Path) -> bool:
    """Return whether the process that made the scratch folder ``folder`` lives: it holds the lock beside it."""
    try:
        descriptor = os.open(folder.parent / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
