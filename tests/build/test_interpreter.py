"""Where the sandbox's interpreter is found, and which bytes it is."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import NoReturn

import pytest

from intaglio.build import interpreter
from intaglio.build.sandbox import Mount
from intaglio.errors import LockError, MachineError

THIS = "=={}.{}.*".format(*sys.version_info)
LIBC = Path("/usr/lib/x86_64-linux-gnu/libc.so.6")


def test_the_engines_own_base_interpreter_is_found_without_running_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> NoReturn:
        raise AssertionError("an interpreter was run")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    found = interpreter.find(THIS)
    assert found.version == sys.version_info[:2]
    base = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    assert found.host["python"] == "sha256:" + hashlib.sha256(base.read_bytes()).hexdigest()
    assert {"python", "libc", "libm"} <= found.host.keys() <= {"python", "libc", "libm", "libpython"}


def test_the_digests_of_libc_and_libm_are_those_of_the_mapped_files() -> None:
    found = interpreter.find(THIS)
    maps = {Path(line[line.index("/") :]) for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    libc = next(path for path in maps if path.name.startswith("libc.so"))
    libm = next(path for path in maps if path.name.startswith("libm.so"))
    assert found.host["libc"] == "sha256:" + hashlib.sha256(libc.read_bytes()).hexdigest()
    assert found.host["libm"] == "sha256:" + hashlib.sha256(libm.read_bytes()).hexdigest()


def installation(prefix: str, program: str, libraries: dict[str, Path]) -> interpreter._Installation:
    return interpreter._Installation(sys.version_info[:2], Path(prefix), Path(program), libraries)


def test_below_usr_nothing_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {"libc": LIBC, "libm": LIBC}
    monkeypatch.setattr(interpreter, "_own", lambda: installation("/usr", "/usr/bin/env", libraries))
    found = interpreter.find(THIS)
    assert (found.executable_inside, found.mounts, found.environment) == ("/usr/bin/env", (), {})


def test_elsewhere_the_prefix_is_mounted_at_a_fixed_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program, library = tmp_path / "bin" / "python3", tmp_path / "lib" / "libpython3.so.1.0"
    for path in (program, library):
        path.parent.mkdir()
        path.write_bytes(path.name.encode())
    libraries = {"libc": LIBC, "libm": LIBC, "libpython": library}
    monkeypatch.setattr(interpreter, "_own", lambda: installation(str(tmp_path), str(program), libraries))
    found = interpreter.find(THIS)
    assert found.executable_inside == "/opt/python/bin/python3"
    assert found.mounts == (Mount(tmp_path, "/opt/python"),)
    assert found.environment == {"LD_LIBRARY_PATH": "/opt/python/lib"}
    assert found.host["libpython"] == "sha256:" + hashlib.sha256(b"libpython3.so.1.0").hexdigest()


def test_digests_are_remembered_by_the_files_status_and_hashed_again_when_it_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_bytes(b"one")
    libraries = {"libc": LIBC, "libm": LIBC}
    monkeypatch.setattr(interpreter, "_own", lambda: installation(str(tmp_path), str(program), libraries))
    cache = tmp_path / "store" / "host.json"
    first = interpreter.find(THIS, cache=cache)
    hashed = []
    monkeypatch.setattr(interpreter, "hash_stream", lambda stream: hashed.append(stream.name))
    assert interpreter.find(THIS, cache=cache) == first
    assert hashed == []
    monkeypatch.undo()
    monkeypatch.setattr(interpreter, "_own", lambda: installation(str(tmp_path), str(program), libraries))
    program.write_bytes(b"two")
    second = interpreter.find(THIS, cache=cache)
    assert second.host["python"] == "sha256:" + hashlib.sha256(b"two").hexdigest()
    assert first.host["python"] != second.host["python"]


@pytest.mark.parametrize("garbage", [b"", b"[]", b'{"a": "no digest"}', b"\xff"])
def test_a_cache_that_cannot_be_read_is_an_empty_one(tmp_path: Path, garbage: bytes) -> None:
    cache = tmp_path / "host.json"
    cache.write_bytes(garbage)
    assert interpreter.find(THIS, cache=cache) == interpreter.find(THIS)
    assert json.loads(cache.read_bytes())


def test_another_version_is_taken_from_path_through_whatever_launches_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    launcher = tmp_path / "bin" / "python{}.{}".format(*sys.version_info)
    launcher.parent.mkdir()
    launcher.write_text(f'#!/bin/sh\nexec "{environment / "bin" / "python"}" "$@"\n')
    launcher.chmod(0o755)
    expected = interpreter.find(THIS)
    monkeypatch.setenv("PATH", f"{launcher.parent}{os.pathsep}{os.environ['PATH']}")
    found = interpreter._on_path(sys.version_info[:2])
    assert found.executable == Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    assert interpreter._digests({"python": found.executable, **found.libraries}, None) == dict(expected.host)


def test_a_python_that_is_not_there_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"no python3\.99 on PATH") as caught:
        interpreter.find("==3.99.*")
    assert "apt install python3.99" in (caught.value.hint or "")


def test_a_program_of_that_name_that_is_another_python_or_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python3.99"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"expected Python 3\.99, found 3\."):
        interpreter.find("==3.99.*")
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(MachineError, match="does not run"):
        interpreter.find("==3.99.*")


@pytest.mark.parametrize("requires", [">=3.11", "3.11", "==3.11", "==3.x.*", ""])
def test_a_lock_that_names_no_single_python_is_refused(requires: str) -> None:
    with pytest.raises(LockError, match="expected one Python"):
        interpreter.find(requires)
