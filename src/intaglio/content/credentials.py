"""Credentials for registries: where they are looked for, and how ``intaglio login`` keeps one.

- Looked for in ``<home>/auth.json``, then in docker's ``config.json``, whose credential helpers are asked.
- A credential is for one host, named exactly; it is never shown, and no error repeats it.
- What is kept is written whole, readable for its owner alone.

Source: docker's ``config.json`` (``auths``, ``credHelpers``, ``credsStore``) and its credential helper protocol.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from intaglio import strictjson
from intaglio.dataclass import dataclass, field
from intaglio.errors import CorruptContent, MachineError
from intaglio.strictjson import Object

FILE = "auth.json"
_HUB = "registry-1.docker.io"
_HUB_KEY = "https://index.docker.io/v1/"
"""The name under which docker keeps what is for its hub."""
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_HELPER_SECONDS = 60
_MAX_BYTES = 1 << 20
_TOKEN_USER = "<token>"  # noqa: S105 - the user name by which helpers say that the secret is an identity token


@dataclass(frozen=True, slots=True)
class Credential:
    """User and password, or an identity token that is exchanged for access tokens."""

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def basic(self) -> str:
        """Return the value of an ``Authorization`` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find(host: str, home: Path) -> Credential | None:
    """Return the credential for ``host`` (with its port, where it has one), or nothing.

    Raises:
        MachineError: a file is malformed, or a credential helper fails.
    """
    folder = os.environ.get("DOCKER_CONFIG")
    docker = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    for path in (home / FILE, docker):
        document = _read(path)
        keys = (_HUB_KEY, "index.docker.io", "docker.io", host) if host == _HUB else (host, f"https://{host}")
        for key in keys:
            found = _entry(path, document, key)
            if found is not None:
                return found
    return None


def keep(host: str, credential: Credential, home: Path) -> Path:
    """Write the user and password for ``host`` into ``<home>/auth.json``; return its path.

    Raises:
        MachineError: the file that is there is malformed, or none can be written.
    """
    path = home / FILE
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(home):
            document = _read(path)
            pair = f"{credential.user}:{credential.password}"
            entry = {"auth": base64.b64encode(pair.encode()).decode()}
            document["auths"] = {**_table(path, document, "auths"), host: entry}
            fd, name = tempfile.mkstemp(prefix=".auth-", dir=home)  # 0600
            try:
                with os.fdopen(fd, "wb") as stream:
                    stream.write(strictjson.canonical(document) + b"\n")
                    stream.flush()
                    os.fsync(fd)
                os.rename(name, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
                raise
    except OSError as error:
        raise MachineError(f"{path}: cannot be written: {error.strerror}") from None
    return path


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the home against every other process that logs in."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _read(path: Path) -> Object:
    try:
        with open(path, "rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        return strictjson.parse_object(data, what=str(path), max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise MachineError(f"{path}: cannot be read: {error.strerror}") from None
    except CorruptContent as error:
        raise MachineError(error.message, hint="mend or remove the file") from None


def _table(path: Path, document: Object, key: str) -> Object:
    table = document.get(key, {})
    if not isinstance(table, dict):
        raise MachineError(f"{path}: {key} is not an object", hint="mend or remove the file")
    return table


def _entry(path: Path, document: Object, key: str) -> Credential | None:
    """Return what one file says about one name; a helper named for it goes before what stands in the file."""
    helper = _table(path, document, "credHelpers").get(key)
    entry = _table(path, document, "auths").get(key)
    if helper is None and (entry is None or entry == {}):
        helper = document.get("credsStore")
    if helper is not None:
        return _ask(path, helper, key)
    if entry is None:
        return None
    fault = MachineError(f"{path}: the entry for {key} is malformed", hint="log in again")
    if not isinstance(entry, dict):
        raise fault
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credential(token=token)
    if isinstance(entry.get("username"), str) and isinstance(entry.get("password"), str):
        return Credential(entry["username"], entry["password"])
    if not entry.get("auth"):
        return None
    try:
        user, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except (binascii.Error, ValueError, TypeError):
        raise fault from None
    if not colon:
        raise fault
    return Credential(user, password.rstrip("\0"))


def _ask(path: Path, helper: object, key: str) -> Credential | None:
    """Ask ``docker-credential-NAME`` for the credential; nothing where it has none."""
    import subprocess

    if not isinstance(helper, str) or not _HELPER.match(helper):
        raise MachineError(f"{path}: {helper!r} is not a credential helper's name")
    program = f"docker-credential-{helper}"
    hint = f"is {program} on the PATH?  `intaglio login` keeps a credential without it"
    try:
        result = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"{path}: {program} cannot be asked: {type(error).__name__}", hint=hint) from None
    if result.returncode:
        if b"not found" in (result.stdout + result.stderr).lower():
            return None
        raise MachineError(f"{path}: {program} failed with status {result.returncode}", hint=hint)
    try:
        answer = strictjson.parse_object(result.stdout, what=program)
    except CorruptContent:
        answer = {}  # its text may hold the secret: not repeated
    user, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(user, str) or not isinstance(secret, str):
        raise MachineError(f"{path}: {program} answers something else than a credential", hint=hint)
    return Credential(token=secret) if user == _TOKEN_USER else Credential(user, secret)
