"""An input by its name in a trusted source: made, published, read, pinned, built; refused when unlisted or yanked."""

from __future__ import annotations

import shutil
import tomllib
from contextlib import closing
from pathlib import Path

import pytest
from tests.recipe.sources.web import Server
from tests.workshop import COPY, Workshop

from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.trust.cosign import Link
from intaglio.trust.signature import read_bundle

NAME = "datasets/acme/words@1.0.0"
ENTRY = """
name = "datasets/acme/words"
version = "1.0.0"
summary = "Words."
tree = "{tree}"
licence = "Apache-2.0"
publisher = "Acme"
origins = ["file:data.txt"]
"""
STEPS = '[steps.make]\nuses = "./make"\ninputs = { source = "data" }\n'


@pytest.fixture
def source(shop: Workshop) -> Workshop:
    """A workshop whose anchor is a source that lists the recipe's data."""
    shop.one('write(read("source"))')
    tree = tomllib.loads((shop.recipe / "Modelfile.lock").read_text())["inputs"]["data"]["tree"]
    (shop.root / "words.toml").write_text(ENTRY.format(tree=tree))
    shop.run("trust", "init", shop.root / "source").ok()
    shop.run("trust", "add", shop.root / "source", shop.root / "words.toml").ok()
    publish(shop)
    shop.run("trust", "anchor", shop.root / "published" / "metadata" / "1.root.json").ok()
    shop.run("trust", "refresh", "--url", shop.root / "published").ok()
    shop.write(STEPS, source="make", inputs=f'data = {{ uri = "{NAME}" }}')
    return shop


def publish(shop: Workshop) -> None:
    """Sign what is staged with every offline key, and publish it."""
    for key in sorted((shop.root / "source-keys" / "offline").glob("*.key")):
        shop.run("trust", "sign", shop.root / "source", "--key", key)
    shop.run("trust", "publish", shop.root / "source", shop.root / "published").ok()


def test_a_name_is_pinned_with_the_versions_of_the_source_and_stands_in_provenance(source: Workshop) -> None:
    source.lock()
    lock = tomllib.loads((source.recipe / "Modelfile.lock").read_text())
    assert lock["inputs"]["data"]["uri"] == NAME
    assert lock["trust"] == {"root": 1, "snapshot": 1, "targets": 1, "timestamp": 1}
    made = source.built()
    output = next(step for step in made["steps"] if step["name"] == "make")["output"]
    said = b"".join(
        read_bundle(source.store.read(layer.digest, what="claim"), what="claim").payload
        for referrer in source.store.referrers(Digest(output))
        for layer in Link.parse(source.store.read(referrer.digest, what="claim"), "claim").layers
    )
    assert NAME.encode() in said
    assert b'"trust":{"root":1' in said


def test_the_recipes_licences_stand_in_claims_so_that_a_policy_needs_no_source_for_them(shop: Workshop) -> None:
    shop.step("make", 'write(read("source"))')
    inputs = 'data = {{ uri = "file:data.txt"{} }}'
    for said, status in ((', licence = "MIT"', 0), (', licence = "GPL-3.0-only"', 23), ("", 23)):
        shop.write(STEPS, source="make", inputs=inputs.format(said))
        shop.step("make", f'write(read("source") + b"{status}{len(said)}")')  # another key: an old claim says the old
        shop.lock()
        shop.built()
        policy = shop.root / "policy.toml"
        policy.write_text((shop.home / "policy.toml").read_text() + '[licences]\nallow = ["Apache-2.0", "MIT"]\n')
        done = shop.run("verify", "tests/shop:1.0.0", "--policy", policy)
        assert done.status == status, done.out + done.err


def test_an_https_origin_is_fetched_against_the_manifest_that_the_source_publishes(
    source: Workshop, tmp_path: Path
) -> None:
    """The lock and the source promise a tree; the digest of its one file stands in the tree's manifest."""
    data = (source.recipe / "data.txt").read_bytes()
    with closing(Server()) as server:
        server.pages["/data.txt"] = data
        given = f'origins = ["{server.url}/data.txt"]\ndigest = "{Digest.of(data)}"'
        entry = ENTRY.replace("acme/words", "acme/web").replace('origins = ["file:data.txt"]', given)
        entry = "\n".join(line for line in entry.splitlines() if not line.startswith("tree"))
        (source.root / "web.toml").write_text(entry)
        source.run("trust", "add", source.root / "source", source.root / "web.toml").ok()
        publish(source)
        source.run("trust", "refresh").ok()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        shutil.copy(source.home / "root.json", elsewhere)
        shutil.copytree(source.home / "tuf", elsewhere / "tuf")
        source.write(STEPS, source="make", inputs='data = { uri = "datasets/acme/web@1.0.0" }')
        source.recipe.joinpath("Modelfile.lock").unlink(missing_ok=True)
        source.run("lock", INTAGLIO_HOME=str(elsewhere)).ok()
        assert Store.open(elsewhere / "store").has(Digest.of(data))
        server.pages["/data.txt"] = data + b"!"
        shutil.rmtree(elsewhere / "store")
        source.recipe.joinpath("Modelfile.lock").unlink()
        assert "the bytes changed" in source.run("lock", INTAGLIO_HOME=str(elsewhere)).failed(21).err
        server.pages.clear()
        source.run("lock", INTAGLIO_HOME=str(elsewhere)).failed(20)


def test_a_yanked_name_is_refused(source: Workshop) -> None:
    source.run("trust", "yank", source.root / "source", NAME, "--reason", "it leaked").ok()
    publish(source)
    source.run("trust", "refresh").ok()
    source.recipe.joinpath("Modelfile.lock").unlink()
    assert "it leaked" in source.run("lock").failed(23).err


def emptied(source: Workshop) -> None:
    """Take everything but the realised environments out of the store."""
    for path in (source.home / "store").iterdir():
        if path.name != "environments":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (source.home / "store" / "blobs").mkdir()


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
def test_what_was_yanked_after_it_was_pinned_is_not_built(source: Workshop, cached: bool) -> None:
    source.lock()
    source.built()
    source.run("trust", "yank", source.root / "source", NAME, "--reason", "it leaked").ok()
    publish(source)
    assert source.built("--locked"), "what was never fetched is not known"
    source.run("trust", "refresh").ok()
    if not cached:
        emptied(source)
    for words in (("build", "--locked", "--tag", "new:1"), ("build", "--offline", "--tag", "new:1"), ("plan",)):
        failed = source.run(*words, "--json").failed(23)
        assert failed.json["error"]["message"] == f"{NAME} was yanked by the trusted source: it leaked"
    assert "new:1" not in source.store.tags()
    assert not cached or source.run("explain", "make").ok()


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
def test_what_another_source_does_not_list_is_not_built(source: Workshop, tmp_path: Path, cached: bool) -> None:
    source.lock()
    source.built()
    if not cached:
        emptied(source)
    shutil.copy(source.recipe / "data.txt", source.root)  # where the entry's origin counts from
    others = source.root / "others.toml"
    others.write_text((source.root / "words.toml").read_text().replace("acme/words", "acme/others"))
    source.run("trust", "init", tmp_path / "source").ok()
    source.run("trust", "add", tmp_path / "source", others).ok()
    for key in sorted((tmp_path / "source-keys" / "offline").glob("*.key")):
        source.run("trust", "sign", tmp_path / "source", "--key", key)
    source.run("trust", "publish", tmp_path / "source", tmp_path / "published").ok()
    source.run("trust", "anchor", tmp_path / "published" / "metadata" / "1.root.json", "--replace").ok()
    assert "trust refresh" in source.build("--locked").failed(25).json["error"]["hint"]
    source.run("trust", "refresh", "--url", tmp_path / "published").ok()
    assert "does not list it" in source.build("--locked").failed(23).err


def test_a_name_that_is_listed_with_other_bytes_than_the_locks_is_not_built(source: Workshop) -> None:
    source.lock()
    pins = source.recipe / "Modelfile.lock"
    pinned = tomllib.loads(pins.read_text())["inputs"]["data"]["tree"]
    source.one(COPY)
    tree = next(step["output"] for step in source.built()["steps"] if step["name"] == "make")
    assert tree != pinned
    source.write(STEPS, source="make", inputs=f'data = {{ uri = "{NAME}" }}')
    source.lock()
    pins.write_text(pins.read_text().replace(pinned, tree))
    said = source.build("--locked").failed(21).json["error"]
    assert f"expected {tree}, found {pinned}" in said["message"]
    assert "intaglio update data" in said["hint"]


def test_a_step_program_is_listed_for_a_policy_that_says_so_and_never_yanked(source: Workshop) -> None:
    """By the very tree that `trust add` takes from the catalogue's entry and the claim names."""
    source.step("make", 'write(read("source"))', shipped=True)
    source.write(STEPS.replace("./make", "make"), source="make", inputs=f'data = {{ uri = "{NAME}" }}')
    place = source.root / "source"
    for name, where in (("toolchains/acme/tiny", "toolchains/tiny"), ("steps/acme/make", "steps/make")):
        entry = source.root / f"{where.partition('/')[0]}.toml"
        lines = ENTRY.replace("datasets/acme/words", name).splitlines()
        kept = [line for line in lines if not line.startswith(("tree", "origins"))]
        entry.write_text("\n".join([*kept, f'source = "builder/{where}"']))
    source.run("trust", "add", place, source.root / "toolchains.toml").ok()
    publish(source)
    source.run("trust", "refresh").ok()
    source.lock()
    source.built()
    policies = {}
    for name, more in (("lax", ""), ("closed", "programs = true\n")):
        policies[name] = source.root / f"{name}.toml"
        policies[name].write_text((source.home / "policy.toml").read_text() + f"[source]\nrequired = true\n{more}")

    def said(policy: str) -> tuple[int, str]:
        done = source.run("verify", "tests/shop:1.0.0", "--policy", policies[policy])
        return done.status, next(line for line in done.out.splitlines() if "source " in line)

    assert said("lax")[0] == 0
    status, why = said("closed")
    assert (status, "program:make" in why) == (23, True), why
    source.run("trust", "add", place, source.root / "steps.toml").ok()
    publish(source)
    source.run("trust", "refresh").ok()
    assert said("closed")[0] == 0
    source.run("trust", "yank", place, "steps/acme/make@1.0.0", "--reason", "it is wrong").ok()
    publish(source)
    source.run("trust", "refresh").ok()
    for policy in policies:
        status, why = said(policy)
        assert status == 23
        assert "steps/acme/make" in why
        assert "it is wrong" in why


def test_without_an_anchor_nothing_with_a_name_is_built(source: Workshop) -> None:
    source.lock()
    source.built()
    (source.home / "root.json").unlink()
    said = source.build("--locked").failed(25).json["error"]
    assert "there is no anchor" in said["message"]
    assert "intaglio trust anchor" in said["hint"]


def test_an_unlisted_name_is_refused(source: Workshop) -> None:
    source.write(STEPS, source="make", inputs='data = { uri = "datasets/acme/wards@1.0.0" }')
    source.recipe.joinpath("Modelfile.lock").unlink()
    said = source.run("lock").failed(23).err
    assert "datasets/acme/words" in said


def test_without_an_anchor_a_name_means_nothing(source: Workshop) -> None:
    (source.home / "root.json").unlink()
    source.recipe.joinpath("Modelfile.lock").unlink()
    source.run("lock").failed(25)


def test_a_bad_name_is_a_mistake_with_its_line(source: Workshop) -> None:
    source.write(STEPS, source="make", inputs='data = { uri = "datasets/acme/words" }')
    assert "Modelfile.toml:" in source.run("lock").failed(10).err
