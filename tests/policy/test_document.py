"""The policy file: closed-world, every mistake at once, and no way to write one that accepts anything."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.images import KEYS, key, policy_text
from tests.policy.full import NAMES, TEXT, full, signer

from intaglio.errors import NotVerifiable
from intaglio.policy.document import DEFAULT, TEST_RESULT, TOP, Bounds, default_policy, fill, key_names, load, parse
from intaglio.policy.reader import MAX_BYTES


def test_the_default_policy_reads_back() -> None:
    policy = parse(policy_text().encode())
    assert policy.name == "default"
    assert policy.builders == (key("builder").public,)
    assert policy.releasers == (key("release").public,)
    assert policy.roles["evaluator"] == (key("evaluator").public,)
    assert policy.require == {"signature", "cosign", "model-signing", "provenance", "lineage"}
    assert policy.formats == {"safetensors", "gguf", "json", "text"}
    assert not policy.allow_unsandboxed


def test_the_default_policy_is_golden() -> None:
    assert policy_text() == (KEYS.parent / "policy" / "default.toml").read_text()


def test_the_default_policy_takes_public_keys_alone() -> None:
    with pytest.raises(NotVerifiable):
        default_policy(key("builder").public.pem, key("release").public.pem, key("evaluator").to_pem().decode())


def test_a_policy_of_the_first_version_asks_nothing_new() -> None:
    first = policy_text().replace('evaluator = ["evaluator"]\n', "")
    policy = parse(first.encode())
    assert (policy.attestations, policy.thresholds, policy.reserved) == ({}, {}, {})
    assert (policy.licences, policy.max_age, policy.source_required, policy.needs_source) == (None, None, False, False)
    assert not policy.source_programs
    assert policy.roles["evaluator"] == policy.roles["verifier"] == ()


def test_a_policy_that_asks_everything() -> None:
    policy = full()
    assert policy.roles["evaluator"] == (signer("evaluator").public,)
    assert policy.attestations[TEST_RESULT] == "evaluator"
    assert policy.thresholds == {"accuracy": Bounds(0.8, 1), "perplexity": Bounds(None, 12.5)}
    assert policy.licences == frozenset({"Apache-2.0", "MIT", "GPL-2.0-only WITH Classpath-exception-2.0"})
    assert policy.reserved == {"bank/*": (signer("bank").public,), "acme/falcon": (), "umbrella": ()}
    assert (policy.source_required, policy.source_programs) == (True, True)
    assert (policy.max_age, policy.needs_source) == (timedelta(days=30), True)


@pytest.mark.parametrize(
    ("text", "span"),
    [("1h", timedelta(hours=1)), ("36h", timedelta(hours=36)), ("7d", timedelta(7)), ("2w", timedelta(14))],
)
def test_spans(text: str, span: timedelta) -> None:
    assert full('max_age = "30d"', f'max_age = "{text}"').max_age == span


def test_optional_keys_have_the_strict_default() -> None:
    assert not parse(policy_text().replace("allow_unsandboxed = false\n", "").encode()).allow_unsandboxed


WRONG = {
    "unknown key": ("version = 1", 'version = 1\nformat = "x"', "format: unknown key; did you mean formats?"),
    "version": ("version = 1", "version = 2", "version: expected 1, found 2"),
    "version true": ("version = 1", "version = true", "version: expected 1"),
    "no name": ('name = "default"', "", "name: expected a string"),
    "unsandboxed a string": ("unsandboxed = false", 'unsandboxed = "no"', "allow_unsandboxed: expected true or false"),
    "unknown evidence": ('"cosign", ', '"cosing", ', "did you mean cosign?"),
    "no signature required": ('["signature", ', "[", "'signature' cannot be left out"),
    "no provenance required": ('"provenance", ', "", "'provenance' cannot be left out"),
    "no lineage required": (', "lineage"]', "]", "'lineage' cannot be left out"),
    "nothing required": ('require = ["sig', 'ignored = ["sig', "require: expected an array"),
    "pickle allowed": ('["safetensors"', '["pickle"', "formats: unknown 'pickle'"),
    "no format": ('formats = ["safetensors", "gguf", "json", "text"]', "formats = []", "formats: expected an array"),
    "unknown role": ('release = ["release"]', 'releases = ["release"]', "roles.releases: unknown key"),
    "role without keys": ('release = ["release"]', "release = []", "roles.release: expected an array of key names"),
    "role of no key": ('release = ["release"]', 'release = ["relase"]', "no key 'relase'; did you mean release?"),
    "role a string": ('release = ["release"]', 'release = "release"', "roles.release: expected an array"),
    "key with more": ("[keys.builder]", '[keys.builder]\nid = "x"', "keys.builder.id: unknown key"),
    "key without pem": ("[keys.builder]\npem", "[keys.builder]\npen", "keys.builder: expected pem"),
    "pem of nothing": ("BEGIN PUBLIC KEY", "BEGIN KEY", "keys.builder.pem: expected a PEM public key"),
    "not TOML": ("version = 1", "version 1", "not TOML"),
    "twice": ("version = 1", "version = 1\nversion = 1", "not TOML"),
}


WRONG_FULL = {
    "attestations an array": ("[attestations]", "[[attestations]]", "attestations: expected a table"),
    "attestation of no type": (f'"{TEST_RESULT}" =', '"test" =', "attestations.test: expected the URI"),
    "attestation by nobody": ('v0.1" = "evaluator"', 'v0.1" = "evaluater"', "did you mean evaluator?"),
    "attestation by several": ('v0.1" = "evaluator"', 'v0.1" = ["evaluator"]', "expected a role, found ['evaluator']"),
    "role without keys": ('verifier = ["verifier"]', "", "roles.verifier names no key"),
    "no evaluator": ('evaluator = ["evaluator"]', "", "evaluation: roles.evaluator names no key"),
    "evaluator of no key": ('evaluator = ["evaluator"]', 'evaluator = ["evalator"]', "did you mean evaluator?"),
    "metric without bounds": ("{ maximum = 12.5 }", "{}", "evaluation.perplexity: expected minimum or maximum"),
    "metric a number": ("{ maximum = 12.5 }", "12.5", "evaluation.perplexity: expected a table, found 12.5"),
    "bound misspelt": ("{ maximum", "{ maximun", "evaluation.perplexity.maximun: unknown key; did you mean maximum?"),
    "bound a string": ("= 12.5", '= "12"', "evaluation.perplexity.maximum: expected a number, found '12'"),
    "bound not a number": ("= 12.5", "= nan", "evaluation.perplexity.maximum: expected a number, found nan"),
    "bound infinite": ("= 12.5", "= inf", "evaluation.perplexity.maximum: expected a number, found inf"),
    "bound true": ("= 12.5", "= true", "evaluation.perplexity.maximum: expected a number, found True"),
    "bounds crossed": ("minimum = 0.8", "minimum = 2", "evaluation.accuracy: nothing is at least 2 and at most 1"),
    "no licence": ('allow = ["Apache-2.0"', 'alow = ["Apache-2.0"', "licences.alow: unknown key; did you mean allow?"),
    "licences a string": ('allow = ["Apache-2.0", "MIT",', 'allow = [["MIT"],', "licences.allow: expected an array"),
    "an expression": ('"MIT"', '"MIT OR X11"', "licences.allow: expected one licence such as Apache-2.0"),
    "empty licence": ('"MIT"', '""', "licences.allow: expected one licence"),
    "nothing reserved": ("[names.reserved]", "[names.reserve]", "names.reserve: unknown key; did you mean reserved?"),
    "reserved for no key": (
        '["bank"]\n"ac',
        '["bnk"]\n"ac',
        "reserved.'bank/*': no key 'bnk'; did you mean bank?",
    ),
    "reserved for a builder": ('= ["bank"]\n"ac', '= ["builder"]\n"ac', "expected keys of roles.release"),
    "reserved for a string": ('= ["bank"]\n"ac', '= "bank"\n"ac', "names.reserved.'bank/*': expected an array"),
    "pattern with a gap": ('"bank/*"', '"bank /*"', "expected a pattern of model names"),
    "pattern empty": ('"bank/*"', '""', "expected a pattern of model names"),
    "pattern with no part": ('"bank/*"', '"bank//x"', "expected a pattern of model names"),
    "source a flag": ("[source]\nrequired = true", "source = true", "expected"),
    "source perhaps": ("required = true", 'required = "yes"', "source.required: expected true or false, found 'yes'"),
    "programs alone": (
        "required = true\nprograms",
        "programs",
        "source.programs: asks nothing without required = true",
    ),
    "source misspelt": ("required = true", "require = true", "source.require: unknown key; did you mean required?"),
    "no age": ('max_age = "30d"', "", "freshness.max_age: expected a span such as 12h, 30d or 2w, found nothing"),
    "age a number": ('"30d"', "30", "freshness.max_age: expected a span"),
    "age without unit": ('"30d"', '"30"', "freshness.max_age: expected a span"),
    "age zero": ('"30d"', '"0d"', "freshness.max_age: expected a span"),
    "age of months": ('"30d"', '"1m"', "freshness.max_age: expected a span"),
    "age negative": ('"30d"', '"-1d"', "freshness.max_age: expected a span"),
    "age endless": ('"30d"', '"99999999999d"', "freshness.max_age: expected a span"),
}


@pytest.mark.parametrize("name", WRONG_FULL)
def test_every_mistake_in_the_optional_tables_is_refused_and_named(name: str) -> None:
    old, new, message = WRONG_FULL[name]
    assert old in TEXT
    with pytest.raises(NotVerifiable) as caught:
        parse(TEXT.replace(old, new, 1).encode())
    assert message in caught.value.message


@pytest.mark.parametrize("table", ["attestations", "evaluation", "names", "names.reserved", "licences", "freshness"])
def test_a_table_that_asks_nothing_is_a_mistake(table: str) -> None:
    with pytest.raises(NotVerifiable, match=table.replace(".", r"\.")):
        parse((policy_text() + f"\n[{table}]\n").encode())


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


def test_mistakes_in_every_table_are_reported_at_once() -> None:
    text = TEXT
    for old, new in (('"MIT"', '"M I T"'), ("= 12.5", "= []"), ('"30d"', '"soon"'), ('= ["bank"]', '= ["bonk"]')):
        text = text.replace(old, new)
    with pytest.raises(NotVerifiable) as caught:
        parse((text + "[sources]\n").encode())
    parts = ("M I T", "perplexity", "soon", "bonk", "sources: unknown key; did you mean source?")
    assert [part for part in parts if part not in caught.value.message] == []
    assert "docs/policy.md" in (caught.value.hint or "")


# --- templates --------------------------------------------------------------------------------------------------------


def test_a_template_becomes_a_policy_with_its_keys() -> None:
    keys = {name: key(name).public for name in ("builder", "release", "evaluator")}
    assert fill(DEFAULT, keys) == policy_text()
    renamed = {"my key" if name == "release" else name: public for name, public in keys.items()}
    odd = parse(fill(DEFAULT.replace('["release"]', '["my key"]'), renamed).encode())
    assert odd.releasers == (keys["release"],)


def test_a_template_is_no_policy() -> None:
    with pytest.raises(NotVerifiable, match="keys: expected at least one"):
        parse(DEFAULT.encode())


def test_keys_that_stand_in() -> None:
    stranger = key("stranger").public
    policy = parse(policy_text().encode(), keys=dict.fromkeys(("builder", "release", "evaluator"), stranger))
    assert policy.builders == policy.releasers == (stranger,)
    with pytest.raises(NotVerifiable, match="no key 'release'"):
        parse(policy_text().encode(), keys=dict.fromkeys(("builder", "evaluator"), stranger))


def test_the_names_of_keys() -> None:
    assert set(key_names(TEXT.encode())) == set(NAMES)
    assert key_names(DEFAULT.encode()) == ("builder", "release", "evaluator")
    with pytest.raises(NotVerifiable, match="key names"):
        key_names(b"[roles]\nbuilder = 1")
    with pytest.raises(NotVerifiable, match="not TOML"):
        key_names(b"[")


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


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    with pytest.raises(NotVerifiable):
        parse(data)


@settings(deadline=None)
@given(st.recursive(st.sampled_from(["1", '"x"', "true", "1.5", "[]"]), lambda inner: inner.map(lambda v: f"[{v}]")))
def test_wrong_types_anywhere(value: str) -> None:
    for name in TOP:
        with pytest.raises(NotVerifiable):
            parse(f"{name} = {value}".encode())
