"""``intaglio log``: what a step printed."""

from __future__ import annotations

import sys

import click

from intaglio.cli.setting import Setting, options


@click.command(short_help="Show the log of a step's last run.")
@click.argument("words", nargs=-1, required=True, metavar="[RECIPE] STEP")
@click.option("--events", is_flag=True, help="Show its events (JSON lines with times) instead.")
@options
def command(setting: Setting, words: tuple[str, ...], events: bool) -> None:
    """Show what STEP printed when it last ran here.

    \b
    Examples:
      intaglio log modelfiles/smollm2-helpdesk tune
      intaglio log tune --events
    """
    from intaglio.build.runner import log_path
    from intaglio.cli.inspection import step_argument
    from intaglio.errors import UsageError

    recipe, step = step_argument(words)
    parsed = setting.recipe(recipe)
    if step not in parsed.steps:
        from intaglio.recipe.shape import nearest

        raise UsageError(f"no step {step!r} in {parsed.path}; {nearest(step, parsed.steps)}")
    suffix = ".jsonl" if events else ".log"
    for key in setting.store.index.history(parsed.model.name, step):
        path = log_path(setting.store, key).with_suffix(suffix)
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            if setting.as_json:
                setting.emit({"step": step, "key": str(key), "path": str(path), "log": text}, "")
            else:
                sys.stdout.write(text)
            return
    raise UsageError(f"step {step!r} has not run here", hint=f"intaglio build {parsed.folder}")
