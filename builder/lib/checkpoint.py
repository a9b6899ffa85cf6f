"""How far a training has come, kept so that a killed one goes on and ends with the same bytes.

* One folder a checkpoint, ``step-N``, which appears whole: written beside, flushed to the disk, then renamed.
* In it ``rank-R.safetensors``, what each process must have again, and ``digests.json`` with the sha256 of each. One
  whose files are not all there with those digests is passed over: nothing is read that is not as it was written.
* No pickles.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FORMAT = 1
DIGESTS = "digests.json"


@dataclass(frozen=True, slots=True)
class Keeper:
    """Writes and finds checkpoints of one of ``world`` processes."""

    folder: Path
    every: int
    """Steps between two of them."""
    rank: int
    world: int
    barrier: Callable[[], None]
    """Returns when all processes have called it."""

    def due(self, step: int, total: int) -> bool:
        """Whether one is to be written after ``step`` steps; never after the last."""
        return 0 < step < total and step % self.every == 0

    def save(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write what this process needs to go on from ``step``; all processes call this."""
        from safetensors.torch import save_file

        draft = self.folder / f".step-{step}"
        if self.rank == 0:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
        self.barrier()
        path = draft / _name(self.rank)
        save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)
        _flush(path)
        self.barrier()
        if self.rank == 0:
            files = {path.name: _digest(path) for path in sorted(draft.iterdir())}
            document = {"format": FORMAT, "step": step, "world": self.world, "files": files}
            (draft / DIGESTS).write_text(json.dumps(document, sort_keys=True), encoding="utf-8")
            _flush(draft / DIGESTS)
            place = self.folder / f"step-{step}"
            shutil.rmtree(place, ignore_errors=True)  # one that was damaged, and passed over
            draft.rename(place)
            _flush(self.folder)
            self._forget(step)

    def _forget(self, newest: int) -> None:
        for path in self.folder.iterdir():
            if path.name != f"step-{newest}":
                shutil.rmtree(path, ignore_errors=True)

    def find(self) -> tuple[int, Path] | None:
        """The last checkpoint that is whole: its step and its folder."""
        found = [(int(path.name[5:]), path) for path in self.folder.glob("step-*") if path.name[5:].isdigit()]
        return next(((step, path) for step, path in sorted(found, reverse=True) if self._whole(step, path)), None)

    def _whole(self, step: int, path: Path) -> bool:
        try:
            document = json.loads((path / DIGESTS).read_text(encoding="utf-8"))
            files = {file.name: _digest(file) for file in path.iterdir() if file.name != DIGESTS}
        except (OSError, ValueError):
            return False
        names = {_name(rank) for rank in range(self.world)}
        expected = {"format": FORMAT, "step": step, "world": self.world, "files": files}
        return bool(document == expected and set(files) == names)

    def load(self, path: Path, *, shared: bool) -> dict[str, torch.Tensor]:
        """What this process needs; with ``shared`` that of the first process and its own."""
        from safetensors.torch import load_file

        tensors = load_file(path / _name(0)) if shared else {}
        return {**tensors, **load_file(path / _name(self.rank))}


def _name(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
