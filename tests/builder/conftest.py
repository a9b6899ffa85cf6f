"""Step programs run bare. The modules of ``builder/lib`` are imported as a step imports them.

A test that runs a step asks for ``environment``: the Python of an environment with that toolchain's wheels. The
variable ``INTAGLIO_TEST_ENV_TRAIN_CPU`` (and so on) names a Python that already has them; otherwise the environment is
made once with pip from the lock, and kept in the user's cache folder under the digest of the lock.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILDER = ROOT / "builder"
sys.path.insert(0, str(BUILDER / "lib"))

PREFIX = "INTAGLIO_TEST_ENV_"
GIVEN = {name.removeprefix(PREFIX): value for name, value in os.environ.items() if name.startswith(PREFIX)}
"""Read once: the tests themselves run without the user's own ``INTAGLIO_`` variables."""


def requirements(lock: Path) -> str:
    """The lock as a requirements file with hashes, for pip."""
    packages = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]
    lines = []
    for package in packages:
        hashes = [wheel["hashes"]["sha256"] for wheel in package["wheels"]]
        lines.append(f"{package['name']}=={package['version']} --hash=sha256:{hashes[0]}")
    return "\n".join(lines) + "\n"


def make_environment(lock: Path, target: Path) -> None:
    """Make an environment at ``target``, which appears only when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix="draft-"))
    try:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(draft)], check=True)
        wanted = draft / "requirements.txt"
        wanted.write_text(requirements(lock), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "--python", str(draft / "bin" / "python"), "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--require-hashes", "--requirement", str(wanted)], check=True)
        draft.rename(target)
    except OSError:
        if not target.is_dir():  # another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@pytest.fixture(scope="session")
def environment() -> Callable[[str], str]:
    """The Python of a toolchain, by the toolchain's name."""

    def python(name: str) -> str:
        given = GIVEN.get(name.upper().replace("-", "_"))
        if given:
            return given
        lock = BUILDER / "toolchains" / name / "pylock.toml"
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "intaglio-tests"
        target = cache / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
        if not target.is_dir():
            make_environment(lock, target)
        return str(target / "bin" / "python")

    return python
