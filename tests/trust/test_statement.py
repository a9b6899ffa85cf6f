"""Statements: golden bytes for everything that is signed, and strict reading of what was."""

from __future__ import annotations

import hashlib
import json

import jsonschema
import pytest
from referencing import Registry, Resource
from tests.images import KEYS, key

from intaglio import strictjson
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, Untrusted
from intaglio.trust.signature import sign_bundle
from intaglio.trust.statement import (
    Dependency,
    Provenance,
    Statement,
    Subject,
    cosign_statement,
    evaluation_statement,
    model_signing_statement,
    open_statement,
    provenance,
    read,
)

IMAGE = Digest.of(b"image")
FILES = [("b/é.json", Digest.of(b"2")), ("Z", Digest.of(b"1")), ("a", Digest.of(b"3"))]
INTERNAL: strictjson.Object = {
    "action": str(Digest.of(b"action")),
    "parameters": {"learning_rate": 2e-4, "steps": 10},
    "platform": "linux/amd64/v3",
    "environment": {"PYTHONHASHSEED": "0"},
    "host": {"libc": str(Digest.of(b"libc"))},
    "reproducible": "platform",
    "sandbox": "bubblewrap",
}


def made(**changes: object) -> bytes:
    values: dict[str, object] = {
        "subject": IMAGE,
        "build_type": "https://intaglio.dev/buildtypes/finetune/v1",
        "external": {"recipe": "examples/demo@1.0.0", "step": "tune"},
        "internal": INTERNAL,
        "dependencies": [
            Dependency("program", Digest.of(b"program"), "program").to_json(),
            Dependency("input:base", Digest.of(b"base"), "origin", "pypi:base==1.0").to_json(),
        ],
    }
    return provenance(**(values | changes))  # type: ignore[arg-type]


def evaluated() -> Statement:
    return evaluation_statement(
        IMAGE,
        configuration=[("program:evaluate", Digest.of(b"program")), ("input:tasks", Digest.of(b"tasks"))],
        metrics={"general.acc": 0.7375, "text.perplexity": 22.31727487712801},
        gates={"text.perplexity": {"maximum": 40.0}, "general.acc": {"minimum": 0.6, "maximum": 1.0}},
        samples=83,
    )


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("cosign", cosign_statement(IMAGE).payload()),
        ("model-signing", model_signing_statement("examples/demo", FILES).payload()),
        ("provenance", made()),
        ("evaluation", evaluated().payload()),
    ],
)
def test_golden_payloads(name: str, payload: bytes) -> None:
    assert payload == (KEYS / f"statement-{name}.json").read_bytes()


def test_model_signing_root_is_over_the_digests_in_name_order() -> None:
    statement = model_signing_statement("m", FILES)
    names = [entry["name"] for entry in statement.predicate["resources"]]
    assert names == ["Z", "a", "b/é.json"]
    raw = b"".join(bytes.fromhex(dict(FILES)[name].hex) for name in names)
    assert statement.subjects == (Subject(Digest.of(raw), "m"),)
    assert statement.subjects[0].digest.hex == hashlib.sha256(raw).hexdigest()


def test_model_signing_fits_the_specifications_schemas() -> None:
    folder = KEYS.parent / "oms"
    schemas = [json.loads((folder / f"{name}.schema.json").read_text()) for name in ("predicate", "statement")]
    registry: Registry = Registry().with_resources(
        [(schema["$id"], Resource.from_contents(schema)) for schema in schemas]
    )
    value = json.loads(model_signing_statement("m", FILES).payload())
    jsonschema.Draft202012Validator(schemas[1], registry=registry).validate(value)


def test_provenance_reads_back() -> None:
    found = Provenance.of(read(made(), what="claim"), "claim")
    assert found.subject == IMAGE
    assert found.step == "examples/demo@1.0.0 tune"
    assert found.sandboxed
    assert found.internal == INTERNAL
    assert [one.name for one in found.dependencies] == ["input:base", "program"]
    assert found.dependencies[0].uri == "pypi:base==1.0"


def test_provenance_is_a_function_of_its_parts_whatever_their_order() -> None:
    parts = [Dependency(f"input:{n}", Digest.of(b"%d" % n), "origin").to_json() for n in range(20)]
    assert made(dependencies=parts) == made(dependencies=reversed(parts))


@pytest.mark.parametrize("sandbox", ["none", "", None, True, "Bubblewrap"])
def test_anything_but_a_plain_yes_is_no_sandbox(sandbox: object) -> None:
    payload = made(internal=INTERNAL | {"sandbox": sandbox})
    assert not Provenance.of(read(payload, what="claim"), "claim").sandboxed


def test_signing_what_could_not_be_read_back_fails_at_once() -> None:
    with pytest.raises(CorruptContent):
        made(dependencies=[{"name": "input:x", "digest": {"sha256": "0" * 63}, "annotations": {"kind": "origin"}}])
    with pytest.raises(CorruptContent):
        made(dependencies=[{"name": "input:x", "annotations": {"kind": "origin"}}])
    with pytest.raises(CorruptContent, match="kind"):
        made(dependencies=[Dependency("input:x", IMAGE, "guess").to_json()])


def document() -> strictjson.Object:
    return strictjson.parse_object(made(), what="claim")


WRONG_STATEMENTS = {
    "type": lambda d: d.update(_type="https://in-toto.io/Statement/v0.1"),
    "no subject": lambda d: d.update(subject=[]),
    "subject without digest": lambda d: d["subject"][0].pop("digest"),
    "subject of another algorithm": lambda d: d["subject"][0].update(digest={"sha512": "0" * 128}),
    "subject with two digests": lambda d: d["subject"][0]["digest"].update(md5="0" * 32),
    "subject in upper case": lambda d: d["subject"][0].update(digest={"sha256": "A" * 64}),
    "unknown field": lambda d: d.update(extra=1),
    "predicate no object": lambda d: d.update(predicate=[]),
}
WRONG_PREDICATES = {
    "other predicate": lambda d: d.update(predicateType="https://slsa.dev/verification_summary/v1"),
    "two subjects": lambda d: d["subject"].append(d["subject"][0]),
    "invocation": lambda d: d["predicate"]["runDetails"].update(metadata={"invocationId": "1"}),
    "external number": lambda d: d["predicate"]["buildDefinition"].update(externalParameters={"step": 1}),
    "internal array": lambda d: d["predicate"]["buildDefinition"].update(internalParameters=[]),
    "no dependencies": lambda d: d["predicate"]["buildDefinition"].pop("resolvedDependencies"),
    "builder's version": lambda d: d["predicate"]["runDetails"]["builder"].update(version={"intaglio": "1"}),
    "builder without id": lambda d: d["predicate"]["runDetails"]["builder"].pop("id"),
    "dependency without kind": lambda d: d["predicate"]["buildDefinition"]["resolvedDependencies"][0].pop(
        "annotations"
    ),
}


@pytest.mark.parametrize("name", [*WRONG_STATEMENTS, *WRONG_PREDICATES])
def test_every_deviation_is_refused(name: str) -> None:
    value = document()
    (WRONG_STATEMENTS | WRONG_PREDICATES)[name](value)
    payload = strictjson.canonical(value)
    if name in WRONG_STATEMENTS:
        with pytest.raises(CorruptContent):
            read(payload, what="claim")
    else:
        with pytest.raises(CorruptContent):
            Provenance.of(read(payload, what="claim"), "claim")


@pytest.mark.parametrize(
    "payload",
    [
        b'{"_type":"https://in-toto.io/Statement/v1","_type":"x"}',
        b'{"predicate":NaN}',
        b"\xff",
        b"[" * 100,
        b'{"a":' + b"[" * 40 + b"]" * 40 + b"}",
    ],
)
def test_what_was_signed_is_read_strictly_too(payload: bytes) -> None:
    with pytest.raises(CorruptContent):
        open_statement(sign_bundle(payload, key("release")), [key("release").public], what="bundle")


def test_the_signature_is_checked_before_the_statement_counts() -> None:
    bundle = sign_bundle(cosign_statement(IMAGE).payload(), key("stranger"))
    with pytest.raises(Untrusted):
        open_statement(bundle, [key("release").public], what="bundle")
    signed = open_statement(bundle, [key("stranger").public], what="bundle")
    assert signed.statement == cosign_statement(IMAGE)
    assert signed.key == key("stranger").public.id
