"""The catalogue: every mistake of an entry at once, and the shipped entries are what ships."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.trust.sources import tree

from intaglio.cli import trust_content
from intaglio.errors import UsageError
from intaglio.trust import catalogue
from intaglio.trust.catalogue import Entry, find, parse, read_all
from intaglio.trust.target import Name, Target

SHIPPED = Path(__file__).parents[2] / "registry" / "catalogue"
FILE = Path("entry.toml")
GOOD = f"""
name = "models/acme/base"
version = "1.0.0"
tree = "{tree().digest}"
licence = "Apache-2.0"
publisher = "Acme"
summary = "A base."
formats = ["gguf"]
origins = ["pypi:acme-base==1.0.0"]
"""
LOCAL = """
name = "steps/acme/tune"
licence = "MIT"
publisher = "Acme"
summary = "Tunes."
source = "builder/steps/finetune"
"""


def entry(text: str = GOOD) -> Entry:
    return parse(text.encode(), FILE)


def test_an_entry_becomes_a_target() -> None:
    found = entry()
    one = found.target(Name.parse("models/acme/base@1.0.0"), tree())
    assert (one.digest, one.size, one.licence, one.publisher, one.origins) == (
        tree().digest,
        len(tree().manifest()),
        "Apache-2.0",
        "Acme",
        ("pypi:acme-base==1.0.0",),
    )
    assert Target.parse(one.path, one.size, {"sha256": one.digest.hex}, one.custom()) == one


def test_every_mistake_is_reported_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        entry('nam = "x"\nversion = 1\ntree = "md5:0"\nlicence = ""\nstatus = "gone"\nformats = "gguf"\norigins = []\n')
    for says in (
        "nam: unknown key; did you mean name?",
        "name, version: expected strings",
        "tree: not a digest",
        "licence: expected one line of text",
        "publisher: missing",
        "summary: missing",
        "status: expected active or yanked, found 'gone'",
        "formats: expected an array of strings",
        "expected either origins",
    ):
        assert says in caught.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD.replace('version = "1.0.0"\n', ""), "version: missing"),
        (GOOD.replace("pypi:acme-base==1.0.0", "https://acme.example/a.gguf"), "digest: belongs to an https: origin"),
        (GOOD + f'digest = "{tree().digest}"\n', "digest: belongs to an https: origin"),
        (LOCAL + 'digest = "sha256:0"\n', "digest: not a digest"),
        (GOOD + 'source = "builder/steps/tune"\n', "expected either origins"),
        (GOOD + 'status = "yanked"\n', "reason: belongs to what is yanked"),
        (GOOD + 'reason = "why"\n', "reason: belongs to what is yanked"),
        (GOOD.replace("models/acme", "models/Acme"), "in lower case"),
        (GOOD.replace("models/", "weights/"), "expected one of models, datasets"),
        ("name = ", "not TOML"),
        ("name = 'x'\nname = 'y'", "not TOML"),
        ("\x00", "not TOML"),
    ],
)
def test_mistakes(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=r"entry\.toml") as caught:
        entry(text)
    assert says in caught.value.message


def test_find() -> None:
    known = [entry(), entry(GOOD.replace('"1.0.0"', '"2.0.0"')), entry(LOCAL)]
    assert find(known, "models/acme/base@2.0.0")[0] is known[1]
    assert find(known, "steps/acme/tune@7") == (known[2], Name("steps/acme/tune", "7"))
    assert find(known[1:], "models/acme/base") == (known[1], Name("models/acme/base", "2.0.0"))
    for text, says in (
        ("models/acme/bass", "did you mean models/acme/base"),
        ("models/acme/base", "name one version of models/acme/base: 1.0.0, 2.0.0"),
        ("models/acme/base@3", "name one version"),
        ("steps/acme/tune", "has no version of its own"),
    ):
        with pytest.raises(UsageError, match=says):
            find(known, text)


def test_two_entries_of_one_name_and_version(tmp_path: Path) -> None:
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text(GOOD, encoding="utf-8")
    with pytest.raises(UsageError, match="are of one name and version"):
        read_all(tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        catalogue.read(tmp_path / "gone.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (1 << 17))
    with pytest.raises(UsageError, match="expected at most 65536 bytes"):
        catalogue.read(tmp_path / "large.toml")


@pytest.mark.parametrize("found", read_all(SHIPPED), ids=lambda found: found.name)
def test_shipped_entries(found: Entry) -> None:
    content = trust_content.shipped(found.source) if found.source else tree()
    one = found.target(Name(found.name, found.version or "1"), content)
    assert Target.parse(one.path, one.size, {"sha256": one.digest.hex}, one.custom()) == one
    assert (found.tree is None) == (found.source is not None), "what comes from elsewhere has been looked at"


def test_every_program_toolchain_and_policy_has_an_entry() -> None:
    builder = SHIPPED.parents[1] / "builder"
    here = {
        f"builder/{folder}/{path.stem}" for folder in ("steps", "servers") for path in (builder / folder).glob("*.toml")
    }
    here |= {f"builder/toolchains/{path.parent.name}" for path in builder.glob("toolchains/*/pylock.toml")}
    here |= {f"builder/rootfs/{path.parent.name}" for path in builder.glob("rootfs/*/rootfs.toml")}
    here |= {f"policies/{path.name}" for path in (SHIPPED.parents[1] / "policies").glob("*.toml")}
    assert {found.source for found in read_all(SHIPPED) if found.source} >= here
