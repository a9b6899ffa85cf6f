"""Step programs run bare. The modules of ``builder/lib`` are imported as a step imports them.

A test that runs a step asks for ``environment``: the Python of an environment with that toolchain's wheels. The
variable ``INTAGLIO_TEST_ENV_TRAIN_CPU`` (and so on) names a Python that already has them; otherwise the environment is
made once with pip from the lock, and kept in the user's cache folder under the digest of the lock. What the marker
``toolchains`` of a test names is made before the first test begins: to compile llama.cpp takes longer than a test may.
A wheel that is built may take what the step ``wheel`` may, and an installation :data:`INSTALLATION`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.builder.bare import run_step

ROOT = Path(__file__).resolve().parents[2]
BUILDER = ROOT / "builder"
sys.path.insert(0, str(BUILDER / "lib"))

INSTALLATION = 3600
"""Most seconds that pip may take to fetch and install a toolchain: gigabytes, on a slow line."""
PREFIX = "INTAGLIO_TEST_ENV_"
GIVEN = {name.removeprefix(PREFIX): value for name, value in os.environ.items() if name.startswith(PREFIX)}
"""Read once: the tests themselves run without the user's own ``INTAGLIO_`` variables."""


def requirements(lock: Path) -> str:
    """The lock as a requirements file with hashes, for pip."""
    packages = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]
    lines = []
    for package in packages:
        if "wheels" not in package:
            continue  # built below
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
        locked = ["--no-deps", "--require-hashes", "--requirement", str(wanted)]
        subprocess.run([*pip, *locked], check=True, timeout=INSTALLATION)
        for package in tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]:
            if "sdist" in package:
                wheel = built(package, draft / "sources" / package["name"])
                built_one = ["--no-deps", "--no-index", str(wheel)]
                subprocess.run([*pip, *built_one], check=True, timeout=INSTALLATION)
        shutil.rmtree(draft / "sources", ignore_errors=True)
        draft.rename(target)
    except OSError:
        if not target.is_dir():  # another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def built(package: Mapping[str, Any], place: Path) -> Path:
    """The wheel of a package that is published as sources alone, built below ``place``; it is the lock's."""
    source, tool = place / "source", package["tool"]["intaglio"]
    source.mkdir(parents=True)
    fetch = [sys.executable, str(ROOT / "src/intaglio/build/sdist_fetch.py"), package["name"], package["sdist"]["name"]]
    subprocess.run([*fetch, str(source)], check=True, timeout=INSTALLATION)
    given = {"environment": tool["environment"]} if "environment" in tool else {}
    made = run_step("wheel", {"source": source}, place / "out", given, python=environment_of(tool["build-toolchain"]))
    assert made.status == 0, made.log
    wheel = place / "out" / str(tool["wheel"]["name"])
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == tool["wheel"]["sha256"]
    return wheel


def environment_of(name: str) -> str:
    """The Python of a toolchain."""
    given = GIVEN.get(name.upper().replace("-", "_"))
    if given:
        return given
    lock = BUILDER / "toolchains" / name / "pylock.toml"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "intaglio-tests"
    target = cache / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if not target.is_dir():
        make_environment(lock, target)
    return str(target / "bin" / "python")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make the environments that the selected tests name, and say so."""
    if session.config.option.collectonly:
        return
    named = {name: None for item in session.items for mark in item.iter_markers("toolchains") for name in mark.args}
    for name in named:
        print(f"\ntoolchain {name}", end="", file=sys.stderr, flush=True)
        environment_of(name)


@pytest.fixture(scope="session")
def environment() -> Callable[[str], str]:
    """The Python of a toolchain, by the toolchain's name."""
    return environment_of
