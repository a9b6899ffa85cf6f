"""Policies by name: what the trusted source lists under it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.trust import sources
from tests.trust.sources import NOW, Files, MemoryMirror, Source, target

from intaglio.content.tree import File, Tree
from intaglio.digest import Digest
from intaglio.errors import NotVerifiable, PolicyRefusal
from intaglio.policy import named
from intaglio.policy.document import default_policy
from intaglio.trust.tuf import TrustedSource, refresh, set_anchor

PEMS = tuple(sources.key(number).public.pem for number in (71, 72, 73))


def policy(name: str) -> bytes:
    return default_policy(*PEMS).replace('name = "default"', f'name = "{name}"').encode()


def published(tmp_path: Path, *listed: tuple[str, bytes, str]) -> TrustedSource:
    """A trusted source with policies: (name, document, status)."""
    source = Source()
    for name, data, status in listed:
        content = Tree.of([File("policy.toml", Digest.of(data), len(data))])
        reason = "superseded" if status == "yanked" else None
        source.add(target(name, content, status=status, reason=reason), content)
        source.files[f"blobs/sha256/{Digest.of(data).hex}"] = data
    files: Files = source.publish()
    set_anchor(tmp_path, source.anchor)
    return refresh(tmp_path, MemoryMirror(files), NOW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("policies/acme/release@1.0.0", True),
        ("policies/acme/release", True),
        ("policies/acme/release.toml", False),
        ("./policies/acme/release", False),
        ("policies/default.toml", False),
        ("policies/acme", False),
        ("policies/acme/../release", False),
        ("Policies/acme/release", False),
        ("models/acme/release@1", False),
        ("policies/acme/release@", False),
        ("", False),
    ],
)
def test_a_name_is_told_from_a_path_by_its_form(text: str, expected: bool) -> None:
    assert named.is_name(text) is expected


def test_a_version_means_itself(tmp_path: Path) -> None:
    source = published(
        tmp_path,
        ("policies/acme/release@1", policy("one"), "active"),
        ("policies/acme/release@2", policy("two"), "active"),
    )
    assert named.load("policies/acme/release@1", source).name == "one"
    assert named.load("policies/acme/release@2", source).name == "two"


def test_without_a_version_the_only_active_one_is_meant(tmp_path: Path) -> None:
    source = published(
        tmp_path,
        ("policies/acme/release@1", policy("one"), "yanked"),
        ("policies/acme/release@2", policy("two"), "active"),
    )
    assert named.load("policies/acme/release", source).name == "two"
    with pytest.raises(PolicyRefusal, match="was yanked"):
        named.load("policies/acme/release@1", source)


def test_two_active_versions_leave_it_open(tmp_path: Path) -> None:
    source = published(
        tmp_path,
        ("policies/acme/release@1", policy("one"), "active"),
        ("policies/acme/release@2", policy("two"), "active"),
    )
    with pytest.raises(PolicyRefusal, match="one active version in the trusted source, found 1, 2"):
        named.load("policies/acme/release", source)


@pytest.mark.parametrize("text", ["policies/acme/other", "policies/acme/other@1"])
def test_what_is_not_listed_is_no_policy(tmp_path: Path, text: str) -> None:
    source = published(tmp_path, ("policies/acme/release@1", policy("one"), "active"))
    with pytest.raises(PolicyRefusal):
        named.load(text, source)


def test_what_is_listed_must_be_a_policy(tmp_path: Path) -> None:
    source = published(tmp_path, ("policies/acme/release@1", b"version = 1\n", "active"))
    with pytest.raises(NotVerifiable, match="policy policies/acme/release@1"):
        named.load("policies/acme/release@1", source)


def test_the_name_beside_the_anchor(tmp_path: Path) -> None:
    assert named.configured(tmp_path) is None
    place = tmp_path / named.FILE
    place.write_text("policies/acme/release@1\n")
    assert named.configured(tmp_path) == "policies/acme/release@1"
    for text in ("", "../policy.toml", "policies/acme/release.toml", "models/acme/base@1", "policies/ä/b@1"):
        place.write_text(text)
        with pytest.raises(NotVerifiable, match="expected a policy's name"):
            named.configured(tmp_path)
