"""The program that unpacks wheels, run bare: where files go, and what is refused."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from tests import wheelhouse

import intaglio.build.unpack as program

SITE = "lib/python3/site-packages"


def unpack(tmp_path: Path, *wheels: Path, out: str = "out") -> subprocess.CompletedProcess[str]:
    request = {
        "wheels": [{"file": str(wheel), "folder": wheel.name} for wheel in wheels],
        "out": str(tmp_path / out),
        "site": SITE,
        "root": "/env",
    }
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request))
    command = [sys.executable, "-I", "-B", str(program.__file__), str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_part_of_a_wheel_goes_where_pep_427_says(tmp_path: Path) -> None:
    files = {
        "tool/__init__.py": b"def main():\n    return 0\n",
        "tool-1.0.data/purelib/pure.py": b"x = 1\n",
        "tool-1.0.data/platlib/plat.py": b"x = 2\n",
        "tool-1.0.data/scripts/run": b"#!python\nprint('here')\n",
        "tool-1.0.data/scripts/plain": b"#!/bin/sh\n",
        "tool-1.0.data/data/share/doc.txt": b"doc",
        "tool-1.0.data/headers/tool.h": b"h",
    }
    wheel = wheelhouse.wheel(tmp_path, "tool", "1.0", files, scripts={"tool-main": "tool:main"})
    result = unpack(tmp_path, wheel)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "out" / wheel.name
    found = modes(folder)
    assert {place for place in found if "dist-info" not in place and "__pycache__" not in place} == {
        f"{SITE}/tool/__init__.py",
        f"{SITE}/pure.py",
        f"{SITE}/plat.py",
        "bin/run",
        "bin/plain",
        "bin/tool-main",
        "share/doc.txt",
        "include/tool/tool.h",
    }
    assert {found["bin/run"], found["bin/plain"], found["bin/tool-main"]} == {0o555}
    assert {mode for place, mode in found.items() if not place.startswith("bin/")} == {0o444}
    assert (folder / "bin/run").read_bytes().startswith(b"#!/env/bin/python\n")
    assert (folder / "bin/plain").read_bytes() == b"#!/bin/sh\n"
    assert "from tool import main" in (folder / "bin/tool-main").read_text()


def test_bytecode_holds_no_time_and_names_the_final_place(tmp_path: Path) -> None:
    wheel = wheelhouse.wheel(tmp_path, "tool", "1.0", {"tool.py": b"def f():\n    raise KeyError\n"})
    assert unpack(tmp_path, wheel).returncode == 0
    assert unpack(tmp_path, wheel, out="again").returncode == 0
    module = f"{wheel.name}/{SITE}/tool.py"
    first = Path(cache_from_source(str(tmp_path / "out" / module))).read_bytes()
    assert int.from_bytes(first[4:8], "little") == 0b01, "expected an unchecked hash (PEP 552)"
    assert f"/env/{SITE}/tool.py".encode() in first
    assert str(tmp_path).encode() not in first
    assert first == Path(cache_from_source(str(tmp_path / "again" / module))).read_bytes()


def test_a_module_that_does_not_compile_is_kept_without_bytecode(tmp_path: Path) -> None:
    wheel = wheelhouse.wheel(tmp_path, "tool", "1.0", {"old.py": b"print 'two'\n", "new.py": b"x = 1\n"})
    assert unpack(tmp_path, wheel).returncode == 0
    site = tmp_path / "out" / wheel.name / SITE
    assert (site / "old.py").is_file()
    assert not Path(cache_from_source(str(site / "old.py"))).exists()
    assert Path(cache_from_source(str(site / "new.py"))).exists()


def test_an_executable_member_stays_one(tmp_path: Path) -> None:
    wheel = wheelhouse.wheel(tmp_path, "tool", "1.0", {"tool.py": b""})
    with zipfile.ZipFile(wheel, "a") as archive:
        member = zipfile.ZipInfo("tool/helper")
        member.external_attr = (stat.S_IFREG | 0o755) << 16
        archive.writestr(member, b"\x7fELF")
    assert unpack(tmp_path, wheel).returncode == 0
    assert modes(tmp_path / "out" / wheel.name)[f"{SITE}/tool/helper"] == 0o555


@pytest.mark.parametrize(
    "member",
    [
        "../evil.py",
        "/etc/evil",
        "a/../../evil",
        "a//b",
        "./a",
        "tool-1.0.data/scripts/../../evil",
        "tool-1.0.data/odd/x",
    ],
)
def test_a_member_that_would_be_written_elsewhere_is_refused(tmp_path: Path, member: str) -> None:
    wheel = wheelhouse.wheel(tmp_path, "tool", "1.0", {"tool.py": b"", member: b"evil"})
    result = unpack(tmp_path, wheel)
    assert result.returncode == 1
    assert f"bad wheel: {wheel.name}: a member" in result.stderr
    assert not list(tmp_path.rglob("evil*"))
    assert not Path("/etc/evil").exists()


@pytest.mark.parametrize(
    "entry", [("../up", "tool:main"), ("ok", "tool; import os"), ("ok", "tool:main; x"), ("ok", "tool")]
)
def test_a_console_script_that_is_no_name_is_refused(tmp_path: Path, entry: tuple[str, str]) -> None:
    wheel = wheelhouse.wheel(tmp_path, "tool", "1.0", {"tool.py": b""}, scripts=dict([entry]))
    result = unpack(tmp_path, wheel)
    assert result.returncode == 1
    assert "bad console script" in result.stderr


def test_what_is_no_zip_or_is_cut_short_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text-1.0-py3-none-any.whl"
    text.write_bytes(b"not a zip")
    whole = wheelhouse.wheel(tmp_path, "tool", "1.0", {"tool.py": b"x = 1\n" * 1000})
    cut = tmp_path / "cut-1.0-py3-none-any.whl"
    data = bytearray(whole.read_bytes())
    data[60] ^= 0xFF
    cut.write_bytes(data)
    packed = tmp_path / "packed-1.0-py3-none-any.whl"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("packed.py", b"x = 1\n" * 1000)
    data = bytearray(packed.read_bytes())
    data[45] ^= 0xFF
    packed.write_bytes(data)
    twice = tmp_path / "twice-1.0-py3-none-any.whl"
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("twice.py", b"x = 1\n")
        archive.writestr("twice-1.0.data/purelib/twice.py", b"x = 2\n")
    result = unpack(tmp_path, text, cut, packed, twice)
    assert result.returncode == 1
    assert packed.name in result.stderr
    assert f"{twice.name}: two members for {SITE}/twice.py" in result.stderr
    assert text.name in result.stderr
    assert cut.name in result.stderr


def test_progress_is_reported_on_the_descriptor_of_the_protocol(tmp_path: Path) -> None:
    wheel = wheelhouse.wheel(tmp_path, "tool", "1.0", {"tool.py": b""})
    request = tmp_path / "request.json"
    entry = {"file": str(wheel), "folder": "tool"}
    request.write_text(json.dumps({"wheels": [entry], "out": str(tmp_path / "out"), "site": SITE, "root": "/env"}))
    reader, writer = os.pipe()
    with os.fdopen(reader) as events:
        environment = {**os.environ, "INTAGLIO_EVENTS_FD": str(writer)}
        command = [sys.executable, "-I", str(program.__file__), str(request)]
        subprocess.run(command, pass_fds=(writer,), env=environment, check=True)
        os.close(writer)
        lines = [json.loads(line) for line in events]
    size = wheel.stat().st_size
    assert lines == [{"event": "progress", "done": size, "total": size, "unit": "B"}]
