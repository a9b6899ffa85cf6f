"""``intaglio update``: move pins."""

from __future__ import annotations

import click

from intaglio.cli.setting import Setting, options


@click.command(short_help="Move pins, and say from where to where.")
@click.argument("recipe")
@click.argument("names", nargs=-1, required=True)
@options
def command(setting: Setting, recipe: str, names: tuple[str, ...]) -> None:
    """Move the pins NAMES of RECIPE to what they are now, and say from where to where.

    \b
    Examples:
      intaglio update modelfiles/smollm2-helpdesk faq
      intaglio update modelfiles/smollm2-helpdesk finetune train-cpu

    NAMES are inputs, step programs and toolchains.
    """
    from intaglio.cli.pinning import pin

    pin(setting, recipe, names, offline=False)
