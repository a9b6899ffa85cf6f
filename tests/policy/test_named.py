"""Policies by name: what the trusted source lists under it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.trust import sources
from tests.trust.sources import NOW, Files, MemoryMirror, Source, target

from intaglio.content.tree import File, Tree
from intaglio.digest import Digest
from intaglio.errors import NotVerifiable, PolicyRefusal
from intaglio.policy import document, named
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


def with_target(name: str = "keys/acme/release@1") -> bytes:
    """A policy whose release key is a target."""
    text = policy("by target").decode()
    begin = text.index("[keys.release]")
    return f'{text[:begin]}[keys.release]\ntarget = "{name}"\n\n{text[text.index("[keys.evaluator]") :]}'.encode()


def with_key(tmp_path: Path, status: str = "active") -> TrustedSource:
    """A trusted source that has the release key."""
    source = Source()
    for name, file, data, how in (
        ("keys/acme/release@1", "key.pem", PEMS[1].encode(), status),
        ("policies/acme/release@1", "policy.toml", with_target(), "active"),
    ):
        content = Tree.of([File(file, Digest.of(data), len(data))])
        source.add(target(name, content, status=how, reason="stolen" if how == "yanked" else None), content)
        source.files[f"blobs/sha256/{Digest.of(data).hex}"] = data
    set_anchor(tmp_path, source.anchor)
    return refresh(tmp_path, MemoryMirror(source.publish()), NOW)


def test_a_key_is_looked_up_in_the_source_that_has_the_policy(tmp_path: Path) -> None:
    found = named.load("policies/acme/release@1", with_key(tmp_path))
    assert [key.pem for key in found.releasers] == [PEMS[1]]


def test_a_file_may_name_a_key_of_the_source(tmp_path: Path) -> None:
    source = with_key(tmp_path)
    (tmp_path / "policy.toml").write_bytes(with_target())
    found = document.load(tmp_path / "policy.toml", named.keys_of(source))
    assert [key.pem for key in found.releasers] == [PEMS[1]]
    with pytest.raises(NotVerifiable, match=r"keys\.release\.target: .*there is none here"):
        document.load(tmp_path / "policy.toml")


def test_a_key_that_was_yanked_counts_no_more(tmp_path: Path) -> None:
    found = named.load("policies/acme/release@1", with_key(tmp_path, "yanked"))
    assert found.releasers == ()
    assert [key.pem for key in found.builders] == [PEMS[0]]


def test_a_key_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyRefusal, match="does not list it"):
        document.parse(with_target("keys/acme/other@1"), lookup=named.keys_of(with_key(tmp_path)))


@pytest.mark.parametrize(
    ("name", "said"),
    [("models/acme/release@1", "expected a key's name"), ("keys/acme/release", "expected NAME@VERSION"), ("", "NAME@")],
)
def test_what_is_no_keys_name_is_a_mistake(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(NotVerifiable, match=said):
        document.parse(with_target(name), lookup=named.keys_of(with_key(tmp_path)))
