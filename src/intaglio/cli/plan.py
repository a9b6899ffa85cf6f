"""``intaglio plan``: what a build would do, and why."""

from __future__ import annotations

import click

from intaglio.cli.setting import Setting, options


@click.command(short_help="Say what a build would do, and why.")
@click.argument("recipe", default=".")
@options
def command(setting: Setting, recipe: str) -> None:
    """Say what building RECIPE would do, and why. Nothing is run or fetched.

    \b
    Examples:
      intaglio plan modelfiles/smollm2-helpdesk
      intaglio plan --json

    What a build would refuse because the trusted source does not list it, or has yanked it, is refused here, too.
    """
    from intaglio.cli.explain import reasons
    from intaglio.cli.inspection import inspect

    inspection = inspect(setting, recipe)
    inspection.plan.require_listed(setting.trusted)
    needed = inspection.plan.needed()
    entries, lines = [], []
    for name, state in inspection.states.items():
        if name not in needed:
            status, why = "not needed", "the image does not use it"
        elif state.output is not None:
            status, why = "cached", str(state.output)
        elif state.action is None:
            status, why = "unknown", f"depends on the output of {state.waits_for}"
        else:
            found = reasons(setting, inspection, name)
            status, why = "build", found[0].text() if found else "never built here"
        key = str(state.action.key) if state.action else None
        entries.append({"name": name, "uses": state.planned.step.uses, "status": status, "why": why, "key": key})
        lines.append(f"{name:<12} {status:<10} {why}")
    document = {"recipe": str(inspection.plan.recipe.path), "steps": entries}
    setting.emit(document, "\n".join(lines))
