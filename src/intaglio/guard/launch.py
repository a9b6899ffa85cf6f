"""Starting the server: over the very bytes that were verified, with hubs offline and remote code off.

- The server is executed in the guard's place, with the guard's process id: nothing stands between it and its signals.
- Files of sealed memory are handed on as open descriptors, which the request names; so is the request, sealed itself.
- For programs that open a folder there is one of links to them, which nobody may write to.
- Where a port is asked for, a relay is started before, and dies with the server.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from intaglio import strictjson
from intaglio.errors import MachineError, UsageError
from intaglio.guard.memory import HeldFile, sealed
from intaglio.strictjson import Object

SOCKET = "INTAGLIO_SOCKET"
"""Environment variable: where the server listens."""
PORT = "INTAGLIO_PORT"
"""Environment variable: a TCP port that is relayed to the socket; none where it is not set."""
NAME = "INTAGLIO_MODEL_NAME"
"""Environment variable: the name under which the model is served."""
CONTEXT = "INTAGLIO_CONTEXT"
"""Environment variable: tokens of context; what the model says where it is not set."""
DEFAULT_SOCKET = "/run/intaglio/server.sock"
OFFLINE = {
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Set whatever the environment said before. Remote code is off by default everywhere, and no image that names any
verifies: see :mod:`intaglio.content.formats.inspect`."""


def settings(environment: Mapping[str, str], default_name: str) -> Object:
    """Return name, socket and context of the server, as the environment has them.

    Raises:
        UsageError: the context or the port is no number.
    """
    context = environment.get(CONTEXT)
    for variable, largest in ((CONTEXT, (1 << 31) - 1), (PORT, 65535)):
        value = environment.get(variable)
        if value and not (value.isascii() and value.isdecimal() and 0 < int(value[:40]) <= largest):
            raise UsageError(f"{variable}: expected a number from 1 to {largest}, found {value[:40]!r}")
    return {
        "name": environment.get(NAME) or default_name,
        "socket": environment.get(SOCKET) or DEFAULT_SOCKET,
        "context": int(context) if context else None,
    }


def lay_out(held: Sequence[HeldFile], model: Path) -> Path:
    """Return a folder with the held files: ``model`` itself where no file had to be copied.

    Otherwise it is a new folder of links, closed as soon as they are there. It is for programs that
    open a model by its folder; those that open files by the request never look into it. Another process of the very
    same user could open it again and change a link: see docs/runtime-images.md, "What it holds against".
    """
    if not any(file.copied for file in held):
        return model
    try:
        folder = _private_folder(Path(os.environ.get("TMPDIR") or "/tmp"))  # noqa: S108 - made with 0700
        for file in held:
            place = folder / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(descriptor_path(file.descriptor) if file.copied else (model / file.path).absolute())
        for path, _, _ in os.walk(folder):
            Path(path).chmod(0o500)
    except OSError as error:
        raise MachineError(
            f"no folder for the model's links: {error.strerror}", hint="give the container a writable /tmp (--tmpfs)"
        ) from None
    return folder


def _private_folder(parent: Path) -> Path:
    folder = parent / f"intaglio-model-{os.urandom(8).hex()}"
    folder.mkdir(mode=0o700)
    return folder


def descriptor_path(descriptor: int) -> str:
    """Return a path to an open descriptor that the server's own children can open, too."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def request(held: Sequence[HeldFile], folder: Path, about: Object) -> str:
    """Return the path of a request as server programs read it (``docs/serving.md``): sealed, as the model is.

    A copied file that is alone of its kind, as a GGUF file is, is named by its descriptor: whoever opens it passes
    through no folder that could be changed. The parts of a split one are found by their names, beside each other.
    """
    kinds = [_kind(file) for file in held]
    files: Object = {
        file.path: descriptor_path(file.descriptor)
        if file.copied and kinds.count(_kind(file)) == 1
        else str(folder / file.path)
        for file in held
    }
    document: Object = {"protocol": 1, "model": {"files": files, "folder": str(folder)}, **about}
    return descriptor_path(sealed("request.json", strictjson.canonical(document)))


def _kind(file: HeldFile) -> str:
    return file.path.rpartition(".")[2].lower()


def fill(argv: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return ``argv`` with ``{model}``, ``{request}``, ``{name}`` and ``{socket}`` replaced."""
    filled = []
    for word in argv:
        for name, value in values.items():
            word = word.replace(f"{{{name}}}", value)
        filled.append(word)
    return filled


def execute(argv: Sequence[str], held: Sequence[HeldFile], environment: Mapping[str, str]) -> None:
    """Become the server; returns only by an error.

    Raises:
        MachineError: there is no such program.
    """
    for file in held:
        if file.copied:
            os.set_inheritable(file.descriptor, True)
    if os.getpid() == 1:
        os.umask(0)  # in a container, whoever published the socket's folder is to reach the socket
    try:
        os.execvpe(argv[0], list(argv), {**environment, **OFFLINE})  # noqa: S606 - the server's own words, no shell
    except OSError as error:
        raise MachineError(f"{argv[0]}: cannot be started: {error.strerror}") from None
