"""``intaglio shell``: the sandbox of a step, from the inside."""

from __future__ import annotations

import click

from intaglio.cli.setting import Setting, options


@click.command(short_help="Open a shell in the sandbox of a step.")
@click.argument("words", nargs=-1, required=True, metavar="[RECIPE] STEP")
@options
def command(setting: Setting, words: tuple[str, ...]) -> int:
    """Open a shell in the sandbox that STEP would run in, with its inputs, program and environment.

    \b
    Examples:
      intaglio shell modelfiles/smollm2-helpdesk tune

    Inside, `/env/bin/python /step/program/step.py` runs the step. What is written there is thrown away.
    """
    from intaglio.build import sandbox
    from intaglio.build.runner import Runner
    from intaglio.cli.inspection import inputs_of, inspect, step_argument

    recipe, step = step_argument(words)
    inspection = inspect(setting, recipe)
    inputs = inputs_of(setting, inspection, step)
    planned = inspection.state(step).planned
    runner = Runner(setting.store, setting.progress, offline=False)
    room = runner.room(planned)
    with setting.store.scratch(f"shell-{step}") as scratch:
        staged = runner.stage(scratch, planned, inputs, room)
        setting.progress.note("run the step with: /env/bin/python -B -s -P /step/program/step.py")
        return sandbox.shell(staged.spec)
