"""Kits: written the same each time, verified by the side that takes them, refused without leaving anything."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.workshop import Workshop

from intaglio.content.layout import Store

NAME = "tests/shop:1.0.0"


@pytest.fixture
def kit(shop: Workshop) -> Path:
    """A kit of an image that was just built."""
    shop.chain("first", "second")
    shop.built()
    path = shop.root / "shop.kit"
    shop.run("kit", "export", NAME, "-o", path).ok()
    return path


@pytest.fixture
def elsewhere(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the builder's policy and nothing else."""
    home = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(shop.home / "policy.toml", home)
    return home


def members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def rewrite(path: Path, change: Callable[[tarfile.TarInfo, bytes], bytes]) -> None:
    found = members(path)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for member, data in found:
            changed = change(member, data)
            member.size = len(changed)
            archive.addfile(member, io.BytesIO(changed))


def assert_nothing_is_there(shop: Workshop, home: Path) -> None:
    assert shop.run("store", "list", "--json", INTAGLIO_HOME=str(home)).ok().json == {"images": []}
    assert list((home / "store" / "blobs" / "sha256").iterdir()) == []
    assert list((home / "store" / "tmp").iterdir()) == []


def test_the_same_image_is_the_same_kit(shop: Workshop, kit: Path) -> None:
    shop.run("kit", "export", NAME, "-o", shop.root / "again.kit").ok()
    assert kit.read_bytes() == (shop.root / "again.kit").read_bytes()
    assert all(member.mtime == 0 and member.uid == 0 and member.mode == 0o644 for member, _ in members(kit))


def test_a_kit_is_written_over_no_link_that_waits_for_it(shop: Workshop, kit: Path) -> None:
    """Not under the name that an older engine wrote to first, nor under the kit's own."""
    victim = shop.root / "victim"
    victim.write_text("mine")
    for name in (".again.kit.partial", "again.kit"):
        (shop.root / name).symlink_to(victim)
    shop.run("kit", "export", NAME, "-o", shop.root / "again.kit").ok()
    assert victim.read_text() == "mine"
    assert not (shop.root / "again.kit").is_symlink()
    assert (shop.root / "again.kit").read_bytes() == kit.read_bytes()


def test_two_exports_to_one_place_do_not_meet(shop: Workshop, kit: Path) -> None:
    running = [shop.start("kit", "export", NAME, "-o", shop.root / "both.kit") for _ in range(3)]
    for process in running:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert (shop.root / "both.kit").read_bytes() == kit.read_bytes()
    assert not list(shop.root.glob(".both.kit*"))


@pytest.mark.parametrize("words", [("kit", "verify"), ("kit", "import")])
def test_what_a_crash_left_is_swept_where_kits_are_taken(
    shop: Workshop, kit: Path, elsewhere: Path, words: tuple[str, str]
) -> None:
    Store.open(elsewhere / "store")
    left = [elsewhere / "store" / "tmp" / "staging-x" / "d", elsewhere / "store" / "partial" / "0"]
    left[0].mkdir(parents=True)
    left[1].write_text("x")
    for path in (left[0].parent, left[1]):
        os.utime(path, (0, 0))
    shop.run(*words, kit, INTAGLIO_HOME=str(elsewhere)).ok()
    assert not any(path.exists() for path in left)


def test_what_a_kit_brings_verifies_there(shop: Workshop, kit: Path, elsewhere: Path) -> None:
    there = {"INTAGLIO_HOME": str(elsewhere)}
    assert shop.run("kit", "verify", kit, "--json", **there).ok().json["verdict"] == "verified"
    assert_nothing_is_there(shop, elsewhere)
    taken = shop.run("kit", "import", kit, "--json", **there).ok().json
    assert taken["tag"] == NAME
    assert shop.run("verify", NAME, "--json", **there).ok().json["image"] == taken["image"]


def test_what_a_kit_calls_its_image_counts_for_nothing(shop: Workshop, kit: Path, elsewhere: Path) -> None:
    """The name is the one that was signed with the image."""

    def rename(member: tarfile.TarInfo, data: bytes) -> bytes:
        return data.replace(NAME.encode(), b"team/production:latest") if member.name.endswith(".json") else data

    rewrite(kit, rename)
    there = {"INTAGLIO_HOME": str(elsewhere)}
    assert shop.run("kit", "import", kit, "--json", **there).ok().json["tag"] == NAME
    assert [one["tag"] for one in shop.run("store", "list", "--json", **there).ok().json["images"]] == [NAME]


def test_inputs_travel_when_asked_for(shop: Workshop, kit: Path, elsewhere: Path) -> None:
    whole = shop.root / "whole.kit"
    shop.run("kit", "export", NAME, "--inputs", "-o", whole).ok()
    held, plain = ({member.name for member, _ in members(path)} for path in (whole, kit))
    assert plain < held
    shop.run("kit", "import", whole, INTAGLIO_HOME=str(elsewhere)).ok()


def test_what_no_server_here_serves_takes_none_along(shop: Workshop, kit: Path) -> None:
    shop.run("kit", "export", NAME, "-o", shop.root / "serving.kit", "--server").failed(2)
    assert not (shop.root / "serving.kit").exists()


def test_a_toolchain_that_is_not_whole_here_cannot_travel(shop: Workshop, kit: Path) -> None:
    """The workshop's environment was handed to it: its wheels are not in the store."""
    shop.run("kit", "export", NAME, "--toolchains", "-o", shop.root / "whole.kit").failed(25)
    assert not list(shop.root.glob("*whole.kit*"))


def test_a_changed_byte_is_refused(shop: Workshop, kit: Path, elsewhere: Path) -> None:
    def flip(member: tarfile.TarInfo, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if member.name.startswith("blobs/") else data

    rewrite(kit, flip)
    shop.run("kit", "import", kit, INTAGLIO_HOME=str(elsewhere)).failed(21)
    assert_nothing_is_there(shop, elsewhere)


def test_a_kit_signed_whole_by_somebody_else_is_refused(shop: Workshop, kit: Path, tmp_path: Path) -> None:
    """The image is good in every way, under keys that this side does not know."""
    stranger = tmp_path / "stranger"
    shop.run("init", INTAGLIO_HOME=str(stranger)).ok()
    shop.run("kit", "import", kit, INTAGLIO_HOME=str(stranger)).failed(22)
    assert_nothing_is_there(shop, stranger)


def test_without_a_policy_there_is_no_verdict(shop: Workshop, kit: Path, tmp_path: Path) -> None:
    shop.run("kit", "verify", kit, INTAGLIO_HOME=str(tmp_path / "nobody")).failed(25)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_kit_that_ends_early_is_refused(shop: Workshop, kit: Path, elsewhere: Path, keep: int) -> None:
    kit.write_bytes(kit.read_bytes()[:keep])
    shop.run("kit", "import", kit, INTAGLIO_HOME=str(elsewhere)).failed(21)
    assert_nothing_is_there(shop, elsewhere)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../etc/cron.d/x", tarfile.REGTYPE),
        ("/etc/passwd", tarfile.REGTYPE),
        ("blobs/sha256/" + "0" * 64, tarfile.SYMTYPE),
        ("metadata/../x", tarfile.REGTYPE),
        ("blobs/sha512/" + "0" * 128, tarfile.REGTYPE),
        ("metadata/x", tarfile.LNKTYPE),
        ("metadata/x", tarfile.CHRTYPE),
        ("oci-layout", tarfile.REGTYPE),
    ],
)
def test_a_member_that_no_kit_has_is_refused(
    shop: Workshop, kit: Path, elsewhere: Path, name: str, kind: bytes
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, "/etc/passwd", 0
    found = members(kit)
    with tarfile.open(kit, "w", format=tarfile.PAX_FORMAT) as archive:
        for old, data in found:
            archive.addfile(old, io.BytesIO(data))
        archive.addfile(member)
    shop.run("kit", "import", kit, INTAGLIO_HOME=str(elsewhere)).failed(21)
    assert_nothing_is_there(shop, elsewhere)
