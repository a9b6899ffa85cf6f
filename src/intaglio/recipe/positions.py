"""On which line of a TOML text each key stands.

- Works on text that ``tomllib`` has accepted, and only when there is a mistake to report.
- The path of a key is the path of its value in what ``tomllib`` returns: names, and numbers for array elements.
- A key that is written in several places (``[a.b]`` and ``[a.c]`` both name ``a``) has the line of the first.

Source: TOML 1.0.0, "Keys", "Table", "Inline Table", "Array of Tables".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Path = tuple[str | int, ...]
"""Where a value stands in a document."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\r\n]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+\Z")


def index(text: str) -> dict[Path, int]:
    """Return the line (from 1) of every key and array element of ``text``, which is valid TOML."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


def line_of(lines: Mapping[Path, int], path: Path) -> int:
    """Return the line of ``path``, or of the nearest table around it that is written down; 1 at worst."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 1


def dotted(path: Path) -> str:
    """Return ``path`` as TOML writes a dotted key, with array elements in brackets."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        name = part if _PLAIN_NAME.match(part) else '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"'
        text += f".{name}" if text else name
    return text


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.lines: dict[Path, int] = {}
        self.elements: dict[Path, int] = {}
        """How many elements each array of tables has so far."""

    def document(self) -> None:
        table: Path = ()
        self._take(_BLANK)
        while self.at < len(self.text):
            if self.text.startswith("[[", self.at):
                table = self._array_header()
            elif self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._take(_BLANK)

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        taken = found.group() if found else ""
        self._skip(len(taken))
        return taken

    def _skip(self, count: int) -> None:
        self.line += self.text.count("\n", self.at, self.at + count)
        self.at += count

    def _note(self, path: Path, line: int) -> None:
        self.lines.setdefault(path, line)

    def _header(self) -> Path:
        self._skip(1)
        table = self._below((), self._key(), self.line)
        self._skip(1)
        return table

    def _array_header(self) -> Path:
        self._skip(2)
        keys = self._key()
        array = (*self._below((), keys[:-1], self.line), keys[-1])
        self._note(array, self.line)
        number = self.elements.get(array, 0)
        self.elements[array] = number + 1
        self._note((*array, number), self.line)
        self._skip(2)
        return (*array, number)

    def _below(self, table: Path, keys: list[str], line: int) -> Path:
        """Walk ``keys`` down from ``table``, into the newest element where one is an array of tables."""
        for key in keys:
            table = (*table, key)
            self._note(table, line)
            if table in self.elements:
                table = (*table, self.elements[table] - 1)
        return table

    def _key(self) -> list[str]:
        keys = []
        while True:
            self._take(_SPACE)
            keys.append(self._quoted() if self.text[self.at] in "\"'" else self._take(_BARE_KEY))
            self._take(_SPACE)
            if self.text[self.at] != ".":
                return keys
            self._skip(1)

    def _quoted(self) -> str:
        import tomllib

        return str(tomllib.loads("key = " + self._take(_STRING))["key"])

    def _pair(self, table: Path) -> None:
        line = self.line
        path = self._below(table, self._key(), line)
        self._skip(1)
        self._take(_SPACE)
        self._value(path)

    def _value(self, path: Path) -> None:
        start = self.text[self.at]
        if start in "\"'":
            self._take(_STRING)
        elif start == "[":
            self._array(path)
        elif start == "{":
            self._inline_table(path)
        else:
            self._take(_SCALAR)

    def _array(self, path: Path) -> None:
        self._skip(1)
        number = 0
        while self._next_in("]"):
            self._note((*path, number), self.line)
            self._value((*path, number))
            number += 1
        self._skip(1)

    def _inline_table(self, path: Path) -> None:
        self._skip(1)
        while self._next_in("}"):
            self._pair(path)
        self._skip(1)

    def _next_in(self, end: str) -> bool:
        """Move to the next element; false at the end of the array or table."""
        self._take(_BLANK)
        if self.text[self.at] == ",":
            self._skip(1)
            self._take(_BLANK)
        return self.text[self.at] != end
