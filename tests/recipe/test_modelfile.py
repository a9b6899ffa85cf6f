# ruff: noqa: E501 - one line a case
"""Recipes: what is read, and that every mistake is named with its line, its key and what would be right."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.recipe.bench import RECIPE, STEP, builder, recipe

from intaglio.errors import ExitCode, RecipeError
from intaglio.recipe import modelfile
from intaglio.recipe.limits import Limits
from intaglio.recipe.modelfile import Recipe
from intaglio.recipe.program import Steps

ROOT = Path(__file__).parents[2]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Recipe]:
    shop = builder(tmp_path / "builder")

    def reader(text: str = RECIPE, **options: Any) -> Recipe:
        folder = recipe(tmp_path / "recipe", text)
        return modelfile.read(folder, Steps(folder, shop), **options)

    return reader


def mistakes(read: Callable[..., Recipe], text: str, **options: Any) -> list[str]:
    """The lines of the error about ``text``, without the path."""
    with pytest.raises(RecipeError) as caught:
        read(text, **options)
    assert caught.value.exit_code == ExitCode.RECIPE
    lines = caught.value.message.splitlines()
    assert all("recipe/Modelfile.toml:" in line for line in lines), lines
    return [line.partition("Modelfile.toml:")[2] for line in lines]


def test_a_good_recipe(read: Callable[..., Recipe]) -> None:
    found = read()
    assert found.model == modelfile.Model("examples/stamped", "1.0.0", "Apache-2.0")
    assert found.inputs["base"].uri == "file:data/base.bin"
    first, second = found.steps.values()
    assert (first.name, first.uses, dict(first.inputs)) == ("first", "stamp", {"model": "base"})
    assert first.limits == Limits(memory=1 << 30, processes=64, time=600)
    assert first.reproducible == "platform"
    assert second.parameters == {
        "rate": 0.5,
        "count": 3,
        "mode": "slow",
        "bits": 8,
        "loud": False,
        "tags": [],
        "weights": [1.0],
        "limit": None,
    }
    assert found.image.source == "second"
    assert (found.folder / "Modelfile.toml").is_file()


def test_the_file_itself_may_be_named(read: Callable[..., Recipe], tmp_path: Path) -> None:
    read()
    shop = tmp_path / "builder"
    folder = tmp_path / "recipe"
    assert modelfile.read(folder / "Modelfile.toml", Steps(folder, shop)) == modelfile.read(folder, Steps(folder, shop))


def test_everything_that_may_be_said(read: Callable[..., Recipe]) -> None:
    text = RECIPE.replace(
        'licence = "Apache-2.0"\n',
        'licence = "Apache-2.0 OR MIT"\nfamily = "llama"\ndescription = "What – and why."\nauthors = ["A", "B"]\n',
        1,
    )
    text = text.replace(
        "with = { count = 2 }",
        'with = { count = 2, bits = 4, tags = ["a"], weights = [1, 0.5] }\nreproducible = "statistical"\n'
        'limits = { memory = "2GiB", processes = 7, time = "90m", disk = "10MiB", threads = 4 }',
    )
    text += 'labels = { "org.example.team" = "blue" }\nruntime = "llama.cpp"\nembed = true\n'
    found = read(text)
    assert found.model.authors == ("A", "B")
    assert found.model.family == "llama"
    step = found.steps["first"]
    assert step.limits == Limits(2 << 30, 7, 5400, 10 << 20, 4)
    assert step.reproducible == "statistical"
    assert step.parameters["weights"] == [1.0, 0.5]
    assert found.image.labels == {"org.example.team": "blue"}
    assert (found.image.runtime, found.image.embed) == ("llama.cpp", True)


def test_steps_come_after_what_they_read(read: Callable[..., Recipe]) -> None:
    text = RECIPE.replace('inputs = { model = "base" }', 'inputs = { model = "third" }')
    text = text.replace(
        "[image]", '[steps.third]\nuses = "stamp"\ninputs = { model = "base" }\nwith = { count = 1 }\n[image]'
    )
    assert list(read(text).steps) == ["third", "first", "second"]


MISTAKES = [
    # what is changed, by what, and the one line that must come back
    ("version =", "versoin =", ["2: model.version: missing", "4: model.versoin: unknown key; did you mean version?"]),
    ("[image]", "[imgae]", ["1: image: missing", "23: imgae: unknown key; did you mean image?"]),
    ('"1.0.0"', "1.0", ["4: model.version: expected a version such as 1.0.0"]),
    ('"1.0.0"', '"1/0"', ["4: model.version: expected a version"]),
    ('"examples/stamped"', '"Examples/stamped"', ["3: model.name: expected a name such as"]),
    ('"examples/stamped"', '"a//b"', ["3: model.name: expected"]),
    ("count = 3", 'count = "3"', ["20: steps.second.with.count: expected an integer, found a string"]),
    ("count = 3", "count = 3.0", ["20: steps.second.with.count: expected an integer, found a number"]),
    ("count = 3", "count = true", ["20: steps.second.with.count: expected an integer, found a boolean"]),
    ("count = 3", "count = 0", ["20: steps.second.with.count: expected at least 1, found 0"]),
    ("count = 3", "count = 1979-05-27", ["20: steps.second.with.count: expected an integer, found a date"]),
    ("count = 3", "count = 9007199254740993", ["20: steps.second.with.count: expected an integer between"]),
    ("count = 3\n", "", ["19: steps.second.with.count: missing parameter of stamp; How often."]),
    ("with = { count = 2 }\n", "", ["10: steps.first.with.count: missing parameter of stamp"]),
    ("rate = 0.5", "rate = 1.5", ["21: steps.second.with.rate: expected at most 1.0, found 1.5"]),
    ("rate = 0.5", "rate = nan", ["21: steps.second.with.rate: expected a number between"]),
    ("rate = 0.5", "rate = -inf", ["21: steps.second.with.rate: expected a number between"]),
    ("rate = 0.5", "raet = 0.5", ["21: steps.second.with.raet: unknown parameter; did you mean rate?"]),
    ("rate = 0.5", 'mode = "fsat"', ["expected one of slow, fast, found 'fsat'; did you mean fast?"]),
    ("rate = 0.5", "bits = 5", ["21: steps.second.with.bits: expected one of 4, 8, found 5"]),
    ("rate = 0.5", 'tags = ["a", 1]', ["21: steps.second.with.tags[1]: expected a string, found an integer"]),
    ('uses = "stamp"\ninputs = { model = "first" }', 'uses = "stmap"', ["16: steps.second.uses: unknown step program 'stmap'; did you mean stamp?"]),
    ('{ model = "first" }', '{ model = "frist" }', ["17: steps.second.inputs.model: 'frist' is neither an input nor a step; did you mean first?"]),
    ('{ model = "first" }', '{ modle = "first" }', ["17: steps.second.inputs.model: missing", "17: steps.second.inputs.modle: stamp has no such input; did you mean model?"]),
    ('{ model = "first" }', '{ model = "first", notes = 3 }', ["17: steps.second.inputs.notes: expected a string, found an integer"]),
    ('{ model = "base" }', '{ model = "second" }', ["12: steps.first.inputs: a cycle: first → second → first"]),
    ('{ model = "base" }', '{ model = "first" }', ["12: steps.first.inputs: a cycle: first → first"]),
    ("[steps.first]", "[steps.base]", ["17: steps.second.inputs.model: 'first'", "10: steps.base: 'base' is an input already"]),
    ('from = "second"', 'from = "secnod"', ["24: image.from: 'secnod' is not a step; did you mean second?"]),
    ('from = "second"', 'from = "base"', ["24: image.from: 'base' is an input, not a step"]),
    ('from = "second"', 'from = "second"\nlabels = { a = 1 }', ["25: image.labels.a: expected one line of at most 1024 characters, found an integer"]),
    ('from = "second"', 'from = "second"\nruntime = "vlm"', ["25: image.runtime: expected one of llama.cpp, transformers, vllm, found 'vlm'; did you mean vllm?"]),
    ('from = "second"', 'from = "second"\nembed = true', ["25: image.embed: there is nothing to embed into; name a runtime"]),
    ('from = "second"', 'from = "second"\nruntime = "vllm"\nembed = 1', ["26: image.embed: expected true or false"]),
    ("[steps.first]", '[steps.first.limits]\nmemory = "8 GB"\n[steps.first]', ["11: steps.first.limits.memory: expected a size such as"]),
    ("[steps.first]", "[steps.first.limits]\nthread = 2\n[steps.first]", ["11: steps.first.limits.thread: unknown key; did you mean threads?"]),
    ("with = { count = 2 }", 'with = { count = 2 }\nreproducible = "bit"', ["14: steps.first.reproducible: stamp promises platform; a recipe may only promise less"]),
    ("with = { count = 2 }", 'with = { count = 2 }\nreproducible = "bits"', ["expected one of bit, platform, statistical, found 'bits'; did you mean bit?"]),
    ("with = { count = 2 }", "with = 2", ["13: steps.first.with.count: missing", "13: steps.first.with: expected a table, found an integer"]),
    ("[inputs.base]", "[inputs.'a b']", ["7: inputs.\"a b\": bad name: expected a letter", "'base' is neither"]),
    ('"file:data/base.bin"', '"file:data/bsae.bin"', ["8: inputs.base.uri: missing file: expected"]),
    ('"file:data/base.bin"', '"flie:data/base.bin"', ["8: inputs.base.uri: unknown kind of address 'flie'; did you mean file?"]),
    ('"file:data/base.bin"', '"data/base.bin"', ["8: inputs.base.uri: expected an address such as"]),
    ('"file:data/base.bin"', '"file://host/base.bin"', ["8: inputs.base.uri: expected file:PATH without a host"]),
    ('"file:data/base.bin"', '"file:."', ["8: inputs.base.uri: 'file:.' holds the recipe itself"]),
    ('"file:data/base.bin"', '"https://example.org/a.bin"', ['8: inputs.base.uri: not pinned: an https: input needs digest = "sha256:…"']),
    ('"file:data/base.bin"', '"http://example.org/a.bin"', ["8: inputs.base.uri: http://example.org/a.bin: expected an https: address"]),
    ('"file:data/base.bin"', '"https://example.org/a.bin"\ndigest = "sha256:AB"', ["9: inputs.base.digest: expected sha256: and 64"]),
    ('"file:data/base.bin"', '"pypi:thing>=1"', ["8: inputs.base.uri: expected pypi:NAME==VERSION"]),
    ('"file:data/base.bin"', '"pypi:thing==1#../x"', ["8: inputs.base.uri: 'pypi:thing==1#../x': bad path"]),
    ('"file:data/base.bin"', '"hf:org/name"', ["8: inputs.base.uri: expected hf:org/name@commit"]),
    ('"file:data/base.bin"', '"hf:org/name@main"', ["8: inputs.base.uri: not pinned: 'main' may change; expected @ and a commit of 40 hex digits"]),
    ("[model]", '[model]\nname = "x"', ["4: not TOML: "]),
    ("[model]", "[model", ["2: not TOML: "]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES, ids=[new.strip()[:40] for _, new, _ in MISTAKES])
def test_one_mistake(read: Callable[..., Recipe], old: str, new: str, expected: list[str]) -> None:
    assert old in RECIPE
    found = mistakes(read, RECIPE.replace(old, new, 1))
    assert len(found) == len(expected), found
    for part in expected:
        assert any(part in line for line in found), (part, found)


def test_all_mistakes_at_once_in_the_order_of_their_lines(read: Callable[..., Recipe]) -> None:
    text = RECIPE
    for old, new in (
        ("version =", "versoin ="),
        ("data/base.bin", "data/gone.bin"),
        ('{ model = "base" }', '{ model = "bsae" }'),
        ("count = 3", "count = 0"),
        ("rate = 0.5", "raet = 1"),
        ('from = "second"', 'from = "x"'),
    ):
        text = text.replace(old, new, 1)
    lines = [int(line.split(":")[0]) for line in mistakes(read, text)]
    assert lines == [2, 4, 8, 12, 20, 21, 24]


def test_two_cycles_are_both_named_in_full(read: Callable[..., Recipe]) -> None:
    extra = "".join(
        f'[steps.{name}]\nuses = "stamp"\ninputs = {{ model = "{other}" }}\nwith = {{ count = 1 }}\n'
        for name, other in (("a", "b"), ("b", "c"), ("c", "a"), ("x", "y"), ("y", "x"))
    )
    found = mistakes(read, RECIPE + "\n" + extra)
    assert [line.split(": ", 2)[2].partition(";")[0] for line in found] == [
        "a cycle: a → b → c → a",
        "a cycle: x → y → x",
    ]


SECRETS = [
    ("count = 3", 'count = 3\nhf_token = "abc123XYZ"', "looks like a secret", "abc123XYZ"),
    ("count = 3", 'count = 3\npassword = "abc123XYZ"', "looks like a secret", "abc123XYZ"),
    ("count = 3", 'count = 3\napi-key = "abc123XYZ"', "looks like a secret", "abc123XYZ"),
    ("count = 3", 'count = 3\nmode = "hf_abcdefghijklmnopqrstuv"', "the value looks like a secret", "hf_abc"),
    (
        "count = 3",
        'count = 3\ntags = ["ghp_abcdefghijklmnopqrstuvwxyz012345"]',
        "the value looks like a secret",
        "ghp_",
    ),
    ('licence = "Apache-2.0"', 'licence = "MIT"\ndescription = "AKIAABCDEFGHIJKLMNOP"', "looks like a secret", "AKIA"),
    ('"file:data/base.bin"', '"https://me:abc123XYZ@example.org/a"', "holds a user name or password", "abc123XYZ"),
    ('"file:data/base.bin"', '"https://abc123XYZ@example.org/a"', "holds a user name or password", "abc123XYZ"),
    ('"file:data/base.bin"', '"https://example.org/a?X-Amz-Signature=abc123XYZ"', "holds a credential", "abc123XYZ"),
    ('"file:data/base.bin"', '"https://example.org/a?token=abc123XYZ"', "holds a credential", "abc123XYZ"),
]


@pytest.mark.parametrize(("old", "new", "expected", "secret"), SECRETS)
def test_a_recipe_that_names_a_secret_is_refused_and_the_secret_is_not_repeated(
    read: Callable[..., Recipe], old: str, new: str, expected: str, secret: str
) -> None:
    found = mistakes(read, RECIPE.replace(old, new, 1))
    assert len(found) == 1
    assert expected in found[0]
    assert secret not in found[0]


@pytest.mark.parametrize("name", ["max_tokens", "pad_token", "tokenizer", "key_size", "secretary"])
def test_what_only_sounds_like_a_secret_is_not_one(read: Callable[..., Recipe], name: str) -> None:
    found = mistakes(read, RECIPE.replace("count = 3", f"count = 3\n{name} = 1", 1))
    assert len(found) == 1
    assert "unknown parameter" in found[0]


def test_a_branch_is_refused_with_the_commit_it_means_now(read: Callable[..., Recipe]) -> None:
    text = RECIPE.replace("file:data/base.bin", "hf:org/name@main")
    asked = []

    def revision(uri: str) -> str:
        asked.append(uri)
        return "0123456789" * 4

    (line,) = mistakes(read, text, revision=revision)
    assert line.endswith("it means " + "0123456789" * 4 + " now")
    assert asked == ["hf:org/name@main"]


def test_a_step_program_beside_the_recipe(read: Callable[..., Recipe], tmp_path: Path) -> None:
    read()
    folder = tmp_path / "recipe"
    (folder / "own").mkdir()
    (folder / "own" / "mark.toml").write_text(
        STEP.replace('"stamp"', '"mark"').replace('["events"]', '["events", "mine"]')
    )
    (folder / "own" / "mark.py").write_text("print('mark')\n")
    (folder / "own" / "lib").mkdir()
    (folder / "own" / "lib" / "mine.py").write_text("x = 1\n")
    found = read(RECIPE.replace('uses = "stamp"', 'uses = "./own/mark"', 1)).steps["first"].program
    assert found.name == "mark"
    assert sorted(found.files) == ["lib/events.py", "lib/mine.py", "step.py", "step.toml"]
    for uses, part in (
        ("./own/gone", "no step program"),
        ("./../x", "expected ./ and a path"),
        ("./own/Mark", "expected ./"),
    ):
        (line,) = mistakes(read, RECIPE.replace('uses = "stamp"', f'uses = "{uses}"', 1))
        assert part in line


def test_a_wrong_step_description_is_shown_with_its_own_lines(read: Callable[..., Recipe], tmp_path: Path) -> None:
    read()
    description = tmp_path / "builder" / "steps" / "stamp.toml"
    description.write_text(STEP.replace("summary =", "sumary =", 1))
    with pytest.raises(RecipeError) as caught:
        read()
    assert "steps/stamp.toml:2: sumary: unknown key; did you mean summary?" in caught.value.message


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"\xff\xfe[model]", "not UTF-8 at byte 0"),
        (b"a = 1\nb = \xff\n", "Modelfile.toml:2: not UTF-8"),
        (b"# " + b"x" * (1 << 20), "at most 1048576 bytes"),
        (b"a = " + b"[" * 5000, "not TOML"),
        (b"a = 0x" + b"f" * 5000 + b"\n", "unknown key"),
        (b"", "model: missing"),
        (b"model = 1\ninputs = 2\nsteps = 3\nimage = 4\n", "steps: expected a table, found an integer"),
        (b"[model]\n[inputs]\na = 1\n[steps]\nb = [1]\n[image]\n", "steps.b: expected a table, found an array"),
    ],
)
def test_whatever_the_file_holds_the_answer_is_a_recipe_error(tmp_path: Path, data: bytes, part: str) -> None:
    (tmp_path / "Modelfile.toml").write_bytes(data)
    with pytest.raises(RecipeError) as caught:
        modelfile.read(tmp_path, Steps(tmp_path, builder(tmp_path / "builder")))
    assert part in caught.value.message


def test_no_recipe_at_all(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        modelfile.read(tmp_path / "gone")
    assert "expected a file, found none" in caught.value.message
    assert "Modelfile.toml" in (caught.value.hint or "")


@pytest.mark.parametrize("path", sorted(ROOT.glob("modelfiles/*/Modelfile.toml")), ids=lambda path: path.parent.name)
def test_shipped_recipes_have_no_mistakes(path: Path) -> None:
    assert modelfile.read(path.parent).steps


def test_reading_is_quick_and_pulls_in_nothing_heavy(tmp_path: Path) -> None:
    folder = recipe(tmp_path / "recipe")
    builder(tmp_path / "data" / "builder")
    code = (
        "import sys, time, pathlib\n"
        "from intaglio.recipe import modelfile, lock\n"
        "begin = time.perf_counter()\n"
        "modelfile.read(pathlib.Path(sys.argv[1]))\n"
        "took = time.perf_counter() - begin\n"
        "heavy = {'pydantic', 'rich', 'http', 'ssl', 'asyncio', 'zipfile', 'difflib', 'tomlkit', 'cryptography'} & set(sys.modules)\n"
        "print(took, sorted(heavy))\n"
    )
    environment = {"INTAGLIO_DATA": str(tmp_path / "data"), "PATH": "/usr/bin:/bin"}
    best = 9.0
    for _ in range(5):  # the machine may be busy: the best of a few is what reading costs
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        seconds, _, heavy = done.stdout.strip().partition(" ")
        assert heavy == "[]"
        best = min(best, float(seconds))
        if best < 0.03:
            break
        time.sleep(0.5)
    assert best < 0.03
