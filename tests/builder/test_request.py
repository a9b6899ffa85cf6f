"""How a step starts, speaks and ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import events
import pytest
from request import Fault, Request, run


def write(path: Path, **changes: object) -> Path:
    document = {"protocol": 1, "parameters": {}, "inputs": {"a": "/in/a"}, "out": "/out", "work": "/work", **changes}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_request_is_read(tmp_path: Path) -> None:
    parameters = {"text": "x", "none": None, "whole": 2, "number": 0.5, "yes": True, "list": ["a"]}
    request = Request.load(write(tmp_path / "r.json", parameters=parameters))
    assert request.inputs == {"a": Path("/in/a")}
    assert (request.out, request.work) == (Path("/out"), Path("/work"))
    assert request.text("text") == "x"
    assert request.optional_text("none") is None
    assert request.optional_integer("none") is None
    assert request.optional_number("none") is None
    assert request.integer("whole") == 2
    assert request.number("whole") == 2.0
    assert request.number("number") == 0.5
    assert request.boolean("yes") is True
    assert request.texts("list") == ["a"]


def test_a_value_of_another_type_is_a_fault(tmp_path: Path) -> None:
    request = Request.load(write(tmp_path / "r.json", parameters={"yes": True, "text": "x"}))
    for read in (request.integer, request.number, request.text):
        with pytest.raises(Fault, match="parameter 'yes': expected"):
            read("yes")


def test_another_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="expected protocol 1, found 2"):
        Request.load(write(tmp_path / "r.json", protocol=2))


def test_a_fault_becomes_an_error_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "events"
    with said.open("wb") as stream:
        monkeypatch.setenv("INTAGLIO_EVENTS_FD", str(stream.fileno()))
        monkeypatch.setattr("sys.argv", ["step", str(write(tmp_path / "r.json"))])

        def step(_request: Request) -> None:
            events.progress(1, 2, "steps")
            events.metric("loss", float("nan"), 1)
            events.metric("loss", 0.5, 1)
            events.message("é")
            raise Fault("expected a, found b", "Say a.")

        before = os.umask(0o022)
        try:
            assert run(step) == 1
        finally:
            os.umask(before)
    assert [json.loads(line) for line in said.read_text(encoding="utf-8").splitlines()] == [
        {"event": "progress", "done": 1, "total": 2, "unit": "steps"},
        {"event": "metric", "name": "loss", "value": 0.5, "step": 1},
        {"event": "message", "text": "é"},
        {"event": "error", "message": "expected a, found b", "hint": "Say a."},
    ]


def test_a_defect_is_not_taken_for_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["step", str(write(tmp_path / "r.json"))])

    def step(_request: Request) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(step)
