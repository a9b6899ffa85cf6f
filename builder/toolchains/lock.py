"""Write ``pylock.toml`` (PEP 751) beside a ``requirements.in``: each file by name, size and sha256, no index address.

Run by a person, never by a build::

    python builder/toolchains/lock.py train-cpu
    python builder/toolchains/lock.py tests/builder/toolchains/docopt --build-toolchain wheel-build

* The user's own pip configuration decides where the files come from; run it with the Python that the lock is for.
* Exactly one file a package, sorted by normalised name: the same files give the same text.
* A package that has only an sdist is named in ``requirements.in`` by a ``--no-binary=NAME`` line. pip then runs the
  package's build backend to learn its metadata, and the lock needs the digest of the wheel that the ``wheel`` step
  makes of it: both happen outside a sandbox, here and only here.
* A line ``# build: NAME TOOLCHAIN VARIABLE=VALUE …`` says which toolchain builds a package's wheel, and with what in
  the environment; quoted as in a shell. Without one it is ``--build-toolchain``.
* A line ``# without: NAME …`` leaves out packages that others ask for and no program of the toolchain imports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIRES_PYTHON = "==3.11.*"


@dataclass(frozen=True, slots=True)
class File:
    """A wheel or an sdist as it was downloaded or built."""

    name: str
    size: int
    """Bytes."""
    sha256: str

    @classmethod
    def of(cls, path: Path) -> File:
        """Describe the file at ``path``."""
        with path.open("rb") as stream:
            return cls(path.name, path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


@dataclass(frozen=True, slots=True)
class Build:
    """How a wheel is built."""

    toolchain: str
    environment: tuple[str, ...] = ()
    """``NAME=VALUE``, each; sorted."""


@dataclass(frozen=True, slots=True)
class Package:
    """One entry of the lock: a wheel, or an sdist with the wheel that the ``wheel`` step builds of it."""

    name: str
    version: str
    file: File
    built: File | None = None
    build: Build | None = None


def normalise(name: str) -> str:
    """The normalised project name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def split_name(file_name: str) -> tuple[str, str]:
    """Project name and version out of a wheel's or an sdist's file name."""
    if file_name.endswith(".whl"):
        name, version = file_name.split("-")[:2]
    else:
        name, version = file_name.removesuffix(".tar.gz").removesuffix(".zip").rsplit("-", 1)
    return normalise(name), version


def builds(requirements: Path) -> dict[str, Build]:
    """How ``requirements.in`` wants the wheels of packages without one to be built, by package."""
    lines = re.findall(r"^# build:(.*)$", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    words = [shlex.split(line) for line in lines]
    return {normalise(name): Build(toolchain, tuple(sorted(rest))) for name, toolchain, *rest in words}


def left_out(requirements: Path) -> frozenset[str]:
    """The packages that ``requirements.in`` leaves out of the lock, whoever asks for them."""
    lines = re.findall(r"^# without:(.*)$", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(normalise(name) for line in lines for name in line.split())


def download(requirements: Path, folder: Path) -> None:
    """Resolve and fetch with pip: wheels only, save what ``requirements.in`` itself excepts."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command = [*pip, "--only-binary=:all:", "--dest", str(folder), "--requirement", str(requirements)]
    subprocess.run(command, check=True)


def build_wheel(sdist: Path, build: Build, work: Path) -> File:
    """Run the ``wheel`` step bare on ``sdist``, in an environment made of the locked build toolchain."""
    wheels = work / "build-wheels"
    download(HERE / build.toolchain / "requirements.in", wheels)
    environment = work / "build-env"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        *map(str, sorted(wheels.iterdir())),
    ]
    subprocess.run(install, check=True)
    source, out, private = work / "in", work / "out", work / "private"
    for folder in (source, out, private):
        folder.mkdir()
    (source / sdist.name).write_bytes(sdist.read_bytes())
    request = {
        "protocol": 1,
        "parameters": {"environment": list(build.environment)},
        "inputs": {"source": str(source)},
        "out": str(out),
        "work": str(private),
    }
    (work / "request.json").write_text(json.dumps(request), encoding="utf-8")
    step = HERE.parent / "steps" / "wheel.py"
    settings = {**os.environ, "SOURCE_DATE_EPOCH": "0", "PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
    subprocess.run([python, "-B", "-s", "-P", str(step), str(work / "request.json")], check=True, env=settings)
    return File.of(next(out.glob("*.whl")))


def render(packages: list[Package]) -> Iterator[str]:
    """The lines of ``pylock.toml``."""
    yield 'lock-version = "1.0"'
    yield 'created-by = "intaglio"'
    yield f'requires-python = "{REQUIRES_PYTHON}"'
    for package in sorted(packages, key=lambda package: package.name):
        yield from ("", "[[packages]]", f'name = "{package.name}"', f'version = "{package.version}"', "")
        kind, folder = ("[[packages.wheels]]", "wheels") if package.built is None else ("[packages.sdist]", "sdists")
        file = package.file
        yield from (kind, f'name = "{file.name}"', f'path = "{folder}/{file.name}"', f"size = {file.size}")
        yield f'hashes = {{sha256 = "{file.sha256}"}}'
        if package.built is not None and package.build is not None:
            built, build = package.built, package.build
            yield from ("", "[packages.tool.intaglio]", f'build-toolchain = "{build.toolchain}"')
            if build.environment:
                yield f"environment = {json.dumps(build.environment)}"
            yield from ("", "[packages.tool.intaglio.wheel]", f'name = "{built.name}"', f"size = {built.size}")
            yield f'sha256 = "{built.sha256}"'


def lock(folder: Path, build_toolchain: str) -> Path:
    """Write ``folder/pylock.toml`` and return its path.

    Raises:
        subprocess.CalledProcessError: pip could not resolve, or the ``wheel`` step failed.
    """
    packages = []
    unwanted, wanted = left_out(folder / "requirements.in"), builds(folder / "requirements.in")
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary) / "files"
        download(folder / "requirements.in", files)
        for path in sorted(files.iterdir()):
            name, version = split_name(path.name)
            if name in unwanted:
                continue
            built = build = None
            if path.suffix != ".whl":
                work = Path(temporary) / f"build-{name}"
                work.mkdir()
                build = wanted.get(name, Build(build_toolchain))
                built = build_wheel(path, build, work)
            packages.append(Package(name, version, File.of(path), built, build))
    text = "\n".join(render(packages)) + "\n"
    tomllib.loads(text)
    target = folder / "pylock.toml"
    target.write_text(text, encoding="utf-8")
    total = sum(package.file.size for package in packages)
    print(f"{target}: {len(packages)} packages, {total / 1e6:.1f} MB", file=sys.stderr)
    return target


def main() -> int:
    """Lock each toolchain named: a folder beside this file, or a path."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("toolchain", nargs="+", help="name of a folder beside this script, or a path")
    parser.add_argument("--build-toolchain", default="wheel-build", help="builds the wheels of packages without one")
    options = parser.parse_args()
    if sys.version_info[:2] != (3, 11):
        print(f"error: the locks are for Python 3.11, this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    for name in options.toolchain:
        folder = HERE / name if (HERE / name).is_dir() else Path(name)
        if not (folder / "requirements.in").is_file():
            print(f"error: {folder}: no requirements.in there", file=sys.stderr)
            return 2
        lock(folder, options.build_toolchain)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
