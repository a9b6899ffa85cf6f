"""Kits as archives: written in one order, read once from front to back, in little memory."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest

from intaglio.content import kit
from intaglio.content.bare import BareLayout
from intaglio.content.descriptor import EMPTY
from intaglio.content.kit import About
from intaglio.content.layout import Store
from intaglio.content.tree import Tree
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable

NAME = "team/model:1.0"
TARGET = f"targets/policies/acme/release/{Digest.of(b'policy').hex}.1"
SMALL = {"metadata/timestamp.json": b"{}", TARGET: b"policy"}
MIB = 1 << 20


class Pipe(io.RawIOBase):
    """Bytes that come once: nothing can go back."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(size)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def stored(store: Store, files: Mapping[str, bytes], folder: Path) -> Tree:
    for name, data in files.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    store.put(EMPTY)
    return store.ingest(folder, move=False)


def written(store: Store, tree: Tree, small: Mapping[str, bytes] = SMALL, name: str = NAME) -> bytes:
    sink = io.BytesIO()
    size = kit.write(store, sink, About(tree.digest, name), (), small)
    assert size == len(sink.getvalue())
    return sink.getvalue()


def renamed(data: bytes, names: Mapping[str, str]) -> bytes:
    """The archive with some members under other names."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=sink, mode="w") as new:
        for member in old:
            content = old.extractfile(member)
            member.name = names.get(member.name, member.name)
            new.addfile(member, content)
    return sink.getvalue()


def unpack(data: bytes, folder: Path) -> kit.Unpacked:
    folder.mkdir(parents=True)
    return kit.read(Pipe(data), folder)  # type: ignore[arg-type]


def test_what_was_written_is_read(store: Store, tmp_path: Path) -> None:
    tree = stored(store, {"a": b"one", "b": b"two"}, tmp_path / "files")
    found = unpack(written(store, tree), tmp_path / "kit")
    assert found.about == About(tree.digest, NAME)
    assert found.blobs == {tree.digest, Digest.of(EMPTY), Digest.of(b"one"), Digest.of(b"two")}
    assert {name: (found.layout / name).read_bytes() for name in SMALL} == SMALL
    assert BareLayout(found.layout).read(tree.digest, what="tree") == tree.manifest()
    assert found.size == sum(path.stat().st_size for path in (found.layout / "blobs" / "sha256").iterdir())


def test_a_small_file_among_the_blobs_is_written_once(store: Store, tmp_path: Path) -> None:
    """The file of a policy can be an input, too."""
    tree = stored(store, {"policy.toml": b"policy"}, tmp_path / "files")
    other = Digest.of(b"other")
    small = {**SMALL, f"blobs/sha256/{Digest.of(b'policy').hex}": b"policy", f"blobs/sha256/{other.hex}": b"other"}
    data = written(store, tree, small)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
    assert len(names) == len(set(names))
    blobs = [name for name in names if name.startswith("blobs/")]
    assert blobs == sorted(blobs)
    assert other in unpack(data, tmp_path / "kit").blobs


def test_memory_does_not_grow_with_a_kit(store: Store, tmp_path: Path) -> None:
    tree = stored(store, {"a": os.urandom(48 * MIB)}, tmp_path / "files")
    path = tmp_path / "large.kit"
    (tmp_path / "kit").mkdir()
    tracemalloc.start()
    try:
        with open(path, "wb") as sink:
            kit.write(store, sink, About(tree.digest, NAME), (), SMALL)
        with open(path, "rb") as source:
            kit.read(source, tmp_path / "kit")
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def test_small_files_are_small_all_together(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = stored(store, {"a": b"one"}, tmp_path / "files")
    monkeypatch.setattr(kit, "_MAX_SMALL", 1000)
    with pytest.raises(CorruptContent, match="at most 1000 bytes, found 1001"):
        unpack(written(store, tree, {"metadata/1.root.json": b"x" * 1001}), tmp_path / "one")
    monkeypatch.setattr(kit, "_MAX_ALL_SMALL", 2000)
    many = {f"metadata/{number}.root.json": b"x" * 900 for number in range(3)}
    with pytest.raises(CorruptContent, match="more than 2000 bytes of metadata"):
        unpack(written(store, tree, many), tmp_path / "many")


def test_a_kit_of_countless_members_is_refused(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "_MAX_MEMBERS", 7)
    tree = stored(store, {"a": b"one"}, tmp_path / "files")
    with pytest.raises(CorruptContent, match="too many members"):
        unpack(written(store, tree), tmp_path / "kit")


@pytest.mark.parametrize(
    "name",
    [
        "metadata/../root.json",
        "metadata/roles/1.json",
        "metadata/timestamp",
        "metadata/.hidden.json",
        "metadata/" + "a" * 300 + ".json",
        "targets/policies/acme/release/1",
        f"targets/policies/acme/release/{'0' * 64}.1/more",
        f"targets/policies/../release/{'0' * 64}.1",
        f"targets/policies/acme/{'0' * 64}.1",
        "policy.toml",
        "root.json",
        "blobs/sha256/" + "A" * 64,
        "./index.json",
        "/etc/passwd",
    ],
)
def test_other_names_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    tree = stored(store, {"a": b"one"}, tmp_path / "files")
    data = renamed(written(store, tree), {"metadata/timestamp.json": name})
    with pytest.raises(CorruptContent, match="not a kit: unexpected member"):
        unpack(data, tmp_path / "kit")
    assert not (tmp_path / "root.json").exists()


@pytest.mark.parametrize("name", ["index.json", "oci-layout", "intaglio-kit.json"])
def test_what_every_kit_has_must_be_there(store: Store, tmp_path: Path, name: str) -> None:
    tree = stored(store, {"a": b"one"}, tmp_path / "files")
    data = renamed(written(store, tree, {}), {name: "metadata/x.json"})
    with pytest.raises(CorruptContent, match=f"expected a member {name}"):
        unpack(data, tmp_path / "kit")


@pytest.mark.parametrize("name", ["../x", "a b", "\x1b[2J", "", "sha256:" + "0" * 64, "x" * 600])
def test_a_name_is_one_or_the_images_digest(store: Store, tmp_path: Path, name: str) -> None:
    tree = stored(store, {"a": b"one"}, tmp_path / "files")
    with pytest.raises(CorruptContent, match="expected a name such as"):
        unpack(written(store, tree, name=name), tmp_path / "kit")
    assert About.of(tree.digest, name).name == str(tree.digest)
    assert unpack(written(store, tree, name=str(tree.digest)), tmp_path / "good").about.name == str(tree.digest)


def test_taking_moves_what_the_roots_reach_and_nothing_else(store: Store, tmp_path: Path) -> None:
    one, two = (stored(store, {"a": text}, tmp_path / text.decode()) for text in (b"one", b"two"))
    sink = io.BytesIO()
    kit.write(store, sink, About(one.digest, NAME), (two.digest,), {})
    other = Store.open(tmp_path / "other")
    with other.scratch("kit") as scratch:
        unpacked = kit.read(io.BytesIO(sink.getvalue()), scratch)
        assert kit.take(unpacked, other, (one.digest,)) == 3
    assert other.has_tree(one.digest)
    assert not other.has(two.digest)
    assert not other.has(Digest.of(b"two"))
    assert other.verify()[1] == ()


def test_taking_what_is_not_whole_takes_nothing(store: Store, tmp_path: Path) -> None:
    tree = stored(store, {"a": b"one", "b": b"two"}, tmp_path / "files")
    other = Store.open(tmp_path / "other")
    with other.scratch("kit") as scratch:
        unpacked = kit.read(io.BytesIO(written(store, tree)), scratch)
        BareLayout(scratch).path(Digest.of(b"two")).unlink()
        with pytest.raises(NotVerifiable, match="is not in"):
            kit.take(unpacked, other, (tree.digest,))
    assert list((other.root / "blobs" / "sha256").iterdir()) == []


def test_a_malformed_referrer_takes_nothing(store: Store, tmp_path: Path) -> None:
    tree = stored(store, {"a": b"one"}, tmp_path / "files")
    document = {**json.loads(tree.manifest()), "subject": {"digest": "junk"}}
    bad = store.put(json.dumps(document).encode())
    sink = io.BytesIO()
    kit.write(store, sink, About(tree.digest, NAME), (bad,), {})
    other = Store.open(tmp_path / "other")
    with other.scratch("kit") as scratch:
        unpacked = kit.read(io.BytesIO(sink.getvalue()), scratch)
        with pytest.raises(CorruptContent):
            kit.take(unpacked, other, (tree.digest, bad))
    assert list((other.root / "blobs" / "sha256").iterdir()) == []


def test_a_damaged_blob_of_the_store_ends_no_kit(store: Store, tmp_path: Path) -> None:
    tree = stored(store, {"a": b"one"}, tmp_path / "files")
    place = store.path(Digest.of(b"one"))
    place.chmod(0o644)
    place.write_bytes(b"two")
    with pytest.raises(CorruptContent, match="damaged in the store"):
        written(store, tree)
