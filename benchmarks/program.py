"""The engine as a user runs it: the ``intaglio`` program with a home of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from scripts import demo

ROOT = Path(__file__).resolve().parents[1]
TINY = "tiny-from-scratch"
DEMO = "smollm2-helpdesk"
_EXECUTABLE = Path(sys.executable).with_name("intaglio")
_OWN = ("INTAGLIO_HOME", "INTAGLIO_STORE", "INTAGLIO_PASSPHRASE", "INTAGLIO_PASSPHRASE_FILE", "INTAGLIO_DATA")


class ProgramFailed(Exception):
    """The program ended with another status than 0."""


@dataclass(frozen=True, slots=True)
class Program:
    """``intaglio``, with a home that nobody else uses."""

    home: Path
    executable: Path = _EXECUTABLE
    variables: Mapping[str, str] = field(default_factory=dict)
    """Set on top of this process's environment."""
    prefix: tuple[str, ...] = ()
    """A program that runs it, with its arguments."""

    @property
    def store(self) -> Path:
        """Where its store stands."""
        return self.home / "store"

    def environment(self) -> dict[str, str]:
        """Return the whole environment that it runs in."""
        kept = {name: value for name, value in os.environ.items() if name not in _OWN}
        return {**kept, "INTAGLIO_HOME": str(self.home), **self.variables}

    def argv(self, *arguments: str | Path) -> list[str]:
        """Return the complete command."""
        return [*self.prefix, str(self.executable), *map(str, arguments)]

    def run(self, *arguments: str | Path) -> str:
        """Run a command to its end and return what it answered.

        Raises:
            ProgramFailed: its exit status is not 0; the message shows what it said.
        """
        done = subprocess.run(
            self.argv(*arguments), env=self.environment(), capture_output=True, text=True, check=False, cwd="/"
        )
        if done.returncode != 0:
            said = done.stderr.strip()[-2000:] or done.stdout.strip()[-2000:]
            raise ProgramFailed(f"intaglio {' '.join(map(str, arguments))}: exit status {done.returncode}\n{said}")
        return done.stdout

    def trust(self, publisher: Path) -> None:
        """Trust a source that lists what the demo's and the tiny recipe are made of; it is made below ``publisher``.

        What is fetched for it stays there, too: the home's own store and caches see nothing of it.
        """
        if not (publisher / "published").exists():
            own = {"HOME": str(publisher), "XDG_CACHE_HOME": str(publisher / "cache")}
            other = replace(self, home=publisher, variables={**self.variables, **own})
            for command in demo.publishing(
                publisher, (*demo.LISTED, "datasets/intaglio/capitals@1.0.0", "steps/intaglio/scratch@1.0.0")
            ):
                other.run(*command)
            shutil.rmtree(other.store)
        for command in demo.following(publisher / "published"):
            self.run(*command)

    def build(self, recipe: Path, *options: str) -> dict[str, Any]:
        """Build ``recipe`` and return the program's JSON answer."""
        return cast(dict[str, Any], json.loads(self.run("build", recipe, "--json", "--progress", "none", *options)))


def recipe(name: str, root: Path = ROOT) -> Path:
    """Return the folder of the recipe that is called ``name``; ``tiny`` and ``demo`` are short for the two."""
    return root / "modelfiles" / {"tiny": TINY, "demo": DEMO}.get(name, name)


def snapshot(place: Path) -> Path:
    """Copy the four folders of data to ``place`` and return it: nobody edits a recipe or step there while it is used.

    ``INTAGLIO_DATA`` makes the engine read them there.
    """
    for name in ("modelfiles", "builder", "registry", "policies"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    return place
