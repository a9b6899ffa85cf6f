"""Every attack by kit is refused as stated, and the host is what it was; no command here has any network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.attacks.kits import cases
from tests.attacks.kits.cases import CASES, NAME, POLICY, Case, Site, claim_about, current
from tests.workshop import Finished

from intaglio.content.layout import Store
from intaglio.digest import ActionKey, Digest

ALONE = ("unshare", "--net", *([] if os.getuid() == 0 else ["--map-root-user"]))
"""Starts a program where there is no network, not even a loopback that is up."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("site") / "shop")


def run(site: Site, home: Path, *words: str | Path) -> Finished:
    return site.shop.run(*words, before=ALONE, INTAGLIO_HOME=str(home))


def state(home: Path) -> dict[str, bytes]:
    """Everything that a later command could believe: anchor, policy, metadata; names, blobs and referrers."""
    kept = {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file() and "store" not in path.parts}
    blobs = home / "store" / "blobs"
    return kept | {str(path): path.read_bytes() for path in blobs.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused(site: Site, tmp_path: Path, case: Case) -> None:
    attack = case.build(site, tmp_path)
    before = state(attack.home)
    for words in (("kit", "verify", attack.kit), ("kit", "import", attack.kit)):
        done = run(site, attack.home, *words)
        assert done.status == case.exit_code, f"{words}: {done.status}\n{done.out}\n{done.err}"
        assert case.says in done.out + done.err
        assert state(attack.home) == before
        assert Store.open(attack.home / "store").tags() == {}
        assert list((attack.home / "store" / "tmp").iterdir()) == []


def test_the_same_kit_is_taken_where_nothing_is_wrong(site: Site, tmp_path: Path) -> None:
    """What all cases are made from: without it, they would prove nothing."""
    ours = site.source(current(), policy=site.policy.encode())
    seen = ours.publish()
    home = site.host(tmp_path / "host", ours, seen)
    path = site.kit(tmp_path / "kit", ours.publish())
    before = state(home)
    verified = run(site, home, "kit", "verify", path, "--json").ok().json
    assert (verified["verdict"], verified["source"]["versions"]["timestamp"]) == ("verified", 2)
    assert state(home) == before, "verifying keeps nothing"
    taken = run(site, home, "kit", "import", path, "--json").ok().json
    assert (taken["tag"], taken["image"], taken["source"]["versions"]["timestamp"]) == (NAME, str(site.image), 2)
    assert run(site, home, "trust", "show", "--json").ok().json["versions"]["timestamp"] == 2
    assert run(site, home, "verify", NAME).ok()
    assert run(site, home, "kit", "import", path).ok(), "the same again changes nothing"


def test_a_host_with_a_root_and_a_policys_name_needs_no_more(site: Site, tmp_path: Path) -> None:
    """The policy comes in the kit, and counts because the targets' keys signed for it."""
    ours = site.source(current(), policy=site.policy.encode())
    path = site.kit(tmp_path / "kit", ours.publish())
    root = tmp_path / "root.json"
    root.write_bytes(ours.anchor)
    home = tmp_path / "host"
    home.mkdir()
    named = ("--root", root, "--policy", POLICY)
    run(site, home, "kit", "verify", path).failed(25)
    run(site, home, "kit", "verify", path, "--policy", POLICY).failed(25)
    run(site, home, "kit", "verify", path, *named).ok()
    assert not (home / "root.json").exists()
    run(site, home, "kit", "import", path, *named).ok()
    assert (home / "root.json").read_bytes() == ours.anchor
    assert run(site, home, "verify", NAME, "--policy", POLICY).ok()
    assert run(site, home, "verify", NAME, "--policy", POLICY.partition("@")[0]).ok()
    run(site, home, "verify", NAME).failed(25)
    (home / "policy.name").write_text(POLICY)
    assert run(site, home, "verify", NAME).ok()
    other = tmp_path / "other.json"
    other.write_bytes(cases.stranger().anchor)
    run(site, home, "kit", "verify", path, "--root", other).failed(2)


def test_a_root_that_nothing_answers_to_is_no_verdict(site: Site, tmp_path: Path) -> None:
    home = site.host(tmp_path / "host", None, policy=(site.shop.home / "policy.toml").read_text())
    path = site.kit(tmp_path / "kit", {})
    root = tmp_path / "root.json"
    root.write_bytes(current().anchor)
    run(site, home, "kit", "import", path, "--root", root).failed(25)
    assert not (home / "root.json").exists()


def test_without_an_anchor_metadata_is_only_data(site: Site, tmp_path: Path) -> None:
    """A host that trusts by keys alone takes the image; the source that came along becomes nobody's."""
    home = site.host(tmp_path / "host", None, policy=(site.shop.home / "policy.toml").read_text())
    path = site.kit(tmp_path / "kit", site.source(cases.stranger()).publish())
    assert run(site, home, "kit", "import", path, "--json").ok().json["source"] is None
    assert not (home / "root.json").exists()
    assert not (home / "tuf").exists()


@pytest.mark.parametrize("tag", ["../../etc/passwd", "sha256:" + "0" * 64, "-x", "a b", "a\nb", "ä", ""])
def test_no_name_that_is_none(site: Site, tmp_path: Path, tag: str) -> None:
    ours = site.source(current())
    home = site.host(tmp_path / "host", ours)
    path = site.kit(tmp_path / "kit", ours.publish())
    before = state(home)
    run(site, home, "kit", "import", path, f"--tag={tag}").failed(2)
    assert state(home) == before


def test_what_the_kit_calls_it_is_not_its_name(site: Site, tmp_path: Path) -> None:
    ours = site.source(current())
    home = site.host(tmp_path / "host", ours)
    path = site.kit(tmp_path / "kit", ours.publish(), name="team/production:latest")
    assert run(site, home, "kit", "import", path, "--json").ok().json["tag"] == NAME


def test_claims_about_other_things_are_left_behind(site: Site, tmp_path: Path) -> None:
    """A kit could bring a claim about any action, to be found by the next build: nobody asked for it."""
    ours = site.source(current())
    home = site.host(tmp_path / "host", ours)
    claim = claim_about(site, site.data.digest)
    path = site.kit(tmp_path / "kit", ours.publish(), more=[claim])
    run(site, home, "kit", "import", path).ok()
    store = Store.open(home / "store")
    assert not store.has(claim)
    assert store.claims(ActionKey(f"sha256:{'0' * 64}")) == ()
    assert store.referrers(site.data.digest) == ()


def test_a_damaged_blob_that_is_there_already_is_replaced(site: Site, tmp_path: Path) -> None:
    ours = site.source(current())
    home = site.host(tmp_path / "host", ours)
    path = site.kit(tmp_path / "kit", ours.publish())
    run(site, home, "kit", "import", path).ok()
    store = Store.open(home / "store")
    for entry in sorted((home / "store" / "blobs" / "sha256").iterdir()):
        if not entry.read_bytes().startswith(b"{"):
            data = bytearray(entry.read_bytes())
            data[0] ^= 1
            entry.chmod(0o644)
            entry.write_bytes(data)
    run(site, home, "kit", "import", path).ok()
    assert run(site, home, "verify", NAME).ok()
    assert store.has(Digest(str(site.image)))


def test_a_file_that_looks_like_a_policys_name_is_not_read(site: Site, tmp_path: Path) -> None:
    """What has the form of a name is one, wherever the command runs."""
    home = site.host(tmp_path / "host", None, policy="")
    path = site.kit(tmp_path / "kit", {})
    place = site.shop.recipe / "policies" / "acme" / "release"
    place.parent.mkdir(parents=True)
    place.write_text((site.shop.home / "policy.toml").read_text())
    said = run(site, home, "kit", "verify", path, "--policy", "policies/acme/release").failed(25).err
    assert "there is no anchor" in said
    run(site, home, "kit", "verify", path, "--policy", "./policies/acme/release").ok()
