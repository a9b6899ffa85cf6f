"""Stock model_signing accepts an exported folder, and refuses it after one flipped bit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.images import KEYS, Draft, policy

from intaglio.content.export import export_files
from intaglio.content.layout import Store
from intaglio.errors import ExitCode
from intaglio.verify import verify_folder

pytestmark = pytest.mark.real


@pytest.fixture
def draft() -> Draft:
    return Draft().sign()


@pytest.fixture
def store(draft: Draft, tmp_path: Path) -> Store:
    return draft.store(tmp_path / "store")


@pytest.fixture
def folder(draft: Draft, store: Store, tmp_path: Path) -> Path:
    export_files(store, draft.image.digest, tmp_path / "model", draft.referrers[2].blobs[1])
    return tmp_path / "model"


def verify(program: Path, folder: Path, name: str = "release") -> subprocess.CompletedProcess[str]:
    signature = ["--signature", str(folder / "model.sig"), "--public_key", str(KEYS / f"{name}.pub")]
    command = [str(program), "verify", "key", *signature, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_accepts_an_export(model_signing: Path, draft: Draft, store: Store, folder: Path) -> None:
    result = verify(model_signing, folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "succeeded" in result.stdout + result.stderr
    assert verify_folder(store, draft.image.digest, folder, policy()).verdict == "verified"


def test_refuses_another_key(model_signing: Path, folder: Path) -> None:
    assert verify(model_signing, folder, "builder").returncode != 0


@pytest.mark.parametrize("name", ["model.gguf", "sub/tokenizer_config.json", "LICENSE"])
def test_both_refuse_one_flipped_bit(model_signing: Path, draft: Draft, store: Store, folder: Path, name: str) -> None:
    flip(folder / name, 5)
    assert verify(model_signing, folder).returncode != 0
    assert verify_folder(store, draft.image.digest, folder, policy()).exit_code == ExitCode.CORRUPT


def test_both_refuse_a_flipped_bit_in_the_signature(
    model_signing: Path, draft: Draft, store: Store, folder: Path
) -> None:
    flip(folder / "model.sig", (folder / "model.sig").read_bytes().index(b'"sig":"') + 40)
    assert verify(model_signing, folder).returncode != 0
    assert verify_folder(store, draft.image.digest, folder, policy()).verdict == "refused"


def test_what_it_does_not_look_at_we_do(model_signing: Path, draft: Draft, store: Store, folder: Path) -> None:
    (folder / ".git" / "hooks").mkdir(parents=True)
    (folder / ".git" / "hooks" / "post-checkout").write_text("#!/bin/sh\n")
    assert verify(model_signing, folder).returncode == 0  # its command line leaves .git out by default
    assert verify_folder(store, draft.image.digest, folder, policy()).exit_code == ExitCode.CORRUPT
