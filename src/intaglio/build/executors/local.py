"""The local executor: actions in sandboxes on this machine, side by side within its cores and memory.

It is handed a staged action and gives back how it ended; what came out is untrusted until the engine has hashed it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from intaglio.build import sandbox
from intaglio.build.sandbox import SandboxSpec
from intaglio.build.supervisor import Outcome, Stop
from intaglio.strictjson import Object


class LocalExecutor:
    """Runs staged actions; admits one when its threads and memory fit beside those that run."""

    def __init__(self, cores: int | None = None, memory: int | None = None) -> None:
        self._cores = cores or len(os.sched_getaffinity(0))
        self._memory = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._free_cores = self._cores
        self._free_memory = self._memory
        self._changed = threading.Condition()
        self._stop = Stop()

    @contextlib.contextmanager
    def admit(self, threads: int, memory: int) -> Iterator[None]:
        """Wait until ``threads`` cores and ``memory`` bytes are free, and hold them.

        A step that asks for more than there is runs alone: what it asks for is a limit, not what it will take.
        """
        threads, memory = min(threads, self._cores), min(memory, self._memory)
        with self._changed:
            self._changed.wait_for(lambda: threads <= self._free_cores and memory <= self._free_memory)
            self._free_cores -= threads
            self._free_memory -= memory
        try:
            yield
        finally:
            with self._changed:
                self._free_cores += threads
                self._free_memory += memory
                self._changed.notify_all()

    def run(self, spec: SandboxSpec, *, log: Path, on_event: Callable[[Object], None]) -> Outcome:
        """Run the staged action and return how it ended; its output goes to ``log``."""
        return sandbox.run(spec, log=log, on_event=on_event, stop=self._stop)

    def stop(self) -> None:
        """End everything that runs, and whatever would be run later."""
        self._stop.set()
