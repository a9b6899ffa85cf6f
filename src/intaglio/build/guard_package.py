"""The guard as a wheel: of the engine's own modules those that the guard imports, and not one more.

The wheel is a function of their text: fixed order and times, nothing compressed.
"""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import intaglio

ENTRY = "intaglio.guard.main"
_ROOT = Path(intaglio.__file__).resolve().parent
_METADATA = "Metadata-Version: 2.1\nName: intaglio-guard\nVersion: {}\n"
_WHEEL = "Wheel-Version: 1.0\nGenerator: intaglio\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def file_name() -> str:
    """Return the wheel's file name."""
    return f"intaglio_guard-{intaglio.__version__}-py3-none-any.whl"


def wheel() -> bytes:
    """Return the wheel."""
    about = f"intaglio_guard-{intaglio.__version__}.dist-info"
    files = {_path(name): _source(name).read_bytes() for name in modules()}
    files[f"{about}/METADATA"] = _METADATA.format(intaglio.__version__).encode()
    files[f"{about}/WHEEL"] = _WHEEL.encode()
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in sorted([*files, f"{about}/RECORD"])).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(files):
            archive.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), files[path])
    return stream.getvalue()


def modules() -> tuple[str, ...]:
    """Return the modules of the engine that the guard imports, at its start or later, sorted."""
    found: set[str] = set()
    pending = [ENTRY]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        pending += [name.rpartition(".")[0]] if "." in name else []
        tree = ast.parse(_source(name).read_bytes())
        pending += [one for one in _imported(tree) if _is_module(one)]
    return tuple(sorted(found))


def _imported(tree: ast.AST) -> Iterator[str]:
    """Yield what may be the names of imported modules; what only a type checker imports is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imported(node)


def _is_module(name: str) -> bool:
    return name.partition(".")[0] == _ROOT.name and _source(name).is_file()


def _source(name: str) -> Path:
    parts = name.split(".")[1:]
    folder = _ROOT.joinpath(*parts)
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def _path(name: str) -> str:
    return f"{_ROOT.name}/{_source(name).relative_to(_ROOT).as_posix()}"
