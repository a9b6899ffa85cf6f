"""What the README tells to type is there: targets of make, commands, their options, its recipe, its links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from tests import readme

from intaglio.cli.main import cli
from intaglio.recipe import modelfile

ROOT = Path(__file__).resolve().parents[1]
README = readme.TEXT
TYPED = [
    line.partition("  #")[0].replace("\\\n", " ").removesuffix("&").strip()
    for line in readme.commands(README)
    if "…" not in line
]


def of(program: str) -> list[str]:
    return [line for line in TYPED if line.split()[0] == program]


@pytest.mark.parametrize("line", of("make"))
def test_targets_of_make(line: str) -> None:
    target = line.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("line", of("intaglio"))
def test_commands_take_these_arguments(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])[1:]
    context = click.Context(cli, info_name="intaglio")
    command: click.Command | None = cli
    while isinstance(command, click.Group) and words:
        command = command.get_command(context, words.pop(0))
    assert command is not None
    assert not isinstance(command, click.Group)
    command.make_context("intaglio", words)


def test_the_readme_shows_what_the_demo_types() -> None:
    demo = (ROOT / "scripts" / "demo.py").read_text(encoding="utf-8")
    shown = README.partition("## A recipe of your own")[0]
    commands = [line.split()[2] for line in shown.splitlines() if line.startswith("$ intaglio ")]
    assert commands == ["init", *["trust"] * 6, "build", "serve", "verify", "serve"]
    assert all(f'"{command}"' in demo for command in commands)


def test_its_recipe_is_one(tmp_path: Path) -> None:
    text = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)[0]
    (tmp_path / "Modelfile.toml").write_text(text, encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "faq.jsonl").write_text("{}\n", encoding="utf-8")
    assert list(modelfile.read(tmp_path).steps) == ["import", "tune", "merge", "gguf"]


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links(target: str) -> None:
    assert (ROOT / target).exists()
