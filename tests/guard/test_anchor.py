"""The anchor: what a folder or a file on this side says is trusted, and what counts of what came along."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from tests import images
from tests.guard import site as sites
from tests.guard.site import Site
from tests.trust import sources
from tests.trust.sources import Source

from intaglio.content.tree import File, Tree
from intaglio.digest import Digest
from intaglio.errors import NotVerifiable, PolicyRefusal, Untrusted
from intaglio.guard import anchor
from intaglio.trust.key import PrivateKey
from intaglio.trust.repository import key_of


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site", source=sites.source())


def with_policy(source: Source, name: str, text: bytes) -> Source:
    """Let ``source`` list a policy, its file among what is published."""
    tree = Tree.of([File("policy.toml", Digest.of(text), len(text))])
    source.add(sources.target(name, tree), tree)
    source.files[f"blobs/sha256/{Digest.of(text).hex}"] = text
    return source


def test_a_folder_with_policy_and_root(site: Site) -> None:
    found = anchor.read(site.anchor, site.passport, sites.now())
    assert found.policy == images.policy()
    assert found.listing is not None
    assert found.listing.lookup(Digest.of(b"pypi:base==1.0")) is not None


def test_a_policy_alone(site: Site) -> None:
    found = anchor.read(site.anchor / "policy.toml", site.passport, sites.now())
    assert found.policy == images.policy()
    assert found.listing is None, "without a root, metadata is only data"


def test_a_root_with_a_policy_beside_it(site: Site) -> None:
    found = anchor.read(site.anchor / "root.json", site.passport, sites.now())
    assert found.policy == images.policy()
    assert found.listing is not None


def test_a_policy_of_the_anchors_folder_by_name(site: Site) -> None:
    (site.anchor / "policies").mkdir()
    (site.anchor / "policies" / "tight.toml").write_text(images.policy_text().replace('name = "default"', 'name = "t"'))
    assert anchor.read(site.anchor, site.passport, sites.now(), "tight").policy.name == "t"
    with pytest.raises(NotVerifiable, match="policy loose"):
        anchor.read(site.anchor, site.passport, sites.now(), "loose")


@pytest.mark.parametrize("configured", [False, True])
def test_a_policy_of_the_trusted_source_by_name(tmp_path: Path, configured: bool) -> None:
    name = "policies/acme/release@1"
    text = images.policy_text().replace('name = "default"', 'name = "released"').encode()
    site = Site(tmp_path / "site", source=with_policy(sites.source(), name, text))
    (site.anchor / "policy.toml").unlink()
    if configured:
        (site.anchor / "policy.name").write_text(f"{name}\n")
    found = anchor.read(site.anchor / "root.json", site.passport, sites.now(), None if configured else name)
    assert found.policy.name == "released"
    with pytest.raises(PolicyRefusal):
        anchor.read(site.anchor, site.passport, sites.now(), "policies/acme/other@1")


def test_a_name_means_nothing_without_a_root(site: Site) -> None:
    (site.anchor / "root.json").unlink()
    with pytest.raises(NotVerifiable, match="policies/acme/release@1"):
        anchor.read(site.anchor, site.passport, sites.now(), "policies/acme/release@1")


@pytest.mark.parametrize("name", ["nowhere", "nowhere.toml", "nowhere.json"])
def test_nothing_is_trusted_without_an_anchor(site: Site, tmp_path: Path, name: str) -> None:
    with pytest.raises(NotVerifiable, match="nothing is trusted without one"):
        anchor.read(tmp_path / name, site.passport, sites.now())


def test_an_empty_folder_is_no_anchor(site: Site, tmp_path: Path) -> None:
    with pytest.raises(NotVerifiable, match="no policy"):
        anchor.read(tmp_path, site.passport, sites.now())


def test_metadata_under_another_root_is_refused(site: Site) -> None:
    (site.anchor / "root.json").write_bytes(_other_root())
    with pytest.raises(Untrusted):
        anchor.read(site.anchor, site.passport, sites.now())


def test_the_age_is_that_of_the_signed_time(site: Site) -> None:
    found = anchor.read(site.anchor, site.passport, sites.now() + timedelta(days=3))
    assert found.listing is not None
    assert timedelta(days=3) <= found.listing.age < timedelta(days=3, hours=1)


def _other_root() -> bytes:
    keys: tuple[PrivateKey, ...] = (sources.key(7), sources.key(8))
    stranger = dict.fromkeys(("root", "targets", "snapshot", "timestamp"), keys)
    made = sites.source()
    other = Source(root=made.root, signers=stranger)
    for role in ("targets", "snapshot", "timestamp"):
        for keyid in list(other.root.roles[role].keyids):
            other.root.revoke_key(keyid, role)
        other.root.add_key(key_of(sources.key(7).public), role)
    other.root.roles["root"].keyids = []
    for number in (7, 8):
        other.root.add_key(key_of(sources.key(number).public), "root")
    return sources.sign(other.root, stranger["root"])
