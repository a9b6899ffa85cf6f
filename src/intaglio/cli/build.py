"""``intaglio build``: from recipe to signed image."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from intaglio.cli.setting import Keys, Setting, options

if TYPE_CHECKING:
    from intaglio.build.engine import Result


@click.command(short_help="Build a recipe into a signed image.")
@click.argument("recipe", default=".")
@click.option("--tag", help="Name of the image; default: the model's name and version.")
@click.option("--offline", is_flag=True, help="Ask no network; what is not in the store is an error.")
@click.option("--locked", is_flag=True, help="Refuse step programs and toolchains that are not those in the lock.")
@options
def command(setting: Setting, recipe: str, tag: str | None, offline: bool, locked: bool) -> None:
    """Build RECIPE into a signed image.

    \b
    Examples:
      intaglio build modelfiles/tiny-from-scratch
      intaglio build modelfiles/smollm2-helpdesk --tag team/helpdesk:rc1
      intaglio build --locked --offline --json

    Every input is pinned by Modelfile.lock, or the build is refused. What a trusted claim already answers is not run
    again. The image is signed with the release key, each step's claim with the builder key.
    """
    from intaglio.build.engine import Engine
    from intaglio.build.plan import make
    from intaglio.content.layout import check_name
    from intaglio.recipe import lock

    started = time.monotonic()
    if tag is not None:
        check_name(tag)
    parsed = setting.recipe(recipe)
    keys = Keys(setting)
    setting.store.sweep()
    plan = make(parsed, lock.read(parsed.folder / lock.FILE), setting.store, strict=locked, note=setting.progress.note)
    name = f"{parsed.model.name}:{parsed.model.version}" if tag is None else tag
    engine = Engine(
        plan,
        setting.store,
        keys,
        setting.progress,
        offline=offline,
        replay=setting.command("replay"),
        trusted=setting.trusted,
        anchor=lambda: _anchor(setting),
    )
    result = engine.build(name)
    setting.emit(_document(result), _summary(result, time.monotonic() - started))


def _anchor(setting: Setting) -> dict[str, bytes]:
    from intaglio.build.runtime import anchor_of

    return anchor_of(setting.home)


def _document(result: Result) -> dict[str, object]:
    steps = [
        {
            "name": step.name,
            "key": str(step.key),
            "status": step.status,
            "output": str(step.output),
            "seconds": step.seconds,
        }
        for step in result.steps
    ]
    document = {"image": str(result.image.digest), "tag": result.tag, "steps": steps}
    return document | ({"runtime": result.runtime.to_json()} if result.runtime else {})


def _summary(result: Result, seconds: float) -> str:
    built = sum(step.status == "built" for step in result.steps)
    cached = len(result.steps) - built
    counts = [f"{cached} cached"] if cached else []
    counts += [f"{built} built"] if built else []
    return f"{len(result.steps)} steps: {', '.join(counts)} in {seconds:.1f} s · {result.tag} {result.image.digest}"
