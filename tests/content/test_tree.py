"""Trees: one form for ever, and paths that mean one place everywhere."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from intaglio.content import tree as trees
from intaglio.content.tree import MAX_FILES, File, Tree, check_path, check_paths
from intaglio.digest import Digest
from intaglio.errors import CorruptContent

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "content" / "trees.json").read_text(encoding="utf-8"))
DATA = Digest.of(b"data")


def of(*paths: str) -> Tree:
    return Tree.of(File(path, DATA, 4) for path in paths)


# --- golden ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_golden(vector: dict[str, Any]) -> None:
    """Layout 1 never changes: these bytes stand in locks, signatures and registries."""
    files = []
    for one in vector["files"]:
        data = one["text"].encode()
        files.append(File(one["path"], Digest.of(data), len(data), one["executable"]))
    made = Tree.of(reversed(files))
    assert made.manifest().decode() == vector["manifest"]
    assert str(made.digest) == vector["digest"]
    assert made.digest.hex == hashlib.sha256(vector["manifest"].encode()).hexdigest()
    assert Tree.parse(vector["manifest"].encode(), "vector") == made
    assert [file.path for file in made.files] == [one["path"] for one in vector["files"]]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_golden_by_other_means(vector: dict[str, Any]) -> None:
    """The vectors' bytes, written by another JSON writer from the description of the format."""
    layers = []
    for one in sorted(vector["files"], key=lambda one: one["path"].encode()):
        data = one["text"].encode()
        marks = {"org.opencontainers.image.title": one["path"]}
        if one["executable"]:
            marks["dev.intaglio.executable"] = "true"
        layers.append(
            {
                "annotations": marks,
                "digest": "sha256:" + hashlib.sha256(data).hexdigest(),
                "mediaType": "application/vnd.intaglio.file.v1",
                "size": len(data),
            }
        )
    manifest = {
        "artifactType": "application/vnd.intaglio.tree.v1",
        "config": {
            "digest": "sha256:" + hashlib.sha256(b"{}").hexdigest(),
            "mediaType": "application/vnd.oci.empty.v1+json",
            "size": 2,
        },
        "layers": layers,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "schemaVersion": 2,
    }
    assert json.dumps(manifest, ensure_ascii=False, separators=(",", ":"), sort_keys=True) == vector["manifest"]


def test_a_tree_is_a_function_of_its_files() -> None:
    one, two = File("a", DATA, 4), File("b/c", DATA, 4)
    assert Tree.of([one, two]) == Tree.of([two, one])
    assert Tree.of([one, two]).digest != Tree.of([one]).digest
    assert Tree.of([one]).digest != Tree.of([File("a", DATA, 4, executable=True)]).digest
    assert Tree.of([one]).digest != Tree.of([File("A", DATA, 4)]).digest
    assert Tree.of([one]).digest != Tree.of([File("a", DATA, 5)]).digest
    assert Tree.of([one, two]).total_size == 8
    described = Tree.of([one]).descriptor()
    assert (described.digest, described.size) == (Tree.of([one]).digest, len(Tree.of([one]).manifest()))
    assert described.artifact_type == trees.TREE_TYPE


def test_files_stand_in_the_order_of_their_utf8_bytes() -> None:
    """Not in that of UTF-16, nor of any language."""
    assert [file.path for file in of("é", "y", "Z", "\ufb33", "\U0001f600", "a/b", "a.b", "a-b").files] == [
        "Z", "a-b", "a.b", "a/b", "y", "é", "\ufb33", "\U0001f600",
    ]  # fmt: skip


# --- how many --------------------------------------------------------------------------------------------------------


def test_no_file_is_no_tree() -> None:
    with pytest.raises(CorruptContent, match="at least one file"):
        Tree.of([])


def test_at_most_five_thousand_files_fit_a_manifest() -> None:
    largest = of(*(f"{n:0>200}" for n in range(MAX_FILES)))
    assert len(largest.manifest()) < 4 << 20
    assert Tree.parse(largest.manifest(), "x") == largest
    with pytest.raises(CorruptContent, match="at most 5000 files, found 5001") as found:
        of(*(str(n) for n in range(MAX_FILES + 1)))
    assert "pack" in (found.value.hint or "")


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "", ".", "..", "../x", "a/..", "a/../b", "a/./b", "./a", "/", "/etc/passwd", "//a", "a//b", "a/", "a/b/",
        "a\0b", "a\\b", "..\\x", "C:\\x", "C:/x", "a:b", "\\\\host\\share", "a\nb", "a\rb", "a\tb", "\x1b[31m",
        "a\x7fb",
        "a\x85b", "a\u2028b", "a\u2029b", "a\u202eb", "a\u200bb", "a\ufeffb", "a\u00adb", "a.", "a ", "a./b", "a /b",
        "a...", "con", "CON", "nul.txt", "sub/aux", "com1", "LPT9.log", "prn.", "x" * 256, "é" * 128,
        "a/" + "x" * 256, "/".join(["x" * 255] * 5), "a\ud800b", "\udcff",
    ],
)  # fmt: skip
def test_a_bad_path_is_refused(path: str) -> None:
    with pytest.raises(CorruptContent, match="bad path"):
        check_path(path)
    with pytest.raises(CorruptContent):
        of("good", path)
    if "\ud800" not in path and "\udcff" not in path:
        manifest = of("good").manifest().replace(b'"good"', json.dumps(path, ensure_ascii=False).encode())
        with pytest.raises(CorruptContent):
            Tree.parse(manifest, "x")


@pytest.mark.parametrize(
    "path",
    [
        "a", "a.b", ".hidden", "..a", "a..b", "-x", "a b", "über/größe.txt", "模型/权重.safetensors", "x" * 255,
        "é" * 127, "console", "com10", "nullable.txt", "a/b/c/d/e/f", "\U0001f600", "$HOME", "`x`", "*", "a'b", 'a"b',
        "~", "%2e%2e", "/".join(["x" * 203] * 5),
    ],
)  # fmt: skip
def test_a_good_path_is_taken_as_it_is(path: str) -> None:
    assert check_path(path) == path
    assert of(path).files[0].path == path


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("a", "a"),
        ("a", "A"),
        ("Model.bin", "model.bin"),
        ("dir/a", "DIR/A"),
        ("straße", "STRASSE"),
        ("é", "e\u0301"),
        ("\u212b", "\u00c5"),
        ("ﬁ", "fi"),
        ("\u0130", "i\u0307"),
        ("ς", "Σ"),
    ],
)
def test_two_paths_of_one_place_are_refused(one: str, two: str) -> None:
    with pytest.raises(CorruptContent, match="one place"):
        of(one, two)
    with pytest.raises(CorruptContent):
        check_paths([two, "x", one])


@pytest.mark.parametrize(
    ("file", "below"), [("a", "a/b"), ("a", "A/b/c"), ("x/y", "x/y/z"), ("é", "e\u0301/x"), ("a/b/c", "a/b/c/d/e")]
)
def test_a_file_and_a_folder_of_one_name_are_refused(file: str, below: str) -> None:
    for pair in ([file, below], [below, file]):
        with pytest.raises(CorruptContent, match="a file and a folder"):
            check_paths(pair)


def test_folders_that_differ_in_case_alone_are_one_on_some_file_systems() -> None:
    """Two files in them do not collide, and both are found by their paths: that is allowed."""
    assert len(of("Dir/a", "dir/b").files) == 2


PARTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=6))
def test_what_is_taken_is_read_back_and_lands_below_its_folder(paths: list[str]) -> None:
    try:
        made = of(*paths)
    except CorruptContent:
        return
    assert Tree.parse(made.manifest(), "x") == made
    assert sorted(paths, key=str.encode) == [file.path for file in made.files]
    for path in paths:
        assert not Path(path).is_absolute()
        assert ".." not in Path(path).parts
    folded = {unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold()) for path in paths}
    assert len(folded) == len(paths)


# --- reading ---------------------------------------------------------------------------------------------------------


def changed(**change: object) -> bytes:
    document = json.loads(of("a", "b").manifest())
    for name, value in change.items():
        if value is None:
            del document[name]
        else:
            document[name] = value
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


LAYER = {
    "annotations": {"org.opencontainers.image.title": "a"},
    "digest": str(DATA),
    "mediaType": "application/vnd.intaglio.file.v1",
    "size": 4,
}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b"null", b'{"layers":[]}',
        changed(artifactType=None),
        changed(artifactType="application/vnd.cncf.model.manifest.v1+json"),
        changed(layers=[]),
        changed(layers={}),
        changed(layers=None),
        changed(layers=[LAYER, LAYER]),
        changed(layers=[{**LAYER, "annotations": {}}]),
        changed(layers=[{**LAYER, "annotations": {**LAYER["annotations"], "x": "y"}}]),  # type: ignore[dict-item]
        changed(layers=[{**LAYER, "annotations": {**LAYER["annotations"], "dev.intaglio.executable": "false"}}]),  # type: ignore[dict-item]
        changed(layers=[{**LAYER, "mediaType": "application/vnd.oci.image.layer.v1.tar"}]),
        changed(layers=[{**LAYER, "urls": ["https://example.org"]}]),
        changed(layers=[{**LAYER, "data": "ZGF0YQ=="}]),
        changed(layers=[{**LAYER, "size": "4"}]),
        changed(layers=[{**LAYER, "size": -1}]),
        changed(layers=[{**LAYER, "size": True}]),
        changed(layers=[{**LAYER, "digest": "sha512:" + "0" * 128}]),
        changed(layers=[{**LAYER, "artifactType": "x"}]),
        changed(manifests=[]),
        changed(subject=LAYER),
        changed(annotations={"x": "y"}),
        changed(schemaVersion=1),
        changed(schemaVersion=2.0001),
        changed(mediaType="application/vnd.oci.image.index.v1+json"),
        changed(config=LAYER),
        of("a", "b").manifest() + b"\n",
        b" " + of("a", "b").manifest(),
        json.dumps(json.loads(of("a", "b").manifest())).encode(),
    ],
)  # fmt: skip
def test_anything_but_the_canonical_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptContent):
        Tree.parse(data, "the tree")


def test_layers_in_another_order_are_refused() -> None:
    document = json.loads(of("a", "b").manifest())
    document["layers"].reverse()
    with pytest.raises(CorruptContent, match="not a canonical tree manifest"):
        Tree.parse(json.dumps(document, separators=(",", ":"), sort_keys=True).encode(), "x")


@settings(deadline=None)
@given(st.data())
def test_a_changed_byte_is_another_tree_or_none(data: st.DataObject) -> None:
    manifest = of("a", "b/c").manifest()
    place = data.draw(st.integers(0, len(manifest) - 1))
    byte = data.draw(st.integers(0, 255))
    assume(byte != manifest[place])
    try:
        found = Tree.parse(manifest[:place] + bytes([byte]) + manifest[place + 1 :], "x")
    except CorruptContent:
        return
    assert found.digest != of("a", "b/c").digest
