"""``intaglio verify`` as other programs call it: images in the store, exported layouts, plain folders."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.workshop import COPY, Finished, Workshop

from intaglio.digest import Digest
from intaglio.errors import ExitCode

pytestmark = pytest.mark.real
TAG = "tests/shop:1.0.0"


@pytest.fixture
def built(shop: Workshop) -> Workshop:
    shop.one('write(read("source")); write("", "empty.txt"); (OUT / "sub").mkdir(); write("deep", "sub/deep.txt")')
    shop.built()
    return shop


def refused(done: Finished, code: ExitCode | None = None) -> dict[str, Any]:
    """Return the verdict of a verification that must not end well."""
    assert done.status not in (0, ExitCode.BUG), done
    assert not re.search("^Traceback", done.err, re.MULTILINE)
    answer = done.json
    assert set(answer) - {"error"} == {"verdict", "image", "rules"}
    assert answer["verdict"] == "refused"
    assert any(rule["result"] == "fail" and rule["detail"] for rule in answer["rules"])
    if "error" in answer:
        assert answer["error"]["exit_code"] == done.status
        assert "error: " in done.err
    if code is not None:
        assert done.status == code, answer
    return answer


def rewrite(path: Path, change: Callable[..., bytes]) -> None:
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def test_the_answer_has_the_documented_form(built: Workshop) -> None:
    image = built.store.tags()[TAG].digest
    by_name = built.run("verify", TAG, "--json").ok().json
    assert built.run("verify", str(image), "--json").ok().json == by_name
    assert set(by_name) == {"verdict", "image", "rules"}
    assert (by_name["verdict"], by_name["image"]) == ("verified", str(image))
    for rule in by_name["rules"]:
        assert set(rule) == {"rule", "result", "detail"}
        assert rule["result"] in ("pass", "skip")
    said = built.run("verify", TAG).ok().out
    assert said.splitlines()[-1] == f"verified: {TAG} {image}"
    assert all(rule["rule"] in said for rule in by_name["rules"])


def test_a_flipped_bit_in_any_blob_of_the_image_is_refused(built: Workshop) -> None:
    """Every blob that the image and its referrers are made of: one after the other."""
    assert built.run("export", TAG, "layout").ok()
    blobs = sorted(path.name for path in (built.recipe / "layout" / "blobs" / "sha256").iterdir())
    derived = [name for name in blobs if not built.store.has(Digest.from_hex(name))]
    assert len(derived) == 3, "an envelope with its config and manifest: cosign's older attestation, made by export"
    assert len(blobs) > 10
    for name in (name for name in blobs if name not in derived):
        path = built.store.path(Digest.from_hex(name))
        if not (data := path.read_bytes()):
            continue
        rewrite(path, flip)
        done = built.run("verify", TAG, "--json")
        assert done.status != 0 or data == b"{}", f"{name}: {data[:60]!r}"
        if done.status:
            refused(done)
        rewrite(path, lambda _, data=data: data)
    assert built.run("verify", TAG).ok()


def test_what_another_builder_or_releaser_signed_is_refused(built: Workshop) -> None:
    (built.home / "keys").rename(built.root / "aside")
    (built.home / "policy.toml").rename(built.root / "policy.toml")
    built.run("init").ok()
    answer = refused(built.run("verify", TAG, "--json"), ExitCode.UNTRUSTED)
    failed = {rule["rule"] for rule in answer["rules"] if rule["result"] == "fail"}
    assert {"signature", "provenance", "lineage"} <= failed
    assert built.run("verify", TAG, "--policy", built.root / "policy.toml", "--json").ok().json["verdict"] == "verified"
    refused(built.run("verify", TAG, "--json"), ExitCode.UNTRUSTED)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["tests/shop:2"], ExitCode.NOT_VERIFIABLE),
        (["sha256:" + "0" * 64], ExitCode.NOT_VERIFIABLE),
        (["sha256:short"], ExitCode.NOT_VERIFIABLE),
        ([TAG, "--policy", "gone.toml"], ExitCode.NOT_VERIFIABLE),
        ([TAG, "--files", "gone"], None),
    ],
)
def test_what_is_not_there_is_refused(built: Workshop, words: list[str], code: ExitCode | None) -> None:
    refused(built.run("verify", *words, "--json"), code)


def test_without_an_anchor_the_answer_is_no(built: Workshop) -> None:
    (built.home / "policy.toml").unlink()
    answer = refused(built.run("verify", TAG, "--json"), ExitCode.NOT_VERIFIABLE)
    assert "policy" in answer["error"]["message"]
    assert answer["image"] is None
    assert [rule["rule"] for rule in answer["rules"]] == ["policy"]
    named = ("--policy", "policies/acme/release@1")
    assert refused(built.run("verify", TAG, "--json", *named), ExitCode.NOT_VERIFIABLE)["image"] is None


def test_a_trusted_source_that_does_not_verify_is_a_no(built: Workshop) -> None:
    (built.home / "root.json").write_text("{}")
    (built.home / "tuf").mkdir()
    (built.home / "tuf" / "state.json").write_text("{}")
    answer = refused(built.run("verify", TAG, "--json"))
    assert [rule["rule"] for rule in answer["rules"]] == ["source"]


def test_a_kit_that_is_none_is_a_no(built: Workshop) -> None:
    (built.root / "no.kit").write_text("no")
    answer = refused(built.run("kit", "verify", built.root / "no.kit", "--json"), ExitCode.CORRUPT)
    assert [rule["rule"] for rule in answer["rules"]] == ["kit"]


def test_a_folder_that_is_called_like_an_image_changes_nothing(built: Workshop) -> None:
    """What stands in the folder that a command happens to be run from decides nothing."""
    image = built.run("verify", TAG, "--json").ok().json["image"]
    assert built.run("export", TAG, "layout").ok()
    (built.recipe / "tests").mkdir()
    (built.recipe / "layout").rename(built.recipe / TAG)
    (built.recipe / TAG / "index.json").write_text("{}")
    assert built.run("verify", TAG, "--json").ok().json["image"] == image
    refused(built.run("verify", f"./{TAG}", "--json"), ExitCode.CORRUPT)
    refused(built.run("verify", built.recipe / TAG, "--json"), ExitCode.CORRUPT)


def test_a_layout_is_named_by_its_path(built: Workshop) -> None:
    assert built.run("export", TAG, "layout").ok()
    assert "intaglio verify ./layout" in built.run("verify", "layout").failed(ExitCode.NOT_VERIFIABLE).err
    built.run("verify", "./layout").ok()
    built.run("verify", built.recipe / "layout").ok()
    built.run("verify", "../recipe/layout").ok()
    assert "expected an OCI image layout" in built.run("verify", "./gone").failed(ExitCode.NOT_VERIFIABLE).err


def test_a_name_close_by_is_proposed(built: Workshop) -> None:
    assert f"did you mean {TAG}?" in built.run("verify", "tests/shop:1.0.1").failed(ExitCode.NOT_VERIFIABLE).err


def test_a_tree_is_no_image(built: Workshop) -> None:
    answer = built.built()
    refused(built.run("verify", answer["steps"][0]["output"], "--json"))


# --- exported --------------------------------------------------------------------------------------------------------


def test_an_exported_layout_verifies_by_itself_and_refuses_every_flipped_bit(built: Workshop) -> None:
    assert built.run("export", TAG, "layout", "--json").ok().json["target"] == "layout"
    other = ["--store", str(built.root / "no store")]
    assert built.run("verify", "./layout", "--json", *other).ok().json["verdict"] == "verified"
    for path in sorted((built.recipe / "layout" / "blobs" / "sha256").iterdir()):
        if not (data := path.read_bytes()) or data == b"{}":
            continue
        rewrite(path, flip)
        refused(built.run("verify", "./layout", "--json", *other))
        rewrite(path, lambda _, data=data: data)
    for path in sorted((built.recipe / "layout" / "blobs" / "sha256").iterdir()):
        if path.read_bytes() != b"{}":
            path.rename(built.root / "aside")
            refused(built.run("verify", "./layout", "--json", *other))
            (built.root / "aside").rename(path)
    assert built.run("verify", "./layout", *other).ok()


def test_an_export_is_a_copy_and_never_written_over(built: Workshop) -> None:
    assert built.run("export", TAG, "layout").ok()
    assert built.run("export", TAG, "--files", "files").ok()
    for folder in ("layout", "files"):
        for path in (built.recipe / folder).rglob("*"):
            if path.is_file():
                assert path.stat().st_nlink == 1
                rewrite(path, lambda data: data + b"!")
    assert built.run("store", "verify").ok()
    assert built.run("verify", TAG).ok()
    assert "is there already" in built.run("export", TAG, "layout").failed(ExitCode.USAGE).err
    assert "is there already" in built.run("export", TAG, "--files", "files").failed(ExitCode.USAGE).err


def test_a_damaged_image_is_not_exported(built: Workshop) -> None:
    layer = built.store.tree(Digest(built.built()["steps"][0]["output"])).files[-1]
    rewrite(built.store.path(layer.digest), flip)
    for words in (["layout"], ["--files", "files"]):
        built.run("export", TAG, *words).failed(ExitCode.CORRUPT)
    assert sorted(path.name for path in built.recipe.iterdir()) == [
        "Modelfile.lock",
        "Modelfile.toml",
        "data.txt",
        "make.py",
        "make.toml",
    ]


def extra(name: str, data: bytes = b"") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return change


CHANGES: dict[str, Callable[..., object]] = {
    "flipped": lambda folder: rewrite(folder / "model.txt", flip),
    "truncated": lambda folder: rewrite(folder / "model.txt", lambda data: data[:-1]),
    "grown": lambda folder: rewrite(folder / "empty.txt", lambda data: data + b"\n"),
    "renamed": lambda folder: (folder / "model.txt").rename(folder / "other.txt"),
    "renamed empty": lambda folder: (folder / "empty.txt").rename(folder / "nothing.txt"),
    "moved": lambda folder: (folder / "sub" / "deep.txt").rename(folder / "deep.txt"),
    "swapped": lambda folder: (
        (folder / "model.txt").rename(folder / "x"),
        (folder / "sub" / "deep.txt").rename(folder / "model.txt"),
        (folder / "x").rename(folder / "sub" / "deep.txt"),
    ),
    "missing": lambda folder: (folder / "sub" / "deep.txt").unlink(),
    "missing empty": lambda folder: (folder / "empty.txt").unlink(),
    "added": extra("added.txt", b"x"),
    "added empty": extra("__init__.py"),
    "git hook": extra(".git/hooks/post-checkout", b"#!/bin/sh\n"),
    "github": extra(".github/workflows/x.yml", b"on: push"),
    "in a folder": extra("sub/more.txt", b"x"),
    "symlink": lambda folder: (
        (folder / "model.txt").rename(folder.parent / "aside.txt"),
        (folder / "model.txt").symlink_to(folder.parent / "aside.txt"),
    ),
    "symlinked folder": lambda folder: (
        (folder / "sub").rename(folder.parent / "aside"),
        (folder / "sub").symlink_to(folder.parent / "aside"),
    ),
}


def test_a_plain_folder_must_hold_exactly_the_images_files(built: Workshop) -> None:
    for name, change in CHANGES.items():
        assert built.run("export", TAG, "--files", "files").ok()
        assert built.run("verify", TAG, "--files", "files", "--json").ok().json["verdict"] == "verified"
        change(built.recipe / "files")
        done = built.run("verify", TAG, "--files", "files", "--json")
        assert done.status != 0, f"{name}: verified"
        refused(done, ExitCode.CORRUPT)
        shutil.rmtree(built.recipe / "files")
        for path in built.recipe.glob("aside*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_an_empty_folder_may_be_there_before(built: Workshop) -> None:
    (built.recipe / "files").mkdir()
    assert built.run("export", TAG, "--files", "files").ok()
    assert (built.recipe / "files" / "model.sig").exists()


def test_without_a_store_verify_makes_none(tmp_path: Path, shop: Workshop) -> None:
    place = tmp_path / "nowhere"
    shop.one(COPY)
    refused(shop.run("verify", TAG, "--store", place, "--json"), ExitCode.NOT_VERIFIABLE)
    assert not place.exists()
