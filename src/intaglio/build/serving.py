"""Which server serves an image, with its program and environment laid out for the sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from intaglio.build import interpreter, toolchain
from intaglio.build.action import determinism
from intaglio.build.plan import toolchain_folder
from intaglio.build.runner import Runner
from intaglio.build.sandbox import Limits
from intaglio.build.serve import Service
from intaglio.build.stage import Room
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import UsageError
from intaglio.progress import Progress
from intaglio.recipe.data import data_folder
from intaglio.recipe.program import ServerProgram, load_server, names
from intaglio.verify import VerifiedFile


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A verified file, with where its bytes stand."""

    path: str
    digest: Digest
    size: int
    source: Path


@dataclass(frozen=True, slots=True)
class Prepared:
    """A server ready to be started over verified files."""

    service: Service
    store: Store

    def placed(self, file: VerifiedFile) -> PlacedFile:
        """Return ``file`` with the place of its blob."""
        return PlacedFile(file.path, file.digest, file.size, self.store.path(file.digest))


def prepare(
    store: Store,
    scratch: Path,
    files: Sequence[VerifiedFile],
    runtime: str | None,
    *,
    context: int | None,
    offline: bool,
    progress: Progress,
) -> Prepared:
    """Return the server ``runtime``, or the first that serves the format of ``files``, laid out in ``scratch``.

    Raises:
        UsageError: no server here serves that format.
        RecipeError: there is no server of that name.
    """
    program = _choose(files, runtime)
    chain = toolchain.load(toolchain_folder(program.toolchain))
    python = interpreter.find(chain.requires_python, cache=store.root / "host.json")
    room = Room(Runner(store, progress, offline=offline).environment(chain, python), python)
    folder = scratch / "program"
    for path, data in program.files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    # A server answers for as long as it is wanted: only a step has an end by the clock.
    limits = Limits(program.limits.memory, program.limits.processes, float("inf"), program.limits.disk)
    service = Service(
        program=folder,
        python="/env/bin/python",
        mounts=room.mounts(),
        environment=room.variables(determinism(program.limits.threads)),
        limits=limits,
        context=context,
    )
    return Prepared(service, store)


def _choose(files: Sequence[VerifiedFile], runtime: str | None) -> ServerProgram:
    builder = data_folder("builder")
    if runtime is not None:
        return load_server(runtime, builder)
    formats = {file.path.rpartition(".")[2] for file in files}
    for name in names(builder / "servers"):
        program = load_server(name, builder)
        if formats & set(program.formats):
            return program
    raise UsageError(
        f"no server here serves {', '.join(sorted(formats))}",
        hint='let the recipe end with a step that converts to GGUF (uses = "convert")',
    )
