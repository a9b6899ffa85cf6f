"""Write ``docs/commands.md`` from the commands' own help; ``--check`` says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from intaglio.cli.main import cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
HEAD = """# Commands

Data goes to standard output, everything else to standard error. `--json` answers with one JSON object, errors
included; the [exit codes](exit-codes.md) are an interface. `_INTAGLIO_COMPLETE=bash_source intaglio` (or `zsh_source`,
`fish_source`) prints the completion script of your shell.
"""


def page() -> str:
    """Return the text of the page."""
    parts = [HEAD]
    for words, command in _walk(("intaglio",), cli):
        if words != ("intaglio",):
            context = click.Context(command, info_name=" ".join(words), max_content_width=100, terminal_width=100)
            parts.append(f"## {' '.join(words)}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def _walk(words: tuple[str, ...], command: click.Command) -> list[tuple[tuple[str, ...], click.Command]]:
    found = [(words, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                found += _walk((*words, name), inner)
    return found


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text else "docs/commands.md is out of date")
    PAGE.write_text(text, encoding="utf-8")
