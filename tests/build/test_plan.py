"""Plans: everything is pinned by the lock, or nothing is built."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.workshop import COPY, Workshop

from intaglio.build import plan
from intaglio.build.action import Action, differences, platform_class
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import ExitCode, LockError
from intaglio.recipe import lock, modelfile
from intaglio.recipe.program import Steps

pytestmark = pytest.mark.real


def pins(shop: Workshop) -> str:
    return (shop.recipe / "Modelfile.lock").read_text()


def test_without_a_lock_nothing_is_built(shop: Workshop) -> None:
    shop.one(COPY, lock=False)
    failed = shop.run("build").failed(ExitCode.LOCK)
    assert "input data (file:data.txt) is not pinned" in failed.err
    assert "program ./make is not pinned" in failed.err
    assert "toolchain tiny is not pinned" in failed.err
    assert "hint: intaglio lock ." in failed.err
    assert not (shop.recipe / "Modelfile.lock").exists(), "build never writes the lock"
    shop.assert_unharmed()


def test_how_processes_share_the_work_is_in_the_key(tmp_path: Path) -> None:
    """Rounding follows the number of processes and what each has: two such actions are never the same."""
    (tmp_path / "data.jsonl").write_text("{}\n")
    text = (
        '[model]\nname = "t/tuned"\nversion = "1"\nlicence = "MIT"\n[inputs]\ndata = { uri = "file:data.jsonl" }\n'
        '[steps.base]\nuses = "scratch"\n'
        '[steps.tune]\nuses = "finetune"\ninputs = { base = "base", data = "data" }\n'
        'with = { method = "full", steps = 1GIVEN }\n[image]\nfrom = "tune"\n'
    )
    tree = Digest.of(b"tree")

    def action(given: str) -> Action:
        (tmp_path / "Modelfile.toml").write_text(text.replace("GIVEN", given))
        step = modelfile.read(tmp_path).steps["tune"]
        planned = plan._Planner(Store.open(tmp_path / "store")).step(step)
        return planned.action({"base": tree, "data": tree})

    alone = json.loads(action("").preimage)
    assert alone["parameters"]["parallel"] == "none"
    assert alone["parameters"]["processes"] == 1
    ways = [(name, count) for name in ("ddp", "fsdp", "zero2", "zero3") for count in (2, 3)]
    made = {way: action(f', parallel = "{way[0]}", processes = {way[1]}') for way in ways}
    assert len({one.key for one in made.values()} | {action("").key}) == len(ways) + 1
    for (name, count), one in made.items():
        found = {leaf.path: leaf.new for leaf in differences(alone, json.loads(one.preimage))}
        assert found.pop("parameters.parallel") == name
        assert found.pop("parameters.processes") == count
        assert set(found) <= {"toolchain"}, "and DeepSpeed is in a toolchain of its own"


def test_a_new_input_is_refused_until_it_is_locked(shop: Workshop) -> None:
    shop.one(COPY)
    shop.built()
    before = pins(shop)
    (shop.recipe / "more.txt").write_text("more\n")
    shop.edit("Modelfile.toml", "[inputs]\n", '[inputs]\nmore = { uri = "file:more.txt" }\n')
    assert "input more (file:more.txt) is not pinned" in shop.run("build").failed(ExitCode.LOCK).err
    assert pins(shop) == before
    shop.run("lock").ok()
    assert all(line in pins(shop).splitlines() for line in before.splitlines()), "lock adds pins and moves none"
    assert shop.statuses()["make"] == "cached"


def test_a_pin_for_another_address_is_no_pin(shop: Workshop) -> None:
    shop.one(COPY)
    (shop.recipe / "other.txt").write_text("other\n")
    shop.edit("Modelfile.toml", "file:data.txt", "file:other.txt")
    failed = shop.run("build").failed(ExitCode.LOCK)
    assert "input data is pinned for file:data.txt, the recipe names file:other.txt" in failed.err


def test_a_changed_file_is_refused_and_update_takes_it(shop: Workshop) -> None:
    shop.one(COPY)
    first = shop.built()
    old = shop.store.tags()
    (shop.recipe / "data.txt").write_text("changed\n")
    failed = shop.run("build").failed(ExitCode.CORRUPT)
    assert "file:data.txt: the bytes changed: expected sha256:" in failed.err
    assert "intaglio update data" in failed.err.replace(" . ", " ")
    assert shop.store.tags() == old
    moved = shop.run("update", ".", "data", "--json").ok().json["changes"]
    assert [(change["kind"], change["name"]) for change in moved] == [("input", "data")]
    assert moved[0]["old"] != moved[0]["new"]
    again = shop.built()
    assert again["image"] != first["image"]
    assert shop.model(again["image"]) == b"changed\n"


def test_a_file_changed_back_is_taken(shop: Workshop) -> None:
    shop.one(COPY)
    first = shop.built()
    text = (shop.recipe / "data.txt").read_text()
    (shop.recipe / "data.txt").write_text("changed\n")
    shop.build().failed(ExitCode.CORRUPT)
    (shop.recipe / "data.txt").write_text(text)
    assert shop.built()["image"] == first["image"]


def test_a_missing_file_is_the_recipes_mistake_with_its_line(shop: Workshop) -> None:
    shop.one(COPY)
    (shop.recipe / "data.txt").unlink()
    failed = shop.run("build").failed(ExitCode.RECIPE)
    lines = (shop.recipe / "Modelfile.toml").read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if "file:data.txt" in line)
    assert f"Modelfile.toml:{number}: inputs.data.uri: missing file: expected " in failed.err
    shop.assert_unharmed()


def test_a_changed_program_is_noted_and_refused_when_locked(shop: Workshop) -> None:
    shop.one(COPY)
    shop.built()
    shop.edit("make.py", COPY, 'write(read("source").upper())\n')
    failed = shop.run("build", "--locked").failed(ExitCode.LOCK)
    assert "program ./make: the lock pins sha256:" in failed.err
    assert "hint: intaglio update . ./make" in failed.err
    before = pins(shop)
    loose = shop.run("build", ".").ok()
    assert "program ./make: the lock pins sha256:" in loose.err
    assert pins(shop) == before
    assert shop.run("update", ".", "./make").ok()
    assert shop.run("build", "--locked").ok().err.count("the lock pins") == 0
    assert shop.statuses("--locked") == {"make": "cached", "image": "cached"}


def test_a_changed_toolchain_is_noted_and_refused_when_locked(shop: Workshop) -> None:
    shop.one(COPY)
    first = shop.built()
    path = shop.builder / "toolchains" / "tiny" / "pylock.toml"
    path.write_text(path.read_text() + "# looked at again\n")
    assert "toolchain tiny: the lock pins" in shop.run("build", "--locked").failed(ExitCode.LOCK).err
    answer = shop.build().ok()
    assert "toolchain tiny: the lock pins" in answer.err
    assert [step["status"] for step in answer.json["steps"]] == ["built", "cached"]
    assert answer.json["image"] == first["image"]
    reasons = [one["path"] for one in shop.run("explain", "make", "--json").ok().json["differences"]]
    assert reasons == ["toolchain (tiny)"]


def test_parameters_choose_the_toolchain_that_is_locked_and_used(shop: Workshop) -> None:
    other = shop.builder / "toolchains" / "other"
    other.mkdir()
    text = (shop.builder / "toolchains" / "tiny" / "pylock.toml").read_text()
    (other / "pylock.toml").write_text(text + "# another\n")
    more = '[[toolchains]]\nname = "other"\nwhen = { way = ["far"] }'
    more += '\n[[classes]]\nreproducible = "platform"\nwhen = { way = ["far"] }'
    shop.one('write(given["way"])\n', parameters={"way": '"near"'}, more=more, lock=False)
    shop.lock()
    assert "[toolchains.tiny]" in pins(shop)
    shop.built()
    shop.edit("Modelfile.toml", 'source = "data" }\n', 'source = "data" }\nwith = { way = "far" }\n')
    assert "toolchain other is not pinned" in shop.run("build", ".").failed(ExitCode.LOCK).err
    shop.lock()
    assert re.findall(r"^\[toolchains\.(.*)\]$", pins(shop), re.MULTILINE) == ["other"]
    changed = {one["path"]: one["new"] for one in shop.run("explain", "make", "--json").ok().json["differences"]}
    assert changed.get("platform", "linux/arm64/v8") == platform_class("platform"), "not the same everywhere any more"
    shop.built()
    assert modelfile.read(shop.recipe, Steps(shop.recipe, shop.builder)).steps["make"].reproducible == "platform"


def test_a_broken_lock_is_said_to_be(shop: Workshop) -> None:
    shop.one(COPY)
    path = shop.recipe / "Modelfile.lock"
    text = path.read_text()
    wrong = ("not toml", text.replace("layout = 1", "layout = 2"), text.replace("sha256:", "sha512:"), text + "x=1")
    for written in wrong:
        path.write_text(written)
        assert "Modelfile.lock" in shop.run("build").failed(ExitCode.LOCK).err


def test_plan_says_what_would_be_done_and_does_nothing(shop: Workshop) -> None:
    shop.chain("one", "two")
    before = sorted(path.name for path in (shop.home / "store" / "blobs" / "sha256").iterdir())
    answer = shop.run("plan", "--json").ok().json
    assert [(step["name"], step["uses"], step["status"], step["why"]) for step in answer["steps"]] == [
        ("one", "./one", "build", "never built here"),
        ("two", "./two", "unknown", "depends on the output of one"),
    ]
    assert answer["steps"][0]["key"].startswith("sha256:")
    assert answer["steps"][1]["key"] is None
    assert sorted(path.name for path in (shop.home / "store" / "blobs" / "sha256").iterdir()) == before
    shop.built()
    assert [step["status"] for step in shop.run("plan", "--json").ok().json["steps"]] == ["cached", "cached"]


def test_the_plan_orders_steps_and_tells_what_the_image_needs(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTAGLIO_DATA", str(shop.data))
    for name in ("a", "b", "c", "d"):
        shop.step(name, COPY)
    shop.write(
        """
        [steps.d]
        uses = "./d"
        inputs = { source = "b" }
        [steps.c]
        uses = "./c"
        inputs = { source = "data" }
        [steps.b]
        uses = "./b"
        inputs = { source = "a" }
        [steps.a]
        uses = "./a"
        inputs = { source = "data" }
        """,
        source="d",
    )
    shop.lock()
    recipe = modelfile.read(shop.recipe)
    made = plan.make(recipe, lock.read(shop.recipe / lock.FILE), shop.store, strict=True, note=print)
    assert set(made.steps) == {"a", "b", "c", "d"}
    assert made.needed() == ("a", "b", "d")
    tree = Digest.of(b"tree")
    action = made.steps["a"].action({"source": tree})
    assert (action.inputs, action.program) == ({"source": tree}, str(recipe.steps["a"].program.tree().digest))
    assert action.key != made.steps["b"].action({"source": tree}).key


def test_no_lock_pins_nothing(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTAGLIO_DATA", str(shop.data))
    shop.one(COPY, lock=False)
    with pytest.raises(LockError, match=r"input data .* is not pinned"):
        plan.make(modelfile.read(shop.recipe), None, Store.open(shop.root / "s"), strict=False, note=print)
