"""Setting up a checkout: what is missing is told, and how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import setup

ROOT = Path(__file__).resolve().parents[1]


def test_groups_are_read_as_pep_735_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = '[dependency-groups]\ntest = ["pytest>=8", { include-group = "lint" }]\nlint = ["ruff"]\n'
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    assert setup.requirements(["test"]) == ["pytest>=8", "ruff"]
    with pytest.raises(setup.SetupError, match="no dependency group docs, only lint, test"):
        setup.requirements(["docs"])


def test_a_program_that_is_not_there_is_told_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(setup, "_loads", lambda library: False)
    assert {"bubblewrap", "libseccomp2"} <= set(setup.missing_packages())
    assert setup.missing_test_packages() == ["skopeo", "curl", "nodejs", "npm"]
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(setup, "_loads", lambda library: True)
    assert setup.missing_packages() == []
    assert setup.missing_test_packages() == []


def test_what_is_there_is_kept_whoever_installed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/opt/node/bin/{name}" if name in ("node", "npm") else None)
    assert setup.missing_test_packages() == ["skopeo", "curl"]


def test_without_permission_the_command_to_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "sudo" else f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_kwargs: pytest.fail("something was run"))
    with pytest.raises(setup.SetupError, match="run `apt-get install bubblewrap` as root"):
        setup.install_packages(["bubblewrap"])


def test_elsewhere_than_on_debian_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(setup.SetupError, match="bubblewrap"):
        setup.install_packages(["bubblewrap"])


def test_an_old_python_is_refused_with_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert setup.main([]) == 50
    assert "expected Python 3.11 or newer" in capsys.readouterr().err


def test_make_help_names_every_target() -> None:
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "lint", "proof", "bench", "docs", "clean", "help"):
        assert f"make {target} " in result.stdout


def test_make_proof_writes_its_tables_after_a_failed_test_and_says_so(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$2"\ncase "$2" in $FAILS) exit 1;; esac\n')
    program.chmod(0o755)
    for fails, good in (("nothing", True), ("pytest", False), ("benchmarks.proof", False)):
        argv = ["make", "--silent", "--old-file=setup-test", f"BIN={tmp_path}", "proof"]
        environment = {**os.environ, "FAILS": fails}
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["pytest", "benchmarks.proof"]
        assert (done.returncode == 0) == good, fails
