"""A sandbox to try things in: this Python inside, one writable folder, its events and its log kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from intaglio.build import interpreter, sandbox
from intaglio.build.sandbox import Limits, Mount, Outcome, SandboxSpec

MIB = 1 << 20


class Box:
    """Runs programs in the sandbox, with ``/work`` and ``/out`` writable."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.log = place / "log"
        self.events: list[dict[str, object]] = []
        for name in ("work", "out"):
            (place / name).mkdir()
        self.python_inside = interpreter.find("=={}.{}.*".format(*sys.version_info), cache=place / "digests")

    def spec(
        self,
        *argv: str,
        mounts: tuple[Mount, ...] = (),
        environment: dict[str, str] | None = None,
        memory: int = 512 * MIB,
        processes: int = 64,
        time: float = 30.0,
        disk: int = 256 * MIB,
        **more: Any,
    ) -> SandboxSpec:
        own = (Mount(self.place / "work", "/work", writable=True), Mount(self.place / "out", "/out", writable=True))
        return SandboxSpec(
            argv=argv,
            mounts=(*self.python_inside.mounts, *own, *mounts),
            environment={"PATH": "/usr/bin:/bin", **self.python_inside.environment, **(environment or {})},
            limits=Limits(memory=memory, processes=processes, time=time, disk=disk),
            **more,
        )

    def run(self, *argv: str, stop: object = None, **more: Any) -> Outcome:
        """Run a program."""
        spec = self.spec(*argv, **more)
        return sandbox.run(spec, log=self.log, on_event=self.events.append, stop=stop)  # type: ignore[arg-type]

    def sh(self, script: str, **more: Any) -> Outcome:
        """Run a shell script."""
        return self.run("/bin/sh", "-c", script, **more)

    def python(self, code: str, *arguments: str, **more: Any) -> Outcome:
        """Run Python code."""
        return self.run(self.python_inside.executable_inside, "-I", "-S", "-c", code, *arguments, **more)

    def said(self) -> str:
        """Return all that was written to standard output and error."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""
