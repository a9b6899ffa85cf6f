"""Programs: what their descriptions may say, what their trees hold, and how parameters resolve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.recipe.bench import STEP, builder

from intaglio.digest import Digest
from intaglio.errors import RecipeError
from intaglio.recipe import program
from intaglio.recipe.limits import Limits

ROOT = Path(__file__).parents[2]
VECTORS = Path(__file__).parents[1] / "vectors" / "recipe"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return builder(tmp_path / "builder")


def test_a_step_program(shop: Path) -> None:
    found = program.load("stamp", shop)
    assert (found.name, found.toolchain, found.reproducible, found.lib) == ("stamp", "convert", "platform", ("events",))
    assert found.outputs == ("*.bin",)
    assert found.limits == Limits(memory=1 << 30, processes=64, time=600)
    assert [(slot.name, slot.optional) for slot in found.inputs.values()] == [("model", False), ("notes", True)]
    assert found.parameters["count"].required
    assert not found.parameters["limit"].required
    assert not found.parameters["loud"].required  # false is a default like any other


def test_the_tree_holds_the_program_and_what_it_lists(shop: Path) -> None:
    found = program.load("stamp", shop)
    assert found.files == {
        "step.py": b"print('stamp')\n",
        "step.toml": STEP.encode(),
        "lib/events.py": b"def say(): ...\n",
    }
    tree = found.tree()
    assert [file.path for file in tree.files] == ["lib/events.py", "step.py", "step.toml"]
    assert all(Digest.of(found.files[file.path]) == file.digest for file in tree.files)


def test_the_tree_changes_with_what_it_lists_and_with_nothing_else(shop: Path) -> None:
    before = program.load("stamp", shop).tree().digest
    (shop / "lib" / "other.py").write_text("x = 1\n")
    (shop / "steps" / "new.toml").write_text("")
    assert program.load("stamp", shop).tree().digest == before
    (shop / "lib" / "events.py").write_text("def say(): pass\n")
    after = program.load("stamp", shop).tree().digest
    assert after != before
    (shop / "steps" / "stamp.py").write_text("print('STAMP')\n")
    assert program.load("stamp", shop).tree().digest not in (before, after)


CHOICES = """
[[toolchains]]
name = "train-cpu"
when = { mode = ["fast"], bits = [4, 8] }

[[toolchains]]
name = "wheel-build"
when = { bits = [4] }

[[classes]]
reproducible = "bit"
when = { loud = [true] }
"""


def test_parameters_choose_toolchain_and_class(shop: Path) -> None:
    description = STEP.replace("optional = true", 'optional = true\nneeded = { mode = ["fast"] }') + CHOICES
    (shop / "steps" / "stamp.toml").write_text(description)
    found = program.load("stamp", shop)
    assert found.toolchain_for({"count": 1}) == "convert"  # bits = 8 alone fits nothing
    assert found.toolchain_for({"mode": "fast"}) == "train-cpu"  # the default of bits fits
    assert found.toolchain_for({"mode": "fast", "bits": 4}) == "train-cpu"  # the first that fits
    assert found.toolchain_for({"bits": 4}) == "wheel-build"
    assert (found.class_for({}), found.class_for({"loud": True})) == ("platform", "bit")
    assert [slot.name for slot in found.missing([], {"mode": "fast"})] == ["model", "notes"]
    assert [slot.name for slot in found.missing(["model"], {})] == []


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("mode = ", "mdoe = ", "toolchains[0].when.mdoe: no such parameter; did you mean mode?"),
        ('["fast"]', '["fats"]', "expected one of slow, fast, found 'fats'; did you mean fast?"),
        ("[4, 8]", "[4, 16]", "expected one of 4, 8, found 16"),
        ("[true]", '["true"]', "expected true or false, found a string"),
        ("{ loud = [true] }", "{}", "expected at least 1 entry"),
        ("loud = [true]", 'tags = ["a"]', "expected a parameter of one value, found an array"),
        ('name = "train-cpu"', "", "toolchains[0].name: missing"),
        ("[[classes]]", '[inputs.more]\nsummary = "More."\nneeded = { bits = [4] }\n[[classes]]', "only an optional"),
    ],
)
def test_mistakes_in_conditions(shop: Path, old: str, new: str, part: str) -> None:
    assert old in CHOICES
    (shop / "steps" / "stamp.toml").write_text(STEP + CHOICES.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        program.load("stamp", shop)
    (message,) = caught.value.message.splitlines()
    assert part in message


def test_golden_tree_and_parameters(shop: Path) -> None:
    """The digest and the resolved parameters of this program are these, for ever."""
    golden = json.loads((VECTORS / "program.json").read_text())
    found = program.load("stamp", shop)
    assert str(found.tree().digest) == golden["tree"]
    assert found.resolve(golden["given"]) == golden["resolved"]


def test_resolving_names_every_mistake(shop: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        program.load("stamp", shop).resolve({"rate": 2, "mdoe": "fast"})
    assert caught.value.message.splitlines() == [
        "rate: expected at most 1.0, found 2",
        "mdoe: unknown parameter; did you mean mode?",
        "count: missing parameter of stamp; How often.",
    ]


def test_whole_numbers_become_floats_where_numbers_are_due(shop: Path) -> None:
    found = program.load("stamp", shop).resolve({"rate": 1, "count": 1, "weights": [1, 2]})
    assert isinstance(found["rate"], float)
    assert [type(item) for item in found["weights"]] == [float, float]
    assert isinstance(found["count"], int)


MISTAKES = [
    ('step = "stamp"', 'step = "other"', 1, "expected the file's own name 'stamp', found 'other'"),
    ('lib = ["events"]', 'lib = ["evnets"]', 5, "no module evnets.py; did you mean events?"),
    ('lib = ["events"]', 'lib = ["other", "events"]', 5, "expected sorted names, each once"),
    ('lib = ["events"]', 'lib = ["../x"]', 5, "expected the name of a module"),
    ('outputs = ["*.bin"]', "outputs = []", 6, "expected at least 1 element"),
    ('outputs = ["*.bin"]', 'outputs = ["/etc/passwd"]', 6, "expected a relative path or glob pattern"),
    ('reproducible = "platform"', 'reproducible = "yes"', 4, "expected one of bit, platform, statistical"),
    ('memory = "1GiB"', "memory = 1", 7, "expected a size such as"),
    ("default = 1e-3", "default = 2", 20, "expected at most 1.0, found 2"),
    ('type = "boolean"', 'type = "boolean"\nminimum = 1', 44, "only numbers have a minimum"),
    ('items = "string"', "", 47, "an array needs items, nothing else has them"),
    ("optional = true", "optonal = true", 16, "unknown key; did you mean optional?"),
    ("[inputs.notes]", "[inputs.'No Tes']", 14, "bad name: expected a lower-case word"),
    ('default = "slow"', 'default = "slwo"', 32, "expected one of slow, fast, found 'slwo'; did you mean slow?"),
]


@pytest.mark.parametrize(("old", "new", "line", "part"), MISTAKES)
def test_mistakes_in_a_description(shop: Path, old: str, new: str, line: int, part: str) -> None:
    assert old in STEP
    (shop / "steps" / "stamp.toml").write_text(STEP.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        program.load("stamp", shop)
    (message,) = caught.value.message.splitlines()
    assert f"steps/stamp.toml:{line}: " in message
    assert part in message


def test_a_description_without_its_program(shop: Path) -> None:
    (shop / "steps" / "stamp.py").unlink()
    with pytest.raises(RecipeError) as caught:
        program.load("stamp", shop)
    assert "stamp.py: cannot be read" in caught.value.message


@pytest.mark.parametrize("name", ["stmap", "../steps/stamp", "", "Stamp"])
def test_unknown_programs(shop: Path, name: str) -> None:
    with pytest.raises(program.UnknownProgram) as caught:
        program.load(name, shop)
    assert caught.value.known == ("stamp",)


def test_a_server_program(shop: Path) -> None:
    (shop / "servers").mkdir()
    (shop / "servers" / "echo.toml").write_text(
        'server = "echo"\nsummary = "Say it again."\ntoolchain = "convert"\nrootfs = "small"\nformats = ["gguf"]\n'
        'lib = ["events"]\nmemory = "4GiB"\n'
    )
    (shop / "servers" / "echo.py").write_text("print('echo')\n")
    found = program.load_server("echo", shop)
    assert (found.name, found.rootfs, found.formats) == ("echo", "small", ("gguf",))
    assert found.limits.memory == 4 << 30
    assert sorted(found.files) == ["lib/events.py", "server.py", "server.toml"]
    with pytest.raises(program.UnknownProgram):
        program.load_server("ecoh", shop)


@pytest.mark.parametrize("name", program.names(ROOT / "builder" / "steps"))
def test_shipped_steps(name: str) -> None:
    assert program.load(name, ROOT / "builder").name == name


@pytest.mark.parametrize("name", program.names(ROOT / "builder" / "servers"))
def test_shipped_servers(name: str) -> None:
    assert program.load_server(name, ROOT / "builder").name == name
