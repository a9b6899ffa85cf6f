"""Which server serves an image, with its program and environment laid out for the sandbox."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from intaglio.build import interpreter, servers, toolchain
from intaglio.build.action import determinism, processor_flags
from intaglio.build.plan import toolchain_folder
from intaglio.build.runner import Runner
from intaglio.build.sandbox import Limits
from intaglio.build.serve import Service
from intaglio.build.stage import Room
from intaglio.content.layout import Store
from intaglio.content.modelpack import ModelImage
from intaglio.content.runtime_image import open_image
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.guard.memory import HeldFile, hold
from intaglio.progress import Progress
from intaglio.recipe.modelfile import RUNTIMES
from intaglio.recipe.program import ServerProgram
from intaglio.verify import VerifiedFile

_FIXED_SPEED = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")
"""What holds a step to one level of instructions. An answer is no build output: a server uses the processor it has."""


class NamedFile(Protocol):
    """A file of an image."""

    @property
    def path(self) -> str:
        """Name within the image."""

    @property
    def digest(self) -> Digest:
        """Digest of its bytes."""


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A file of an image, with where its bytes stand."""

    path: str
    digest: Digest
    size: int
    source: Path


@dataclass(frozen=True, slots=True)
class Prepared:
    """A server ready to be started over verified files."""

    program: ServerProgram
    service: Service


@contextlib.contextmanager
def holding(store: Store, image: Digest, progress: Progress) -> Iterator[tuple[HeldFile, ...]]:
    """Hold the files of a model image, so that one reading of their bytes does for the verdict and for the server.

    Of a runtime image nothing is held: whoever verifies it says what it is.

    Raises:
        CorruptContent: the image, or a file, is not what its digest says.
        MachineError: there is not enough memory for the copies.
    """
    what = f"image {image.short}"
    model = open_image(store.read(image, what=what), what)
    files = model.files if isinstance(model, ModelImage) else ()
    placed = [PlacedFile(file.path, file.digest, file.size, store.path(file.digest)) for file in files]
    with hold(placed, progress=progress) as held:
        yield held


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
    """Return the server ``runtime``, or the first that serves the form of ``files``, laid out in ``scratch``.

    Raises:
        UsageError: it does not serve that form, or no server here does.
        MachineError: it does, but not with this processor.
        RecipeError: there is no server of that name.
        CorruptContent: the model's configuration is not a JSON object.
    """
    program = servers.choose(form(store, files), runtime, processor=processor_flags())
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
    settings = determinism(threads=len(os.sched_getaffinity(0)))
    service = Service(
        program=folder,
        python="/env/bin/python",
        mounts=room.mounts(),
        environment=room.variables({name: settings[name] for name in settings if name not in _FIXED_SPEED}),
        limits=limits,
        context=context,
        startup=float(program.limits.time),
        interfaces=program.interfaces,
    )
    return Prepared(program, service)


def form(store: Store, files: Collection[NamedFile]) -> servers.Form:
    """Return the form of an image with ``files``, whose configuration stands in ``store``.

    Raises:
        CorruptContent: the model's configuration is not a JSON object, or not the image's.
    """
    config = next((file for file in files if file.path == servers.CONFIG), None)
    data = None if config is None else store.read(config.digest, what=config.path)
    return servers.form_of((file.path for file in files), data)


def recorded(store: Store, image: Digest) -> str | None:
    """Return the runtime that a runnable image was made with for ``image`` here; ``None``: none, or several."""
    tags = store.tags()
    names = [name for name, described in tags.items() if described.digest == image]
    found = {runtime for runtime in RUNTIMES for name in names if f"{name}-{runtime}" in tags}
    return found.pop() if len(found) == 1 else None
