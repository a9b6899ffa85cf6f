"""Lines of keys: random documents, written in every style that TOML has, against where their markers stand."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterable, Iterator
from typing import TypeAlias, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.recipe.positions import Path, dotted, index, line_of

T = TypeVar("T")
Value: TypeAlias = "int | list[Value] | dict[str, Value]"
NAMES = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=5),
    st.sampled_from(["a.b", 'qu"ote', "[x]", "#", "=", "\\", "", "'", "\n", "true"]),
)
# Shape of a value: a dict is a table, a list an array, 0 a leaf that the writer replaces by a marker of its own.
VALUES = st.recursive(
    st.just(0),
    lambda below: st.one_of(st.dictionaries(NAMES, below, max_size=4), st.lists(below, max_size=3)),
    max_leaves=14,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=5)
DECOYS = [
    '"""\n[x]\ny = 1\n"""',
    "'''\n# = [\n'''",
    '"# no = 1"',
    "'[a]'",
    '"\\"[b"',
    '"""\\""""',
    "''''a'''''",
    "07:32:00",
]


class Writer:
    """Writes a document in a random style, and remembers on which line each leaf's marker must be found."""

    def __init__(self, document: dict[str, Value], chance: random.Random) -> None:
        self.chance = chance
        self.parts: list[str] = []
        self.marks: dict[Path, int] = {}
        self.table(document, (), header=False)
        self.text = "".join(self.parts)

    def emit(self, text: str) -> None:
        self.parts.append(text)

    def pick(self, *choices: T) -> T:
        return self.chance.choice(choices)

    def blank(self) -> None:
        self.emit(self.pick("", "", "\n", "  # a comment = [ ]\n", "\t\n\r\n"))

    def space(self) -> None:
        self.emit(self.pick("", " ", "\t "))

    def key(self, name: str) -> str:
        forms = [json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")]
        if name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name):
            forms.append(name)
        if "'" not in name and all(ord(c) >= 32 and ord(c) != 127 for c in name):
            forms.append(f"'{name}'")
        return self.pick(*forms)

    def keys(self, names: list[str]) -> str:
        dot = self.pick(".", " . ")
        return dot.join(self.key(name) for name in names)

    def leaf(self, path: Path) -> None:
        self.marks[path] = marker = len(self.marks) + 1000
        self.emit(str(marker))

    def inline(self, value: Value, path: Path) -> None:
        if isinstance(value, dict):
            self.emit("{")
            for number, (name, item) in enumerate(value.items()):
                self.emit(", " if number else "")
                self.space()
                self.emit(self.key(name))
                self.emit(self.pick("=", " = "))
                self.inline(item, (*path, name))
            self.emit(" }")
        elif isinstance(value, list):
            self.emit("[")
            for number, item in enumerate(value):
                self.emit("," if number else "")
                # Only outside an inline table may an array go over several lines; comments and newlines test that.
                self.space()
                self.inline(item, (*path, number))
            self.emit("]")
        else:
            self.leaf(path)

    def array(self, value: list[Value], path: Path) -> None:
        self.emit("[")
        for number, item in enumerate(value):
            self.emit("," if number else "")
            self.blank()
            self.inline(item, (*path, number))
        self.blank()
        self.emit(self.pick("]", ",]" if value else "]"))

    def pair(self, names: list[str], value: Value, path: Path) -> None:
        self.space()
        self.emit(self.keys(names))
        self.emit(self.pick("=", " = "))
        if isinstance(value, list):
            self.array(value, path)
        else:
            self.inline(value, path)
        self.emit(self.pick("\n", " # [not.a] = table\n"))

    def table(self, value: dict[str, Value], path: Path, *, header: bool) -> None:
        if header:
            self.emit("[" + self.keys([part for part in path if isinstance(part, str)]) + "]\n")
        later: list[tuple[str, Value]] = []
        for name, item in value.items():
            self.blank()
            tables = isinstance(item, list) and item and all(isinstance(one, dict) for one in item)
            if (isinstance(item, dict) or tables) and self.pick(True, False):
                later.append((name, item))
            elif isinstance(item, dict) and len(item) == 1 and self.pick(True, False):
                (inner, below), *_ = item.items()
                self.pair([name, inner], below, (*path, name, inner))
            else:
                self.pair([name], item, (*path, name))
        for name, item in later:
            self.blank()
            if isinstance(item, dict):
                self.table(item, (*path, name), header=True)
                continue
            assert isinstance(item, list)
            for number, one in enumerate(item):
                assert isinstance(one, dict)
                names = [part for part in (*path, name) if isinstance(part, str)]
                self.emit("[[" + self.keys(names) + "]]\n")
                self.table(one, (*path, name, number), header=False)


def filled(value: Value, path: Path, marks: dict[Path, int]) -> Value:
    if isinstance(value, dict):
        return {name: filled(item, (*path, name), marks) for name, item in value.items()}
    if isinstance(value, list):
        return [filled(item, (*path, number), marks) for number, item in enumerate(value)]
    return marks[path]


def paths(value: Value, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    if isinstance(value, dict | list):
        items: Iterable[tuple[str | int, Value]] = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from paths(item, (*path, name))


def expected_line(text: str, marker: int) -> int:
    return text.replace("\r\n", "\n").split(str(marker))[0].count("\n") + 1


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, st.integers(0, 2**32))
def test_every_key_of_a_random_document_has_its_line(document: dict[str, Value], seed: int) -> None:
    writer = Writer(document, random.Random(seed))
    assert tomllib.loads(writer.text) == filled(document, (), writer.marks)  # the writer itself is right
    lines = index(writer.text)
    assert set(lines) == set(paths(document))
    for path, marker in writer.marks.items():
        # A marker is unique in the text; it stands on its key's line (or, in an array, on its own).
        assert lines[path] == expected_line(writer.text, marker), (path, writer.text)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(DECOYS), min_size=1, max_size=6), st.integers(0, 2**32))
def test_strings_that_look_like_keys_are_not(decoys: list[str], seed: int) -> None:
    chance = random.Random(seed)
    text = ""
    for number, decoy in enumerate(decoys):
        text += f"k{number} = " + chance.choice([decoy, f"[ {decoy},\n {decoy} ]"]) + "\n"
    text += "\n[end]\nhere = 4711\n"
    values = tomllib.loads(text)
    lines = index(text)
    assert {path[0] for path in lines} == set(values)
    assert lines["end", "here"] == expected_line(text, 4711)


def test_lines_of_one_document() -> None:
    text = """# top
[model]
name = "a"   # c
"odd key" . 'x' = { a = 1, "b.c" = [ 1, 2 ] }

[[list]]
v = [
  "x",
  # comment ]
  "y",
]
[list.sub]
z = 1
[[list]]
v = []
"""
    lines = index(text)
    assert lines["model",] == 2
    assert lines["model", "name"] == 3
    assert lines["model", "odd key", "x", "b.c", 1] == 4
    assert lines["list", 0, "v", 1] == 10
    assert lines["list", 0, "sub", "z"] == 13
    assert lines["list", 1, "v"] == 15


def test_what_is_missing_has_the_line_of_the_table_around_it() -> None:
    lines = index("\n[a]\nb = 1\n")
    assert line_of(lines, ("a", "missing", "deep")) == 2
    assert line_of(lines, ("c",)) == 1


def test_paths_are_written_as_toml_writes_them() -> None:
    assert dotted(("steps", "a b", "with", "x", 2)) == 'steps."a b".with.x[2]'
    assert dotted(('q"', "\\")) == '"q\\""."\\\\"'
