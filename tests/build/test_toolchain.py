"""Reading toolchain locks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import wheelhouse

from intaglio.build import toolchain
from intaglio.content.tree import File, Tree
from intaglio.digest import Digest
from intaglio.errors import LockError, NotReproducible, RecipeError

SHIPPED = Path(__file__).resolve().parents[2] / "builder" / "toolchains"
SDIST_LOCK = Path(__file__).resolve().parents[1] / "builder" / "toolchains" / "docopt"
ZERO = "0" * 64

GOOD = f"""lock-version = "1.0"
created-by = "intaglio"
requires-python = "==3.11.*"

[[packages]]
name = "alpha-beta"
version = "1.0+cpu"

[[packages.wheels]]
name = "Alpha_Beta-1.0+cpu-py3-none-any.whl"
path = "wheels/Alpha_Beta-1.0+cpu-py3-none-any.whl"
size = 12
hashes = {{sha256 = "{ZERO}"}}
"""


def parse(text: str) -> toolchain.Toolchain:
    return toolchain.parse("tools", text.encode(), what="pylock.toml")


def test_the_tree_follows_from_the_lock_alone_golden() -> None:
    found = parse(GOOD)
    assert found.python == (3, 11)
    assert found.requires_python == "==3.11.*"
    assert [file.path for file in found.tree().files] == ["pylock.toml", "wheels/Alpha_Beta-1.0+cpu-py3-none-any.whl"]
    assert found.tree().digest.value == "sha256:a4a81ad2030d6c107a9d64cd2d85bf950448a86aa15690e0647c893506ada97c"


@pytest.mark.parametrize("folder", sorted(path.parent for path in SHIPPED.glob("*/pylock.toml")), ids=lambda f: f.name)
def test_every_shipped_lock_is_read(folder: Path) -> None:
    found = toolchain.load(folder)
    assert found.name == folder.name
    assert found.wheels
    assert [wheel.package for wheel in found.wheels] == sorted(wheel.package for wheel in found.wheels)
    for text in ("http:", "https:", "url ="):
        assert text not in (folder / "pylock.toml").read_text()


def test_an_sdist_names_the_wheel_to_be_built_from_it() -> None:
    found = toolchain.load(SDIST_LOCK)
    (sdist,) = found.sdists
    assert sdist.build_toolchain == "wheel-build"
    assert found.downloads == (sdist.source,)
    assert found.installed == (sdist.wheel,)
    assert [file.path for file in sdist.source_tree().files] == ["docopt-0.6.2.tar.gz"]
    assert [file.path for file in found.tree().files] == ["pylock.toml", "sdists/docopt-0.6.2.tar.gz"]


def test_a_lock_says_what_the_build_of_a_wheel_is_told() -> None:
    line = b'build-toolchain = "wheel-build"\n'
    text = (SDIST_LOCK / "pylock.toml").read_bytes()
    assert text.count(line) == 1
    (sdist,) = toolchain.parse("x", text.replace(line, line + b'environment = ["A=1 2", "B="]\n'), what="lock").sdists
    assert sdist.environment == ("A=1 2", "B=")
    for wrong in (b'"A=1"', b'["A"]', b"[1]", b'["=1"]'):
        with pytest.raises(LockError, match="environment: expected a list of NAME=VALUE"):
            toolchain.parse("x", text.replace(line, line + b"environment = " + wrong + b"\n"), what="lock")


def test_a_built_wheel_is_accepted_only_with_the_bytes_in_the_lock() -> None:
    (sdist,) = toolchain.load(SDIST_LOCK).sdists
    wheel = sdist.wheel
    sdist.accept(Tree.of([File(wheel.name, wheel.digest, wheel.size)]))
    for wrong in (
        [File(wheel.name, Digest.of(b"other"), wheel.size)],
        [File("other-0.6.2-py3-none-any.whl", wheel.digest, wheel.size)],
        [File(wheel.name, wheel.digest, wheel.size), File("extra", wheel.digest, wheel.size)],
    ):
        with pytest.raises(NotReproducible, match="wheel of docopt"):
            sdist.accept(Tree.of(wrong))


def test_a_folder_without_a_lock_is_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="toolchain nothing: cannot read"):
        toolchain.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('lock-version = "1.0"', 'lock-version = "2.0"', "lock-version: expected \"1.0\", found '2.0'"),
        ('requires-python = "==3.11.*"', 'requires-python = ">=3.11"', "requires-python: expected one Python"),
        ('requires-python = "==3.11.*"\n', "", "requires-python: missing"),
        ('created-by = "intaglio"', 'created-by = "intaglio"\nindex = "x"', "index: unknown key"),
        ('name = "alpha-beta"', 'name = "Alpha_Beta"', "packages[0].name: expected a normalised project name"),
        (
            'version = "1.0+cpu"',
            'version = "1.1"',
            "packages[0].wheels[0].name: expected a .whl file of alpha-beta 1.1",
        ),
        ('path = "wheels/', 'path = "../wheels/', "packages[0].wheels[0].path: expected wheels/Alpha_Beta"),
        ('name = "Alpha_Beta-', 'name = "../Alpha_Beta-', "packages[0].wheels[0].name: expected a file name"),
        ("size = 12", "size = 0", "packages[0].wheels[0].size: expected a positive number of bytes, found 0"),
        ("size = 12", "size = true", "packages[0].wheels[0].size: expected a positive number of bytes, found True"),
        ("size = 12", "", "packages[0].wheels[0].size: missing"),
        (ZERO, ZERO.replace("0", "A"), "packages[0].wheels[0].hashes.sha256: expected 64 lower-case hex digits"),
        ("sha256 =", "md5 =", "packages[0].wheels[0].hashes.sha256: missing"),
        ("size = 12", 'size = 12\nurl = "https://example.org/x.whl"', "packages[0].wheels[0].url: unknown key"),
        ("[[packages.wheels]]", "[packages.wheels]", "packages[0].wheels: expected a list of tables"),
        ('version = "1.0+cpu"', "version = [", "pylock.toml: not TOML"),
    ],
)
def test_what_is_not_ours_is_refused_with_its_place(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(LockError) as caught:
        parse(GOOD.replace(old, new, 1))
    assert message in caught.value.message
    assert caught.value.hint


def test_all_mistakes_are_reported_at_once() -> None:
    text = GOOD.replace("size = 12", "size = -1").replace('"1.0"', '"9"', 1).replace("==3.11.*", "*")
    with pytest.raises(LockError) as caught:
        parse(text)
    assert len(caught.value.message.splitlines()) == 3


def test_two_wheels_of_a_package_and_a_package_listed_twice_are_refused() -> None:
    entry = GOOD[GOOD.index("[[packages]]") :]
    with pytest.raises(LockError, match="alpha-beta stands there more than once"):
        parse(GOOD + entry)
    with pytest.raises(LockError, match="expected exactly one wheel, found 2"):
        parse(GOOD + entry[entry.index("[[packages.wheels]]") :])


def test_not_utf8_and_too_large_are_refused() -> None:
    with pytest.raises(LockError, match="not TOML"):
        toolchain.parse("tools", b"\xff", what="pylock.toml")
    with pytest.raises(LockError, match="larger than"):
        toolchain.parse("tools", b"#" * (5 << 20), what="pylock.toml")


def test_a_lock_written_for_a_hand_made_wheel_is_read(tmp_path: Path) -> None:
    made = wheelhouse.wheel(tmp_path / "links", "tiny_tool", "2.0", {"tiny_tool.py": b"ANSWER = 42\n"})
    found = toolchain.load(wheelhouse.lock(tmp_path / "tools", [made]))
    (wheel,) = found.wheels
    assert (wheel.package, wheel.version, wheel.name) == ("tiny-tool", "2.0", made.name)
    assert wheel.digest.hex == wheelhouse.sha256(made)
