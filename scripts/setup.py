"""Set up a checkout: Debian packages that are missing, a virtual environment in ``.venv/``, the engine in it.

    python3 scripts/setup.py [GROUP …]

GROUPs are dependency groups of ``pyproject.toml`` (``test``, ``lint``, ``docs``). Running it again costs nothing where
nothing is missing; it only ever adds what is missing. It runs with any Python ≥ 3.11 and the standard library alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
MINIMUM = (3, 11)


class SetupError(Exception):
    """Something is missing that this program cannot add."""


def missing_packages() -> list[str]:
    """Return the Debian packages that are not there, told by what they bring and not by the package's name."""
    missing = []
    if importlib.util.find_spec("ensurepip") is None and not PYTHON.exists():
        missing.append("python{}.{}-venv".format(*sys.version_info))
    if shutil.which("bwrap") is None:
        missing.append("bubblewrap")
    if not _loads("libseccomp.so.2"):
        missing.append("libseccomp2")
    return missing


def missing_test_packages() -> list[str]:
    """Return the Debian packages without which some tests are skipped on a laptop, and fail where ``CI`` is set."""
    packages = {"skopeo": "skopeo", "curl": "curl", "node": "nodejs", "npm": "npm"}
    return [package for program, package in packages.items() if shutil.which(program) is None]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def install_packages(packages: Sequence[str]) -> None:
    """Install Debian packages as root or through a ``sudo`` that asks nothing.

    Raises:
        SetupError: no apt-get, no permission, or apt-get failed; the message names what to install by hand.
    """
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise SetupError(f"please install what these Debian packages hold, then run make again: {names}")
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if root and (shutil.which("sudo") is None or subprocess.run(["sudo", "-n", "true"], check=False).returncode):
        raise SetupError(f"these Debian packages are missing; run `apt-get install {names}` as root, then make again")
    say(f"installing Debian packages: {names}")
    command = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "-qq"]
    command += ["--no-install-recommends", "--option=Dpkg::Use-Pty=0", *packages]
    if subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode == 0:
        return
    # The lists are absent or old. A foreign list that cannot be reached makes `update` fail: only `install` decides.
    subprocess.run([*root, "apt-get", "update", "-qq"], check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    if subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
        raise SetupError(f"apt-get could not install {names}: see above")


def requirements(groups: Sequence[str]) -> list[str]:
    """Return the requirements of dependency groups (PEP 735), which old versions of pip cannot read themselves."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]

    def expand(name: str) -> Iterator[str]:
        if name not in table:
            raise SetupError(f"pyproject.toml has no dependency group {name}, only {', '.join(sorted(table))}")
        for entry in table[name]:
            if isinstance(entry, str):
                yield entry
            else:
                yield from expand(entry["include-group"])

    return [requirement for group in groups for requirement in expand(group)]


def make_environment() -> None:
    """Make ``.venv/`` unless one is there whose Python runs."""
    if PYTHON.exists() and subprocess.run([PYTHON, "-c", ""], capture_output=True, check=False).returncode == 0:
        return
    say(f"making {VENV.name}/ with Python {sys.version.split()[0]}")
    venv.create(VENV, clear=True, with_pip=True, symlinks=True)


def install(groups: Sequence[str]) -> None:
    """Install the engine (editable) and the groups' requirements, where the last time was about something else."""
    about = hashlib.sha256((ROOT / "pyproject.toml").read_bytes())
    about.update(repr((sys.version_info[:3], str(ROOT))).encode())
    for group in ("", *groups):
        stamp = VENV / f".installed-{group or 'engine'}"
        if stamp.exists() and stamp.read_text(encoding="ascii") == about.hexdigest() and program_is_there():
            continue
        what = requirements([group]) if group else ["--editable", str(ROOT)]
        say(f"installing {f'the {group} tools' if group else 'the engine'} into {VENV.name}/")
        command = [str(PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *what]
        if subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
            raise SetupError("pip could not install: see above, and `pip config list` for where it looks")
        stamp.write_text(about.hexdigest(), encoding="ascii")


def program_is_there() -> bool:
    """Whether the engine's command stands where other programs look for it."""
    return (VENV / "bin" / "intaglio").exists()


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def main(groups: Sequence[str]) -> int:
    """Set up the checkout with ``groups``; return the exit status."""
    if sys.version_info < MINIMUM:
        say("expected Python {}.{} or newer, found {}".format(*MINIMUM, sys.version.split()[0]))
        return 50
    try:
        if missing := missing_packages():
            install_packages(missing)
        if "test" in groups and (missing := missing_test_packages()):
            try:
                install_packages(missing)
            except SetupError as error:
                if os.environ.get("CI"):
                    raise
                say(f"{error}\nsetup: going on without: some tests will be skipped")
        make_environment()
        install(groups)
    except SetupError as error:
        say(str(error))
        return 50
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
