"""Running one action: toolchain, sandbox, output.

- The environment comes from the toolchain's verified wheels; what ships no wheel is built first, as an action too.
- The step sees what is staged and nothing else; when it fails, the error says why, shows the last lines of its log,
  and how to run it again.
- Whatever it left behind but regular files in ``/out`` is gone or refused.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from intaglio.build import checkpoint, environment, interpreter, toolchain, wheels
from intaglio.build.action import Action, determinism
from intaglio.build.claim import Circumstances, Claim
from intaglio.build.executors.local import LocalExecutor
from intaglio.build.limits import disk_usage
from intaglio.build.plan import PlannedStep, toolchain_folder
from intaglio.build.stage import Room, Staged, stage
from intaglio.build.supervisor import Outcome
from intaglio.build.toolchain import Sdist, Toolchain
from intaglio.content.descriptor import Descriptor
from intaglio.content.layout import Store
from intaglio.content.tree import Tree
from intaglio.dataclass import dataclass
from intaglio.digest import ActionKey
from intaglio.errors import CorruptContent, LimitReached, MachineError, StepFailed
from intaglio.progress import Progress, Task
from intaglio.recipe.data import data_folder
from intaglio.recipe.modelfile import Step
from intaglio.recipe.program import load
from intaglio.strictjson import Object
from intaglio.trust.statement import Dependency

TAIL = 12
"""Lines of a failed step's log that its error shows."""


class Runner:
    """Runs actions of one build."""

    def __init__(
        self,
        store: Store,
        progress: Progress,
        *,
        offline: bool,
        record: Callable[[Action, Descriptor, Circumstances], Claim] | None = None,
        replay: str = "intaglio replay RECIPE",
    ) -> None:
        """``replay``: the command that, with a step's name behind it, runs that step again; shown when one fails."""
        self._store = store
        self._progress = progress
        self._offline = offline
        self._record = record
        self._replay = replay
        self._executor = LocalExecutor()

    def run(self, name: str, planned: PlannedStep, action: Action, inputs: Mapping[str, Tree]) -> Tree:
        """Run ``action`` and return the tree of its output, in the store.

        Raises:
            StepFailed: it ended badly, or its output is not what it declares.
            LimitReached: it reached a limit.
        """
        room = self.room(planned)
        limits = planned.step.limits
        with (
            self._executor.admit(limits.threads, limits.memory),
            self._store.scratch(name) as scratch,
            _StepLog(self._store, action.key) as log,
        ):
            kept = checkpoint.folder(self._store, action.key) if planned.step.program.checkpoint else None
            staged = self.stage(scratch, planned, inputs, room, kept)
            with self._progress.task(name, unit="steps") as task:
                events = _Events(task, log, lambda text: self._progress.note(f"{name}: {text}"))
                outcome = self._executor.run(staged.spec, log=log.path, on_event=events)
            log.outcome(outcome)
            if outcome.status != 0 or outcome.limit:
                _require_room(name, planned.step, staged, outcome, log.path)
                raise self._failure(name, planned.step, outcome, events, log.path)
            tree = self._collect(name, planned.step, staged, log.path)
            if kept is not None:
                checkpoint.discard(kept)
            return tree

    def stop(self) -> None:
        """End what runs: somebody asked for it."""
        self._executor.stop()

    def room(self, planned: PlannedStep) -> Room:
        """Return the environment of a step, fetched and realised if it is not there."""
        return Room(self.environment(planned.toolchain, planned.interpreter), planned.interpreter)

    def environment(self, chain: Toolchain, python: interpreter.Interpreter) -> Path:
        """Return the folder of the toolchain's environment, fetched and realised if it is not there."""
        folder = environment.folder_of(chain, self._store, python)
        if not folder.is_dir():
            with self._store.lock(f"toolchain-{chain.name}", self._progress):
                wheels.fetch(chain, self._store, offline=self._offline, progress=self._progress)
                for sdist in chain.sdists:
                    if not self._store.has(sdist.wheel.digest, sdist.wheel.size):
                        self._build_wheel(sdist)
                environment.realise(chain, self._store, python, progress=self._progress)
        return folder

    def stage(
        self,
        scratch: Path,
        planned: PlannedStep,
        inputs: Mapping[str, Tree],
        room: Room,
        checkpoint: Path | None = None,
    ) -> Staged:
        """Lay the step out in ``scratch``; ``checkpoint`` is where it may keep how far it has come."""
        return stage(
            scratch,
            self._store,
            room,
            planned.step.program,
            parameters=planned.step.parameters,
            inputs=inputs,
            determinism=determinism(planned.step.limits.threads),
            limits=planned.step.limits,
            checkpoint=checkpoint,
        )

    def _collect(self, name: str, step: Step, staged: Staged, log: Path) -> Tree:
        try:
            tree = self._store.ingest(staged.output, move=True, progress=self._progress)
        except (CorruptContent, PermissionError) as error:
            why, hint = (error.message, error.hint) if isinstance(error, CorruptContent) else (str(error), None)
            raise StepFailed(
                f"step {name}: its output cannot be used: {why}",
                hint=hint or f"a step writes regular files to /out; the whole log: {log}",
            ) from None
        for pattern in step.program.outputs:
            if not any(fnmatch.fnmatchcase(file.path, pattern) for file in tree.files):
                found = ", ".join(file.path for file in tree.files[:8])
                raise StepFailed(
                    f"step {name}: expected an output that matches {pattern!r}, found {found}",
                    hint=f"the program {step.uses} declares its outputs; the whole log: {log}",
                )
        return tree

    def _failure(self, name: str, step: Step, outcome: Outcome, events: _Events, log: Path) -> StepFailed:
        tail = _tail(log)
        shown = "".join(f"\n  | {line}" for line in tail)
        where = (
            f"the whole log: {log}\nrun it again: {self._replay} {name}"
            if name == step.name
            else f"the whole log: {log}"
        )
        if outcome.limit:
            limits = {
                "memory": f"{step.limits.memory >> 20} MiB of memory",
                "processes": f"{step.limits.processes} processes",
                "time": f"{step.limits.time} s",
                "disk": f"{step.limits.disk >> 20} MiB of disk",
            }
            what = limits.get(outcome.limit, outcome.limit)
            return LimitReached(
                f"step {name}: reached its limit of {what} after {outcome.seconds:.0f} s{shown}",
                hint=f"raise it under [steps.{name}.limits], or make the step smaller; {where}",
            )
        cause = events.error or f"exit status {outcome.status}"
        hint = f"{events.hint}\n{where}" if events.hint else where
        return StepFailed(f"step {name}: {cause}{shown}", hint=hint)

    def _build_wheel(self, sdist: Sdist) -> None:
        """Build a wheel that no index has, as an action with a claim; refuse one that is not the lock's."""
        chain = toolchain.load(toolchain_folder(sdist.build_toolchain))
        python = interpreter.find(chain.requires_python, cache=self._store.root / "host.json")
        program = load("wheel", data_folder("builder"))
        source = self._store.put_tree(sdist.source_tree().files)
        step = Step(
            name=f"wheel {sdist.source.package}",
            uses="wheel",
            program=program,
            inputs={"source": sdist.source.package},
            parameters=program.resolve({"environment": list(sdist.environment)}),
            reproducible=program.reproducible,
            limits=program.limits,
        )
        from intaglio.build.action import platform_class

        planned = PlannedStep(step, program.tree().digest, chain, python, platform_class())
        action = planned.action({"source": source.digest})
        tree = self.run(step.name.replace(" ", "-"), planned, action, {"source": source})
        sdist.accept(tree)
        if self._record is not None:
            dependencies = (
                Dependency(
                    "input:source", source.digest, "origin", f"pypi:{sdist.source.package}=={sdist.source.version}"
                ),
                Dependency("program:wheel", planned.program, "program"),
                Dependency(f"toolchain:{chain.name}", chain.tree().digest, "toolchain"),
            )
            about = Circumstances(
                f"{sdist.source.package}@{sdist.source.version}", "wheel", "wheel", "bit", "bubblewrap", dependencies
            )
            self._record(action, tree.descriptor(), about)


class _Events:
    """Turns a step's events into progress, and remembers the error that it reported."""

    def __init__(self, task: Task, log: _StepLog, note: Callable[[str], None]) -> None:
        self._task = task
        self._log = log
        self._note = note
        self._done = 0
        self._metrics: dict[str, float] = {}
        self.error: str | None = None
        self.hint: str | None = None

    def __call__(self, event: Object) -> None:
        self._log.event(event)
        kind = event.get("event")
        if kind == "progress":
            done, total = event.get("done"), event.get("total")
            if isinstance(total, int) and total > 0:
                self._task.total(total, str(event.get("unit", "steps")))
            if isinstance(done, int) and done > self._done:
                self._task.advance(done - self._done)
                self._done = done
        elif kind == "metric":
            name, value = event.get("name"), event.get("value")
            if isinstance(name, str) and isinstance(value, (int, float)):
                self._metrics[name] = value
                self._task.say(" · ".join(f"{key} {number:.4g}" for key, number in self._metrics.items()))
        elif kind == "resumed":
            self._note(f"resuming at step {event.get('done')} of {event.get('total')}, from its last checkpoint")
        elif kind == "message":
            self._task.say(str(event.get("text", ""))[:200])
        elif kind == "error":
            self.error = str(event.get("message", ""))[:4000] or None
            hint = event.get("hint")
            self.hint = str(hint)[:1000] if hint else None


@dataclass
class _StepLog:
    """The log and the event log of an action: ``logs/KEY.log`` and ``logs/KEY.jsonl`` in the store's folder."""

    path: Path
    _stream: TextIO | None = None

    def __init__(self, store: Store, key: ActionKey) -> None:
        self.path = log_path(store, key)

    def __enter__(self) -> _StepLog:
        self.path.parent.mkdir(exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._stream = open(self.path.with_suffix(".jsonl"), "w", encoding="utf-8")
        self.event({"event": "started"})
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def event(self, event: Object) -> None:
        """Append one event with the time at which it came."""
        if self._stream is not None:
            self._stream.write(json.dumps({"at": round(time.time(), 3), **event}, ensure_ascii=False) + "\n")
            self._stream.flush()

    def outcome(self, outcome: Outcome) -> None:
        """Append how the action ended."""
        self.event(
            {
                "event": "ended",
                "status": outcome.status,
                "limit": outcome.limit,
                "peak_memory": outcome.peak_memory,
                "seconds": round(outcome.seconds, 3),
            }
        )


def log_path(store: Store, key: ActionKey) -> Path:
    """Return where the log of the last run of ``key`` stands."""
    return store.root / "logs" / f"{key.hex}.log"


def _require_room(name: str, step: Step, staged: Staged, outcome: Outcome, log: Path) -> None:
    """Refuse to blame a step for a disk that is full: its own limit is what it has written itself.

    Raises:
        MachineError: the step was ended for want of disk, and has not reached its own limit.
    """
    written = [mount.source for mount in staged.spec.mounts if mount.writable]
    if outcome.limit == "disk" and disk_usage((*written, log), step.limits.disk) < step.limits.disk:
        raise MachineError(
            f"the disk is full: step {name} had no more room to write",
            hint="free some space, or put the store elsewhere with --store or INTAGLIO_HOME",
        )


def _tail(log: Path) -> list[str]:
    with contextlib.suppress(OSError), open(log, "rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - 16384))
        return stream.read().decode("utf-8", "replace").splitlines()[-TAIL:]
    return []
