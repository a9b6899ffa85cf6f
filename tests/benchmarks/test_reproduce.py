from __future__ import annotations

import json
from dataclasses import replace

from benchmarks import reproduce
from benchmarks.reproduce import Built, Pair


def write(folder, name, document):
    (folder / name).write_text(json.dumps(document))


def test_blobs_are_told_apart(tmp_path):
    blobs = tmp_path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    subject = {"digest": "sha256:x"}
    layer = [{"digest": "sha256:claimed"}]
    write(blobs, "c", {"layers": layer, "subject": subject, "annotations": {"dev.intaglio.action": "sha256:k"}})
    write(blobs, "l", {"layers": layer, "subject": subject, "artifactType": "application/vnd.intaglio.lineage.v1"})
    write(blobs, "s", {"layers": [{"digest": "sha256:signed"}], "subject": subject})
    write(blobs, "t", {"layers": [], "artifactType": "application/vnd.intaglio.tree.v1"})
    write(blobs, "i", {"layers": [], "artifactType": "application/vnd.cncf.model.manifest.v1+json"})
    for name in ("claimed", "signed", "file"):
        (blobs / name).write_bytes(b"{not json")
    kinds, size = reproduce.inventory(tmp_path)
    assert kinds.pop("file").startswith("files of models")
    assert kinds == {
        "c": "claim manifests",
        "claimed": "signed statements of claims",
        "l": "lineage manifests",
        "s": "signature manifests",
        "signed": "signed statements of signatures",
        "t": "tree manifests",
        "i": "image manifests",
    }
    assert size == sum(path.stat().st_size for path in blobs.iterdir())


def built(**changes):
    steps = [{"name": "seed", "key": "sha256:k", "status": "built", "output": "sha256:o"}]
    whole = Built({"image": "sha256:i", "steps": steps}, {"aa": "claim manifests"}, 5, 1.0, ("a", "1", "0", "here"))
    return replace(whole, **changes)


def test_the_same_is_the_same_and_anything_else_is_not():
    assert Pair("x", built(), built(seconds=9.0, what=("b", "2", "12345", "there"))).same
    other = {"name": "seed", "key": "sha256:k", "status": "built", "output": "sha256:p"}
    cached = {"name": "seed", "key": "sha256:k", "status": "cached", "output": "sha256:o"}
    for changed in (
        built(answer={"image": "sha256:j", "steps": built().answer["steps"]}),
        built(answer={"image": "sha256:i", "steps": [other]}),
        built(answer={"image": "sha256:i", "steps": [cached]}),
        built(kinds={"ab": "claim manifests"}),
        built(kinds={"aa": "claim manifests", "bb": "signature manifests"}),
    ):
        assert not Pair("x", built(), changed).same


def test_the_tables_name_what_differs():
    differed, came_out = Pair("x", built(), built(kinds={"ab": "claim manifests"})).tables()
    assert [row[0] for row in differed.rows] == ["directory", "PYTHONHASHSEED", "user", "host name", "seconds"]
    assert ("blobs: claim manifests", "1", "1", "**no**") in came_out.rows
    assert ("image", "`sha256:i…`", "`sha256:i…`", "yes") in came_out.rows
