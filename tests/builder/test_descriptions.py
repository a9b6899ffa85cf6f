"""Every step program and its description agree, and every description says things that can be."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest

BUILDER = Path(__file__).resolve().parents[2] / "builder"
STEPS = sorted(path.stem for path in (BUILDER / "steps").glob("*.toml"))
SERVERS = sorted(path.stem for path in (BUILDER / "servers").glob("*.toml"))
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
}


def describe(folder: str, name: str) -> dict[str, Any]:
    return tomllib.loads((BUILDER / folder / f"{name}.toml").read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Names of our own modules that a program imports, at any depth of the file and of the modules themselves."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    ours = {name for name in names if (BUILDER / "lib" / f"{name}.py").is_file()}
    for name in sorted(ours):
        ours |= imported(BUILDER / "lib" / f"{name}.py")
    return ours


def test_every_program_has_a_description_and_every_description_a_program() -> None:
    for folder in ("steps", "servers"):
        assert {path.stem for path in (BUILDER / folder).glob("*.py")} == {
            path.stem for path in (BUILDER / folder).glob("*.toml")
        }


@pytest.mark.parametrize(
    ("folder", "name"), [("steps", name) for name in STEPS] + [("servers", name) for name in SERVERS]
)
def test_the_modules_listed_are_those_imported(folder: str, name: str) -> None:
    """One too many, and a change of it rebuilds for nothing; one too few, and the step fails."""
    listed = describe(folder, name)["lib"]
    assert listed == sorted(listed)
    assert set(listed) == imported(BUILDER / folder / f"{name}.py")


@pytest.mark.parametrize("name", STEPS)
def test_a_description_is_complete(name: str) -> None:
    description = describe("steps", name)
    assert description["step"] == name
    assert description["summary"].endswith(".")
    assert description["reproducible"] in ("bit", "platform", "statistical")
    for toolchain in (description["toolchain"], *(entry["name"] for entry in description.get("toolchains", []))):
        assert (BUILDER / "toolchains" / toolchain / "pylock.toml").is_file()
    assert description["outputs"]
    for entry in (*description.get("inputs", {}).values(), *description.get("parameters", {}).values()):
        assert entry["summary"].endswith(".")


@pytest.mark.parametrize("name", STEPS)
def test_defaults_are_allowed_values(name: str) -> None:
    for key, entry in describe("steps", name).get("parameters", {}).items():
        kinds = TYPES[entry["type"]]
        assert not (entry.get("nullable") and "default" in entry), key
        if "default" in entry:
            default = entry["default"]
            assert isinstance(default, kinds), key
            assert isinstance(default, bool) == (entry["type"] == "boolean"), key
            assert default in entry.get("choices", [default]), key
            if "minimum" in entry:
                assert default >= entry["minimum"], key
            if "maximum" in entry:
                assert default <= entry["maximum"], key


@pytest.mark.parametrize("name", STEPS)
def test_heavy_packages_are_not_imported_at_the_top(name: str) -> None:
    """A bad parameter is reported at once, not after the seconds that torch takes to load."""
    heavy = {"torch", "transformers", "peft", "tokenizers", "safetensors", "gguf", "convert_hf_to_gguf", "numpy"}
    for path in (BUILDER / "steps" / f"{name}.py", *(BUILDER / "lib").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert heavy.isdisjoint(name.split(".")[0] for name in names), path


def test_no_program_imports_the_engine() -> None:
    for path in BUILDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert all(name.split(".")[0] != "intaglio" for name in names), path
