"""What importing the engine costs: no model stack, no HTTP stack, and for the package itself nothing at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODEL_STACK = {"torch", "transformers", "peft", "tokenizers", "safetensors", "gguf", "numpy", "ray", "datasets"}
HTTP_STACK = {"requests", "httpx", "urllib3", "aiohttp", "http.client", "http.server", "urllib.request", "ssl"}
HEAVY = {"pydantic", "rich", "cryptography", "tuf", "securesystemslib", "tomlkit", "blake3", "pip"}


def loaded_by(*arguments: str) -> set[str]:
    """Modules that an interpreter run with ``arguments`` imports, its own start included."""
    command = [sys.executable, "-I", "-X", "importtime", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}


def within(modules: set[str], names: set[str]) -> set[str]:
    return {module for module in modules if any(module == name or module.startswith(f"{name}.") for name in names)}


def test_importing_the_package_imports_nothing() -> None:
    assert loaded_by("-c", "import intaglio") - loaded_by("-c", "pass") == {"intaglio"}


def test_help_imports_no_model_stack_no_http_and_nothing_heavy() -> None:
    loaded = loaded_by(str(Path(sys.executable).parent / "intaglio"), "--help")
    assert "intaglio.cli" in loaded
    assert within(loaded, MODEL_STACK | HTTP_STACK | HEAVY) == set()


@pytest.mark.parametrize("module", ["interpreter", "toolchain", "environment"])
def test_the_way_of_a_cached_build_imports_no_http(module: str) -> None:
    loaded = loaded_by("-c", f"import intaglio.build.{module}")
    assert within(loaded, MODEL_STACK | HTTP_STACK | HEAVY) == set()


def test_a_check_that_looks_for_modules_sees_them() -> None:
    found = within(loaded_by("-c", "import http.client, rich.text"), HTTP_STACK | HEAVY)
    assert found >= {"http.client", "rich", "rich.text"}


def test_no_step_program_imports_the_engine() -> None:
    programs = sorted((ROOT / "builder").rglob("*.py"))
    assert programs
    for path in programs:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.partition(".")[0] == "intaglio"], path
