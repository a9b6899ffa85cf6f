"""The policy file: closed-world, every mistake at once, and no way to write one that accepts anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.images import KEYS, key, policy_text

from intaglio.errors import NotVerifiable
from intaglio.policy.document import MAX_BYTES, default_policy, load, parse


def test_the_default_policy_reads_back() -> None:
    policy = parse(policy_text().encode())
    assert policy.name == "default"
    assert policy.builders == (key("builder").public,)
    assert policy.releasers == (key("release").public,)
    assert policy.require == {"signature", "cosign", "model-signing", "provenance", "lineage"}
    assert policy.formats == {"safetensors", "gguf", "json", "text"}
    assert not policy.allow_unsandboxed


def test_the_default_policy_is_golden() -> None:
    assert policy_text() == (KEYS.parent / "policy" / "default.toml").read_text()


def test_the_default_policy_takes_public_keys_alone() -> None:
    with pytest.raises(NotVerifiable):
        default_policy(key("builder").public.pem, key("release").to_pem().decode())


def test_optional_keys_have_the_strict_default() -> None:
    assert not parse(policy_text().replace("allow_unsandboxed = false\n", "").encode()).allow_unsandboxed


WRONG = {
    "unknown key": ("version = 1", 'version = 1\nformat = "x"', "format: unknown key; did you mean formats?"),
    "version": ("version = 1", "version = 2", "version: expected 1, found 2"),
    "version true": ("version = 1", "version = true", "version: expected 1"),
    "no name": ('name = "default"', "", "name: expected a string"),
    "unsandboxed a string": ("unsandboxed = false", 'unsandboxed = "no"', "allow_unsandboxed: expected true or false"),
    "unknown evidence": ('"cosign", ', '"cosing", ', "did you mean 'cosign'?"),
    "no signature required": ('["signature", ', "[", "'signature' cannot be left out"),
    "no provenance required": ('"provenance", ', "", "'provenance' cannot be left out"),
    "no lineage required": (', "lineage"]', "]", "'lineage' cannot be left out"),
    "nothing required": ('require = ["sig', 'ignored = ["sig', "require: expected an array"),
    "pickle allowed": ('["safetensors"', '["pickle"', "formats: unknown 'pickle'"),
    "no format": ('formats = ["safetensors", "gguf", "json", "text"]', "formats = []", "formats: expected an array"),
    "unknown role": ('release = ["release"]', 'releases = ["release"]', "roles.releases: unknown key"),
    "role without keys": ('release = ["release"]', "release = []", "roles.release: expected an array of key names"),
    "role of no key": ('release = ["release"]', 'release = ["relase"]', "no key 'relase'; did you mean 'release'?"),
    "role a string": ('release = ["release"]', 'release = "release"', "roles.release: expected an array"),
    "key with more": ("[keys.builder]", '[keys.builder]\nid = "x"', "keys.builder.id: unknown key"),
    "key without pem": ("[keys.builder]\npem", "[keys.builder]\npen", "keys.builder: expected pem"),
    "pem of nothing": ("BEGIN PUBLIC KEY", "BEGIN KEY", "keys.builder.pem: expected a PEM public key"),
    "not TOML": ("version = 1", "version 1", "not TOML"),
    "twice": ("version = 1", "version = 1\nversion = 1", "not TOML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_mistake_is_refused_and_named(name: str) -> None:
    old, new, message = WRONG[name]
    assert old in policy_text()
    with pytest.raises(NotVerifiable) as caught:
        parse(policy_text().replace(old, new, 1).encode())
    assert message in caught.value.message
    assert caught.value.exit_code == 25


def test_all_mistakes_are_reported_at_once() -> None:
    text = policy_text().replace("version = 1", "version = 9").replace('"gguf"', '"gguff"')
    with pytest.raises(NotVerifiable) as caught:
        parse(text.replace('builder = ["builder"]', 'builder = ["bilder"]').encode())
    assert all(part in caught.value.message for part in ("version", "gguff", "bilder"))


def test_no_roles_or_keys_at_all() -> None:
    head = policy_text().partition("[roles]")[0]
    with pytest.raises(NotVerifiable) as caught:
        parse(head.encode())
    assert "roles:" in caught.value.message
    assert "keys:" in caught.value.message


def test_one_key_under_two_names_counts_once() -> None:
    text = policy_text().replace('["release"]', '["release", "again"]')
    again = f'[keys.again]\npem = """\n{key("release").public.pem}"""\n'
    assert parse((text + again).encode()).releasers == (key("release").public,)


def test_without_a_policy_there_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(NotVerifiable) as caught:
        load(tmp_path / "policy.toml")
    assert caught.value.exit_code == 25
    assert "init" in (caught.value.hint or "")
    with pytest.raises(NotVerifiable):
        load(tmp_path)
    (tmp_path / "policy.toml").write_text(policy_text())
    assert load(tmp_path / "policy.toml").name == "default"


def test_a_huge_policy_is_refused() -> None:
    with pytest.raises(NotVerifiable, match="at most"):
        parse(b"#" * (MAX_BYTES + 1))


@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    with pytest.raises(NotVerifiable):
        parse(data)


@given(st.recursive(st.sampled_from(["1", '"x"', "true", "1.5", "[]"]), lambda inner: inner.map(lambda v: f"[{v}]")))
def test_wrong_types_anywhere(value: str) -> None:
    for name in ("version", "name", "require", "formats", "allow_unsandboxed", "keys", "roles"):
        with pytest.raises(NotVerifiable):
            parse(f"{name} = {value}".encode())
