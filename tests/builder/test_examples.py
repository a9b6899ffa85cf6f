"""Training data: what is wrong with it is said with file and line, what was expected and what was found."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples import read_examples
from request import Fault

CHAT = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
TEXT = '{"text": "a"}'


def test_files_are_read_in_order_of_name_and_may_differ_in_kind(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(CHAT + "\n\n" + CHAT + "\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(TEXT, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not data", encoding="utf-8")
    found = read_examples(tmp_path)
    assert [example.where for example in found] == ["a.jsonl:1", "b.jsonl:1", "b.jsonl:3"]
    assert found[0].text == "a"
    assert found[1].messages[1] == {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"x\.jsonl:2: expected JSON, found an error at column 2"),
        ("[1]", r"x\.jsonl:2: expected an object, found \[1\]"),
        (b"\xff", r"x\.jsonl:2: expected UTF-8, found byte 0xff"),
        ('{"message": []}', r"x\.jsonl:2: expected the one key 'messages' or 'text', found 'message'"),
        ('{"text": "a", "id": 1}', r"x\.jsonl:2: expected the one key .*, found 'id', 'text'"),
        ("{}", r"x\.jsonl:2: expected the one key .*, found no key"),
        (TEXT, r"x\.jsonl:2: expected 'messages' as on the lines before, found 'text'"),
        ('{"messages": []}', r"x\.jsonl:2: messages: expected a list that is not empty, found \[\]"),
        ('{"messages": [1]}', r"x\.jsonl:2: messages\[0\]: expected an object with 'role' and 'content', found 1"),
        ('{"messages": [{"role": "user"}]}', r"x\.jsonl:2: messages\[0\]: .*, found 'role'"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', r'x\.jsonl:2: messages\[0\]\.role: .*, found "bot"'),
        ('{"messages": [{"role": "user", "content": null}]}', r"x\.jsonl:2: messages\[0\]\.content: .*, found null"),
        ('{"messages": [{"role": "user", "content": "a"}]}', r"x\.jsonl:2: messages: expected one of role 'assistant'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str | bytes, message: str) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "x.jsonl").write_bytes(CHAT.encode() + b"\n" + raw + b"\n")
    with pytest.raises(Fault, match=message):
        read_examples(tmp_path)


def test_an_empty_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": ""}', encoding="utf-8")
    with pytest.raises(Fault, match=r"x\.jsonl:1: text: expected a string that is not empty"):
        read_examples(tmp_path)


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('["' + "a" * 1000 + '"]', encoding="utf-8")
    with pytest.raises(Fault) as caught:
        read_examples(tmp_path)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_no_data_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n", encoding="utf-8")
    with pytest.raises(Fault, match=r"expected (files named|at least one example)"):
        read_examples(tmp_path)
