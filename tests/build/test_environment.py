"""Realising environments: tiny wheels, the real sandbox."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tests import wheelhouse

from intaglio.build import environment, interpreter, sandbox, toolchain
from intaglio.build.interpreter import Interpreter
from intaglio.build.sandbox import Limits, Mount, SandboxSpec
from intaglio.build.toolchain import Toolchain
from intaglio.content.layout import Store
from intaglio.errors import CorruptContent, MachineError, NotVerifiable

THIS = "{}.{}".format(*sys.version_info)
SITE = f"lib/python{THIS}/site-packages"
TINY: Mapping[str, bytes] = {"tiny/__init__.py": b"ANSWER = 42\n\n\ndef main():\n    print('script', ANSWER)\n"}

pytestmark = pytest.mark.real


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture(scope="module")
def python() -> Interpreter:
    return interpreter.find(f"=={THIS}.*")


def tools(tmp_path: Path, store: Store, *wheels: Path, name: str = "tools") -> Toolchain:
    for path in wheels:
        store.adopt(path, move=False)
    return toolchain.load(wheelhouse.lock(tmp_path / name, wheels, python=THIS))


def tiny(tmp_path: Path) -> Path:
    return wheelhouse.wheel(tmp_path / "links", "tiny", "1.0", TINY, scripts={"tiny-main": "tiny:main"})


def run_inside(folder: Path, python: Interpreter, tmp_path: Path, *argv: str) -> str:
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    spec = SandboxSpec(
        argv=argv,
        mounts=(*python.mounts, Mount(folder, "/env"), Mount(work, "/work", True)),
        environment={"PATH": "/env/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", **python.environment},
        limits=Limits(memory=1 << 30, processes=64, time=60.0, disk=1 << 30),
    )
    outcome = sandbox.run(spec, log=log, on_event=lambda event: None)
    assert outcome.status == 0, log.read_text()
    return log.read_text()


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_modules_scripts_and_the_prefix_work_inside_the_sandbox(
    tmp_path: Path, store: Store, python: Interpreter
) -> None:
    folder = environment.realise(tools(tmp_path, store, tiny(tmp_path)), store, python)
    code = "import sys, tiny; print(sys.prefix, tiny.ANSWER, tiny.__file__); print(sys.path)"
    said = run_inside(folder, python, tmp_path, "/env/bin/python", "-c", code)
    assert said.startswith(f"/env 42 /env/{SITE}/tiny/__init__.py\n")
    assert "dist-packages" not in said
    assert run_inside(folder, python, tmp_path, "/env/bin/tiny-main") == "script 42\n"


def test_it_is_read_only_and_made_once(
    tmp_path: Path, store: Store, python: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tools(tmp_path, store, tiny(tmp_path))
    folder = environment.realise(tool, store, python)
    assert folder == environment.folder_of(tool, store, python)
    assert folder.parent == store.root / "environments"
    assert folder.name.startswith(tool.tree().digest.hex + "-")
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            assert not stat.S_IMODE(path.stat().st_mode) & 0o222, path
    monkeypatch.setattr(sandbox, "run", None)
    assert environment.realise(tool, store, python) == folder


def test_the_same_bytes_in_every_store(tmp_path: Path, store: Store, python: Interpreter) -> None:
    other = Store.open(tmp_path / "elsewhere" / "store")
    wheel = tiny(tmp_path)
    first = environment.realise(tools(tmp_path, store, wheel), store, python)
    second = environment.realise(tools(tmp_path, other, wheel), other, python)
    assert contents(first) == contents(second)
    assert any(place.endswith(".pyc") for place in contents(first))


def test_toolchains_share_the_wheels_they_have_in_common(tmp_path: Path, store: Store, python: Interpreter) -> None:
    extra = wheelhouse.wheel(tmp_path / "links", "extra", "1.0", {"extra.py": b""})
    one = environment.realise(tools(tmp_path, store, tiny(tmp_path)), store, python)
    two = environment.realise(tools(tmp_path, store, tiny(tmp_path), extra, name="more"), store, python)
    assert one != two
    assert (one / SITE / "tiny/__init__.py").samefile(two / SITE / "tiny/__init__.py")
    assert not (one / SITE / "extra.py").exists()
    assert (two / SITE / "extra.py").exists()


def test_where_two_wheels_have_one_path_the_later_stands_and_the_first_is_unharmed(
    tmp_path: Path, store: Store, python: Interpreter
) -> None:
    first = wheelhouse.wheel(tmp_path / "links", "aaa", "1.0", {"shared.py": b"WHO = 'aaa'\n"})
    second = wheelhouse.wheel(tmp_path / "links", "bbb", "1.0", {"shared.py": b"WHO = 'bbb'\n"})
    both = environment.realise(tools(tmp_path, store, first, second, name="both"), store, python)
    alone = environment.realise(tools(tmp_path, store, first, name="alone"), store, python)
    assert (both / SITE / "shared.py").read_bytes() == b"WHO = 'bbb'\n"
    assert (alone / SITE / "shared.py").read_bytes() == b"WHO = 'aaa'\n"


def test_a_wheel_that_is_not_in_the_store_is_named(tmp_path: Path, store: Store, python: Interpreter) -> None:
    wheel = tiny(tmp_path)
    tool = toolchain.load(wheelhouse.lock(tmp_path / "tools", [wheel], python=THIS))
    with pytest.raises(NotVerifiable, match=r"tiny-1\.0-py3-none-any\.whl"):
        environment.realise(tool, store, python)


@pytest.mark.parametrize("kind", ["escape", "garbage"])
def test_a_bad_wheel_is_refused_and_nothing_is_left(
    tmp_path: Path, store: Store, python: Interpreter, kind: str
) -> None:
    bad = wheelhouse.wheel(tmp_path / "links", "bad", "1.0", {"../../../../evil": b"evil"})
    if kind == "garbage":
        bad.write_bytes(b"no wheel at all")
    tool = tools(tmp_path, store, tiny(tmp_path), bad)
    with pytest.raises(CorruptContent, match=r"bad-1\.0-py3-none-any\.whl"):
        environment.realise(tool, store, python)
    assert not list((store.root / "environments" / "wheels").iterdir())
    assert [path.name for path in (store.root / "environments").iterdir()] == ["wheels"]
    assert not list(tmp_path.rglob("evil"))


def test_an_interpreter_of_another_version_is_refused(tmp_path: Path, store: Store, python: Interpreter) -> None:
    tool = toolchain.load(wheelhouse.lock(tmp_path / "tools", [tiny(tmp_path)], python="3.99"))
    with pytest.raises(MachineError, match=r"is for Python ==3\.99\.\*"):
        environment.realise(tool, store, python)


def test_another_host_gets_an_environment_of_its_own(tmp_path: Path, store: Store, python: Interpreter) -> None:
    tool = tools(tmp_path, store, tiny(tmp_path))
    host = {**python.host, "libc": "sha256:" + "0" * 64}
    other = Interpreter(python.version, python.executable_inside, python.mounts, python.environment, host)
    assert environment.folder_of(tool, store, other) != environment.folder_of(tool, store, python)


def test_what_another_interpreter_compiled_is_in_no_environment(
    tmp_path: Path, store: Store, python: Interpreter
) -> None:
    """The other one is this one, but for a mark on all bytecode that it makes."""
    (tmp_path / "marking").mkdir()
    program = tmp_path / "marking" / "python"
    program.write_text(
        f'#!/bin/sh\n{python.executable_inside} "$@" || exit\n'
        "find /out -name '*.pyc' | while read -r path; do chmod u+w $path; printf marked >> $path; done\n"
    )
    program.chmod(0o555)
    mounts = (*python.mounts, Mount(program.parent, "/opt/marking"))
    host = {**python.host, "python": "sha256:" + "0" * 64}
    other = Interpreter(python.version, "/opt/marking/python", mounts, python.environment, host)
    wheel = tiny(tmp_path)
    elsewhere = Store.open(tmp_path / "elsewhere" / "store")
    alone = contents(environment.realise(tools(tmp_path, elsewhere, wheel), elsewhere, python))

    tool = tools(tmp_path, store, wheel)
    marked = contents(environment.realise(tool, store, other))
    assert any(isinstance(data, bytes) and data.endswith(b"marked") for data in marked.values())
    assert contents(environment.realise(tool, store, python)) == alone


def test_two_at_once_unpack_once(
    tmp_path: Path, store: Store, python: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tools(tmp_path, store, tiny(tmp_path))
    runs = []
    real = sandbox.run

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(sandbox, "run", counted)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(environment.realise(tool, store, python))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 3
    assert len(runs) == 1


def test_a_crash_while_it_is_composed_leaves_nothing_visible(
    tmp_path: Path, store: Store, python: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tools(tmp_path, store, tiny(tmp_path))

    def crash() -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "sync", crash)
    with pytest.raises(KeyboardInterrupt):
        environment.realise(tool, store, python)
    assert not environment.folder_of(tool, store, python).exists()
    monkeypatch.undo()
    folder = environment.realise(tool, store, python)
    assert (folder / SITE / "tiny/__init__.py").is_file()
    assert {path.name for path in folder.parent.iterdir()} == {"wheels", folder.name}


@pytest.mark.slow
def test_kill_nine_at_any_moment_is_made_good_by_the_next_one(
    tmp_path: Path, store: Store, python: Interpreter
) -> None:
    modules = {f"big/module{number}.py": b"x = [" + b"1," * 500 + b"]\n" for number in range(300)}
    wheel = wheelhouse.wheel(tmp_path / "links", "big", "1.0", {**modules, "big/__init__.py": b""})
    tool = tools(tmp_path, store, tiny(tmp_path), wheel)
    program = (
        "import sys; from pathlib import Path; from intaglio.build import environment, interpreter, toolchain; "
        "from intaglio.content.layout import Store; tool = toolchain.load(Path(sys.argv[1])); "
        "environment.realise(tool, Store.open(Path(sys.argv[2])), interpreter.find(tool.requires_python))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "tools"), str(store.root)]
    target = environment.folder_of(tool, store, python)
    for delay in (0.2, 0.3, 0.4, 0.5, 0.6, 0.8):
        process = subprocess.Popen(command, start_new_session=True)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if target.exists():
            break
    subprocess.run(command, check=True)
    assert len(list((target / SITE / "big").glob("*.py"))) == 301
    assert len(list((target / SITE / "big/__pycache__").iterdir())) == 301
    assert run_inside(target, python, tmp_path, "/env/bin/python", "-c", "import big.module299, tiny") == ""


def test_discard_removes_a_read_only_folder(tmp_path: Path, store: Store, python: Interpreter) -> None:
    folder = environment.realise(tools(tmp_path, store, tiny(tmp_path)), store, python)
    environment.discard(folder)
    assert not folder.exists()
