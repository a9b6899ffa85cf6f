"""What ``lock`` and ``update`` share: fetch what needs a pin, write the lock, say what changed."""

from __future__ import annotations

from intaglio.build.plan import toolchains
from intaglio.build.stamps import Stamps
from intaglio.cli.setting import Setting
from intaglio.dataclass import replace
from intaglio.recipe import lock as locks
from intaglio.recipe.modelfile import Recipe
from intaglio.recipe.sources.hf import current_revision
from intaglio.recipe.sources.interface import Pin, Source, resolve
from intaglio.recipe.sources.trusted import TrustedInput


def pin(setting: Setting, path: str, names: tuple[str, ...], *, offline: bool) -> None:
    """Pin what the recipe at ``path`` lacks, and move the pins ``names``."""
    recipe = setting.recipe(path, None if offline else current_revision)
    file = recipe.folder / locks.FILE
    old = locks.read(file) or locks.Lock()
    wanted = locks.Wanted.of(recipe, toolchains(recipe))
    locks.check_names(wanted, names)
    pins: dict[str, Pin] = {}
    for name in dict.fromkeys((*locks.to_fetch(wanted, old), *(name for name in names if name in recipe.inputs))):
        item = recipe.inputs[name]
        stamps = Stamps(setting.store.index)
        source = resolve(item.uri, recipe.folder, name=name, digest=item.digest, stats=stamps, trusted=setting.trusted)
        pins[name] = Pin.of(source.fetch(setting.store, expected=None, progress=setting.progress, offline=offline))
    new = locks.update(wanted, old, names, pins) if names else locks.complete(wanted, old, pins)
    if any(isinstance(_source(recipe, name), TrustedInput) for name in pins):
        new = replace(new, trust=setting.trusted().versions())
    moves = locks.moves(old, new)
    if moves or not file.exists():
        locks.write(file, new)
    changes = [{"kind": move.kind, "name": move.name, "old": _text(move.old), "new": _text(move.new)} for move in moves]
    lines = [
        f"{move.kind} {move.name}: {_text(move.old) or 'not pinned'} → {_text(move.new) or 'gone'}" for move in moves
    ]
    for move in locks.outdated(wanted, new):
        lines.append(
            f"{move.kind} {move.name}: stays at {move.old}; here is {move.new} (intaglio update {path} {move.name})"
        )
    setting.emit({"lock": str(file), "changes": changes}, "\n".join(lines) or f"{file}: nothing to change")


def _source(recipe: Recipe, name: str) -> Source:
    return resolve(recipe.inputs[name].uri, recipe.folder, name=name, digest=recipe.inputs[name].digest)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
