"""``intaglio policy``: the command as a person meets it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from intaglio.policy.document import load

PROGRAM = Path(sys.executable).with_name("intaglio")
POLICIES = Path(__file__).parents[2] / "policies"
GOOD = '[[case]]\ntitle = "mine"\nexpect = "verified"\n'
HEAD = 'version = 1\n[image]\nname = "examples/mine"\n'


def run(*words: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([PROGRAM, "policy", *words], capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture
def home() -> Path:
    """A home with keys and a policy."""
    subprocess.run([PROGRAM, "init"], check=True, capture_output=True)
    return Path(os.environ["INTAGLIO_HOME"])


# --- test -------------------------------------------------------------------------------------------------------------


def test_the_shipped_policies_and_cases() -> None:
    lines = run("test").stdout.splitlines()
    assert lines[0] == str(POLICIES / "default.toml")
    assert lines[-1].endswith("cases of 3 policies: 0 came out otherwise than stated")
    assert "  ok  a yanked base model                                     refused   23 source" in lines


def test_the_answer_as_json() -> None:
    document = json.loads(run("test", "--json").stdout)
    assert document["failed"] == 0
    assert document["passed"] == sum(len(one["cases"]) for one in document["policies"])
    case = document["policies"][0]["cases"][0]
    assert set(case) == {"title", "expected", "verdict", "exit_code", "rules", "as_stated", "problem"}
    assert [set(rule) for rule in case["rules"]] == [{"rule", "result", "detail"}] * 15


def test_a_policy_and_cases_of_ones_own(home: Path, tmp_path: Path) -> None:
    shutil.copy(home / "policy.toml", tmp_path / "mine.toml")
    done = run("test", tmp_path / "mine.toml", expect=2)
    assert str(tmp_path / "cases" / "mine.toml") in done.stderr
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "mine.toml").write_text(HEAD + GOOD)
    assert "1 cases of 1 policies: 0 came out" in run("test", tmp_path / "mine.toml").stdout
    assert "1 cases of 1 policies: 0 came out" in run("test", "--cases", tmp_path / "cases" / "mine.toml").stdout


def test_a_case_that_comes_out_otherwise(home: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.toml").write_text(HEAD + "damaged = true\n" + GOOD)
    done = run("test", "--cases", tmp_path / "cases.toml", expect=23)
    assert "NO  mine" in done.stdout
    assert "expected verified, found refused" in done.stdout
    assert "content: README.md: its bytes are not the promised ones" in done.stdout
    document = json.loads(run("test", "--cases", tmp_path / "cases.toml", "--json", expect=23).stdout)
    assert (document["passed"], document["failed"]) == (0, 1)
    assert document["policies"][0]["cases"][0]["problem"] == "expected verified, found refused"


def test_a_policy_loosened_by_accident_is_seen(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    shutil.copy(POLICIES / "cases" / "strict.toml", tmp_path / "cases")
    text = (POLICIES / "strict.toml").read_text()
    (tmp_path / "strict.toml").write_text(text.replace("required = true\nprograms = true", "required = false"))
    done = run("test", tmp_path / "strict.toml", expect=23)
    assert "NO  a yanked base model" in done.stdout


def test_no_policy_and_wrong_cases(home: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.toml").write_text(HEAD)
    assert "expected at least one [[case]]" in run("test", "--cases", tmp_path / "cases.toml", expect=25).stderr
    (tmp_path / "cases.toml").write_text(HEAD + GOOD)
    run("test", tmp_path / "none.toml", "--cases", tmp_path / "cases.toml", expect=25)


# --- show, check ------------------------------------------------------------------------------------------------------


def test_what_a_policy_asks(home: Path) -> None:
    lines = run("show").stdout.splitlines()
    assert lines[0] == "default"
    document = json.loads(run("show", home / "policy.toml", "--json").stdout)
    assert [line.split()[0] for line in lines[1:]] == [one["rule"] for one in document["rules"]]
    asks = {one["rule"]: one["asks"] for one in document["rules"]}
    assert asks["signature"] == f"by {document['roles']['release'][0][:19]}"
    assert asks["source"] == "nothing"


def test_no_policy_to_show() -> None:
    done = run("show", expect=25)
    assert "intaglio init" in done.stderr


def test_a_policy_that_is_one(home: Path) -> None:
    document = json.loads(run("check", home / "policy.toml", "--json").stdout)
    assert (document["name"], document["valid"]) == ("default", True)
    assert document["digest"] in run("check", home / "policy.toml").stdout


def test_every_mistake_of_a_policy(home: Path, tmp_path: Path) -> None:
    text = (home / "policy.toml").read_text().replace("require =", "requires =").replace('"gguf"', '"guff"')
    (tmp_path / "wrong.toml").write_text(text + '[freshness]\nmax_age = "soon"\n')
    done = run("check", tmp_path / "wrong.toml", expect=25)
    for part in ("did you mean require?", "did you mean gguf?", "found 'soon'", "docs/policy.md"):
        assert part in done.stderr
    error = json.loads(run("check", tmp_path / "wrong.toml", "--json", expect=25).stdout)["error"]
    assert error["type"] == "NotVerifiable"


# --- new --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "air-gap"])
def test_a_template_with_the_homes_keys(home: Path, name: str, tmp_path: Path) -> None:
    run("new", name, "-o", tmp_path / "policy.toml")
    policy = load(tmp_path / "policy.toml")
    assert policy.name == name
    assert policy.releasers == load(home / "policy.toml").releasers
    assert run("new", name).stdout == (tmp_path / "policy.toml").read_text()
    # A policy that is there is nobody's to overwrite.
    run("new", name, "-o", tmp_path / "policy.toml", expect=2)


def test_the_default_template_is_what_init_writes(home: Path) -> None:
    assert run("new", "default").stdout == (home / "policy.toml").read_text()


def test_init_writes_another_template_when_asked_to() -> None:
    home = Path(os.environ["INTAGLIO_HOME"])
    wrong = subprocess.run([PROGRAM, "init", "--policy", "airgap"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "did you mean air-gap?" in wrong.stderr, home.exists()) == (2, True, False)
    subprocess.run([PROGRAM, "init", "--policy", "air-gap"], check=True, capture_output=True)
    assert run("new", "air-gap").stdout == (home / "policy.toml").read_text()
    assert load(home / "policy.toml").source_required


def test_a_key_that_is_kept_elsewhere(home: Path, tmp_path: Path) -> None:
    (home / "keys" / "evaluator.key").unlink()
    done = run("new", "strict", expect=50)
    assert "intaglio key new evaluator" in done.stderr
    subprocess.run([PROGRAM, "key", "new", "away"], check=True, capture_output=True)
    public = subprocess.run([PROGRAM, "key", "show", "away", "--public"], check=True, capture_output=True).stdout
    (tmp_path / "evaluator.pub").write_bytes(public)
    document = json.loads(run("new", "strict", "--key", f"evaluator={tmp_path}/evaluator.pub", "--json").stdout)
    assert set(document["keys"]) == {"builder", "release", "evaluator"}
    assert public.decode().strip() in document["policy"]


def test_a_template_or_key_that_is_none(home: Path) -> None:
    assert "did you mean strict?" in run("new", "stric", expect=2).stderr
    assert "did you mean builder?" in run("new", "air-gap", "--key", "bilder=x", expect=2).stderr
    run("new", "air-gap", "--key", "builder=/nowhere", expect=50)
