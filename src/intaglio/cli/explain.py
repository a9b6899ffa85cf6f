"""``intaglio explain``: why a step is built again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from intaglio.cli.setting import Setting, options
from intaglio.dataclass import dataclass

if TYPE_CHECKING:
    from intaglio.cli.inspection import Inspection


@dataclass(frozen=True, slots=True)
class Reason:
    """One leaf that differs between two actions."""

    path: str
    old: object
    new: object

    def text(self) -> str:
        """Return the reason as one line."""
        return f"{self.path}: {_shown(self.old)} → {_shown(self.new)}"


@click.command(short_help="Say why a step is built again.")
@click.argument("words", nargs=-1, required=True, metavar="[RECIPE] STEP")
@options
def command(setting: Setting, words: tuple[str, ...]) -> None:
    """Say why STEP is built again: what differs between its action now and the one before.

    \b
    Examples:
      intaglio explain modelfiles/smollm2-helpdesk tune
      intaglio explain tune --json

    Keys are digests of documents; the first leaf that differs is the reason.
    """
    from intaglio.cli.inspection import inspect, step_argument

    recipe, step = step_argument(words)
    inspection = inspect(setting, recipe)
    state = inspection.state(step)
    if state.action is None:
        text = f"{step}: not known yet: it depends on the output of {state.waits_for}, which is not built"
        setting.emit({"step": step, "key": None, "status": "unknown", "differences": []}, text)
        return
    found = reasons(setting, inspection, step)
    status = "cached" if state.output is not None else "build"
    document = {
        "step": step,
        "key": str(state.action.key),
        "status": status,
        "differences": [{"path": reason.path, "old": reason.old, "new": reason.new} for reason in found],
    }
    head = f"{step}: {'built' if status == 'cached' else 'to be built'} under {state.action.key}"
    lines = [f"  {reason.text()}" for reason in found] or ["  never built here under another key"]
    setting.emit(document, "\n".join([head, *lines]))


def reasons(setting: Setting, inspection: Inspection, step: str) -> tuple[Reason, ...]:
    """Return what differs between the action of ``step`` now and the last other one that was built here."""
    from intaglio import strictjson
    from intaglio.build.action import differences
    from intaglio.digest import Digest
    from intaglio.errors import VerificationError

    action = inspection.state(step).action
    if action is None:
        return ()
    now = strictjson.parse(action.preimage, what="action")
    for key in setting.store.index.history(inspection.plan.recipe.model.name, step):
        if key == action.key:
            continue
        try:
            before = strictjson.parse(setting.store.read(Digest(key.value), what="action"), what="action")
        except VerificationError:
            continue
        return tuple(_named(inspection, step, item.path, item.old, item.new) for item in differences(before, now))
    return ()


def _named(inspection: Inspection, step: str, path: str, old: object, new: object) -> Reason:
    """Say which input, program or toolchain a digest stands for."""
    planned = inspection.state(step).planned
    if path == "program":
        path = f"program ({planned.step.uses})"
    elif path == "toolchain":
        path = f"toolchain ({planned.toolchain.name})"
    elif path.startswith("inputs."):
        slot = path.removeprefix("inputs.")
        source = planned.upstream.get(slot)
        path = f"{path} ({source})" if source and source != slot else path
    return Reason(path, old, new)


def _shown(value: object) -> str:
    return "absent" if value is None else value if isinstance(value, str) else json.dumps(value)
