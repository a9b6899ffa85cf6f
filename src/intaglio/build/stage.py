"""Staging: an action laid out in a scratch folder, as the sandbox will see it.

- Inputs are hard links to the store's blobs, mounted read-only; the program is written from its verified bytes.
- The request holds parameters and paths, and no name, host or time: a step cannot depend on what the key leaves out.
- ``run``, ``replay`` and ``shell`` stage an action the same way, so that what is looked into is what ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from intaglio import strictjson
from intaglio.build.interpreter import Interpreter
from intaglio.build.sandbox import Limits, Mount, SandboxSpec
from intaglio.content.layout import Store
from intaglio.content.tree import Tree
from intaglio.dataclass import dataclass
from intaglio.recipe import limits as recipe_limits
from intaglio.recipe.program import Program
from intaglio.strictjson import Object

PROTOCOL = 1
_PATH = "/env/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Staged:
    """An action ready to run."""

    spec: SandboxSpec
    output: Path
    """What the step sees as ``/out``."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a program runs in: the environment folder of its toolchain, and the interpreter."""

    environment: Path
    interpreter: Interpreter

    def mounts(self) -> tuple[Mount, ...]:
        """Return what is mounted for it."""
        return (*self.interpreter.mounts, Mount(self.environment, "/env"))

    def variables(self, determinism: Mapping[str, str]) -> dict[str, str]:
        """Return the whole environment of the program."""
        return {
            **determinism,
            **self.interpreter.environment,
            "PATH": _PATH,
            "HOME": "/work",
            "TMPDIR": "/tmp",  # noqa: S108 - inside the sandbox, where it is private
            "USER": "build",
            "LOGNAME": "build",
            "HF_HOME": "/work/hf",
        }


def stage(
    scratch: Path,
    store: Store,
    room: Room,
    program: Program,
    *,
    parameters: Object,
    inputs: Mapping[str, Tree],
    determinism: Mapping[str, str],
    limits: recipe_limits.Limits,
    checkpoint: Path | None = None,
) -> Staged:
    """Lay out an action below ``scratch``, which must lie on the store's file system.

    ``checkpoint`` is the folder in which it may keep how far it has come; without one it keeps nothing.
    """
    step = scratch / "step"
    for path, data in program.files.items():
        place = step / "program" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    request: Object = {
        "protocol": PROTOCOL,
        "parameters": parameters,
        "inputs": {name: f"/in/{name}" for name in inputs},
        "out": "/out",
        "work": "/work",
        **({"checkpoint": "/checkpoint"} if checkpoint else {}),
    }
    (step / "request.json").write_bytes(strictjson.canonical(request))
    mounts = [Mount(step, "/step")]
    for name, tree in inputs.items():
        store.link_tree(tree, scratch / "in" / name)
        mounts.append(Mount(scratch / "in" / name, f"/in/{name}"))
    for name in ("out", "work"):
        (scratch / name).mkdir()
        mounts.append(Mount(scratch / name, f"/{name}", writable=True))
    if checkpoint is not None:
        mounts.append(Mount(checkpoint, "/checkpoint", writable=True))
    return Staged(
        SandboxSpec(
            argv=("/env/bin/python", "-B", "-s", "-P", "/step/program/step.py"),
            mounts=(*room.mounts(), *mounts),
            environment=room.variables(determinism),
            limits=Limits(limits.memory, limits.processes, float(limits.time), limits.disk),
            interfaces=program.interfaces,
        ),
        scratch / "out",
    )
