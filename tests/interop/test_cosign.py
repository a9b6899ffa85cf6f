"""Stock cosign accepts what is exported, and refuses it after one flipped bit where it looks."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest
from tests import runnable
from tests.images import KEYS, Draft, claim, key, part, policy

from intaglio.content.attestations import derive
from intaglio.content.cosign_tag import manifest_of
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
from intaglio.content.export import export_layout
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.trust.cosign import bundle_referrer, runtime_referrers
from intaglio.trust.statement import PROVENANCE, TEST_RESULT
from intaglio.verify import verify_layout

pytestmark = pytest.mark.real


@pytest.fixture
def draft() -> Draft:
    return Draft().sign().measure()


@pytest.fixture
def layout(draft: Draft, tmp_path: Path) -> Path:
    export_layout(draft.store(tmp_path / "store"), draft.image.digest, tmp_path / "layout", name="examples/demo:1.0.0")
    return tmp_path / "layout"


def verify(
    cosign: Path, layout: Path, name: str = "release", what: tuple[str, ...] = ("verify",)
) -> subprocess.CompletedProcess[str]:
    options = ["--key", str(KEYS / f"{name}.pub"), "--insecure-ignore-tlog", "--local-image"]
    return subprocess.run(
        [str(cosign), *what, *options, str(layout)],
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


ATTESTED = {"slsaprovenance1": "builder", TEST_RESULT: "evaluator"}


@pytest.mark.parametrize("kind", ATTESTED)
def test_cosign_accepts_the_attestations_of_an_export(cosign: Path, draft: Draft, layout: Path, kind: str) -> None:
    attestation = ("verify-attestation", "--type", kind)
    result = verify(cosign, layout, ATTESTED[kind], attestation)
    assert result.returncode == 0, result.stderr
    (found,) = [json.loads(base64.b64decode(json.loads(line)["payload"])) for line in result.stdout.splitlines()]
    assert found["subject"][0]["digest"] == {"sha256": draft.image.digest.hex}
    assert found["predicateType"] == {"slsaprovenance1": PROVENANCE}.get(kind, kind)
    for name in {"builder", "evaluator", "release", "stranger"} - {ATTESTED[kind]}:
        assert verify(cosign, layout, name, attestation).returncode != 0, name
    assert verify(cosign, layout).returncode == 0


def test_cosign_refuses_an_attestation_after_one_flipped_bit(cosign: Path, draft: Draft, layout: Path) -> None:
    store = draft.store(layout.parent / "other")
    attested = derive(store, draft.image.digest)
    assert attested is not None
    for envelope in attested.blobs[1:]:
        flip(layout, envelope, envelope.index(b'"sig":"') + 20)
    for kind, name in ATTESTED.items():
        assert verify(cosign, layout, name, ("verify-attestation", "--type", kind)).returncode != 0


def test_cosign_accepts_the_attestations_of_a_runtime_image(cosign: Path, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    made = runnable.image(store, "", python=False)
    manifest = manifest_of(made.config, made.layers, {})
    image = Descriptor(MANIFEST_TYPE, Digest.of(manifest), len(manifest))
    assembly = claim(key("builder"), "assemble", image.digest, [part("toolchain"), part("program")])
    referrers = runtime_referrers(image, "runtimes/demo", key("release"))
    for one in (*referrers, bundle_referrer(image, assembly, PROVENANCE)):
        store.put_referrer(one.manifest, one.blobs)
    export_layout(store, image.digest, tmp_path / "layout")
    attestation = ("verify-attestation", "--type", "slsaprovenance1")
    assert verify(cosign, tmp_path / "layout", "builder", attestation).returncode == 0
    assert verify(cosign, tmp_path / "layout", "stranger", attestation).returncode != 0
    assert verify(cosign, tmp_path / "layout").returncode == 0
    assert verify_layout(tmp_path / "layout", policy()).verdict == "verified"


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
