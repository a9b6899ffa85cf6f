"""Training examples out of JSONL: chat ``{"messages": […]}`` or text ``{"text": …}``, one object a line.

* The first line of a file says which of the two the file holds; the other kind in the same file is refused.
* What is wrong is reported with file and line, what was expected and what was found.
* Empty lines are skipped; keys beside ``messages`` or ``text`` are refused, for a misspelt one would be lost silently.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from request import Fault

ROLES = ("system", "user", "assistant", "tool")
HINT = 'Each line is an object: {"messages": [{"role": "user", "content": "…"}, …]} or {"text": "…"}.'


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: a conversation or a text, never both."""

    where: str
    """``file:line``, for messages."""
    messages: tuple[dict[str, str], ...] = ()
    text: str = ""


def read_examples(folder: Path) -> list[Example]:
    """All examples of the ``*.jsonl`` files of a folder, files in order of name.

    Raises:
        Fault: no such file, no example, or a line that is not as described.
    """
    files = sorted((path for path in folder.rglob("*.jsonl") if path.is_file()), key=lambda path: path.as_posix())
    if not files:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise Fault(f"data: expected files named *.jsonl, found {found}")
    examples = [example for path in files for example in _read_file(path, path.relative_to(folder).as_posix())]
    if not examples:
        raise Fault(
            f"data: expected at least one example, found none in {', '.join(path.name for path in files)}", HINT
        )
    return examples


def _read_file(path: Path, name: str) -> Iterator[Example]:
    kind: str | None = None
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{name}:{number}"
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError as problem:
                raise Fault(f"{where}: expected UTF-8, found byte 0x{raw[problem.start]:02x}") from None
            if not line:
                continue
            document = _parse(line, where)
            found = _kind(document, where)
            kind = kind or found
            if found != kind:
                raise Fault(f"{where}: expected {kind!r} as on the lines before, found {found!r}", "One format a file.")
            yield _example(document, found, where)


def _parse(line: str, where: str) -> dict[str, object]:
    try:
        document = json.loads(line)
    except json.JSONDecodeError as problem:
        raise Fault(f"{where}: expected JSON, found an error at column {problem.colno}: {problem.msg}", HINT) from None
    if not isinstance(document, dict):
        raise Fault(f"{where}: expected an object, found {_describe(document)}", HINT)
    return document


def _kind(document: dict[str, object], where: str) -> str:
    keys = sorted(document)
    if keys not in (["messages"], ["text"]):
        found = ", ".join(repr(key) for key in keys) or "no key"
        raise Fault(f"{where}: expected the one key 'messages' or 'text', found {found}", HINT)
    return keys[0]


def _example(document: dict[str, object], kind: str, where: str) -> Example:
    value = document[kind]
    if kind == "text":
        if not isinstance(value, str) or not value:
            raise Fault(f"{where}: text: expected a string that is not empty, found {_describe(value)}", HINT)
        return Example(where, text=value)
    if not isinstance(value, list) or not value:
        raise Fault(f"{where}: messages: expected a list that is not empty, found {_describe(value)}", HINT)
    messages = tuple(_message(entry, f"{where}: messages[{index}]") for index, entry in enumerate(value))
    if all(message["role"] != "assistant" for message in messages):
        raise Fault(f"{where}: messages: expected one of role 'assistant', found none", HINT)
    return Example(where, messages=messages)


def _message(entry: object, where: str) -> dict[str, str]:
    if not isinstance(entry, dict) or sorted(entry) != ["content", "role"]:
        found = ", ".join(map(repr, sorted(entry))) if isinstance(entry, dict) else _describe(entry)
        raise Fault(f"{where}: expected an object with 'role' and 'content', found {found}", HINT)
    role, content = entry["role"], entry["content"]
    if role not in ROLES:
        raise Fault(f"{where}.role: expected one of {', '.join(ROLES)}, found {_describe(role)}", HINT)
    if not isinstance(content, str):
        raise Fault(f"{where}.content: expected a string, found {_describe(content)}", HINT)
    return {"role": role, "content": content}


def _describe(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
