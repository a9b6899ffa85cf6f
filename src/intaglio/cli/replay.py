"""``intaglio replay``: a step again, by itself."""

from __future__ import annotations

from pathlib import Path

import click

from intaglio.cli.setting import Setting, options


@click.command(short_help="Run a step again, by itself, outside the cache.")
@click.argument("words", nargs=-1, required=True, metavar="[RECIPE] STEP")
@click.option("--output", type=click.Path(path_type=Path), help="Keep what it wrote in this new folder.")
@options
def command(setting: Setting, words: tuple[str, ...], output: Path | None) -> None:
    """Run STEP again in its sandbox, by itself, outside the cache, and say what came out.

    \b
    Examples:
      intaglio replay modelfiles/smollm2-helpdesk tune
      intaglio replay tune --output /tmp/tuned

    No claim is made. A step that failed fails again, in the same sandbox with the same inputs.
    """
    from intaglio.build.runner import Runner
    from intaglio.cli.inspection import inputs_of, inspect, step_argument
    from intaglio.errors import UsageError

    recipe, step = step_argument(words)
    if output is not None and output.exists():
        raise UsageError(f"{output}: expected a folder that is not there yet")
    inspection = inspect(setting, recipe)
    inputs = inputs_of(setting, inspection, step)
    state = inspection.state(step)
    if state.action is None:
        raise UsageError(f"step {step!r} cannot run before {state.waits_for!r} is built")
    runner = Runner(setting.store, setting.progress, offline=False)
    tree = runner.run(step, state.planned, state.action, inputs)
    if output is not None:
        setting.store.copy_tree(tree, output)
    same = None if state.output is None else state.output == tree.digest
    words_ = {None: "no trusted claim to compare with", True: "the same as the claim's", False: "not the claim's"}
    document = {"step": step, "key": str(state.action.key), "output": str(tree.digest), "same": same}
    setting.emit(document, f"{step}: {tree.digest} ({words_[same]})")
