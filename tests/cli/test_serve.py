"""``intaglio serve`` up to the server: what is verified is what is held, read once. The rest: tests/build."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from tests import images
from tests.images import Draft

from intaglio import verify
from intaglio.build import serve, serving
from intaglio.cli.main import cli
from intaglio.errors import Error
from intaglio.guard import memory

TAG = "tests/model:1.0.0"


class Watched:
    """A home with one image; what was hashed, and what a server would have been given."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch) -> None:
        self.home, self.draft = home, Draft().sign()
        self.store = self.draft.store(home / "store")
        self.store.tag(TAG, self.draft.image)
        (home / "policy.toml").write_text(images.policy_text())
        self.hashed: list[str] = []
        self.port = 0
        self.served: dict[str, bytes] | None = None
        for module in (verify, memory):
            patch.setattr(module, "_hash", self._counting(module._hash))
        patch.setattr(serving, "prepare", lambda *_, **__: Prepared())
        patch.setattr(serve, "serve", self._serve)
        patch.setenv("INTAGLIO_HOME", str(home))

    def _counting(self, work: Any) -> Any:
        def counted(*given: Any) -> Any:
            self.hashed.append(next(one.path for one in given if hasattr(one, "path")))
            return work(*given)

        return counted

    def _serve(self, *, held: Any, **_: Any) -> int:
        self.served = {file.path: Path(f"/proc/self/fd/{file.descriptor}").read_bytes() for file in held}
        return 0

    def run(self, *options: str) -> int:
        try:
            cli.main(["serve", TAG, "--offline", "--port", str(self.port), *options], "intaglio", standalone_mode=False)
        except Error as error:
            return int(error.exit_code)
        return 0


class Prepared:
    program = type("Program", (), {"name": "toy"})
    service = None


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


def test_every_byte_is_read_once_for_verdict_and_server(watched: Watched) -> None:
    assert watched.run() == 0
    assert sorted(watched.hashed) == sorted(watched.draft.files)
    assert watched.served == watched.draft.files


def test_a_changed_byte_is_never_served(watched: Watched) -> None:
    blob = watched.store.path(watched.draft.entries[0].digest)
    blob.chmod(0o644)
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    assert watched.run() == 21
    assert watched.served is None


def test_what_the_policy_refuses_is_never_served(watched: Watched) -> None:
    policy = watched.home / "policy.toml"
    policy.write_text(policy.read_text() + '\n[licences]\nallow = ["MIT"]\n')
    assert watched.run() == 23
    assert watched.served is None


def test_a_port_that_is_taken_is_said_before_anything_is_read(watched: Watched) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        watched.port = taken.getsockname()[1]
        assert watched.run() == 50
    assert watched.hashed == []


def test_prepare_holds_nothing(watched: Watched) -> None:
    assert watched.run("--prepare") == 0
    assert watched.served is None
