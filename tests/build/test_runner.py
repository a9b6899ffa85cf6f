"""One step: how it fails, which limits end it, what it may leave, and how to run it again."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.workshop import COPY, PROGRAM, Finished, Workshop

from intaglio.build.runner import TAIL
from intaglio.digest import Digest
from intaglio.errors import ExitCode

pytestmark = pytest.mark.real


def log_of(err: str) -> str:
    found = re.search(r"the whole log: (.*)", err)
    assert found, err
    with open(found[1], encoding="utf-8") as stream:
        return stream.read()


# --- failing ---------------------------------------------------------------------------------------------------------


def test_a_failing_step_shows_its_cause_its_last_lines_and_its_log(shop: Workshop) -> None:
    shop.one('print("\\n".join(f"line {n}" for n in range(40)), flush=True); sys.exit("no such tensor: lm_head")')
    failed = shop.run("build").failed(ExitCode.STEP)
    assert "error: step make: exit status 1" in failed.err
    shown = re.findall(r"^  \| (.*)$", failed.err, re.MULTILINE)
    assert shown == [*(f"line {n}" for n in range(40 - TAIL + 1, 40)), "no such tensor: lm_head"]
    assert log_of(failed.err).splitlines() == [*(f"line {n}" for n in range(40)), "no such tensor: lm_head"]
    assert failed.out == ""
    shop.assert_unharmed()


def test_a_step_that_reports_its_error_is_quoted_with_its_hint(shop: Workshop) -> None:
    shop.one('event(event="error", message="faq.jsonl:3: expected a JSON object", hint="look at line 3"); sys.exit(1)')
    failed = shop.run("build").failed(ExitCode.STEP)
    assert "error: step make: faq.jsonl:3: expected a JSON object\n" in failed.err
    assert "hint: look at line 3\n" in failed.err
    shop.assert_unharmed()


def test_a_step_ended_by_a_signal_has_failed(shop: Workshop) -> None:
    shop.one('import ctypes; sys.stderr.write("going down\\n"); sys.stderr.flush(); ctypes.string_at(0)')
    failed = shop.build().failed(ExitCode.STEP)
    assert "exit status 139" in failed.json["error"]["message"]
    assert "going down" in failed.json["error"]["message"]


def test_events_that_are_no_events_harm_nobody(shop: Workshop) -> None:
    shop.one(
        """
        os.write(int(os.environ["INTAGLIO_EVENTS_FD"]), b"garbage\\n" + b"[1]\\n" + b"{" * 99999 + b"\\n")
        for value in (None, [], {}, -1, 1e308, "x" * 60000, True):
            for kind in ("progress", "metric", "message", "error", "other"):
                event(event=kind, done=value, total=value, unit=value, name=value, value=value, text=value,
                      message=value, hint=value, step=value)
        write("fine")
        """
    )
    answer = shop.built()
    assert shop.model(answer["image"]) == b"fine"


def test_the_events_of_a_step_are_kept_with_their_times(shop: Workshop) -> None:
    shop.one(
        """
        event(event="progress", done=1, total=2, unit="files")
        event(event="metric", name="loss", value=2.5, step=1)
        event(event="progress", done=2, total=2, unit="files")
        write("fine")
        """
    )
    answer = shop.built()
    events = shop.events(answer["steps"][0]["key"])
    assert [event["event"] for event in events] == ["started", "progress", "metric", "progress", "ended"]
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    assert events[-1]["status"] == 0
    assert events[-1]["peak_memory"] > 0
    assert shop.run("log", "make", "--events").ok().out.splitlines() == [json.dumps(event) for event in events]


def test_log_shows_what_the_last_run_printed(shop: Workshop) -> None:
    shop.one('print("first run"); write("x")')
    shop.built()
    assert shop.run("log", "make").ok().out == "first run\n"
    answer = shop.run("log", ".", "make", "--json").ok().json
    assert answer["log"] == "first run\n"
    shop.edit("make.py", "first run", "second run")
    shop.built()
    assert shop.run("log", "make").ok().out == "second run\n"
    assert shop.run("log", "mak").failed(ExitCode.USAGE).err.startswith("error: no step 'mak'")


# --- running again ---------------------------------------------------------------------------------------------------


def printed_replay(err: str) -> list[str]:
    found = re.search(r"^run it again: (.*)$", err, re.MULTILINE)
    assert found, err
    words = shlex.split(found[1])
    assert words[0] == "intaglio"
    return words[1:]


@pytest.mark.parametrize("words", [["."], ["../recipe"], []], ids=["dot", "path", "none"])
def test_the_printed_replay_command_runs_the_step_again(shop: Workshop, words: list[str]) -> None:
    shop.chain("first", "second")
    shop.edit("second.py", "write(read", 'print("I see", read("source")); sys.exit(1); write(read')
    shop.lock()
    failed = shop.run("build", *words).failed(ExitCode.STEP)
    again = shop.run(*printed_replay(failed.err)).failed(ExitCode.STEP)
    assert re.findall(r"^  \| .*$", again.err, re.MULTILINE) == re.findall(r"^  \| .*$", failed.err, re.MULTILINE)
    assert "I see b'what the model is made of\\nfirst\\n'" in again.err


def test_the_printed_replay_command_works_from_elsewhere_and_with_another_store(shop: Workshop, tmp_path: Path) -> None:
    place = shop.root / "it's here"
    shop.one("sys.exit('again and again')")
    failed = shop.run("build", shop.recipe, "--store", place).failed(ExitCode.STEP)
    line = re.search(r"^run it again: (.*)$", failed.err, re.MULTILINE)
    assert line
    done = subprocess.run(
        ["/bin/sh", "-c", line[1]],
        cwd=tmp_path,
        env=shop.environment | {"PATH": f"{PROGRAM.parent}:{shop.environment['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.STEP
    assert "again and again" in done.stderr


def test_replay_gives_what_the_claim_says(shop: Workshop) -> None:
    shop.chain("first", "second")
    answer = shop.built()
    replayed = shop.run("replay", "second", "--output", "copy", "--json").ok().json
    assert replayed == {
        "step": "second",
        "key": answer["steps"][1]["key"],
        "output": answer["steps"][1]["output"],
        "same": True,
    }
    assert (shop.recipe / "copy" / "model.txt").read_text() == "what the model is made of\nfirst\nsecond\n"
    assert shop.run("replay", "second", "--output", "copy").failed(ExitCode.USAGE)


def test_replay_of_a_step_whose_input_is_not_built_says_what_to_build(shop: Workshop) -> None:
    shop.chain("first", "second")
    failed = shop.run("replay", "second").failed(ExitCode.USAGE)
    assert "'first', which is not built" in failed.err
    assert "intaglio build" in failed.err


def test_replay_makes_no_claim(shop: Workshop) -> None:
    shop.one("write(os.urandom(8).hex())")
    first = shop.built()
    assert shop.run("replay", "make", "--json").ok().json["same"] is False
    assert shop.built()["image"] == first["image"]


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "limits", "says"),
    [
        (
            """
            import time
            print("eating", flush=True)
            eaten = []
            for _ in range(1000):
                eaten.append(os.urandom(1 << 20))
                time.sleep(0.005)
            """,
            '{ memory = "128MiB" }',
            "128 MiB of memory",
        ),
        ('print("eating", flush=True); import time; time.sleep(60)', '{ time = "1s" }', "1 s"),
        (
            """
            import time
            print("eating", flush=True)
            for _ in range(40):
                if os.fork() == 0:
                    time.sleep(60)
            time.sleep(5)
            """,
            "{ processes = 16 }",
            "16 processes",
        ),
        (
            """
            import time
            print("eating", flush=True)
            write(b"x" * (64 << 20))
            time.sleep(10)
            """,
            '{ disk = "16MiB" }',
            "16 MiB of disk",
        ),
    ],
    ids=["memory", "time", "processes", "disk"],
)  # fmt: skip
def test_a_limit_ends_a_step(shop: Workshop, code: str, limits: str, says: str) -> None:
    shop.one(code, limits=limits)
    failed = shop.run("build").failed(ExitCode.LIMIT)
    assert f"error: step make: reached its limit of {says} after" in failed.err
    assert "  | eating" in failed.err
    assert "[steps.make.limits]" in failed.err
    assert "the whole log: " in failed.err
    assert printed_replay(failed.err) == ["replay", ".", "make"]
    shop.assert_unharmed()


# --- what is left in /out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("pass", "expected at least one file, found none"),
        ('(OUT / "empty").mkdir()', "expected at least one file, found none"),
        ('write("x"); os.symlink("/etc/passwd", OUT / "link")', "found a symbolic link"),
        ('write("x"); os.symlink("model.txt", OUT / "link")', "found a symbolic link"),
        ('(OUT / "d").mkdir(); write("x", "d/x"); os.symlink("d", OUT / "e")', "found a symbolic link"),
        ('write("x"); os.mkfifo(OUT / "fifo")', "found a FIFO"),
        ('write("x"); import socket; socket.socket(socket.AF_UNIX).bind("/out/s")', "found a socket"),
        ('write("x"); os.link(OUT / "model.txt", OUT / "again")', "found a hard link"),
        ('write("x"); os.chmod(OUT / "model.txt", 0o4755)', "set-uid"),
        ('write("x"); write("y", "Model.txt")', "two files take one place"),
        ('write("x"); write("y", "a\\\\b")', "a backslash"),
        ('write("x"); write("y", "a\\nb")', "a control or format character"),
        ('write("x"); open(os.fsencode(OUT) + b"/\\xff", "wb").close()', "not Unicode"),
        ('[write(str(n), f"{n}.txt") for n in range(5001)]', "expected at most 5000 files, found 5001"),
    ],
)
def test_an_output_that_is_no_tree_is_refused(shop: Workshop, code: str, says: str) -> None:
    shop.one(code)
    failed = shop.run("build").failed(ExitCode.STEP)
    assert "error: step make: its output cannot be used: " in failed.err
    assert says in failed.err
    shop.assert_unharmed()
    assert shop.run("log", "make").ok()


def test_a_device_in_the_output_is_impossible(shop: Workshop) -> None:
    shop.one('import stat; write("x"); os.mknod(OUT / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))')
    assert "PermissionError" in shop.run("build").failed(ExitCode.STEP).err
    shop.assert_unharmed()


def test_a_folder_that_nobody_may_enter_is_the_steps_fault(shop: Workshop) -> None:
    shop.one('write("x"); (OUT / "closed").mkdir(); write("y", "closed/y.txt"); (OUT / "closed").chmod(0)')
    done = shop.build()
    if done.status == 0:  # root enters all the same
        assert shop.run("verify", "tests/shop:1.0.0").ok()
    else:  # what cannot be measured counts as over the limit
        assert done.status in (ExitCode.STEP, ExitCode.LIMIT)
        shop.assert_unharmed()


def test_a_declared_output_that_is_missing_is_refused(shop: Workshop) -> None:
    shop.one('write("x", "model.bin")', outputs=["*.gguf"])
    failed = shop.run("build").failed(ExitCode.STEP)
    assert "expected an output that matches '*.gguf', found model.bin" in failed.err
    shop.assert_unharmed()


def test_executable_files_and_folders_come_through(shop: Workshop) -> None:
    shop.one('(OUT / "bin").mkdir(); write("#!/bin/sh\\n", "bin/run"); os.chmod(OUT / "bin/run", 0o700); write("")')
    answer = shop.built()
    assert shop.run("export", "tests/shop:1.0.0", "--files", "out").ok()
    assert (shop.recipe / "out/bin/run").stat().st_mode & 0o777 == 0o755
    assert (shop.recipe / "out/model.txt").stat().st_mode & 0o777 == 0o644
    assert shop.model(answer["image"]) == b""


# --- what a step sees ------------------------------------------------------------------------------------------------


def seen(shop: Workshop) -> dict[str, Any]:
    facts = '"request": request, "environ": dict(os.environ), "argv": sys.argv, "cwd": os.getcwd()'
    shop.one("write(json.dumps({" + facts + "}))")
    found: dict[str, Any] = json.loads(shop.model(shop.built()["image"]))
    return found


def test_a_step_sees_its_request_and_nothing_of_where_it_runs(shop: Workshop) -> None:
    found = seen(shop)
    assert found["request"] == {
        "protocol": 1,
        "parameters": {},
        "inputs": {"source": "/in/source"},
        "out": "/out",
        "work": "/work",
    }
    assert found["argv"] == ["/step/program/step.py"]
    assert found["cwd"] == "/work"
    text = json.dumps(found)
    for secret in (str(shop.root), "tests/shop", "make", "INTAGLIO_HOME", "PIP_"):
        assert secret not in text


def test_a_step_cannot_write_its_inputs_or_program(shop: Workshop) -> None:
    shop.one(
        """
        for path in ("/in/source/data.txt", "/in/source/new", "/step/program/step.py", "/step/new", "/env/new"):
            try:
                open(path, "a").close()
            except OSError:
                continue
            sys.exit(f"wrote {path}")
        write("fine")
        """
    )
    assert shop.built()["image"]
    assert (shop.recipe / "data.txt").read_text() == "what the model is made of\n"
    assert shop.run("store", "verify").ok()


def test_a_step_imports_its_toolchain_and_not_the_engine(shop: Workshop) -> None:
    shop.one(
        """
        import tiny
        try:
            import intaglio
        except ModuleNotFoundError:
            write(tiny.WORD)
        """
    )
    assert shop.model(shop.built()["image"]) == b"tiny"


def test_shared_modules_are_part_of_the_program(shop: Workshop) -> None:
    (shop.builder / "lib" / "shared.py").write_text("WORD = 'one'\n")
    code = 'sys.path.insert(0, "/step/program/lib"); import shared; write(shared.WORD)'
    shop.step("make", code, more='lib = ["shared"]', shipped=True)
    shop.write('[steps.make]\nuses = "make"\ninputs = { source = "data" }\n', source="make")
    shop.lock()
    assert shop.model(shop.built()["image"]) == b"one"
    (shop.builder / "lib" / "shared.py").write_text("WORD = 'two'\n")
    assert shop.model(shop.built()["image"]) == b"two"


def test_plain_copies_enter_where_links_cannot(shop: Workshop) -> None:
    """An executable input must be executable inside, which a blob is not."""
    tool = shop.recipe / "tool.sh"
    tool.write_text("#!/bin/sh\necho run\n")
    tool.chmod(0o755)
    shop.step("make", 'import subprocess; write(subprocess.check_output(["/in/source/tool.sh"]))')
    steps = '[steps.make]\nuses = "./make"\ninputs = { source = "tool" }\n'
    shop.write(steps, source="make", inputs='tool = { uri = "file:tool.sh" }')
    shop.lock()
    assert shop.model(shop.built()["image"]) == b"run\n"


def test_copying_is_the_whole_of_a_tiny_build(shop: Workshop) -> None:
    shop.one(COPY)
    answer = shop.build().ok()
    assert re.search(r"make: built in \d+\.\d s → sha256:[0-9a-f]{64}", answer.err)
    assert answer.json["tag"] == "tests/shop:1.0.0"


# --- executors that lie ----------------------------------------------------------------------------------------------

LIAR = """
import os
from pathlib import Path
from intaglio.build.executors.local import LocalExecutor
from intaglio.cli import main

honest = LocalExecutor.run

def run(self, spec, *, log, on_event):
    ended = honest(self, spec, log=log, on_event=on_event)
    (out,) = [mount.source for mount in spec.mounts if mount.target == "/out"]
    for event in ("output", "ended"):
        on_event({"event": event, "status": 0, "output": PROMISED, "digest": PROMISED})
    lie(out / "model.txt")
    return ended

LocalExecutor.run = run
"""
LIES = {
    "other bytes": "path.write_bytes(b'forged')",
    "a link to what is promised": "path.unlink(); path.symlink_to(BLOB)",
    "the blob itself": "path.unlink(); os.link(BLOB, path)",
    "nothing": "path.unlink()",
}


def lied(shop: Workshop, lie: str, promised: str, *words: str) -> Finished:
    """Run ``intaglio`` with an executor that answers with ``promised``, and leaves something else."""
    blob = shop.store.path(Digest.of(b"what the model is made of\n"))
    code = f"PROMISED, BLOB = {promised!r}, {str(blob)!r}\n{LIAR}\ndef lie(path):\n    {lie}\n\nmain()\n"
    argv = [sys.executable, "-c", code, *words]
    done = subprocess.run(argv, cwd=shop.recipe, env=shop.environment, capture_output=True, text=True, check=False)
    return Finished(done.returncode, done.stdout, done.stderr)


def test_what_an_executor_gives_back_is_hashed_whatever_it_says(shop: Workshop) -> None:
    """Who takes an executor at its word signs what it says; a claim names what came."""
    shop.one(COPY)
    promised = next(step["output"] for step in shop.built()["steps"] if step["name"] == "make")
    answer = lied(shop, LIES["other bytes"], promised, "replay", "make", "--json").ok().json
    assert (answer["same"], answer["output"] == promised) == (False, False)
    assert [shop.store.path(file.digest).read_bytes() for file in shop.store.tree(Digest(answer["output"])).files] == [
        b"forged"
    ]
    assert lied(shop, "pass", promised, "replay", "make", "--json").ok().json["same"] is True


@pytest.mark.parametrize("lie", ["a link to what is promised", "the blob itself", "nothing"])
def test_what_an_executor_only_points_to_is_refused(shop: Workshop, lie: str) -> None:
    shop.one(COPY)
    promised = next(step["output"] for step in shop.built()["steps"] if step["name"] == "make")
    assert "its output cannot be used" in lied(shop, LIES[lie], promised, "replay", "make").failed(ExitCode.STEP).err
    assert shop.run("store", "verify").ok()
    assert shop.run("verify", "tests/shop:1.0.0").ok()
