from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import step

from intaglio.build import interpreter
from intaglio.content.layout import Store

HERE = "=={}.{}.*".format(*sys.version_info)


def test_a_linked_environment_finds_its_packages(tmp_path):
    python = interpreter.find(HERE)
    packages = tmp_path / "realised" / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    packages.mkdir(parents=True)
    (packages / "only_here.py").write_text("WORD = 'found'\n")
    programs = step.link_environment(tmp_path / "env", tmp_path / "realised", python)
    argv = [str(programs / "python"), "-s", "-P", "-c", "import only_here, sys; print(only_here.WORD, sys.prefix)"]
    variables = {name: step.outside(python, path) for name, path in python.environment.items()}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=variables)
    assert done.stdout.split() == ["found", str(tmp_path / "env")]


def test_what_the_sandbox_sees_stands_somewhere_outside():
    python = interpreter.find(HERE)
    assert Path(step.outside(python, python.executable_inside)).is_file()
    assert step.outside(python, "/bin/true") == "/bin/true"


def test_a_clone_is_a_store_of_its_own(tmp_path):
    original = Store.open(tmp_path / "original")
    digest = original.put(b"{}")
    copy = step.clone(original, tmp_path / "copy")
    assert copy.read(digest, what="x") == b"{}"
    copy.path(digest).unlink()
    assert original.has(digest)
    assert (copy.root / "environments").readlink() == original.root / "environments"


def test_the_larger_allowance_counts():
    def steps(bare, engine):
        return step.Steps("x", {"bare": bare, "engine": engine})

    assert steps([100.0], [104.0]).met
    assert steps([1.0], [1.4]).met
    assert not steps([10.0], [11.0]).met
    assert step.table([steps([10.0], [11.0])]).rows[0][3:] == ("1.100", "+1.00 s", "**no**")
