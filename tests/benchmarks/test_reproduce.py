from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import reproduce, runtime_twice
from benchmarks.reproduce import Built, Pair

from intaglio.build import servers
from intaglio.build.servers import Form
from intaglio.recipe import modelfile
from intaglio.recipe.modelfile import RUNTIMES


def write(folder: Path, name: str, document: object) -> None:
    (folder / name).write_text(json.dumps(document))


def test_blobs_are_told_apart(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    subject = {"digest": "sha256:x"}
    layer = [{"digest": "sha256:claimed"}]
    write(blobs, "c", {"layers": layer, "subject": subject, "annotations": {"dev.intaglio.action": "sha256:k"}})
    write(blobs, "l", {"layers": layer, "subject": subject, "artifactType": "application/vnd.intaglio.lineage.v1"})
    write(blobs, "s", {"layers": [{"digest": "sha256:signed"}], "subject": subject})
    write(blobs, "t", {"layers": [], "artifactType": "application/vnd.intaglio.tree.v1"})
    write(blobs, "i", {"layers": [], "artifactType": "application/vnd.cncf.model.manifest.v1+json"})
    runnable = {"mediaType": "application/vnd.oci.image.config.v1+json"}
    write(blobs, "r", {"layers": [{"digest": "sha256:packed"}], "config": runnable})
    for name in ("claimed", "signed", "file", "packed"):
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
        "r": "runtime image manifests",
        "packed": "layers of runtime images",
    }
    assert size == sum(path.stat().st_size for path in blobs.iterdir())


def built(**changes: Any) -> Built:
    steps = [{"name": "seed", "key": "sha256:k", "status": "built", "output": "sha256:o"}]
    whole = Built({"image": "sha256:i", "steps": steps}, {"aa": "claim manifests"}, 5, 1.0, ("a", "1", "0", "here"))
    return replace(whole, **changes)


def test_the_same_is_the_same_and_anything_else_is_not() -> None:
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


def test_the_tables_name_what_differs() -> None:
    differed, came_out = Pair("x", built(), built(kinds={"ab": "claim manifests"})).tables()
    assert [row[0] for row in differed.rows] == ["directory", "PYTHONHASHSEED", "user", "host name", "seconds"]
    assert ("blobs: claim manifests", "1", "1", "**no**") in came_out.rows
    assert ("image", "`sha256:i…`", "`sha256:i…`", "yes") in came_out.rows
    assert not [row for row in came_out.rows if row[0] == "runtime image"]


def test_the_runtime_image_is_compared() -> None:
    answer = built().answer
    sides = [built(answer={**answer, "runtime": {"image": f"sha256:{word}"}}) for word in ("r", "r", "s")]
    assert Pair("x", sides[0], sides[1]).same
    assert ("runtime image", "`sha256:r…`", "`sha256:r…`", "yes") in Pair("x", *sides[:2]).tables()[1].rows
    for other in (sides[2], built()):
        pair = Pair("x", sides[0], other)
        assert not pair.same
        assert [row[3] for row in pair.tables()[1].rows if row[0] == "runtime image"] == ["**no**"]


def test_a_side_takes_the_recipes_beside_it(tmp_path: Path) -> None:
    for name in ("modelfiles/a", "modelfiles/b/data", "origin"):
        (tmp_path / name).mkdir(parents=True)
    side = reproduce._Side(tmp_path / "side", "1", tmp_path / "intaglio", None)
    side.prepare()
    side.take(tmp_path / "modelfiles" / "a", tmp_path / "origin")
    assert (side._recipe / "../b/data").is_dir()


@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("name", RUNTIMES)
def test_each_runtime_has_a_recipe(tmp_path: Path, name: str, embed: bool) -> None:
    recipe = modelfile.read(runtime_twice.write(name, tmp_path, embed=embed))
    assert (recipe.image.runtime, recipe.image.embed) == (name, embed)
    serves = servers.choose(Form("gguf" if recipe.image.source == "gguf" else "safetensors"), name)
    assert serves.name == servers.program_name(name)
    assert set(runtime_twice.RUNTIMES) == set(RUNTIMES)
