"""The published JSON Schemas: up to date, and of one mind with the engine's own checks."""

from __future__ import annotations

import tomllib
from pathlib import Path

import jsonschema
import pytest

from intaglio.recipe.schema import schemas, texts

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("file", sorted(texts()))
def test_the_published_schema_is_the_one_the_engine_checks(file: str) -> None:
    published = (ROOT / "docs" / "schema" / file).read_text(encoding="utf-8")
    assert published == texts()[file], "run: python -m intaglio.recipe.schema docs/schema"
    jsonschema.Draft202012Validator.check_schema(schemas()[file])


SHIPPED = [
    *(("modelfile.schema.json", path) for path in sorted(ROOT.glob("modelfiles/*/Modelfile.toml"))),
    *(("step.schema.json", path) for path in sorted(ROOT.glob("builder/steps/*.toml"))),
    *(("server.schema.json", path) for path in sorted(ROOT.glob("builder/servers/*.toml"))),
]


@pytest.mark.parametrize(("schema", "path"), SHIPPED, ids=[path.stem for _, path in SHIPPED])
def test_what_is_shipped_validates(schema: str, path: Path) -> None:
    jsonschema.Draft202012Validator(schemas()[schema]).validate(tomllib.loads(path.read_text(encoding="utf-8")))


BAD = [
    {"model": {"name": "a", "version": "1", "licence": "MIT", "colour": "red"}},
    {"model": {"name": "A B", "version": "1", "licence": "MIT"}},
    {"model": {"name": "a", "version": "1"}},
    {"steps": {}},
    {"steps": {"s": {"uses": "x", "limits": {"memory": "8 GB"}}}},
    {"steps": {"s": {"uses": "x", "reproducible": "always"}}},
    {"image": {}},
]


@pytest.mark.parametrize("change", BAD)
def test_the_schema_refuses_what_the_engine_refuses(change: dict[str, object]) -> None:
    good = {
        "model": {"name": "a", "version": "1", "licence": "MIT"},
        "steps": {"s": {"uses": "x"}},
        "image": {"from": "s"},
    }
    validator = jsonschema.Draft202012Validator(schemas()["modelfile.schema.json"])
    validator.validate(good)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**good, **change})
