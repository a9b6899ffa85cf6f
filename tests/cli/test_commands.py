"""The smaller commands: keys and policy, locks, the store, and what explains a build."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import stat
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.workshop import COPY, PROGRAM, Finished, Workshop

from intaglio.digest import Digest
from intaglio.errors import ExitCode
from intaglio.trust.key import PublicKey

pytestmark = pytest.mark.real


# --- init and key ----------------------------------------------------------------------------------------------------


def test_init_makes_three_keys_and_a_policy_that_names_them(shop: Workshop) -> None:
    home = shop.root / "fresh"
    answer = shop.run("init", "--json", INTAGLIO_HOME=str(home)).ok().json
    assert answer["made"] == ["builder", "release", "evaluator", "policy"]
    assert answer["encrypted"] is False
    assert stat.S_IMODE((home / "keys" / "builder.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "keys").stat().st_mode) == 0o700
    policy = (home / "policy.toml").read_text()
    for name in ("builder", "release", "evaluator"):
        pem = (home / "keys" / f"{name}.pub").read_text()
        assert pem.strip() in policy
        assert answer["keys"][name] == str(PublicKey.from_pem(pem.encode()).id)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    again = shop.run("init", "--json", INTAGLIO_HOME=str(home)).ok().json
    assert again["made"] == []
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_init_with_a_passphrase_encrypts_the_keys(shop: Workshop, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\nsecond line\n")
    ways: list[tuple[list[str | Path], dict[str, str]]] = [
        ([], {"INTAGLIO_PASSPHRASE": "correct horse"}),
        (["--passphrase-file", secret], {}),
    ]
    for number, (words, environment) in enumerate(ways):
        home = shop.root / f"fresh{number}"
        answer = shop.run("init", "--json", *words, INTAGLIO_HOME=str(home), **environment).ok().json
        assert answer["encrypted"] is True
        assert b"ENCRYPTED" in (home / "keys" / "release.key").read_bytes()


def at_a_terminal(shop: Workshop, answers: Sequence[str], *words: str, **environment: str) -> Finished:
    """Run ``intaglio`` as a person does, with a terminal for input and messages; return how it ended and what it shows.

    ``answers`` are typed one after the other, each when a question stands there.
    """
    ours, theirs = pty.openpty()

    def own() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [PROGRAM, *words],
        cwd=shop.recipe,
        env={**shop.environment, **environment},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        preexec_fn=own,
    )
    os.close(theirs)
    shown, waiting = b"", list(answers)
    with contextlib.suppress(OSError):  # the terminal's other end has gone
        while piece := os.read(ours, 4096):
            shown += piece
            if waiting and shown.count(b"Passphrase for ") > len(answers) - len(waiting) and shown.endswith(b": "):
                os.write(ours, waiting.pop(0).encode() + b"\n")
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    return Finished(process.returncode, out, shown.decode())


def test_a_passphrase_is_asked_for_at_a_terminal_and_not_shown(shop: Workshop) -> None:
    shop.one(COPY)
    home = {"INTAGLIO_HOME": str(shop.root / "asked")}
    made = at_a_terminal(shop, ["correct horse"], "init", "--json", **home).ok()
    assert made.json["encrypted"] is True
    assert "Passphrase for the new keys" in made.err
    wrong = at_a_terminal(shop, ["wrong"], "build", ".", "--progress", "none", **home)
    assert "passphrase" in wrong.failed(ExitCode.UNTRUSTED).err.splitlines()[-1]
    built = at_a_terminal(shop, ["correct horse"] * 2, "build", ".", "--json", "--progress", "none", **home).ok()
    assert [f"Passphrase for key {name}: " in built.err for name in ("builder", "release")] == [True, True]
    for done in (made, built, wrong):
        assert "correct horse" not in done.err + done.out
        assert "wrong\r" not in done.err
    assert shop.run("verify", "tests/shop:1.0.0", **home).ok()


def test_without_a_terminal_nobody_is_asked(shop: Workshop) -> None:
    home = {"INTAGLIO_HOME": str(shop.root / "asked")}
    at_a_terminal(shop, [""], "init", **home).ok()
    assert "ENCRYPTED" not in (shop.root / "asked" / "keys" / "release.key").read_text()
    assert shop.run("init", "--json", INTAGLIO_HOME=str(shop.root / "unasked")).ok().json["encrypted"] is False


def test_key_new_makes_a_key_and_never_over_another(shop: Workshop) -> None:
    made = shop.run("key", "new", "bank", "--json").ok().json
    shown = shop.run("key", "show", "bank", "--json").ok().json
    assert shown["id"] == made["id"]
    assert shop.run("key", "show", "bank", "--public").ok().out == made["public"]
    assert made["public"].startswith("-----BEGIN PUBLIC KEY-----\n")
    before = (shop.home / "keys" / "bank.key").read_bytes()
    assert "never overwritten" in shop.run("key", "new", "bank").failed(ExitCode.USAGE).err
    assert (shop.home / "keys" / "bank.key").read_bytes() == before
    assert "PRIVATE" not in shop.run("key", "show", "bank").ok().out
    assert shop.run("key", "show", "nobody").failed(ExitCode.MACHINE)


def test_the_shown_public_key_is_one_that_openssl_reads(shop: Workshop) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    pem = shop.run("key", "show", "release", "--public").ok().out
    done = subprocess.run(
        ["openssl", "pkey", "-pubin", "-noout", "-text"], input=pem, capture_output=True, text=True, check=True
    )
    assert "256 bit" in done.stdout


# --- lock and update -------------------------------------------------------------------------------------------------


def test_lock_says_what_it_pinned_and_then_nothing(shop: Workshop) -> None:
    shop.one(COPY, lock=False)
    answer = shop.run("lock", ".", "--json").ok().json
    assert [(change["kind"], change["name"], change["old"]) for change in answer["changes"]] == [
        ("input", "data", None),
        ("program", "./make", None),
        ("toolchain", "tiny", None),
    ]
    before = (shop.recipe / "Modelfile.lock").stat().st_mtime_ns
    assert shop.run("lock", "--json").ok().json["changes"] == []
    assert (shop.recipe / "Modelfile.lock").stat().st_mtime_ns == before
    assert "nothing to change" in shop.run("lock").ok().out


def test_lock_never_moves_a_pin(shop: Workshop) -> None:
    shop.one(COPY)
    before = (shop.recipe / "Modelfile.lock").read_bytes()
    (shop.recipe / "data.txt").write_text("other\n")
    shop.edit("make.py", COPY, 'write("other")\n')
    said = shop.run("lock").ok().out
    assert "program ./make: stays at sha256:" in said
    assert (shop.recipe / "Modelfile.lock").read_bytes() == before


def test_update_moves_what_is_named_and_says_from_where_to_where(shop: Workshop) -> None:
    shop.one(COPY)
    (shop.recipe / "data.txt").write_text("other\n")
    shop.edit("make.py", COPY, 'write("other")\n')
    said = shop.run("update", ".", "./make").ok().out
    assert said.startswith("program ./make: sha256:")
    assert " → sha256:" in said
    assert shop.run("build").failed(ExitCode.CORRUPT), "the input's pin has not moved"
    assert shop.run("update", ".", "dta").failed(ExitCode.USAGE).err.startswith("error: nothing called 'dta'")
    shop.run("update", ".", "data").ok()
    assert shop.run("build", "--locked").ok()


def test_the_lock_of_a_failed_lock_is_not_written(shop: Workshop) -> None:
    shop.one(COPY, lock=False)
    shop.edit("Modelfile.toml", "file:data.txt", "pypi:no-such-package-here==1.0")
    shop.run("lock").failed(ExitCode.SOURCE)
    assert not (shop.recipe / "Modelfile.lock").exists()


# --- explain, plan ---------------------------------------------------------------------------------------------------


def test_explain_has_the_documented_form(shop: Workshop) -> None:
    shop.chain("one", "two")
    waiting = shop.run("explain", "two", "--json").ok().json
    assert waiting == {"step": "two", "key": None, "status": "unknown", "differences": []}
    assert "depends on the output of one" in shop.run("explain", "two").ok().out
    answer = shop.run("explain", ".", "one", "--json").ok().json
    assert (answer["status"], answer["differences"]) == ("build", [])
    key = shop.built()["steps"][0]["key"]
    assert shop.run("explain", "one", "--json").ok().json == {
        "step": "one",
        "key": key,
        "status": "cached",
        "differences": [],
    }
    assert "did you mean one?" in shop.run("explain", "on").failed(ExitCode.USAGE).err


def test_explain_takes_recipe_and_step_in_either_order(shop: Workshop) -> None:
    shop.chain("one")
    words: list[list[str | Path]] = [
        ["one"],
        [".", "one"],
        ["one", "."],
        [shop.recipe, "one"],
        ["Modelfile.toml", "one"],
    ]
    assert len({shop.run("explain", *each).ok().out for each in words}) == 1


# --- store -----------------------------------------------------------------------------------------------------------


def test_store_list_and_du(shop: Workshop) -> None:
    assert shop.run("store", "list", "--json").ok().json == {"images": []}
    shop.one('write("x" * 100000)')
    image = shop.built()["image"]
    assert shop.run("store", "list", "--json").ok().json == {"images": [{"tag": "tests/shop:1.0.0", "image": image}]}
    assert shop.run("store", "list").ok().out == f"tests/shop:1.0.0  {image}\n"
    sizes = shop.run("store", "du", "--json").ok().json["bytes"]
    assert sizes["blobs"] >= 100_000
    assert set(sizes) == {"blobs", "environments", "partial", "tmp", "logs"}
    assert "blobs" in shop.run("store", "du").ok().out


def test_store_verify_finds_and_removes_damage(shop: Workshop) -> None:
    shop.one('write("made")')
    shop.built()
    clean = shop.run("store", "verify", "--json").ok().json
    assert set(clean) == {"blobs", "referrers", "damaged", "repaired"}
    assert (clean["damaged"], clean["repaired"], clean["referrers"]) == ([], False, 6)
    blob = shop.store.path(Digest.of(b"made"))
    blob.chmod(0o644)
    blob.write_bytes(b"Made")
    (blob.parent / "stray").write_text("?")
    done = shop.run("store", "verify", "--json")
    assert done.status == ExitCode.CORRUPT
    assert len(done.json["damaged"]) == 2
    assert all(any(name in line for line in done.json["damaged"]) for name in (blob.name, "stray"))
    assert "--repair" in done.err
    assert shop.run("store", "verify", "--repair").ok()
    assert not blob.exists()
    assert shop.run("store", "verify").ok()
    assert shop.statuses()["make"] == "built"


@pytest.mark.parametrize("name", ["Shell", "shell"])
def test_shell_opens_the_sandbox_of_a_step(shop: Workshop, name: str) -> None:
    if name == "Shell":
        assert shop.run(name).failed(ExitCode.USAGE)
        return
    shop.chain("one", "two")
    shop.built()
    done = subprocess.run(
        [str(PROGRAM), "shell", "two"],
        cwd=shop.recipe,
        env=shop.environment,
        input="cat /in/source/model.txt; hostname; ls /step/program; exit 7\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7
    assert "what the model is made of\none\nbuild\nstep.py\nstep.toml\n" in done.stdout


def test_every_answer_under_json_is_one_object(shop: Workshop) -> None:
    shop.chain("one")
    shop.built()
    for words in (
        ["init"], ["lock"], ["update", ".", "data"], ["plan"], ["build"], ["explain", "one"], ["log", "one"],
        ["replay", "one"], ["verify", "tests/shop:1.0.0"], ["export", "tests/shop:1.0.0", "out"],
        ["key", "new", "x"], ["key", "show", "x"], ["store", "verify"], ["store", "du"], ["store", "list"],
    ):  # fmt: skip
        done = shop.run(*words, "--json").ok()
        assert isinstance(done.json, dict), words
        assert json.dumps(done.json, ensure_ascii=False) + "\n" == done.out


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["", "sha256:x", "a name", "../up"])
def test_a_pulled_image_gets_no_name_that_could_not_be_looked_up(shop: Workshop, tag: str) -> None:
    said = shop.run("pull", "localhost:1/models/demo:1", "--tag", tag).failed(ExitCode.USAGE).err
    assert "for --tag" in said
