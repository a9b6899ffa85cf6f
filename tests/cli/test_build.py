"""``intaglio build`` as other programs call it, and each thing that can be missing with its exit code and hint."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from tests.workshop import COPY, PROGRAM, Workshop

from intaglio.content import intake
from intaglio.digest import Digest
from intaglio.errors import ExitCode
from intaglio.recipe import lock
from intaglio.recipe.lock import InputPin, Lock
from intaglio.recipe.sources.interface import Pin

pytestmark = pytest.mark.real
DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


# --- the interface ---------------------------------------------------------------------------------------------------


def test_the_answer_has_the_documented_form(shop: Workshop) -> None:
    shop.chain("one", "two")
    for statuses in (["built"] * 3, ["cached"] * 3):
        answer = shop.built("--tag", "team/model:rc1")
        assert set(answer) == {"image", "tag", "steps"}
        assert DIGEST.match(answer["image"])
        assert answer["tag"] == "team/model:rc1"
        for step, name, status in zip(answer["steps"], ("one", "two", "image"), statuses, strict=True):
            assert set(step) == {"name", "key", "status", "output", "seconds"}
            assert (step["name"], step["status"]) == (name, status)
            assert DIGEST.match(step["key"])
            assert DIGEST.match(step["output"])
            assert isinstance(step["seconds"], float)
            assert 0 <= step["seconds"] < 60
        assert answer["steps"][-1]["output"] == answer["image"]


def test_the_last_line_sums_up(shop: Workshop) -> None:
    shop.chain("one", "two")
    first = shop.run("build").ok()
    image = shop.store.tags()["tests/shop:1.0.0"].digest
    pattern = r"3 steps: {} in \d+\.\d s · tests/shop:1\.0\.0 {}"
    assert re.fullmatch(pattern.format("3 built", image), first.out.splitlines()[-1])
    assert re.fullmatch(pattern.format("3 cached", image), shop.run("build").ok().out.splitlines()[-1])
    shop.edit("two.py", 'b"two\\n"', 'b"2\\n"')
    image = shop.built("--tag", "other:1")["image"]
    shop.edit("two.py", 'b"2\\n"', 'b"2\\n" * 1')
    done = shop.run("build").ok()
    assert re.fullmatch(pattern.format("2 cached, 1 built", image), done.out.splitlines()[-1])


def test_data_goes_to_stdout_and_everything_else_to_stderr(shop: Workshop) -> None:
    shop.one(COPY)
    done = shop.run("build").ok()
    assert done.out.count("\n") == 1
    assert "make: built in" in done.err
    assert "\x1b" not in done.out + done.err
    quiet = shop.run("build", "--progress", "none").ok()
    assert quiet.err == ""


def test_progress_as_json_lines(shop: Workshop) -> None:
    shop.one('event(event="progress", done=1, total=2, unit="files"); write("x")')
    done = shop.run("build", "--progress", "json").ok()
    events = [json.loads(line) for line in done.err.splitlines()]
    assert {"begin", "end", "note"} <= {event["event"] for event in events}
    assert any(event["event"] == "end" and event["work"] == "make" and event["total"] == 2 for event in events)


def test_a_tag_moves_with_each_build_and_others_stay(shop: Workshop) -> None:
    shop.one(COPY)
    first = shop.built("--tag", "a:1")["image"]
    shop.built("--tag", "b:1")
    shop.edit("make.py", COPY, 'write("new")\n')
    second = shop.built("--tag", "a:1")["image"]
    listed = {one["tag"]: one["image"] for one in shop.run("store", "list", "--json").ok().json["images"]}
    assert listed == {"a:1": second, "b:1": first}
    assert second != first


@pytest.mark.parametrize("tag", ["", " ", "a b", "sha256:" + "0" * 64, "a\nb", "x" * 2000])
def test_a_tag_that_is_no_name_is_refused(shop: Workshop, tag: str) -> None:
    shop.one(COPY)
    assert "--tag" in shop.build("--tag", tag).failed(ExitCode.USAGE).err
    shop.assert_unharmed()


def test_a_recipe_is_a_folder_or_its_file(shop: Workshop) -> None:
    shop.one(COPY)
    image = shop.built()["image"]
    for words in ([], [shop.recipe], [shop.recipe / "Modelfile.toml"], ["./Modelfile.toml"]):
        assert shop.run("build", *words, "--json").ok().json["image"] == image


# --- keys ------------------------------------------------------------------------------------------------------------


def test_without_keys_it_stops_with_a_hint_to_init(shop: Workshop) -> None:
    shop.one(COPY)
    shutil.rmtree(shop.home / "keys")
    failed = shop.build().failed(ExitCode.MACHINE)
    assert "intaglio init" in failed.json["error"]["hint"]
    assert not list((shop.home / "store" / "logs").glob("*")), "no step has run"
    shop.assert_unharmed()
    intake.remove(shop.home / "store")
    (shop.home / "policy.toml").unlink()
    shop.run("init").ok()
    assert shop.built()


def test_without_a_policy_it_stops_with_a_hint(shop: Workshop) -> None:
    shop.one(COPY)
    (shop.home / "policy.toml").unlink()
    failed = shop.build().failed(ExitCode.NOT_VERIFIABLE)
    assert "init" in failed.err
    shop.assert_unharmed()


def test_encrypted_keys_are_opened_before_any_step_and_only_when_needed(shop: Workshop, tmp_path: Path) -> None:
    shop.one(COPY)
    shutil.rmtree(shop.home / "keys")
    (shop.home / "policy.toml").unlink()
    right = {"INTAGLIO_PASSPHRASE": "correct horse"}
    assert shop.run("init", "--json", **right).ok().json["encrypted"] is True
    for environment in ({"INTAGLIO_PASSPHRASE": "hunter2"}, {}):
        failed = shop.build(**environment).failed(ExitCode.UNTRUSTED)
        assert failed.json["error"]["hint"]
        assert "hunter2" not in failed.out + failed.err
        assert not list((shop.home / "store" / "logs").glob("*")), "no step has run"
        shop.assert_unharmed()
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    assert shop.statuses(INTAGLIO_PASSPHRASE_FILE=str(secret)) == {"make": "built", "image": "built"}
    assert shop.statuses() == {"make": "cached", "image": "cached"}, "what is cached is signed already"
    for path in (shop.home / "store").rglob("*"):
        if path.is_file() and "environments" not in path.parts:
            assert b"correct horse" not in path.read_bytes(), path


# --- what is missing -------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def pinned_elsewhere(shop: Workshop, uri: str) -> None:
    """Write a recipe with an input at ``uri`` that the lock pins and the store does not hold."""
    digest = Digest.of(b"elsewhere")
    shop.one(COPY)
    shop.edit("Modelfile.toml", 'uri = "file:data.txt"', f'uri = "{uri}", digest = "{digest}"')
    pins = lock.read(shop.recipe / lock.FILE)
    assert pins is not None
    pin = InputPin(uri, Pin(Digest.of(b"tree"), 9, 1))
    lock.write(shop.recipe / lock.FILE, Lock({"data": pin}, pins.programs, pins.toolchains))


def test_a_source_that_does_not_answer_is_20(shop: Workshop) -> None:
    port = closed_port()
    pinned_elsewhere(shop, f"http://127.0.0.1:{port}/model.bin")
    failed = shop.build().failed(ExitCode.SOURCE)
    assert f"http://127.0.0.1:{port}/model.bin" in failed.err
    shop.assert_unharmed()


def test_offline_asks_nobody_and_is_20(shop: Workshop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        pinned_elsewhere(shop, f"http://127.0.0.1:{server.getsockname()[1]}/model.bin")
        failed = shop.build("--offline").failed(ExitCode.SOURCE)
        assert "--offline" in failed.err
        with pytest.raises(TimeoutError):
            server.accept()
    shop.assert_unharmed()


def test_offline_builds_what_is_here(shop: Workshop) -> None:
    shop.chain("one", "two")
    assert set(shop.statuses("--offline").values()) == {"built"}


def test_without_bubblewrap_it_is_50_with_a_hint(shop: Workshop, tmp_path: Path) -> None:
    shop.one(COPY)
    programs = tmp_path / "bin"
    programs.mkdir()
    failed = shop.run("build", PATH=str(programs)).failed(ExitCode.MACHINE)
    assert "bwrap" in failed.err
    assert "install bubblewrap" in failed.err
    shop.assert_unharmed()


def test_without_bubblewrap_what_is_cached_is_still_built(shop: Workshop, tmp_path: Path) -> None:
    shop.one(COPY)
    shop.built()
    assert set(shop.statuses(PATH=str(tmp_path)).values()) == {"cached"}


def test_an_unknown_recipe_key_is_10_with_file_and_line(shop: Workshop) -> None:
    shop.one(COPY)
    shop.edit("Modelfile.toml", "[image]\n", "[image]\nform = 1\n")
    shop.edit("Modelfile.toml", 'licence = "Apache-2.0"\n', "licence = 7\n")
    failed = shop.build().failed(ExitCode.RECIPE)
    lines = (shop.recipe / "Modelfile.toml").read_text().splitlines()
    message = failed.json["error"]["message"]
    assert f"Modelfile.toml:{lines.index('form = 1') + 1}: image.form: unknown key; did you mean from?" in message
    assert f"Modelfile.toml:{lines.index('licence = 7') + 1}: model.licence: expected" in message
    shop.assert_unharmed()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('uses = "./make"', 'uses = "finetone"', "steps.make.uses: unknown step program 'finetone'"),
        ('source = "data"', 'source = "make"', "a cycle: make → make"),
        ('source = "data"', 'source = "dta"', "did you mean data?"),
        ('source = "data"', 'sauce = "data"', "did you mean source?"),
        ('from = "make"', 'from = "data"', "'data' is an input, not a step"),
        ("file:data.txt", "https://example.org/x.bin", "not pinned"),
        ("file:data.txt", "file:gone.txt", "missing file"),
        ('version = "1.0.0"', 'version = "1.0.0"\ntoken = "hf_abcdefghijklmnopqrstuvwxyz012345"', "model.token"),
        ("[image]", "[image", "Modelfile.toml:"),
    ],
)
def test_each_mistake_of_a_recipe_is_10(shop: Workshop, old: str, new: str, says: str) -> None:
    shop.one(COPY)
    shop.edit("Modelfile.toml", old, new)
    failed = shop.build().failed(ExitCode.RECIPE)
    assert says in failed.err
    assert re.search(r"Modelfile\.toml:\d+: ", failed.err)
    assert "hf_" not in failed.err
    shop.assert_unharmed()


def test_no_recipe_is_10(shop: Workshop) -> None:
    (shop.root / "empty").mkdir()
    failed = shop.run("build", shop.root / "empty").failed(ExitCode.RECIPE)
    assert "Modelfile.toml" in failed.err


def test_no_toolchain_of_that_name_is_10(shop: Workshop) -> None:
    shop.one(COPY, lock=False)
    shop.edit("make.toml", 'toolchain = "tiny"', 'toolchain = "huge"')
    assert "toolchain huge" in shop.run("build").failed(ExitCode.RECIPE).err


def test_a_toolchain_whose_wheel_nobody_has_is_20(shop: Workshop) -> None:
    shop.one(COPY, lock=False)
    path = shop.builder / "toolchains" / "tiny" / "pylock.toml"
    path.write_text(re.sub(r'sha256 = "[0-9a-f]{64}"', f'sha256 = "{"0" * 64}"', path.read_text()))
    shop.lock()
    (shop.root / "wheels").rename(shop.root / "gone")
    (shop.root / "wheels").mkdir()
    failed = shop.build().failed(ExitCode.SOURCE)
    assert "tiny-1.0" in failed.err
    shop.assert_unharmed()


def test_a_toolchain_whose_wheel_is_another_is_21(shop: Workshop) -> None:
    shop.one(COPY, lock=False)
    path = shop.builder / "toolchains" / "tiny" / "pylock.toml"
    path.write_text(re.sub(r'sha256 = "[0-9a-f]{64}"', f'sha256 = "{"0" * 64}"', path.read_text()))
    shop.lock()
    failed = shop.build().failed(ExitCode.CORRUPT)
    assert "tiny-1.0" in failed.err
    shop.assert_unharmed()


# --- the disk --------------------------------------------------------------------------------------------------------


def on_a_small_disk(place: Path, size: str) -> list[str]:
    """Return what starts a program that sees an empty file system of ``size`` at ``place``, and nobody else does."""
    own = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    return [*own, "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"', str(place)]


THEN_VERIFY = """
"$@"; status=$?
{program} store verify --store {store} --json || exit 99
{program} store list --store {store} --json || exit 99
exit $status
"""


@pytest.mark.parametrize(
    ("size", "code"),
    [
        ("1200k", 'write(b"x" * (8 << 20))'),
        ("3m", 'import time; write(b"x" * (8 << 20)); time.sleep(5)'),
        ("3m", '[write(os.urandom(4096), f"{n}.txt") for n in range(2000)]'),
        ("64k", COPY),
        ("300k", COPY),
    ],
)
def test_a_full_disk_is_50_and_harms_nothing(shop: Workshop, tmp_path: Path, size: str, code: str) -> None:
    shop.one(code)
    place = tmp_path / "small disk"
    place.mkdir()
    script = THEN_VERIFY.format(program=PROGRAM, store=f"'{place}/store'")
    build = ["build", "--store", str(place / "store")]
    done = shop.run(*build, before=[*on_a_small_disk(place, size), "sh", "-c", script, "sh"])
    assert done.status == ExitCode.MACHINE, f"{done.status}\n{done.out}\n{done.err}"
    assert "error: " in done.err
    assert "disk is full" in done.err or "disk full" in done.err
    assert not re.search("^Traceback", done.err, re.MULTILINE)
    verified, listed = (json.loads(line) for line in done.out.splitlines())
    assert verified["damaged"] == []
    assert listed == {"images": []}


# --- interruption ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_at_once_and_harms_nothing(shop: Workshop, kind: signal.Signals) -> None:
    shop.one("import time; time.sleep(60)")
    process = shop.start("build")
    deadline = time.monotonic() + 20
    while not list((shop.home / "store" / "logs").glob("*.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(kind)
    _, err = process.communicate(timeout=20)  # a third of what the step would take
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM}[kind]
    assert "Traceback" not in err
    if kind == signal.SIGINT:
        assert "interrupted" in err
        shop.assert_unharmed()
    else:
        assert shop.run("store", "verify").ok()
