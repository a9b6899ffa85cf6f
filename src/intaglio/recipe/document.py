"""A TOML file as people write it: read strictly, and every mistake said with its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from intaglio.dataclass import dataclass
from intaglio.errors import RecipeError
from intaglio.recipe.positions import dotted, index, line_of
from intaglio.recipe.shape import Mistake
from intaglio.strictjson import Object

MAX_BYTES = 1 << 20
"""Largest recipe or description that is read."""


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a TOML file and what it says."""

    path: Path
    """As the user gave it: it stands in every message."""
    text: str
    values: Object

    def refuse(self, mistakes: Iterable[Mistake], *, hint: str | None = None) -> RecipeError:
        """Return the error that lists ``mistakes`` as ``file:line: key: message``, in the order of their lines."""
        lines = index(self.text)
        found = sorted({(line_of(lines, mistake.path), dotted(mistake.path), mistake.message) for mistake in mistakes})
        return RecipeError(
            "\n".join(
                f"{self.path}:{line}: {key}: {message}" if key else f"{self.path}:{line}: {message}"
                for line, key, message in found
            ),
            hint=hint,
        )


def read(path: Path) -> Document:
    """Read the TOML file at ``path``.

    Raises:
        RecipeError: no such file, not UTF-8, not TOML (with the line), or over 1 MiB.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{path}: expected a file, found none") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path}: expected at most {MAX_BYTES} bytes, found more")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: not UTF-8 at byte {error.start}") from None
    return Document(path, text, parse(text, path))


def parse(text: str, path: Path) -> Object:
    """Return what the TOML ``text`` says.

    Raises:
        RecipeError: it is not TOML; the message has the line.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", str(error))
        if not where:
            raise RecipeError(f"{path}: not TOML: {error}") from None
        line = where[1] or text.count("\n") + 1
        raise RecipeError(f"{path}:{line}: not TOML: {str(error)[: where.start()]}") from None
    except (RecursionError, ValueError) as error:
        raise RecipeError(f"{path}: not TOML: {error}") from None
