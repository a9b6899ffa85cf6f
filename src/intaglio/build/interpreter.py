"""The interpreter that runs inside the sandbox: where it stands on this machine, and which bytes it is.

- It is the engine's own base interpreter where the version fits, else ``pythonX.Y`` from ``PATH``.
- Below ``/usr`` the sandbox has it anyway; elsewhere its prefix is mounted read-only at ``/opt/python``.
- The host digests name the bytes of the interpreter, libc and libm that a step's result may depend on. They are
  part of the action key, so they are bytes' digests and never paths or versions.
- Files are hashed once and remembered by their status: a cached build hashes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from intaglio import strictjson
from intaglio.build.sandbox import Mount
from intaglio.dataclass import dataclass
from intaglio.digest import Digest, hash_stream
from intaglio.errors import CorruptContent, LockError, MachineError

INSIDE = "/opt/python"
"""Where the sandbox sees an interpreter that does not stand below ``/usr``."""
_LIBRARIES = {"libc": "libc.so.", "libm": "libm.so.", "libpython": "libpython"}
_ASK = (
    "import json, sys; print(json.dumps([sys.implementation.name, *sys.version_info[:2], sys.base_prefix, "
    "sys._base_executable, open('/proc/self/maps').read()]))"
)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python interpreter as the sandbox sees it."""

    version: tuple[int, int]
    """Major and minor."""
    executable_inside: str
    """Path of the base interpreter inside the sandbox."""
    mounts: tuple[Mount, ...]
    """What the sandbox needs besides ``/usr``."""
    environment: Mapping[str, str]
    """What it needs in the environment to start."""
    host: Mapping[str, str]
    """What it is: digests of ``python``, ``libc``, ``libm`` and, where Python is shared, ``libpython``, the key's host
    digests; or ``rootfs``, where it is a root file system's.
    """


@dataclass(frozen=True, slots=True)
class _Installation:
    """An interpreter as it stands on this machine."""

    version: tuple[int, int]
    prefix: Path
    executable: Path
    libraries: Mapping[str, Path]


def find(requires: str, *, cache: Path | None = None) -> Interpreter:
    """Return the interpreter for a lock that ``requires`` one, as in ``==3.11.*``.

    ``cache`` is a file that remembers digests by the files' status; it is made where there is none.

    Raises:
        MachineError: this machine has no such Python, or not one of ours (CPython with glibc).
        LockError: ``requires`` is not one minor version.
    """
    wanted = _wanted(requires)
    found = _own() if sys.version_info[:2] == wanted else _on_path(wanted)
    below_usr = found.prefix.is_relative_to("/usr")
    prefix = str(found.prefix) if below_usr else INSIDE
    environment = {}
    library = found.libraries.get("libpython")
    if library is not None and found.prefix != Path("/usr") and library.is_relative_to(found.prefix):
        environment["LD_LIBRARY_PATH"] = f"{prefix}/{library.relative_to(found.prefix).parent}"
    files = {"python": found.executable, **found.libraries}
    return Interpreter(
        version=wanted,
        executable_inside=f"{prefix}/{found.executable.relative_to(found.prefix)}",
        mounts=() if below_usr else (Mount(found.prefix, INSIDE),),
        environment=environment,
        host=_digests(files, cache),
    )


def _wanted(requires: str) -> tuple[int, int]:
    major, _, minor = requires.removeprefix("==").removesuffix(".*").partition(".")
    if not (requires.startswith("==") and requires.endswith(".*") and major.isdecimal() and minor.isdecimal()):
        raise LockError(f'requires-python: expected one Python, as in "==3.11.*", found {requires!r}')
    return int(major), int(minor)


def _own() -> _Installation:
    """Return the engine's own base interpreter; it is never run to ask it."""
    executable = getattr(sys, "_base_executable", "") or sys.executable
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as stream:
        maps = stream.read()
    return _installation(sys.implementation.name, sys.version_info[:2], sys.base_prefix, executable, maps)


def _on_path(wanted: tuple[int, int]) -> _Installation:
    """Return ``pythonX.Y`` from ``PATH``, asked where it really stands (it may be a launcher)."""
    name = f"python{wanted[0]}.{wanted[1]}"
    hint = f"install {name} (on Debian and Ubuntu: apt install {name}), or run intaglio with it"
    program = shutil.which(name)
    if program is None:
        raise MachineError(f"no {name} on PATH; the toolchain's lock is for it", hint=hint)
    try:
        answer = subprocess.run([program, "-I", "-S", "-c", _ASK], capture_output=True, check=True, timeout=60).stdout
        kind, major, minor, prefix, executable, maps = json.loads(answer)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise MachineError(f"{program}: does not run: {error}", hint=hint) from None
    if (major, minor) != wanted:
        raise MachineError(f"{program}: expected Python {wanted[0]}.{wanted[1]}, found {major}.{minor}", hint=hint)
    return _installation(kind, wanted, prefix, executable, maps)


def _installation(kind: str, version: tuple[int, int], prefix: str, executable: str, maps: str) -> _Installation:
    if kind != "cpython":
        raise MachineError(f"{executable}: expected CPython, found {kind}", hint="run intaglio with CPython")
    home, program = Path(prefix).resolve(), Path(executable).resolve()
    if not program.is_relative_to(home):
        raise MachineError(
            f"{program}: expected it below its prefix {home}",
            hint="use an interpreter whose program and library stand in one prefix",
        )
    mapped = {Path(line[line.index("/") :]) for line in maps.splitlines() if "/" in line}
    libraries = {
        name: path.resolve()
        for path in sorted(mapped)
        for name, start in _LIBRARIES.items()
        if path.name.startswith(start) and path.exists()
    }
    if "libc" not in libraries:
        raise MachineError(f"{program}: expected one that runs on glibc, found none", hint="use a glibc system")
    # The two are one package: an interpreter that has not loaded libm yet will load the one beside its libc.
    libraries.setdefault("libm", libraries["libc"].with_name("libm.so.6"))
    return _Installation(version, home, program, libraries)


def _digests(files: Mapping[str, Path], cache: Path | None) -> dict[str, str]:
    """Return the files' digests by name, hashing only what the cache does not know by its status."""
    known = _read_cache(cache)
    entries: dict[str, str] = {}
    result: dict[str, str] = {}
    for name, path in sorted(files.items()):
        try:
            with open(path, "rb") as stream:
                status = os.fstat(stream.fileno())
                key = f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
                result[name] = entries[key] = known.get(key) or hash_stream(stream)[0].value
        except OSError as error:
            raise MachineError(f"{path}: cannot read this machine's {name}: {error.strerror}") from None
    if cache is not None and not entries.keys() <= known.keys():
        _write_cache(cache, {**_existing(known), **entries})
    return result


def _read_cache(cache: Path | None) -> dict[str, str]:
    """Return what the cache holds; one that cannot be read is an empty one."""
    if cache is None:
        return {}
    try:
        document = strictjson.parse_object(cache.read_bytes(), what=str(cache))
        return {key: Digest.parse(value).value for key, value in document.items()}
    except (OSError, CorruptContent):
        return {}


def _existing(known: Mapping[str, str]) -> dict[str, str]:
    """Return the entries whose file is still there, so that upgrades leave nothing behind."""
    return {key: value for key, value in known.items() if Path(key.rsplit(" ", 4)[0]).exists()}


def _write_cache(cache: Path, entries: Mapping[str, str]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=".host-", dir=cache.parent)
    with open(fd, "wb") as stream:
        stream.write(strictjson.canonical(entries))
    Path(name).replace(cache)
