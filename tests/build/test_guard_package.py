"""The guard's wheel: what it holds, and that this is all it needs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import cryptography

from intaglio.build import guard_package


def test_it_holds_what_the_guard_imports_and_nothing_else() -> None:
    found = guard_package.modules()
    assert {"intaglio", "intaglio.verify", "intaglio.guard.main", "intaglio.guard.relay"} <= set(found)
    rooms = {name.split(".")[1] for name in found if "." in name}
    assert not rooms & {"cli", "build", "recipe", "report"}
    assert not [name for name in found if name.startswith(("intaglio.content.remote", "intaglio.trust.repository"))]


def test_it_is_the_same_each_time() -> None:
    assert guard_package.wheel() == guard_package.wheel()
    with zipfile.ZipFile(io.BytesIO(guard_package.wheel())) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        names = archive.namelist()
    assert names == sorted(names)
    assert "intaglio/guard/main.py" in names


def test_it_runs_from_there_alone(tmp_path: Path) -> None:
    wheel = tmp_path / guard_package.file_name()
    wheel.write_bytes(guard_package.wheel())
    site = Path(cryptography.__file__).parents[1]
    code = (
        f"import sys; sys.path[:0] = [{str(wheel)!r}]; sys.path.append({str(site)!r})\n"
        "import importlib, pkgutil, intaglio\n"
        "assert intaglio.__file__.startswith(sys.path[0])\n"
        "for one in pkgutil.walk_packages(intaglio.__path__, 'intaglio.'): importlib.import_module(one.name)\n"
        "from intaglio.guard.main import main\n"
        "sys.argv = ['x', '--root', '/nowhere', '--passport', 'p', '--model', 'm', '--', 'x']\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 25, done.stderr
    assert json.loads(done.stderr)["rule"] == "anchor"
