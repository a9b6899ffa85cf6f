"""The README's commands, as they are written: what is typed after each ``$``, with the lines that continue it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.attacks.registries.distribution import running

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PORT = 5000
"""Where the README's registry listens."""
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_STRICT = "set -e -o pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
_WALLS = ("bwrap", "--unshare-net", "--die-with-parent", "--dev-bind", "/", "/", "--")


def section(heading: str) -> str:
    """Return the text below ``heading``, up to the next one."""
    return TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def commands(text: str) -> list[str]:
    """Return the commands in the fenced blocks of ``text``, each as one string, perhaps of several lines."""
    found: list[str] = []
    for line in "".join(_BLOCK.findall(text)).splitlines():
        if line.startswith("$ "):
            found.append(line[2:])
        elif found and found[-1].endswith("\\"):
            found[-1] += "\n" + line
    return found


def run(
    heading: str, folder: Path, environment: Mapping[str, str], *, registry: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the commands below ``heading`` in ``folder``, one after the other, until one fails.

    They run in a network namespace of their own; what they leave in the background ends with the shell that began it.
    Where they need the registry that earlier ones began, ``registry`` has one listen on its port.
    """
    folder.joinpath("commands").write_text("\n".join(commands(section(heading))) + "\n", encoding="utf-8")
    folder.joinpath("strict").write_text(_STRICT, encoding="utf-8")
    return subprocess.run(
        [*_WALLS, sys.executable, "-m", "tests.readme", str(folder), *(["--registry"] if registry else [])],
        cwd=ROOT,
        # Every shell reads it first: the one that a command of the README starts, too.
        env={**os.environ, **environment, "BASH_ENV": str(folder / "strict")},
        capture_output=True,
        text=True,
        check=False,
    )


def main(folder: Path, *, registry: bool) -> int:
    """Start a shell that reads the commands, perhaps with a registry beside it."""
    beside = running(folder / "another", port=PORT) if registry else contextlib.nullcontext()
    with beside, open(folder / "commands", "rb") as typed:
        # Nothing that this user downloaded before: what a closed network needs is brought there.
        own = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        return subprocess.run(["bash", "-s"], cwd=folder, stdin=typed, env=own, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), registry="--registry" in sys.argv))
