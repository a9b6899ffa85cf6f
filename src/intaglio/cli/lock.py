"""``intaglio lock``: pin what is not pinned."""

from __future__ import annotations

import click

from intaglio.cli.setting import Setting, options


@click.command(short_help="Pin what a recipe names and has not pinned yet.")
@click.argument("recipe", default=".")
@click.option("--offline", is_flag=True, help="Ask no network.")
@options
def command(setting: Setting, recipe: str, offline: bool) -> None:
    """Pin what RECIPE names and has not pinned yet; no pin is moved.

    \b
    Examples:
      intaglio lock modelfiles/tiny-from-scratch
      intaglio lock --offline

    Writes Modelfile.lock beside the recipe. `intaglio update NAME` moves a pin.
    """
    from intaglio.cli.pinning import pin

    pin(setting, recipe, (), offline=offline)
