"""Stock programs that tests run: fetched once, kept outside the checkout, nothing on the system changed.

- Debian packages come from the suite named, by an apt root of our own (sources, lists and cache), and are unpacked
  with ``dpkg -x`` into a folder. The mirror is the one that this machine's own apt is configured with.
- Python programs get a virtual environment each, by the user's own pip configuration.
- Suites move: no version of a Debian package is pinned; what was got is kept beside it and printed.
- A missing program fails where ``CI`` is set, and skips with the reason elsewhere.

Each function is cached for the process; two processes wait for one another.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
VERSION = ".version"
"""File in each unpacked package that says what was got: name, version and architecture."""
_SOURCE_LINE = re.compile(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)$")


class NotHere(Exception):
    """A program that cannot be had on this machine; the message is the reason."""


def cosign() -> Path:
    """Sigstore's ``cosign`` of Debian trixie (2.5 at the time of writing)."""
    return _debian("cosign", "trixie", "usr/bin/cosign")


def oras() -> Path:
    """The ``oras`` client, from the first suite that has it."""
    return _debian("oras", "trixie forky sid", "usr/bin/oras")


def crane() -> Path:
    """The ``crane`` client, from the first suite that has it."""
    return _debian("crane", "trixie forky sid", "usr/bin/crane")


def skopeo() -> Path:
    """``skopeo`` of this machine: ``make test`` installs it."""
    found = shutil.which("skopeo")
    return Path(found) if found else missing("skopeo is not installed: apt-get install skopeo")


def docker_registry(suite: str = "bookworm") -> Path:
    """Debian's ``docker-registry``: 2.8.2 or 2.8.3 at the time of writing, without the referrers API."""
    return _debian("docker-registry", suite, "usr/bin/docker-registry", f"docker-registry-{suite}")


def model_signing() -> Path:
    """OpenSSF's ``model_signing`` 1.1.1, in an environment of its own."""
    return _python("model-signing", ("model-signing==1.1.1", "pyopenssl"), "bin/model_signing")


def openai() -> Path:
    """A Python that has OpenAI's own client, in an environment of its own."""
    return _python("openai", ("openai>=2,<3",), "bin/python")


def missing(reason: str) -> NoReturn:
    """Fail where ``CI`` is set, skip elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(f"a program that the tests need is missing: {reason}")
    pytest.skip(reason)


def cache() -> Path:
    """Where programs are kept: outside the checkout, shared by all of a user's checkouts."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "intaglio-tests"


def _debian(package: str, suites: str, program: str, folder: str | None = None) -> Path:
    try:
        path = _from_debian(package, suites, program, folder or package)
    except NotHere as error:
        missing(f"{package}: {error}")
    return path


def _python(name: str, requirements: tuple[str, ...], program: str) -> Path:
    try:
        path = _from_pip(name, requirements, program)
    except NotHere as error:
        missing(f"{name}: {error}")
    return path


@functools.cache
def _from_debian(package: str, suites: str, program: str, folder: str) -> Path:
    for tool in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise NotHere(f"no {tool} on this machine")
    target = cache() / "debian" / folder
    with _lock(target):
        if not ((target / program).exists() and (target / VERSION).exists()):
            failures = []
            for suite in suites.split():
                try:
                    _unpack(package, suite, target)
                    break
                except NotHere as error:
                    failures.append(f"{suite}: {error}")
            else:
                raise NotHere("; ".join(failures))
        if not (target / program).exists():
            raise NotHere(f"the package holds no {program}")
    print(f"{package}: {(target / VERSION).read_text()}")
    return target / program


def _unpack(package: str, suite: str, target: Path) -> None:
    """Download ``package`` of ``suite`` with a private apt root, and unpack it at ``target``."""
    root = cache() / "apt" / suite
    with _lock(root):
        _refresh(root, suite)
    with _scratch(target) as fresh:
        (fresh / "download").mkdir(parents=True)
        _run([*_apt(root), "download", package], fresh / "download")
        debs = list((fresh / "download").glob("*.deb"))
        if len(debs) != 1:
            raise NotHere(f"apt-get downloaded {len(debs)} files")
        _run(["dpkg", "-x", str(debs[0]), str(fresh / "root")], fresh)
        (fresh / "root" / VERSION).write_text(f"{debs[0].stem} of {suite}")
        shutil.rmtree(target, ignore_errors=True)
        (fresh / "root").rename(target)


def _refresh(root: Path, suite: str) -> None:
    """Give the apt root lists of ``suite``, unless it has some of today."""
    stamp = root / "fresh"
    if stamp.exists() and time.time() - stamp.stat().st_mtime < 86_400:
        return
    for folder in ("lists/partial", "cache/archives/partial"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    (root / "sources.list").write_text(f"deb {signed}{_mirror()} {suite} main\n", encoding="utf-8")
    _run([*_apt(root), "update"], root)
    stamp.touch()


def _apt(root: Path) -> list[str]:
    options = {
        "Dir::Etc::SourceList": root / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": root / "lists",
        "Dir::State::Status": root / "status",
        "Dir::Cache": root / "cache",
        "Acquire::Check-Valid-Until": "false",  # sid's release file may be past its date on a mirror
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    return ["apt-get", "--quiet", *(f"--option={key}={value}" for key, value in options.items())]


def _mirror() -> str:
    """Return the address of the Debian mirror in this machine's own apt sources."""
    folder = Path("/etc/apt")
    for path in (folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))):
        if path.is_file():
            for address, suite, components in _sources(path.read_text(encoding="utf-8", errors="replace"), path.suffix):
                if "main" in components and suite in ("bookworm", "trixie", "forky", "sid", "stable", "testing"):
                    return address
    raise NotHere("this machine's apt knows no Debian mirror")


def _sources(text: str, suffix: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield address, suite and components of each source, in either of apt's formats."""
    if suffix != ".sources":
        for line in text.splitlines():
            if found := _SOURCE_LINE.match(line.strip()):
                yield found[1], found[2], found[3].split()
        return
    for stanza in re.split(r"\n\s*\n", text):
        pairs = [line.partition(":") for line in stanza.splitlines() if not line.startswith(("#", " "))]
        fields = {key.strip().lower(): value.split() for key, _, value in pairs}
        for address in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield address, suite, fields.get("components", [])


@functools.cache
def _from_pip(name: str, requirements: tuple[str, ...], program: str) -> Path:
    target = cache() / "python" / f"{name}-{sys.version_info[0]}.{sys.version_info[1]}"
    stamp = target / ".installed"
    wanted = "\n".join(requirements)
    with _lock(target):
        if not (stamp.exists() and stamp.read_text() == wanted and (target / program).exists()):
            venv.create(target, clear=True, with_pip=True, symlinks=True)
            pip = [str(target / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
            _run([*pip, *requirements], target)
            stamp.write_text(wanted)
    print(f"{name}: {', '.join(requirements)}")
    return target / program


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode:
        tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-3:])
        raise NotHere(f"{Path(command[0]).name} failed: {tail}")


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f".{target.name}.lock"), "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


if __name__ == "__main__":
    for fetch in (cosign, oras, crane, skopeo, model_signing):
        try:
            print(f"{fetch.__name__}: {fetch()}")
        except (pytest.skip.Exception, pytest.fail.Exception) as error:
            print(f"{fetch.__name__}: {error}", file=sys.stderr)
