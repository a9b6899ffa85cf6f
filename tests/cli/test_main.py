"""The command line as such: help, errors, exit codes, streams, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from tests.workshop import PROGRAM

from intaglio.cli.main import _COMMANDS, cli
from intaglio.errors import ExitCode


def commands(group: click.Group, *above: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command and group with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        yield (*above, name), found
        if isinstance(found, click.Group):
            yield from commands(found, *above, name)


COMMANDS = dict(commands(cli))


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAM), *words], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_begins_with_examples_and_names_every_command() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Usage: intaglio ")
    assert lines[2].strip() == "Examples:"
    for name in _COMMANDS:
        assert f"  {name} " in done.stdout
    assert run("-h").stdout == done.stdout


@pytest.mark.parametrize("command", sorted(COMMANDS), ids=" ".join)
def test_help_of_a_command_says_what_it_does_and_then_shows_examples(command: tuple[str, ...]) -> None:
    done = run(*command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    paragraphs = [part.splitlines() for part in done.stdout.split("\n\n")]
    assert paragraphs[0][0].startswith(f"Usage: intaglio {' '.join(command)}")
    assert paragraphs[2][0].strip() == "Examples:"
    assert f"intaglio {' '.join(command)}" in "\n".join(paragraphs[2][1:])
    if not isinstance(COMMANDS[command], click.Group):
        assert "--json" in done.stdout


def test_every_command_is_listed_with_what_it_does() -> None:
    assert list(cli.list_commands(None)) == list(_COMMANDS)  # type: ignore[arg-type]
    for name, summary in _COMMANDS.items():
        assert summary.endswith("."), name
        assert cli.get_command(None, name) is not None, name  # type: ignore[arg-type]
    assert cli.get_command(None, "nonsense") is None  # type: ignore[arg-type]


def modules_after(code: str) -> set[str]:
    end = "import sys, json, atexit\nsys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + "\n" + end], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_imports_nothing_but_click() -> None:
    code = "import sys; sys.argv = ['intaglio', '--help']\nfrom intaglio.cli.main import cli\n"
    code += "cli.main(args=['--help'], prog_name='intaglio', standalone_mode=False)"
    found = modules_after(code) - modules_after("import click, json, traceback")
    roots = {name.partition(".")[0] for name in found}
    third = {root for root in roots if root not in sys.stdlib_module_names} - {"click", "intaglio"}
    assert third == set()
    ours = {name for name in found if name.startswith("intaglio")}
    assert ours == {"intaglio", "intaglio.cli", "intaglio.cli.main", "intaglio.errors"}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["buidl"], "no such command 'buidl'; did you mean 'build'?"),
        (["frobnicate"], "no such command 'frobnicate'"),
        (["build", "--nonsense"], "No such option"),
        (["verify"], "Missing argument"),
        (["serve", "x", "--port", "70000"], "70000 is not in the range"),
        (["export", "x"], "expected DIR, or one or both of --files DIR and --passport DIR"),
        (["key", "show", "../x"], "'../x' is not a key's name"),
        (["explain", "a", "b", "c"], "expected [RECIPE] STEP"),
        (["store", "frobnicate"], "No such command"),
    ],
)
def test_a_wrong_command_line_is_2_with_a_message(words: list[str], says: str) -> None:
    done = run(*words)
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert says.lower() in done.stderr.lower()


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (["build", "nowhere", "--json"], ExitCode.RECIPE, "RecipeError"),
        (["verify", "a:1", "--json"], ExitCode.NOT_VERIFIABLE, "NotVerifiable"),
        (["key", "show", "nobody", "--json"], ExitCode.MACHINE, "MachineError"),
        (["build", "--json", "--nonsense"], ExitCode.USAGE, "UsageError"),
        (["export", "a:1", "x", "--json"], ExitCode.NOT_VERIFIABLE, "NotVerifiable"),
    ],
)
def test_an_error_under_json_is_one_object(words: list[str], code: ExitCode, kind: str, tmp_path: Path) -> None:
    done = subprocess.run([str(PROGRAM), *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code
    (line,) = done.stdout.splitlines()
    error = json.loads(line)["error"]
    assert set(error) == {"type", "message", "hint", "exit_code"}
    assert (error["type"], error["exit_code"]) == (kind, code)
    assert f"error: {error['message']}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bug_of_ours_is_70_with_its_trace() -> None:
    code = (
        "import sys\nfrom intaglio.cli import setting, main as _\nfrom intaglio.cli.main import main\n"
        "def broken(self, *rest): raise KeyError('boom')\n"
        "setting.Setting.emit = broken\nsys.argv = ['intaglio', 'store', 'du', '--json']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.BUG
    assert "a bug of ours: KeyError('boom')" in done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "InternalError"


def test_a_store_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    done = run("store", "du", "--store", str(tmp_path))
    assert done.returncode == ExitCode.MACHINE
    assert "expected a store or an empty folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_store_that_cannot_be_written_is_50(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    done = run("store", "du", "--store", str(tmp_path / "store"))
    assert done.returncode == ExitCode.MACHINE
    assert "permission denied" in done.stderr


def test_a_read_only_file_system_is_50(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o ro tmpfs "$0" && exec "$@"'
    own = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    done = subprocess.run(
        [*own, "sh", "-c", script, str(tmp_path), str(PROGRAM), "store", "du", "--store", str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.MACHINE
    assert "read-only" in done.stderr
    assert "hint: " in done.stderr


# --- streams ---------------------------------------------------------------------------------------------------------


def test_the_store_may_be_named_before_or_behind_the_command(tmp_path: Path) -> None:
    before = run("--store", str(tmp_path / "a"), "store", "list", "--json")
    behind = run("store", "list", "--json", "--store", str(tmp_path / "b"))
    assert before.stdout == behind.stdout == '{"images": []}\n'
    assert (tmp_path / "a" / "oci-layout").exists()
    assert (tmp_path / "b" / "oci-layout").exists()


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    """`intaglio … | true`: the reader has gone before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        done = subprocess.run([str(PROGRAM), "--help"], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_answer_that_could_not_be_written_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        words = [str(PROGRAM), "store", "list", "--json"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == ExitCode.MACHINE
    assert "the disk is full" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = run(_INTAGLIO_COMPLETE=f"{shell}_source")
    assert done.returncode == 0, done.stderr
    assert "_INTAGLIO_COMPLETE" in done.stdout
    assert f"{shell}_complete" in done.stdout


def test_completion_completes_commands_and_options() -> None:
    words = {"_INTAGLIO_COMPLETE": "bash_complete"}
    done = run(**words, COMP_WORDS="intaglio ver", COMP_CWORD="1")
    assert done.stdout == "plain,verify\n"
    done = run(**words, COMP_WORDS="intaglio build --lo", COMP_CWORD="2")
    assert done.stdout == "plain,--locked\n"
    done = run(**words, COMP_WORDS="intaglio store ", COMP_CWORD="2")
    assert set(done.stdout.split()) == {"plain,verify", "plain,du", "plain,list"}


def test_the_version() -> None:
    from intaglio import __version__

    assert run("--version").stdout == f"intaglio, version {__version__}\n"
