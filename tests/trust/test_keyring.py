"""The keyring: files with the right modes, never over another, and passphrases from where they should come."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from intaglio.errors import Error, MachineError, NotVerifiable, Untrusted, UsageError
from intaglio.trust import keyring
from intaglio.trust.key import is_encrypted
from intaglio.trust.keyring import PassphraseSource


def nobody(question: str) -> str:
    raise AssertionError(f"nobody should have been asked: {question}")


def test_create_and_load(tmp_path: Path) -> None:
    public = keyring.create(tmp_path, "release")
    assert keyring.exists(tmp_path, "release")
    assert keyring.load_public(tmp_path, "release") == public
    assert keyring.load_private(tmp_path, "release", PassphraseSource(prompt=nobody)).public == public
    assert stat.S_IMODE((tmp_path / "keys" / "release.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert sorted(os.listdir(tmp_path / "keys")) == ["release.key", "release.pub"]


def test_an_encrypted_key_never_stands_on_disk_in_clear(tmp_path: Path) -> None:
    keyring.create(tmp_path, "builder", b"secret")
    assert is_encrypted((tmp_path / "keys" / "builder.key").read_bytes())


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    keyring.create(tmp_path, "builder")
    before = (tmp_path / "keys" / "builder.key").read_bytes()
    with pytest.raises(UsageError, match="already") as caught:
        keyring.create(tmp_path, "builder")
    assert caught.value.hint
    assert (tmp_path / "keys" / "builder.key").read_bytes() == before


def test_a_public_half_left_by_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    keyring.create(tmp_path, "builder")
    (tmp_path / "keys" / "builder.key").unlink()
    public = keyring.create(tmp_path, "builder")
    assert keyring.load_public(tmp_path, "builder") == public == keyring.load_private(tmp_path, "builder").public


def _create(home: str, results: multiprocessing.Queue[bool]) -> None:
    try:
        keyring.create(Path(home), "builder")
        results.put(True)
    except UsageError:
        results.put(False)


def test_of_many_at_once_one_makes_the_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[bool] = context.Queue()
    makers = [context.Process(target=_create, args=(str(tmp_path), results)) for _ in range(6)]
    for maker in makers:
        maker.start()
    made = [results.get(timeout=60) for _ in makers]
    for maker in makers:
        maker.join()
    assert made.count(True) == 1
    assert keyring.load_private(tmp_path, "builder").public == keyring.load_public(tmp_path, "builder")


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-x", "x" * 65, "a\n"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        keyring.create(tmp_path, name)


def test_passphrase_sources_in_their_order(tmp_path: Path) -> None:
    keyring.create(tmp_path, "k", b"right")
    named, other = tmp_path / "named", tmp_path / "other"
    named.write_bytes(b"right\nignored")
    other.write_bytes(b"wrong\r\n")
    environment = {keyring.VARIABLE: "wrong", keyring.FILE_VARIABLE: str(other)}
    for source in (
        PassphraseSource(file=named, environment=environment, prompt=nobody),
        PassphraseSource(environment=environment | {keyring.FILE_VARIABLE: str(named)}, prompt=nobody),
        PassphraseSource(environment={keyring.VARIABLE: "right"}, prompt=nobody),
        PassphraseSource(environment={}, prompt=lambda question: "right"),
    ):
        assert keyring.load_private(tmp_path, "k", source).public == keyring.load_public(tmp_path, "k")
    for wrong in (PassphraseSource(environment=environment), PassphraseSource(environment={})):
        with pytest.raises(Untrusted):
            keyring.load_private(tmp_path, "k", wrong)


def test_what_is_missing_is_named_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no key") as caught:
        keyring.load_private(tmp_path, "release")
    assert "init" in (caught.value.hint or "")
    with pytest.raises(MachineError):
        keyring.load_public(tmp_path, "release")
    with pytest.raises(MachineError, match="passphrase file"):
        PassphraseSource(file=tmp_path / "none").get("Passphrase")


def test_damaged_files(tmp_path: Path) -> None:
    keyring.create(tmp_path, "k")
    (tmp_path / "keys" / "k.pub").write_bytes(b"x")
    (tmp_path / "keys" / "k.key").write_bytes(b"PRIVATE secret bytes")
    with pytest.raises(NotVerifiable):
        keyring.load_public(tmp_path, "k")
    with pytest.raises(Untrusted) as caught:
        keyring.load_private(tmp_path, "k")
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, Error)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"a file")
    with pytest.raises(MachineError):
        keyring.create(tmp_path, "k")


def test_a_source_keeps_its_secrets_out_of_its_repr() -> None:
    assert "hunter2" not in repr(PassphraseSource(environment={keyring.VARIABLE: "hunter2"}))
