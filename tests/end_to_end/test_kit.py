"""A kit, all the way: made from a trusted source, taken on a host without any network, and built there again."""

from __future__ import annotations

import os
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.workshop import Finished, Workshop, furnish

from intaglio.digest import Digest

NAME = "tests/shop:1.0.0"
POLICY = "policies/acme/release@1"
ALONE = ("unshare", "--net", *([] if os.getuid() == 0 else ["--map-root-user"]))
"""Starts a program where there is no network, not even a loopback that is up."""
ENTRY = """
name = "{name}"
version = "1.0.0"
summary = "Listed."
tree = "{tree}"
licence = "Apache-2.0"
publisher = "Acme"
origins = ["file:{origin}"]
"""
STEPS = '[steps.make]\nuses = "./make"\ninputs = { source = "data" }\n'
RULES = '\n[source]\nrequired = true\n\n[freshness]\nmax_age = "30d"\n'


@dataclass(frozen=True)
class Host:
    """A machine that has the recipe and the publisher's root, no network, and no index or cache of anything."""

    shop: Workshop
    home: Path
    recipe: Path

    def run(self, *words: str | Path) -> Finished:
        place = {"INTAGLIO_HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / "cache")}
        return self.shop.run(*words, before=ALONE, PIP_FIND_LINKS=str(self.home / "nothing"), **place)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return furnish(tmp_path_factory.mktemp("kit") / "shop")


@pytest.fixture(scope="module")
def whole(shop: Workshop) -> Path:
    """A kit for a rebuild, of an image whose every input, toolchain and policy a trusted source lists."""
    shutil.rmtree(shop.home / "store" / "environments")  # so that the build fetches the toolchain's wheels
    shop.one('write(read("source"))')
    shop.built()
    pin = tomllib.loads((shop.recipe / "Modelfile.lock").read_text())
    write_entry(shop, "datasets/acme/words", pin["inputs"]["data"]["tree"], "data.txt")
    write_entry(shop, "toolchains/acme/tiny", pin["toolchains"]["tiny"]["tree"], "none")
    (shop.root / "policy.toml").write_text((shop.home / "policy.toml").read_text() + RULES)
    source = shop.root / "source"
    shop.run("trust", "init", source).ok()
    for name in ("words", "tiny"):
        shop.run("trust", "add", source, shop.root / f"{name}.toml").ok()
    shop.run("trust", "add", source, POLICY, "--file", shop.root / "policy.toml", "--publisher", "Acme").ok()
    for key in sorted((shop.root / "source-keys" / "offline").glob("*.key")):
        shop.run("trust", "sign", source, "--key", key)
    shop.run("trust", "publish", source, shop.root / "published").ok()
    shop.run("trust", "refresh", "--url", shop.root / "published", "--root", first_root(shop)).ok()
    shop.write(STEPS, source="make", inputs='data = { uri = "datasets/acme/words@1.0.0" }')
    shop.lock()
    shop.built()
    path = shop.root / "whole.kit"
    shop.run("kit", "export", NAME, "--inputs", "--toolchains", "-o", path).ok()
    return path


def write_entry(shop: Workshop, name: str, tree: str, origin: str) -> None:
    text = ENTRY.format(name=name, tree=tree, origin=origin)
    (shop.root / f"{name.rpartition('/')[2]}.toml").write_text(text)


def first_root(shop: Workshop) -> Path:
    return shop.root / "published" / "metadata" / "1.root.json"


@pytest.fixture
def host(shop: Workshop, whole: Path, tmp_path: Path) -> Host:
    recipe = tmp_path / "elsewhere" / "recipe"
    shutil.copytree(shop.recipe, recipe)
    (recipe / "data.txt").unlink()
    home = tmp_path / "elsewhere" / "home"
    home.mkdir()
    return Host(shop, home, recipe)


def test_a_host_without_a_network_takes_it_and_builds_it_again(shop: Workshop, whole: Path, host: Host) -> None:
    host.run("kit", "verify", whole).failed(25)
    named = ("--root", first_root(shop), "--policy", POLICY)
    assert host.run("kit", "verify", whole, *named, "--json").ok().json["verdict"] == "verified"
    taken = host.run("kit", "import", whole, *named, "--json").ok().json
    assert (taken["tag"], taken["image"]) == (NAME, str(shop.store.resolve(NAME)))
    assert host.run("verify", NAME, "--policy", POLICY).ok()
    assert host.run("trust", "show", POLICY, "--json").ok().json["text"].endswith(RULES)
    host.run("init").ok()  # keys of its own, to sign what it builds
    made = host.run("build", host.recipe, "--offline", "--locked", "--json").ok().json
    assert {step["name"]: step["status"] for step in made["steps"]} == {"make": "built", "image": "built"}
    assert made["image"] == taken["image"]


def test_without_the_kit_nothing_could_be_built_there(shop: Workshop, host: Host) -> None:
    host.run("init").ok()
    host.run("trust", "refresh", "--url", shop.root / "published", "--root", first_root(shop)).ok()
    host.run("build", host.recipe, "--offline", "--locked").failed(20)


def test_the_programs_that_ran_travel(shop: Workshop, whole: Path, host: Host) -> None:
    host.run("kit", "import", whole, "--root", first_root(shop), "--policy", POLICY).ok()
    program = tomllib.loads((shop.recipe / "Modelfile.lock").read_text())["programs"]["./make"]["tree"]
    there = Workshop(host.home.parent).store
    assert [file.path for file in there.tree(Digest(program)).files] == ["step.py", "step.toml"]
    assert there.has_tree(Digest(program))
