"""Root file systems: what their locks say, and where packages come from. (What comes out: ``test_runtime.py``.)"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tests.build.test_debian import member, package

from intaglio.build import rootfs
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, LockError, SourceUnreachable
from intaglio.progress import Silent

SHIPPED = Path(__file__).resolve().parents[2] / "builder" / "rootfs" / "debian-cpu"
HEAD = 'version = 1\nsuite = "bookworm"\nplatform = "linux/amd64"\nsnapshot = "20260101T000000Z"\n'
ENTRY = '[[packages]]\nname = "a"\nversion = "1"\npath = "pool/main/a/a/a_1_all.deb"\nsize = 3\nsha256 = "{}"\n'
SHA = "0" * 64


def lock(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "rootfs.toml").write_text(text)
    return folder


def test_the_shipped_one_is_what_packages_in_names() -> None:
    found = rootfs.load(SHIPPED)
    lines = (line.partition("#")[0].strip() for line in (SHIPPED / "packages.in").read_text().splitlines())
    assert [one.name for one in found.packages] == sorted(line for line in lines if line)
    assert found.tree().digest == rootfs.load(SHIPPED).tree().digest
    assert {file.path for file in found.tree().files} >= {"rootfs.toml", f"debs/{found.packages[0].file}"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not toml",
        HEAD,
        HEAD.replace("version = 1", "version = 2") + ENTRY.format(SHA),
        HEAD.replace("amd64", "arm64") + ENTRY.format(SHA),
        HEAD + ENTRY.format(SHA) * 2,
        HEAD + ENTRY.format("short"),
        HEAD + ENTRY.format(SHA).replace("size = 3", "size = 0"),
        HEAD + ENTRY.format(SHA).replace("size = 3", 'size = "3"'),
        HEAD + ENTRY.format(SHA).replace("pool/main/a", "https://example.com"),
        HEAD + ENTRY.format(SHA).replace("pool/main/a", "pool/../main"),
        HEAD + ENTRY.format(SHA) + 'odd = "x"\n',
        'extra = "x"\n' + HEAD + ENTRY.format(SHA),
    ],
)
def test_a_lock_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(LockError):
        rootfs.load(lock(tmp_path / "r", text))


def test_no_lock(tmp_path: Path) -> None:
    with pytest.raises(LockError):
        rootfs.load(tmp_path / "nowhere")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has above
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mirror on this machine, and no other; nothing in the user's cache."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *words: Quiet(*words, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(rootfs.MIRROR, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(rootfs, "_MIRRORS", ())
    monkeypatch.setattr(rootfs, "_SNAPSHOTS", f"http://127.0.0.1:{server.server_port}/archive/{{}}")
    yield folder
    server.shutdown()
    server.server_close()


def serve(folder: Path, tmp_path: Path, *, below: str = "") -> rootfs.Rootfs:
    """Put a package onto the mirror, and return a root file system of it alone."""
    made = package(tmp_path / "a.deb", member("./usr/x", b"x")).read_bytes()
    place = folder / below / "pool/main/a/a/a_1_all.deb"
    place.parent.mkdir(parents=True)
    place.write_bytes(made)
    text = HEAD + ENTRY.format(hashlib.sha256(made).hexdigest()).replace("size = 3", f"size = {len(made)}")
    return rootfs.load(lock(tmp_path / "r", text))


def test_packages_come_from_a_mirror_and_stay_in_the_users_cache(mirror: Path, tmp_path: Path) -> None:
    found = serve(mirror, tmp_path)
    first, second = (Store.open(tmp_path / name) for name in ("one", "two"))
    rootfs.fetch(found, first, offline=False, progress=Silent())
    assert first.has_tree(found.tree().digest)
    (mirror / found.packages[0].path).unlink()
    rootfs.fetch(found, second, offline=True, progress=Silent())
    assert second.has_tree(found.tree().digest)


def test_a_damaged_package_in_the_users_cache_is_fetched_anew(mirror: Path, tmp_path: Path) -> None:
    found = serve(mirror, tmp_path)
    rootfs.fetch(found, Store.open(tmp_path / "one"), offline=False, progress=Silent())
    (kept,) = (tmp_path / "cache" / "intaglio" / "debs").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])
    store = Store.open(tmp_path / "two")
    rootfs.fetch(found, store, offline=False, progress=Silent())
    assert store.has_tree(found.tree().digest)
    assert kept.read_bytes() == whole


def test_a_damaged_package_in_the_users_cache_is_none_without_a_network(mirror: Path, tmp_path: Path) -> None:
    found = serve(mirror, tmp_path)
    kept = tmp_path / "cache" / "intaglio" / "debs" / found.packages[0].digest.hex
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"damaged")
    with pytest.raises(SourceUnreachable):
        rootfs.fetch(found, Store.open(tmp_path / "store"), offline=True, progress=Silent())
    assert not kept.exists()


def test_what_another_process_is_writing_into_the_cache_is_left_to_it(mirror: Path, tmp_path: Path) -> None:
    found = serve(mirror, tmp_path)
    digest = found.packages[0].digest
    half = tmp_path / "cache" / "intaglio" / "debs" / f".{digest.hex}"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    rootfs.fetch(found, Store.open(tmp_path / "store"), offline=False, progress=Silent())
    assert half.read_bytes() == b"half"
    assert Digest.of(half.with_name(digest.hex).read_bytes()) == digest


def test_a_cache_that_cannot_be_written_stops_nothing(mirror: Path, tmp_path: Path) -> None:
    found = serve(mirror, tmp_path)
    (tmp_path / "cache").write_text("no folder")
    store = Store.open(tmp_path / "store")
    rootfs.fetch(found, store, offline=False, progress=Silent())
    assert store.has_tree(found.tree().digest)


def test_what_mirrors_have_dropped_comes_from_the_archive_of_snapshots(mirror: Path, tmp_path: Path) -> None:
    found = serve(mirror, tmp_path, below="archive/20260101T000000Z")
    store = Store.open(tmp_path / "store")
    rootfs.fetch(found, store, offline=False, progress=Silent())
    assert store.has_tree(found.tree().digest)


def test_other_bytes_than_the_locks_are_refused(mirror: Path, tmp_path: Path) -> None:
    found = serve(mirror, tmp_path)
    place = mirror / found.packages[0].path
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    store = Store.open(tmp_path / "store")
    with pytest.raises(CorruptContent):
        rootfs.fetch(found, store, offline=False, progress=Silent())
    assert not store.has(found.packages[0].digest)
    assert os.listdir(tmp_path / "store" / "partial") == []


def test_offline_asks_nobody(mirror: Path, tmp_path: Path) -> None:
    found = serve(mirror, tmp_path)
    with pytest.raises(SourceUnreachable, match="1 packages"):
        rootfs.fetch(found, Store.open(tmp_path / "store"), offline=True, progress=Silent())
