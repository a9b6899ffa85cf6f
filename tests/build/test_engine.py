"""Builds: what is run again and what is not, how processes share a store, and what a trusted cache believes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests import images
from tests.workshop import COPY, Workshop, kill

from intaglio import strictjson
from intaglio.build.engine import IMAGE_STEP
from intaglio.content.layout import ACTION
from intaglio.digest import ActionKey, Digest
from intaglio.errors import ExitCode
from intaglio.trust.cosign import bundle_referrer
from intaglio.trust.signature import sign_bundle
from intaglio.trust.statement import PROVENANCE

pytestmark = pytest.mark.real
CACHED = {"one": "cached", "two": "cached", "image": "cached"}


def key(answer: dict[str, Any], name: str) -> str:
    return next(str(step["key"]) for step in answer["steps"] if step["name"] == name)


def output(answer: dict[str, Any], name: str) -> str:
    return next(str(step["output"]) for step in answer["steps"] if step["name"] == name)


def span(shop: Workshop, key: str) -> tuple[float, float]:
    events = shop.events(key)
    assert [event["event"] for event in events][:: len(events) - 1] == ["started", "ended"]
    return events[0]["at"], events[-1]["at"]


# --- what is built again ---------------------------------------------------------------------------------------------


def test_a_second_build_runs_nothing_and_gives_the_same(shop: Workshop) -> None:
    shop.chain("one", "two")
    first = shop.built()
    assert [step["status"] for step in first["steps"]] == ["built"] * 3
    again = shop.built()
    assert {step["name"]: step["status"] for step in again["steps"]} == CACHED
    for name in ("image", "tag"):
        assert again[name] == first[name]
    for step in CACHED:
        assert (key(again, step), output(again, step)) == (key(first, step), output(first, step))
    assert shop.model(again["image"]) == b"what the model is made of\none\ntwo\n"


def test_a_comment_in_the_recipe_rebuilds_nothing(shop: Workshop) -> None:
    shop.chain("one", "two")
    first = shop.built()
    path = shop.recipe / "Modelfile.toml"
    path.write_text("# another comment\n\n" + path.read_text().replace("inputs = {", "inputs  =  {"))
    again = shop.built()
    assert {step["name"]: step["status"] for step in again["steps"]} == CACHED
    assert again["image"] == first["image"]


def test_another_version_of_the_engine_rebuilds_nothing(shop: Workshop) -> None:
    shop.chain("one", "two")
    first = shop.built()
    code = "import sys, intaglio; intaglio.__version__ = '99.0'; from intaglio.cli import main; main()"
    argv = [sys.executable, "-c", code, "build", ".", "--json"]
    done = subprocess.run(argv, cwd=shop.recipe, env=shop.environment, capture_output=True, text=True, check=True)
    again = json.loads(done.stdout)
    assert {step["name"]: step["status"] for step in again["steps"]} == CACHED
    assert again["image"] == first["image"]


def test_the_version_stands_nowhere_in_the_store(shop: Workshop) -> None:
    """Another engine's build gives the same bytes: nothing that is kept says who made it."""
    shop.chain("one", "two")
    shop.built()
    ours = shop.home / "store" / "blobs"
    names = {path.name for path in ours.glob("*/*")}
    code = "import sys, intaglio; intaglio.__version__ = '99.0'; from intaglio.cli import main; main()"
    words = ["--store", str(shop.root / "other"), "build", ".", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=shop.recipe, env=shop.environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    others = {path.name for path in (shop.root / "other" / "blobs").glob("*/*")}
    assert names <= others, "and what the toolchain is made of, which this store did not have"


def test_the_place_of_the_store_and_of_the_recipe_rebuild_nothing(shop: Workshop) -> None:
    shop.chain("one", "two")
    first = shop.built()
    (shop.root / "elsewhere").mkdir()
    moved = Workshop(shop.root / "elsewhere" / "with a space")
    shop.root.joinpath("elsewhere", "with a space").mkdir()
    for name in ("home", "recipe", "data", "wheels"):
        (shop.root / name).rename(moved.root / name)
    again = moved.built()
    assert {step["name"]: step["status"] for step in again["steps"]} == CACHED
    assert again["image"] == first["image"]


def test_renaming_a_step_or_relabelling_the_image_runs_no_step(shop: Workshop) -> None:
    shop.chain("one", "two")
    shop.built()
    shop.edit("Modelfile.toml", "[steps.one]", "[steps.first]")
    shop.edit("Modelfile.toml", '"one"', '"first"')
    shop.edit("Modelfile.toml", 'from = "two"\n', 'from = "two"\nlabels = { "org.example.team" = "press" }\n')
    assert shop.statuses() == {"first": "cached", "two": "cached", "image": "built"}


def test_limits_do_not_rebuild_but_threads_do(shop: Workshop) -> None:
    shop.one(COPY, limits='{ memory = "64MiB", time = "30s", processes = 16, disk = "1MiB" }')
    shop.built()
    shop.edit("Modelfile.toml", '"64MiB", time = "30s", processes = 16', '"99MiB", time = "31s", processes = 17')
    assert shop.statuses()["make"] == "cached"
    shop.edit("Modelfile.toml", "processes = 17", "processes = 17, threads = 1")
    assert shop.statuses()["make"] == "built"
    differences = shop.run("explain", "make", "--json").ok().json["differences"]
    assert [one["path"] for one in differences] == ["environment.MKL_NUM_THREADS", "environment.OMP_NUM_THREADS"]


def test_a_parameter_rebuilds_its_step_and_what_follows_and_explain_names_it(shop: Workshop) -> None:
    shop.step("one", COPY)
    shop.step("two", 'write(read("source") + str(given["rate"]).encode())', parameters={"rate": "0.5"})
    shop.step("three", COPY)
    shop.write(
        """
        [steps.one]
        uses = "./one"
        inputs = { source = "data" }
        [steps.two]
        uses = "./two"
        inputs = { source = "one" }
        with = { rate = 0.25 }
        [steps.three]
        uses = "./three"
        inputs = { source = "two" }
        """,
        source="three",
    )
    shop.lock()
    first = shop.built()
    shop.edit("Modelfile.toml", "rate = 0.25", "rate = 0.125")
    planned = {step["name"]: step for step in shop.run("plan", "--json").ok().json["steps"]}
    assert {name: step["status"] for name, step in planned.items()} == {
        "one": "cached",
        "two": "build",
        "three": "unknown",
    }
    assert planned["two"]["why"] == "parameters.rate: 0.25 → 0.125"
    before = shop.run("explain", "two", "--json").ok().json
    again = shop.built()
    assert [step["status"] for step in again["steps"]] == ["cached", "built", "built", "built"]
    assert again["image"] != first["image"]
    for answer in (before, shop.run("explain", "two", "--json").ok().json):
        assert answer["differences"] == [{"path": "parameters.rate", "old": 0.25, "new": 0.125}]
    said = shop.run("explain", ".", "three").ok().out
    assert f"inputs.source (two): {output(first, 'two')} → {output(again, 'two')}" in said
    shop.edit("Modelfile.toml", "rate = 0.125", "rate = 0.25")
    assert set(shop.statuses().values()) == {"cached"}, "going back finds the claims of the first build"


def test_one_line_of_a_step_program_rebuilds_its_users_only(shop: Workshop) -> None:
    shop.step("shipped", COPY, shipped=True)
    shop.step("own", COPY)
    shop.write(
        """
        [steps.first]
        uses = "./own"
        inputs = { source = "data" }
        [steps.second]
        uses = "shipped"
        inputs = { source = "first" }
        [steps.third]
        uses = "./own"
        inputs = { source = "second" }
        """,
        source="third",
    )
    shop.lock()
    first = shop.built()
    program = shop.builder / "steps" / "shipped.py"
    program.write_text(program.read_text() + "# one line\n")
    answer = shop.build().ok()
    assert {step["name"]: step["status"] for step in answer.json["steps"]} == {
        "first": "cached",
        "second": "built",
        "third": "cached",
        "image": "cached",
    }, "the same bytes came out of the second, so that nothing below it ran"
    assert answer.json["image"] == first["image"]
    assert "program shipped: the lock pins" in answer.err
    paths = [one["path"] for one in shop.run("explain", "second", "--json").ok().json["differences"]]
    assert paths == ["program (shipped)"]


def test_an_upstream_change_that_gives_the_same_bytes_runs_nothing_below(shop: Workshop) -> None:
    shop.step("one", COPY, parameters={"ignored": "1.0"})
    shop.step("two", COPY)
    shop.write(
        """
        [steps.one]
        uses = "./one"
        inputs = { source = "data" }
        with = { ignored = 2.0 }
        [steps.two]
        uses = "./two"
        inputs = { source = "one" }
        """,
        source="two",
    )
    shop.lock()
    shop.built()
    shop.edit("Modelfile.toml", "ignored = 2.0", "ignored = 3.0")
    assert shop.statuses() == {"one": "built", "two": "cached", "image": "cached"}


def test_what_the_image_does_not_need_is_not_run(shop: Workshop) -> None:
    shop.chain("one", "two")
    shop.step("wrong", "sys.exit(1)")
    path = shop.recipe / "Modelfile.toml"
    path.write_text(path.read_text() + '[steps.aside]\nuses = "./wrong"\ninputs = { source = "data" }\n')
    shop.lock()
    assert list(shop.statuses()) == ["one", "two", "image"]
    planned = {step["name"]: step["status"] for step in shop.run("plan", "--json").ok().json["steps"]}
    assert planned["aside"] == "not needed"


# --- what is lost is made again --------------------------------------------------------------------------------------


def test_a_lost_output_is_built_again(shop: Workshop) -> None:
    shop.chain("one", "two")
    first = shop.built()
    for layer in shop.store.tree(Digest(output(first, "two"))).files:
        shop.store.path(layer.digest).unlink()
    again = shop.built()
    assert {step["name"]: step["status"] for step in again["steps"]} == {
        "one": "cached",
        "two": "built",
        "image": "cached",
    }
    assert again["image"] == first["image"]
    assert shop.run("verify", "tests/shop:1.0.0").ok()


def test_a_lost_manifest_of_an_output_is_built_again(shop: Workshop) -> None:
    shop.chain("one", "two")
    first = shop.built()
    shop.store.path(Digest(output(first, "two"))).unlink()
    shop.store.path(Digest(first["image"])).unlink()
    again = shop.built()
    assert again["image"] == first["image"]
    assert shop.run("verify", "tests/shop:1.0.0").ok()


@pytest.mark.parametrize("how", ["gone", "flipped"])
def test_lost_documents_are_made_again(shop: Workshop, how: str) -> None:
    """Every manifest, config, claim and signature that a build made: each in turn is made anew, the same."""
    shop.one(COPY)
    first = shop.built()
    before = {path.name: path.read_bytes() for path in (shop.home / "store/blobs/sha256").iterdir()}
    documents = {name: data for name, data in before.items() if data.startswith(b"{")}
    for name, data in documents.items():
        path = shop.store.path(Digest.from_hex(name))
        path.unlink()
        if how == "flipped":
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        again = shop.built()
        assert again["image"] == first["image"]
        done = shop.run("verify", "tests/shop:1.0.0")
        assert done.status == 0, f"{name} {data[:80]!r}\n{done.out}"
    after = {path.name: path.read_bytes() for path in (shop.home / "store/blobs/sha256").iterdir()}
    lost = {name for name in before if after.get(name) != before[name]}
    preimages = {key(first, name).removeprefix("sha256:") for name in ("make", "image")}
    assert lost <= preimages, "what only `explain` reads may stay lost"


@pytest.mark.parametrize("damage", ["truncated", "grown", "empty"])
def test_an_output_of_the_wrong_size_is_built_again(shop: Workshop, damage: str) -> None:
    shop.chain("make")
    first = shop.built()
    blob = shop.store.path(shop.store.tree(Digest(output(first, "make"))).files[0].digest)
    data = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes({"truncated": data[:-1], "grown": data + b"x", "empty": b""}[damage])
    again = shop.built()
    assert again["steps"][0]["status"] == "built"
    assert again["image"] == first["image"]
    assert blob.read_bytes() == data
    assert shop.run("verify", "tests/shop:1.0.0").ok()


def test_a_flipped_bit_reaches_no_step(shop: Workshop) -> None:
    shop.chain("one", "two")
    first = shop.built()
    blob = shop.store.path(shop.store.tree(Digest(output(first, "one"))).files[0].digest)
    data = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(b"W" + data[1:])
    shop.edit("two.py", "write(read", "write(b'2' + read")
    refused = shop.build("--tag", "tests/poisoned:1").failed(ExitCode.CORRUPT)
    assert "model.txt" in refused.err
    assert "intaglio store verify --repair" in refused.err
    assert set(shop.store.tags()) == {"tests/shop:1.0.0"}
    assert shop.run("store", "verify").status == ExitCode.CORRUPT
    assert shop.run("store", "verify", "--repair").ok()
    again = shop.built()
    assert shop.model(again["image"]) == b"2" + data + b"two\n"
    assert shop.run("verify", "tests/shop:1.0.0").ok()


def test_a_lost_index_is_made_again(shop: Workshop) -> None:
    shop.chain("one", "two")
    first = shop.built()
    for path in (shop.home / "store").glob("index.sqlite*"):
        path.unlink()
    again = shop.built()
    assert {step["name"]: step["status"] for step in again["steps"]} == CACHED
    assert again["image"] == first["image"]


def test_a_lost_index_json_loses_names_only(shop: Workshop) -> None:
    shop.one(COPY)
    first = shop.built()
    (shop.home / "store" / "index.json").unlink()
    (shop.home / "store" / "oci-layout").unlink()
    assert shop.built() | {"steps": []} == first | {"steps": []}
    assert shop.run("verify", "tests/shop:1.0.0").ok()


# --- claims ----------------------------------------------------------------------------------------------------------


def forge(shop: Workshop, answer: dict[str, Any], *, edit_only: bool) -> Digest:
    """Put a claim into the store that the step ``make`` gave an output of ours; return that output."""
    store = shop.store
    action = ActionKey(key(answer, "make"))
    evil = store.put_tree([store.ingest(shop.recipe / "evil.txt", move=False).files[0]])
    genuine = store.claims(action)
    assert len(genuine) == 1
    manifest = strictjson.parse_object(store.read(genuine[0], what="claim"), what="claim")
    bundle = strictjson.parse_object(store.read(Digest(manifest["layers"][0]["digest"]), what="bundle"), what="bundle")
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    statement["subject"][0]["digest"]["sha256"] = evil.digest.hex
    payload = strictjson.canonical(statement)
    if edit_only:
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
        forged = strictjson.canonical(bundle)
    else:
        forged = sign_bundle(payload, images.key("stranger"))
    referrer = bundle_referrer(evil.descriptor(), forged, PROVENANCE, {ACTION: str(action)})
    store.put_referrer(referrer.manifest, referrer.blobs)
    store.path(genuine[0]).unlink()
    return evil.digest


@pytest.mark.parametrize("edit_only", [False, True], ids=["strange-key", "edited-payload"])
def test_a_poisoned_claim_is_not_believed(shop: Workshop, edit_only: bool) -> None:
    shop.one(COPY)
    first = shop.built()
    (shop.recipe / "evil.txt").write_text("evil\n")
    evil = forge(shop, first, edit_only=edit_only)
    again = shop.built()
    assert again["steps"][0]["status"] == "built"
    assert again["image"] == first["image"]
    assert str(evil) not in json.dumps(again)


def test_claims_of_a_builder_outside_the_policy_are_not_believed(shop: Workshop) -> None:
    shop.one(COPY)
    first = shop.built()
    (shop.home / "keys").rename(shop.root / "old keys")
    (shop.home / "policy.toml").unlink()
    shop.run("init").ok()
    again = shop.built()
    assert [step["status"] for step in again["steps"]] == ["built", "built"]
    assert again["image"] == first["image"], "keys do not enter the image"
    assert shop.run("verify", "tests/shop:1.0.0").ok()


def test_two_builds_with_the_same_keys_keep_the_same_bytes(shop: Workshop) -> None:
    shop.chain("one", "two")
    first = shop.built()
    blobs = {path.name for path in (shop.home / "store/blobs/sha256").iterdir()}
    index = (shop.home / "store/index.json").read_bytes()
    for name in ("blobs", "logs"):
        shutil.rmtree(shop.home / "store" / name)
    for name in ("index.sqlite", "index.json", "oci-layout"):
        (shop.home / "store" / name).unlink()
    (shop.home / "store" / "blobs").mkdir()
    again = shop.built(PYTHONHASHSEED="7", USER="other", LANG="C")
    assert [step["status"] for step in again["steps"]] == ["built"] * 3
    assert again["image"] == first["image"]
    assert {path.name for path in (shop.home / "store/blobs/sha256").iterdir()} == blobs
    assert (shop.home / "store/index.json").read_bytes() == index


# --- side by side ----------------------------------------------------------------------------------------------------


def test_two_builds_at_once_run_each_action_once(shop: Workshop) -> None:
    """Each run of a step would give other bytes here, and so another claim."""
    shop.step("one", "import time; time.sleep(0.5); write(os.urandom(8).hex())")
    shop.step("two", 'write(read("source") + os.urandom(8).hex().encode())')
    shop.write(
        """
        [steps.one]
        uses = "./one"
        inputs = { source = "data" }
        [steps.two]
        uses = "./two"
        inputs = { source = "one" }
        """,
        source="two",
    )
    shop.lock()
    both = [shop.start("build", ".", "--json", "--tag", f"tests/shop:{number}") for number in (1, 2)]
    answers = []
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        answers.append(json.loads(out))
    assert answers[0]["image"] == answers[1]["image"]
    for name in ("one", "two"):
        statuses = [step["status"] for answer in answers for step in answer["steps"] if step["name"] == name]
        assert sorted(statuses) == ["built", "cached"]
        assert len(shop.store.claims(ActionKey(key(answers[0], name)))) == 1
    assert set(shop.store.tags()) == {"tests/shop:1", "tests/shop:2"}
    assert shop.run("store", "verify").ok()


FORK = """
[steps.left]
uses = "./left"
inputs = { source = "data" }
limits = { threads = 1 }
[steps.right]
uses = "./right"
inputs = { source = "data" }
limits = { threads = 1 }
[steps.join]
uses = "./join"
inputs = { left = "left", right = "right" }
"""


@pytest.mark.parametrize("cores", [1, 2])
def test_independent_steps_run_side_by_side_within_the_cores(shop: Workshop, cores: int) -> None:
    if len(os.sched_getaffinity(0)) < cores:
        pytest.skip("this machine has one core")
    for name in ("left", "right"):
        shop.step(name, f'import time; time.sleep(0.7); write("{name}")')
    shop.step("join", 'write(read("left") + read("right"))', inputs=("left", "right"))
    shop.write(FORK, source="join")
    shop.lock()
    chosen = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
    answer = shop.run("build", ".", "--json", before=("taskset", "-c", chosen)).ok().json
    spans = sorted(span(shop, key(answer, name)) for name in ("left", "right"))
    overlap = spans[0][1] - spans[1][0]
    assert overlap > 0.2 if cores == 2 else overlap <= 0, f"left and right overlap by {overlap:.2f} s"
    assert span(shop, key(answer, "join"))[0] >= max(end for _, end in spans)


def test_a_failing_step_does_not_undo_the_one_beside_it(shop: Workshop) -> None:
    shop.step("left", 'import time; time.sleep(0.4); write("left")')
    shop.step("right", "sys.exit(1)")
    shop.step("join", 'write(read("left") + read("right"))', inputs=("left", "right"))
    shop.write(FORK, source="join")
    shop.lock()
    assert "step right" in shop.build().failed(ExitCode.STEP).err
    shop.step("right", 'write("right")')
    statuses = shop.statuses()
    assert statuses["right"] == "built"
    if len(os.sched_getaffinity(0)) > 1:
        assert statuses["left"] == "cached"


# --- crashes ---------------------------------------------------------------------------------------------------------


def test_killed_at_any_moment_the_store_is_whole_and_the_next_build_finishes(shop: Workshop) -> None:
    shop.chain("one", "two", "three")
    started = time.monotonic()
    right = shop.built()["image"]
    whole = time.monotonic() - started
    for number in range(6):
        for name in ("blobs", "logs"):
            shutil.rmtree(shop.home / "store" / name)
        for path in (shop.home / "store").glob("*.*"):
            path.unlink()
        (shop.home / "store" / "oci-layout").unlink()
        (shop.home / "store" / "blobs").mkdir()
        process = shop.start("build", ".", "--json")
        time.sleep(whole * (number + 0.5) / 6)
        kill(process)
        assert shop.run("store", "verify").ok()
        assert shop.built()["image"] == right
    assert shop.run("verify", "tests/shop:1.0.0").ok()
    assert not running_inside(shop), "a killed build leaves no sandbox behind"


def running_inside(shop: Workshop) -> list[str]:
    """Return the processes that have anything of the workshop mounted."""
    found = []
    for place in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            if str(shop.home) in place.read_text():
                found.append(place.parent.name)
        except OSError:
            continue
    return found


def test_what_a_crash_left_is_swept_by_a_later_build(shop: Workshop) -> None:
    shop.one("import time; time.sleep(30)")
    process = shop.start("build")
    tmp = shop.home / "store" / "tmp"
    deadline = time.monotonic() + 20
    while not (tmp.is_dir() and any(path.is_dir() for path in tmp.iterdir())):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kill(process)
    left = list(tmp.iterdir())
    assert left
    shop.one(COPY)
    shop.built()
    assert all(path.exists() for path in left), "what is young may belong to somebody who is about to lock it"
    for path in left:
        os.utime(path, (0, 0))
    shop.built()
    assert list(tmp.iterdir()) == []


def test_a_step_may_be_called_as_the_assembly_is(shop: Workshop) -> None:
    shop.chain("image")
    assert [step["name"] for step in shop.built()["steps"]] == ["image", IMAGE_STEP]
    assert shop.run("verify", "tests/shop:1.0.0").ok()
