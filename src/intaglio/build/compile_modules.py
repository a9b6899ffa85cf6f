"""Compile the modules of a root file system: a program that runs inside the sandbox, with the standard library alone.

Bytecode is ``unchecked-hash`` (PEP 552), as :mod:`intaglio.build.unpack` makes it. One process, in one order: what
bytecode looks like depends on what was compiled before it.

    python compile_modules.py FOLDER OUT

Every ``.py`` below FOLDER is compiled; its bytecode is written below OUT, at the same place.
"""

from __future__ import annotations

import os
import py_compile
import sys
import warnings
from importlib.util import cache_from_source
from pathlib import Path


def main(folder: str, out: str) -> int:
    """Compile everything below ``folder``; what is no Python of this version is left alone."""
    warnings.simplefilter("ignore")
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for path, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if not name.endswith(".py") or Path(path, name).is_symlink():
                continue
            source = os.path.join(path, name)
            target = Path(out, os.path.relpath(cache_from_source(source), folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                py_compile.compile(source, str(target), dfile=source, doraise=True, invalidation_mode=mode)
            except (py_compile.PyCompileError, ValueError, RecursionError):
                continue
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2]))
