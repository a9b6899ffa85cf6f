from __future__ import annotations

import base64
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from intaglio.content import credentials
from intaglio.content.credentials import Credential
from intaglio.errors import MachineError

HOST = "registry.example.com:5000"
SECRET = "correct horse"  # noqa: S105 - nobody's


@pytest.fixture(autouse=True)
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker configuration of the test's own, and helpers on its path."""
    (tmp_path / "docker").mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "docker" / "config.json"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def auth(user: str = "ci", password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def helper(folder: Path, script: str, name: str = "test") -> None:
    (folder / f"docker-credential-{name}").write_text(f"#!/bin/sh\n{script}\n")
    (folder / f"docker-credential-{name}").chmod(0o755)


def test_nothing_is_found_where_there_is_nothing(home: Path) -> None:
    assert credentials.find(HOST, home) is None


def test_what_is_kept_is_found_again_and_only_for_its_host(home: Path) -> None:
    path = credentials.keep(HOST, Credential("ci", SECRET), home)
    credentials.keep("other.example.com", Credential("me", "pass:word"), home)
    assert credentials.find(HOST, home) == Credential("ci", SECRET)
    assert credentials.find("other.example.com", home) == Credential("me", "pass:word")
    assert credentials.find("registry.example.com", home) is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(home) == ["auth.json"]


def test_a_second_login_replaces_the_first(home: Path) -> None:
    for password in ("old", SECRET):
        credentials.keep(HOST, Credential("ci", password), home)
    assert credentials.find(HOST, home) == Credential("ci", SECRET)


def test_many_logins_at_once_lose_none(home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: credentials.keep(f"host{number}.example", Credential("u", "p"), home), range(24)))
    assert len(json.loads((home / "auth.json").read_text())["auths"]) == 24


def test_the_home_comes_before_docker(home: Path, docker: Path) -> None:
    docker.write_text(json.dumps({"auths": {HOST: auth("docker")}}))
    assert credentials.find(HOST, home) == Credential("docker", SECRET)
    credentials.keep(HOST, Credential("ci", SECRET), home)
    assert credentials.find(HOST, home) == Credential("ci", SECRET)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (auth("ci", "with:colon"), Credential("ci", "with:colon")),
        (auth(password=SECRET + "\0\0"), Credential("ci", SECRET)),
        ({"username": "ci", "password": SECRET}, Credential("ci", SECRET)),
        ({"identitytoken": "abc", **auth("<token>", "")}, Credential("", "", "abc")),
        ({"auth": ""}, None),
    ],
)
def test_every_form_of_an_entry(home: Path, docker: Path, entry: dict[str, str], expected: Credential | None) -> None:
    docker.write_text(json.dumps({"auths": {HOST: entry}}))
    assert credentials.find(HOST, home) == expected


def test_docker_hub_by_dockers_own_name(home: Path, docker: Path) -> None:
    docker.write_text(json.dumps({"auths": {"https://index.docker.io/v1/": auth()}}))
    assert credentials.find("registry-1.docker.io", home) == Credential("ci", SECRET)


@pytest.mark.parametrize("config", [{"credHelpers": {HOST: "test"}}, {"credsStore": "test", "auths": {HOST: {}}}])
def test_a_helper_is_asked(tmp_path: Path, home: Path, docker: Path, config: dict[str, Any]) -> None:
    docker.write_text(json.dumps(config))
    answer = json.dumps({"ServerURL": HOST, "Username": "ci", "Secret": SECRET})
    helper(tmp_path, f'[ "$1" = get ] && [ "$(cat)" = {HOST} ] && echo \'{answer}\'')
    assert credentials.find(HOST, home) == Credential("ci", SECRET)


def test_a_helper_may_give_a_token(tmp_path: Path, home: Path, docker: Path) -> None:
    docker.write_text(json.dumps({"credsStore": "test"}))
    helper(tmp_path, """echo '{"Username":"<token>","Secret":"abc"}'""")
    assert credentials.find(HOST, home) == Credential("", "", "abc")


def test_a_helper_without_this_credential(tmp_path: Path, home: Path, docker: Path) -> None:
    docker.write_text(json.dumps({"credsStore": "test"}))
    helper(tmp_path, "echo 'credentials not found in native keychain'; exit 1")
    assert credentials.find(HOST, home) is None


@pytest.mark.parametrize(
    "script", [f"echo {SECRET}", f'echo \'{{"Secret":"{SECRET}"}}\'', f"echo {SECRET} >&2; exit 3"]
)
def test_a_helper_that_fails_gives_nothing_away(tmp_path: Path, home: Path, docker: Path, script: str) -> None:
    docker.write_text(json.dumps({"credHelpers": {HOST: "test"}}))
    helper(tmp_path, script)
    with pytest.raises(MachineError) as caught:
        credentials.find(HOST, home)
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "", "missing", 3])
def test_a_helper_that_is_none(home: Path, docker: Path, name: object) -> None:
    docker.write_text(json.dumps({"credHelpers": {HOST: name}}))
    with pytest.raises(MachineError):
        credentials.find(HOST, home)


@pytest.mark.parametrize(
    "text",
    [
        "not json " + SECRET,
        json.dumps({"auths": [SECRET]}),
        json.dumps({"auths": {HOST: SECRET}}),
        json.dumps({"auths": {HOST: {"auth": "§" + SECRET}}}),
        json.dumps({"auths": {HOST: {"auth": base64.b64encode(SECRET.encode()).decode()}}}),
        json.dumps({"auths": {HOST: {"auth": 3}}}),
    ],
)
def test_a_malformed_file_is_named_and_not_repeated(home: Path, docker: Path, text: str) -> None:
    docker.write_text(text)
    with pytest.raises(MachineError) as caught:
        credentials.find(HOST, home)
    assert str(docker) in caught.value.message
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"


def test_a_malformed_file_is_not_written_over(home: Path) -> None:
    home.mkdir()
    (home / "auth.json").write_text("precious")
    with pytest.raises(MachineError):
        credentials.keep(HOST, Credential("ci", SECRET), home)
    assert (home / "auth.json").read_text() == "precious"


def test_no_secret_is_shown() -> None:
    shown = repr(Credential("ci", SECRET, "token-abc"))
    assert SECRET not in shown
    assert "abc" not in shown
