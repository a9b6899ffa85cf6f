"""Stock cosign accepts what is exported, and refuses it after one flipped bit where it looks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.images import KEYS, Draft, key, policy

from intaglio.content.export import export_layout
from intaglio.digest import Digest
from intaglio.verify import verify_layout

pytestmark = pytest.mark.real


@pytest.fixture
def draft() -> Draft:
    return Draft().sign()


@pytest.fixture
def layout(draft: Draft, tmp_path: Path) -> Path:
    export_layout(draft.store(tmp_path / "store"), draft.image.digest, tmp_path / "layout", name="examples/demo:1.0.0")
    return tmp_path / "layout"


def verify(cosign: Path, layout: Path, name: str = "release") -> subprocess.CompletedProcess[str]:
    command = [str(cosign), "verify", "--key", str(KEYS / f"{name}.pub"), "--insecure-ignore-tlog", "--local-image"]
    return subprocess.run(
        [*command, str(layout)],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(layout.parent), "PATH": "/usr/bin:/bin"},
    )


def flip(layout: Path, blob: bytes, place: int) -> None:
    data = bytearray(blob)
    data[place] ^= 1
    (layout / "blobs" / "sha256" / Digest.of(blob).hex).write_bytes(data)


def test_cosign_accepts_an_export(cosign: Path, draft: Draft, layout: Path) -> None:
    result = verify(cosign, layout)
    assert result.returncode == 0, result.stderr
    assert str(draft.image.digest) in result.stdout
    assert verify_layout(layout, policy()).verdict == "verified"


def test_cosign_refuses_another_key(cosign: Path, layout: Path) -> None:
    result = verify(cosign, layout, "builder")
    assert result.returncode != 0
    assert "signature" in result.stderr


def test_cosign_refuses_a_strangers_image(cosign: Path, tmp_path: Path) -> None:
    draft = Draft(release=key("stranger")).sign()
    export_layout(draft.store(tmp_path / "store"), draft.image.digest, tmp_path / "layout")
    assert verify(cosign, tmp_path / "layout").returncode != 0


@pytest.mark.parametrize("part", ["manifest", "signature", "payload"])
def test_cosign_and_we_refuse_one_flipped_bit(cosign: Path, draft: Draft, layout: Path, part: str) -> None:
    older = draft.referrers[1]
    if part == "manifest":
        # The bit is in the image: cosign asks whether the signed digest is the manifest's.
        flip(layout, draft.manifest, draft.manifest.index(b"LICENSE"))
    elif part == "signature":
        place = older.manifest.index(b"dev.cosignproject.cosign/signature") + 50
        flip(layout, older.manifest, place)
    else:
        flip(layout, older.blobs[1], older.blobs[1].index(b"docker-manifest-digest") + 40)
    assert verify(cosign, layout).returncode != 0
    report_code = _ours(layout)
    assert report_code == 21


def _ours(layout: Path) -> int:
    from intaglio.errors import VerificationError

    try:
        return verify_layout(layout, policy()).exit_code
    except VerificationError as error:
        return error.exit_code


def test_what_cosign_does_not_look_at_we_do(cosign: Path, draft: Draft, layout: Path) -> None:
    flip(layout, draft.files["model.gguf"], 200)
    assert verify(cosign, layout).returncode == 0  # cosign hashes no layer of a local image
    assert _ours(layout) == 21
