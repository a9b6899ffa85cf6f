"""Unpack wheels and compile their modules: a program that runs inside the sandbox, with the standard library alone.

It never imports from a wheel, and it writes what PEP 427 says: modules to ``site-packages``, scripts to ``bin``.
Bytecode is ``unchecked-hash`` (PEP 552): it holds no time, and nothing is compared when it is loaded.
What it reads was checked against the lock before; what it refuses here is a wheel that would write elsewhere.

    python unpack.py REQUEST.json

The request: ``{"wheels": [{"file", "folder"}], "out", "site", "root"}``; each wheel becomes ``out/folder``.
``root`` is where that will stand when it is used, which is what tracebacks and scripts name.
"""

from __future__ import annotations

import configparser
import json
import multiprocessing
import os
import py_compile
import re
import sys
import warnings
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_SCRIPT = """#!{root}/bin/python
import sys
from {module} import {name}
if __name__ == "__main__":
    sys.exit({call}())
"""
_ENTRY = re.compile(r"([\w.]+)\s*:\s*([\w.]+)\s*(\[.*\])?\Z")


class BadWheel(Exception):
    """A wheel that is no wheel, or that would write outside its folder."""


class Unpacker:
    """Writes one wheel below one folder."""

    def __init__(self, folder: str, site: str, root: str) -> None:
        self._folder = folder
        self._site = site
        self._root = root

    def unpack(self, path: str) -> None:
        """Write every file of the wheel at ``path``, and its scripts; then compile."""
        try:
            with zipfile.ZipFile(path) as archive:
                modules = [self._member(archive, info) for info in archive.infolist() if not info.is_dir()]
                self._entry_points(archive)
        except FileExistsError as error:
            raise BadWheel(f"two members for {os.path.relpath(error.filename, self._folder)}") from None
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError) as error:
            raise BadWheel(str(error)) from None
        for module in modules:
            if module.endswith(".py"):
                self._compile(module)

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
        """Write one file; return its path in the prefix."""
        place = _place(info.filename, self._site)
        target = os.path.join(self._folder, place)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        script = place.startswith("bin/")
        mode = 0o555 if script or (info.external_attr >> 16) & 0o111 else 0o444
        with archive.open(info) as source, open(target, "xb") as sink:
            if script:
                first = source.readline()
                sink.write(f"#!{self._root}/bin/python\n".encode() if first.startswith(b"#!python") else first)
            while chunk := source.read(_CHUNK):
                sink.write(chunk)
            os.fchmod(sink.fileno(), mode)
        return place

    def _entry_points(self, archive: zipfile.ZipFile) -> None:
        names = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/entry_points\.txt", name)]
        for name in names:
            parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
            parser.optionxform = str  # type: ignore[assignment,method-assign]
            try:
                parser.read_string(archive.read(name).decode("utf-8"))
            except configparser.Error as error:
                raise BadWheel(f"{name}: {error}") from None
            for script, entry in parser.items("console_scripts") if parser.has_section("console_scripts") else ():
                self._script(script, entry)

    def _script(self, script: str, entry: str) -> None:
        found = _ENTRY.match(entry)
        if not found or not re.fullmatch(r"[\w.-]+", script) or script in (".", ".."):
            raise BadWheel(f"bad console script {script!r} = {entry!r}")
        module, call = found[1], found[2]
        text = _SCRIPT.format(root=self._root, module=module, name=call.split(".")[0], call=call)
        target = os.path.join(self._folder, "bin", script)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as sink:
            sink.write(text.encode())
            os.fchmod(sink.fileno(), 0o555)

    def _compile(self, place: str) -> None:
        path = os.path.join(self._folder, place)
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        try:
            made = py_compile.compile(path, dfile=f"{self._root}/{place}", doraise=True, invalidation_mode=mode)
        except (py_compile.PyCompileError, ValueError, RecursionError):
            return  # templates and code for other Pythons: they are not imported, or fail when they are
        if made is not None:
            Path(made).chmod(0o444)


def _place(name: str, site: str) -> str:
    """Return where a member goes, relative to the prefix (PEP 427, "Installing a wheel")."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or "\0" in name or "\\" in name:
        raise BadWheel(f"a member named {name!r}")
    if not parts[0].endswith(".data") or len(parts) < 3:
        return f"{site}/{name}"
    rest = "/".join(parts[2:])
    if parts[1] in ("purelib", "platlib"):
        return f"{site}/{rest}"
    if parts[1] == "scripts":
        return f"bin/{rest}"
    if parts[1] == "headers":
        return f"include/{parts[0].split('-')[0]}/{rest}"
    if parts[1] == "data":
        return rest
    raise BadWheel(f"a member in an unknown scheme: {name!r}")


def _one(job: tuple[str, str, str, str]) -> tuple[str, str | None]:
    path, folder, site, root = job
    try:
        Unpacker(folder, site, root).unpack(path)
    except BadWheel as error:
        return path, f"{os.path.basename(path)}: {error}"
    return path, None


def main(request_path: str) -> int:
    """Unpack what the request names, on all cores; report bytes of wheels done."""
    with open(request_path, encoding="utf-8") as stream:
        request: dict[str, Any] = json.load(stream)
    warnings.simplefilter("ignore")  # of the compiler, about other people's code
    sizes = {wheel["file"]: Path(wheel["file"]).stat().st_size for wheel in request["wheels"]}
    jobs = [
        (wheel["file"], os.path.join(request["out"], wheel["folder"]), request["site"], request["root"])
        for wheel in sorted(request["wheels"], key=lambda wheel: -sizes[wheel["file"]])
    ]
    number = os.environ.get("INTAGLIO_EVENTS_FD")
    done, faults = 0, []
    workers = min(len(os.sched_getaffinity(0)), len(jobs))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        for job in as_completed([pool.submit(_one, job) for job in jobs]):
            path, fault = job.result()
            done += sizes[path]
            faults += [fault] if fault else []
            if number:
                event = {"event": "progress", "done": done, "total": sum(sizes.values()), "unit": "B"}
                os.write(int(number), json.dumps(event).encode() + b"\n")
    for fault in faults:
        sys.stderr.write(f"bad wheel: {fault}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
