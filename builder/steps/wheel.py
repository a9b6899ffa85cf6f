"""Build the wheel of a package that is published as an sdist alone.

* The build backend that the sdist names is called directly (PEP 517); what it requires must be in the toolchain.
* The wheel is packed again: members sorted, stored uncompressed, the oldest time that a zip can hold, fixed modes. So
  its bytes depend neither on the file system nor on the machine's zlib. The members themselves, ``RECORD`` included,
  stay as they are.
* C and C++ are compiled by the toolchain's own compiler, where it has the package ``ziglang``: for a fixed processor
  level and C library, with paths that do not depend on where the sources stand. Without it, by the host's, if at all;
  then the wheel's bytes are those of that compiler.
"""

from __future__ import annotations

import importlib
import io
import os
import platform
import re
import shlex
import shutil
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))  # in a checkout

import events
from request import Fault, Request, run

OLDEST = (1980, 1, 1, 0, 0, 0)
TARGETS = {"x86_64": "x86_64-linux-gnu.2.28 -mcpu=x86_64_v3", "aarch64": "aarch64-linux-gnu.2.28"}
"""What is compiled for, by machine: with AVX2, and for Debian 10, RHEL 8 and later."""
COMPILERS = {"CC": "cc", "CXX": "c++", "AR": "ar", "RANLIB": "ranlib"}
LEGACY = "setuptools.build_meta:__legacy__"


def unpack(folder: Path, work: Path) -> Path:
    """Unpack the one sdist of ``folder``; return the folder of its sources.

    Raises:
        Fault: there is not exactly one sdist with exactly one folder in it, or a member wants to lie elsewhere.
    """
    sdists = sorted(folder.glob("*.tar.gz"))
    if len(sdists) != 1:
        found = ", ".join(path.name for path in sdists) or "none"
        raise Fault(f"source: expected one sdist (*.tar.gz), found {found}")
    target = work / "source"
    target.mkdir()
    try:
        with tarfile.open(sdists[0]) as archive:
            archive.extractall(target, filter="data")
    except tarfile.TarError as problem:
        raise Fault(f"{sdists[0].name}: {problem}") from None
    for history in target.rglob(".git"):  # what a version control program says of it is no property of the sources
        shutil.rmtree(history) if history.is_dir() else history.unlink()
    roots = list(target.iterdir())
    if len(roots) != 1 or not roots[0].is_dir():
        found = ", ".join(sorted(path.name for path in roots)) or "nothing"
        raise Fault(f"{sdists[0].name}: expected one folder, found {found}")
    return roots[0]


def backend(source: Path) -> Any:
    """The build backend's object, ready to be called in ``source``.

    Raises:
        Fault: the sdist requires a package that the toolchain lacks, or a backend that cannot be imported.
    """
    file = source / "pyproject.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8")).get("build-system", {}) if file.is_file() else {}
    for requirement in table.get("requires", []):
        name = re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            hint = "Lock a build toolchain that has it, and name that in the package's lock entry."
            raise Fault(f"the sdist's build requires {requirement!r}, which the toolchain lacks", hint) from None
    paths = [os.path.normpath(source / path) for path in table.get("backend-path", [])]
    sys.path[:0] = paths
    module, _, attribute = str(table.get("build-backend", LEGACY)).partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as problem:
        raise Fault(f"build backend {module!r} cannot be imported: {problem}") from None
    for part in filter(None, attribute.split(".")):
        found = getattr(found, part)
    return found


def settings(request: Request) -> dict[str, str]:
    """The environment variables that the package's build is given.

    Raises:
        Fault: an entry is not of the form ``NAME=VALUE``.
    """
    found: dict[str, str] = {}
    for entry in request.texts("environment"):
        name, equals, value = entry.partition("=")
        if not equals or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise Fault(f"parameter environment: expected NAME=VALUE, found {entry!r}")
        found[name] = value
    return found


def compilers(work: Path) -> dict[str, str]:
    """The environment that makes a build take the toolchain's own compiler; empty where the toolchain has none."""
    try:
        package = metadata.distribution("ziglang")
    except metadata.PackageNotFoundError:
        return {}
    machine = platform.machine()
    if machine not in TARGETS:
        raise Fault(f"expected a machine of {', '.join(TARGETS)}, found {machine}")
    flags = f"-target {TARGETS[machine]} -fno-sanitize=undefined -ffile-prefix-map={shlex.quote(str(work))}=/work"
    program = shlex.quote(str(package.locate_file("ziglang/zig")))
    folder = work / "bin"
    folder.mkdir()
    for name in COMPILERS.values():
        script = folder / f"zig-{name}"
        options = flags if name in ("cc", "c++") else ""
        script.write_text(f'#!/bin/sh\nexec {program} {name} {options} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    caches = {name: str(work / "zig") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    return {**{variable: str(folder / f"zig-{name}") for variable, name in COMPILERS.items()}, **caches}


def repack(built: Path, target: Path) -> None:
    """Copy a wheel member by member into a canonical zip."""
    content = io.BytesIO()
    with zipfile.ZipFile(built) as source, zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as copy:
        members = [member for member in source.infolist() if not member.is_dir()]
        for member in sorted(members, key=lambda member: (_late(member.filename), member.filename)):
            entry = zipfile.ZipInfo(member.filename, OLDEST)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            copy.writestr(entry, source.read(member))
    target.write_bytes(content.getvalue())


def _late(name: str) -> bool:
    """Metadata stands at the end of a wheel, as its specification recommends."""
    return ".dist-info/" in name


def wheel(request: Request) -> None:
    """The step."""
    os.environ.update(settings(request))
    source = unpack(request.inputs["source"], request.work)
    os.environ.update({**compilers(request.work), "GIT_CEILING_DIRECTORIES": str(request.work)})
    builder = backend(source)
    dist = request.work / "dist"
    dist.mkdir()
    os.chdir(source)
    name = builder.build_wheel(str(dist))
    os.chdir(request.work)
    repack(dist / name, request.out / name)
    events.message(f"built {name}")
    events.progress(1, 1, "wheels")


if __name__ == "__main__":
    sys.exit(run(wheel))
