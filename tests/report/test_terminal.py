"""Progress: bars on a terminal, plain lines elsewhere, JSON lines on request, and nothing by colour alone."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from intaglio.progress import Silent
from intaglio.report import terminal


@pytest.mark.parametrize(
    ("count", "unit", "text"),
    [
        (0, "B", "0 B"),
        (999, "B", "999 B"),
        (1000, "B", "1 kB"),
        (1_500_000, "B", "2 MB"),
        (12_345_678_901, "B", "12.35 GB"),
        (5, "steps", "5 steps"),
        (5.4, "files", "5 files"),
    ],
)
def test_amounts_for_people(count: float, unit: str, text: str) -> None:
    assert terminal.amount(count, unit) == text


def test_no_progress_is_silent() -> None:
    assert isinstance(terminal.progress("none"), Silent)


def test_plain_lines_come_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("intaglio.report.terminal.time.monotonic", lambda: now[0])
    shown = terminal.progress("plain")
    with shown.task("hashing", 4_000_000) as task:
        task.advance(1_000_000)
        now[0] += terminal.EVERY
        task.advance(1_000_000)
        now[0] += 1
        task.say("model.safetensors")
        now[0] += terminal.EVERY
        task.advance(1_000_000)
    shown.note("a line that stands by itself")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "hashing: 2 MB of 4 MB (50 %), 5 s left, 400 kB/s",
        "hashing: 3 MB of 4 MB (75 %), 4 s left, 273 kB/s · model.safetensors",
        "hashing: 3 MB of 4 MB (75 %), 4 s left, 273 kB/s · model.safetensors",
        "a line that stands by itself",
    ]


def test_what_is_quick_says_nothing_and_what_fails_says_no_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("intaglio.report.terminal.time.monotonic", lambda: now[0])
    shown = terminal.progress("plain")
    with shown.task("quick", 10) as task:
        task.advance(10)
    assert capsys.readouterr().err == ""
    with pytest.raises(RuntimeError), shown.task("tune", None, "steps") as task:  # noqa: PT012
        now[0] += terminal.EVERY
        task.advance(3)
        raise RuntimeError
    assert capsys.readouterr().err == "tune: 3 steps, 5 s\n"


def test_a_total_that_is_learnt_later(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("intaglio.report.terminal.time.monotonic", lambda: now[0])
    with terminal.progress("plain").task("tune", unit="steps") as task:
        task.total(8, "examples")
        now[0] += terminal.EVERY
        task.advance(2)
    assert capsys.readouterr().err.splitlines()[0] == "tune: 2 examples of 8 examples (25 %), 15 s left, 5 s"


def test_json_lines_tell_begin_progress_and_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("intaglio.report.terminal.time.monotonic", lambda: now[0])
    shown = terminal.progress("json")
    with pytest.raises(RuntimeError), shown.task("tune", 8, "steps") as task:  # noqa: PT012
        task.say("loss 2.5")
        now[0] += 2
        task.advance(4)
        raise RuntimeError
    shown.note("größe")
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    about = {"work": "tune", "total": 8, "unit": "steps"}
    assert events == [
        {"event": "begin", **about},
        {"event": "say", "work": "tune", "text": "loss 2.5"},
        {"event": "progress", "done": 4, **about},
        {"event": "end", "done": 4, "failed": True, **about},
        {"event": "note", "text": "größe"},
    ]


SHOW = """
import threading, time
from intaglio.report.terminal import progress
shown = progress("auto")
shown.note("before")
with shown.task("hashing", 4_000_000) as one:
    with shown.task("tune", None, "steps") as two:
        two.total(8, "steps")
        threads = [threading.Thread(target=lambda: [one.advance(1000) for _ in range(1000)]) for _ in range(4)]
        for thread in threads: thread.start()
        two.advance(3)
        two.say("loss [2.5]")
        shown.note("meanwhile [bold]x[/bold]")
        for thread in threads: thread.join()
        time.sleep(0.5)
shown.note("after")
"""
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38;[25];)")


def on_a_terminal(**environment: str) -> str:
    """Return what a program writes to standard error when that is a terminal."""
    master, slave = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    kept |= {"COLUMNS": "120", **environment}
    process = subprocess.Popen([sys.executable, "-c", SHOW], stderr=slave, stdout=subprocess.DEVNULL, env=kept)
    os.close(slave)
    chunks = []
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(master)
    assert process.wait(timeout=30) == 0
    return b"".join(chunks).decode()


def test_bars_on_a_terminal() -> None:
    shown = on_a_terminal(TERM="xterm-256color")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert COLOUR.search(shown)
    for text in ("before", "hashing", "4 MB of 4 MB", "tune", "3 steps of 8 steps", "loss [2.5]", "after"):
        assert text in plain
    assert "meanwhile [bold]x[/bold]" in plain


def test_no_color_is_honoured_and_says_the_same() -> None:
    shown = on_a_terminal(TERM="xterm-256color", NO_COLOR="1")
    assert not COLOUR.search(shown)
    assert "4 MB of 4 MB" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def test_a_dumb_terminal_gets_plain_lines() -> None:
    shown = on_a_terminal(TERM="dumb")
    assert "\x1b" not in shown
    assert shown.split() == ["before", "meanwhile", "[bold]x[/bold]", "after"]
