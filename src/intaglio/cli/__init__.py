"""The command line: one module a command, each imported when it is called."""

from __future__ import annotations

from intaglio.cli.main import main

__all__ = ["main"]
