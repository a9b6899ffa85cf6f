"""The entry point: finds the command, runs it, and turns errors into messages and exit codes.

- Nothing but click is imported before a command is known: ``intaglio --help`` answers at once.
- Data on standard output, everything else on standard error; with ``--json`` an error, too, is one JSON object.
- Whatever goes wrong ends in one of the documented exit codes.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import sys
import traceback

import click

from intaglio import __version__
from intaglio.errors import Error, InternalError, MachineError, UsageError

_COMMANDS: dict[str, str] = {
    "init": "Make the builder, release and evaluator keys, and a policy that names them.",
    "lock": "Pin what a recipe names and has not pinned yet.",
    "update": "Move pins, and say from where to where.",
    "plan": "Say what a build would do, and why.",
    "build": "Build a recipe into a signed image.",
    "explain": "Say why a step is built again: the first thing that differs.",
    "log": "Show the log of a step's last run.",
    "shell": "Open a shell in the sandbox of a step.",
    "replay": "Run a step again, by itself, outside the cache.",
    "eval": "Compare what two images measured.",
    "verify": "Check every byte, signature and claim of an image against your policy.",
    "export": "Write an image for other tools.",
    "serve": "Verify an image, then serve it on loopback.",
    "run": "Serve an image in a container that verifies it first.",
    "push": "Send an image with its proofs to a registry.",
    "pull": "Bring an image from a registry; nothing is visible before it verifies.",
    "login": "Keep a registry's credentials.",
    "kit": "Carry images into networks without the internet.",
    "trust": "Use and publish the trusted source of models, data and tools.",
    "policy": "Read policies, and try them against their cases.",
    "key": "Make and show signing keys.",
    "store": "Look after the store.",
    "doctor": "Say what this machine has and lacks.",
}


class _Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"intaglio.cli.{cmd_name}").command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], _COMMANDS, 1)
            ctx.fail(f"no such command {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


_EXAMPLES = """\b
Examples:
  intaglio init
  intaglio build modelfiles/tiny-from-scratch
  intaglio verify examples/tiny-from-scratch:1.0.0
  intaglio serve examples/tiny-from-scratch:1.0.0 --port 8080

Builds model images from recipes whose every input is pinned by digest, signs them, and lets nothing be served that
does not verify.

INTAGLIO_HOME moves configuration, keys and store. Exit codes: 0 done, verified; all others: docs/exit-codes.md.
"""


@click.group(cls=_Commands, help=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="intaglio")
@click.option("--store", type=click.Path(), help="Use this store instead of the one in INTAGLIO_HOME.")
@click.pass_context
def cli(ctx: click.Context, store: str | None) -> None:
    """Carry the options that stand before the command."""
    ctx.obj = {"store": store}


def main() -> None:
    """Run the command line and end the process with its exit code."""
    arguments, stdout = sys.argv[1:], sys.stdout
    try:
        status = cli.main(args=arguments, prog_name="intaglio", standalone_mode=False)
        sys.stdout.flush()  # an answer that did not arrive is no success
    except click.exceptions.Abort:
        _end(130, "interrupted")
    except click.UsageError as error:
        usage = f"usage: {error.ctx.command_path} --help" if error.ctx else None
        _fail(UsageError(error.format_message(), hint=usage), arguments)
    except click.ClickException as error:
        _fail(UsageError(error.format_message()), arguments)
    except KeyboardInterrupt:
        _end(130, "interrupted; what was finished is kept, and the next build goes on from there")
    except Error as error:
        _fail(error, arguments)
    except BrokenPipeError:
        _end(141, None)
    except SystemExit:
        if sys.stdout is stdout:
            raise  # the end of a completion
        _end(141, None)  # click wraps the streams, and exits, when their reader has gone
    except OSError as error:
        _fail(_machine(error), arguments)
    except Exception as error:  # noqa: BLE001 - the last resort: a bug gets its own code and a trace
        trace = "".join(traceback.format_exception(error))
        _fail(
            InternalError(f"a bug of ours: {error!r}\n{trace}", hint="please report it with the lines above"), arguments
        )
    _end(status if isinstance(status, int) else 0, None)


def _machine(error: OSError) -> MachineError:
    """Return what an operating system's error means to a person."""
    where = f": {error.filename}" if error.filename else ""
    hints = {
        errno.ENOSPC: "free some space, or put the store elsewhere with --store or INTAGLIO_HOME",
        errno.EDQUOT: "the disk quota is used up; put the store elsewhere with --store or INTAGLIO_HOME",
        errno.EROFS: "the file system is read-only; put the store elsewhere with --store or INTAGLIO_HOME",
        errno.EACCES: "check who owns it, or put the store elsewhere with --store or INTAGLIO_HOME",
    }
    text = {errno.ENOSPC: "the disk is full"}.get(error.errno or 0, (error.strerror or str(error)).lower())
    return MachineError(f"{text}{where}", hint=hints.get(error.errno or 0))


def _fail(error: Error, arguments: list[str]) -> None:
    if "--json" in arguments:
        document = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        with contextlib.suppress(OSError):
            said = {**error.answer, "error": {**document, "exit_code": int(error.exit_code)}}
            sys.stdout.write(json.dumps(said) + "\n")
    _end(int(error.exit_code), f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))


def _end(status: int, text: str | None) -> None:
    """End at once: what runs beside the main thread dies with the process, sandboxes included."""
    with contextlib.suppress(OSError, ValueError):
        if text:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)
