"""Staging: what a step will see, laid out, with nothing in it that the key leaves out."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from intaglio.build.action import determinism
from intaglio.build.sandbox import Mount
from intaglio.build.stage import Room, Staged, stage
from intaglio.content.layout import Store
from intaglio.content.tree import File, Tree
from intaglio.recipe.limits import Limits

FILES = {"step.py": b"print(1)\n", "step.toml": b"", "lib/events.py": b"x = 1\n"}


@pytest.fixture(params=[False, True], ids=["", "with a checkpoint"])
def staged(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Staged, Store, Tree]]:
    store = Store.open(tmp_path / "store")
    tree = store.put_tree([File("a.bin", store.put(b"a"), 1), File("sub/run", store.put(b"#!"), 2, executable=True)])
    variables = {"LD_LIBRARY_PATH": "/opt/python/lib"}
    python: Any = SimpleNamespace(mounts=(Mount(tmp_path, "/opt/python"),), environment=variables)
    program: Any = SimpleNamespace(files=FILES, interfaces=False)
    with store.scratch("step") as scratch:
        made = stage(
            scratch,
            store,
            Room(tmp_path / "env", python),
            program,
            parameters={"rate": 0.5, "name": "é"},
            inputs={"base": tree},
            determinism=determinism(2),
            limits=Limits(memory=1 << 20, processes=3, time=4, disk=5, threads=2),
            checkpoint=tmp_path / "kept" if request.param else None,
        )
        yield scratch, made, store, tree


def test_the_request_holds_parameters_and_paths_and_nothing_else(staged: tuple[Path, Staged, Store, Tree]) -> None:
    scratch, made, _, _ = staged
    data = (scratch / "step" / "request.json").read_bytes()
    kept = any(mount.target == "/checkpoint" for mount in made.spec.mounts)
    assert json.loads(data) == {
        **({"checkpoint": "/checkpoint"} if kept else {}),
        "protocol": 1,
        "parameters": {"rate": 0.5, "name": "é"},
        "inputs": {"base": "/in/base"},
        "out": "/out",
        "work": "/work",
    }
    assert str(scratch).encode() not in data


def test_the_program_is_written_from_its_verified_bytes(staged: tuple[Path, Staged, Store, Tree]) -> None:
    scratch, _, _, _ = staged
    program = scratch / "step" / "program"
    found = {path.relative_to(program).as_posix(): path.read_bytes() for path in program.rglob("*") if path.is_file()}
    assert found == FILES


def test_inputs_are_hard_links_to_the_blobs(staged: tuple[Path, Staged, Store, Tree]) -> None:
    scratch, _, store, tree = staged
    assert (scratch / "in" / "base" / "a.bin").samefile(store.path(tree.files[0].digest))
    assert stat.S_IMODE((scratch / "in" / "base" / "sub" / "run").stat().st_mode) == 0o555


def test_only_out_and_work_are_writable_and_both_are_empty(staged: tuple[Path, Staged, Store, Tree]) -> None:
    scratch, made, _, _ = staged
    mounts = {mount.target: mount for mount in made.spec.mounts}
    if kept := mounts.pop("/checkpoint", None):
        assert kept.writable
    assert {target for target, mount in mounts.items() if mount.writable} == {"/out", "/work"}
    assert set(mounts) == {"/opt/python", "/env", "/step", "/in/base", "/out", "/work"}
    assert made.output == mounts["/out"].source == scratch / "out"
    for target in ("/out", "/work"):
        assert list(mounts[target].source.iterdir()) == []


def test_the_environment_is_the_documented_one(staged: tuple[Path, Staged, Store, Tree]) -> None:
    _, made, _, _ = staged
    assert set(made.spec.environment) == {
        *determinism(2), "LD_LIBRARY_PATH", "PATH", "HOME", "TMPDIR", "USER", "LOGNAME", "HF_HOME",
    }  # fmt: skip
    assert made.spec.environment["PATH"] == "/env/bin:/usr/bin:/bin"
    assert made.spec.argv == ("/env/bin/python", "-B", "-s", "-P", "/step/program/step.py")
    limits = made.spec.limits
    assert (limits.memory, limits.processes, limits.time, limits.disk) == (1 << 20, 3, 4.0, 5)
