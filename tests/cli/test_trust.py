"""``intaglio trust``: keys where they belong, several people's signatures, and content only against its digest."""

from __future__ import annotations

import json
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests import images
from tests.trust.sources import tree

from intaglio.cli.setting import Setting
from intaglio.cli.trust import command
from intaglio.cli.verify import command as verify
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, Error, ExitCode, NotVerifiable, PolicyRefusal, UsageError
from intaglio.trust.key import PrivateKey, is_encrypted
from intaglio.trust.target import Name
from intaglio.trust.tuf import TrustedSource

ENTRY = """
name = "models/acme/base"
version = "1.0.0"
licence = "Apache-2.0"
publisher = "Acme"
summary = "For a test."
formats = ["gguf"]
origins = {origins}
tree = "{tree}"
"""


CARRIED = """
name = "{kind}/acme/{word}"
version = "1"
licence = "Apache-2.0"
publisher = "Acme"
summary = "For a test."
origins = ["file:{file}"]
"""


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(command, [*map(str, arguments), "--progress", "none"], obj={})
    if isinstance(result.exception, Error):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def answer(*arguments: str | Path) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def refused(*arguments: str | Path) -> Error:
    with pytest.raises(Error) as caught:
        run(*arguments)
    return caught.value


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTAGLIO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def source(home: Path, tmp_path: Path) -> Path:
    run("init", tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """A catalogue entry whose content stands beside it."""
    (tmp_path / "model.gguf").write_text("weights", encoding="utf-8")
    path = tmp_path / "base.toml"
    path.write_text(ENTRY.format(origins='["file:gone.gguf", "file:model.gguf"]', tree=tree().digest), encoding="utf-8")
    return path


def key(source: Path, name: str) -> Path:
    return source.with_name(source.name + "-keys") / "offline" / f"{name}.key"


def signed(source: Path) -> Path:
    names = ("root-1", "root-2", "targets-1")
    run("sign", source, *(part for name in names for part in ("--key", key(source, name))))
    return source


def signed_by_targets(source: Path) -> Path:
    run("sign", source, "--key", key(source, "targets-1"))
    return source


def test_keys_stand_apart_and_are_ours_alone(source: Path) -> None:
    keys = source.with_name("source-keys")
    made = sorted(str(path.relative_to(keys)) for path in keys.rglob("*.key"))
    assert made == [
        "offline/root-1.key",
        "offline/root-2.key",
        "offline/root-3.key",
        "offline/targets-1.key",
        "online/snapshot.key",
        "online/timestamp.key",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.rglob("*.key")} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()} == {0o700}
    assert not list(source.rglob("*.key"))
    assert not any(is_encrypted(path.read_bytes()) for path in keys.rglob("*.key"))


def test_keys_are_not_put_into_the_folder_nor_over_others(source: Path, tmp_path: Path) -> None:
    assert "keys do not belong inside" in refused("init", tmp_path / "new", "--keys", tmp_path / "new" / "keys").message
    assert not (tmp_path / "new").exists()
    before = key(source, "root-1").read_bytes()
    assert "there is a key already" in refused("init", tmp_path / "new", "--keys", tmp_path / "source-keys").message
    assert key(source, "root-1").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_without_keys_there_is_no_source(home: Path, tmp_path: Path) -> None:
    """Neither where the keys cannot be written, nor where the source cannot: one without the other is of no use."""
    (tmp_path / "source-keys").mkdir()
    (tmp_path / "source-keys" / "online").write_text("in the way")
    assert refused("init", tmp_path / "source").exit_code == ExitCode.MACHINE
    assert not (tmp_path / "source").exists()
    assert not list((tmp_path / "source-keys" / "offline").iterdir())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "other").write_text("not empty")
    assert refused("init", tmp_path / "taken").exit_code == ExitCode.USAGE
    assert not [path for path in (tmp_path / "taken-keys").rglob("*") if path.is_file()]


def test_keys_are_encrypted_with_a_passphrase(home: Path, tmp_path: Path, entry: Path) -> None:
    source, secret, wrong = tmp_path / "source", tmp_path / "secret", tmp_path / "wrong"
    secret.write_text("open sesame\n", encoding="utf-8")
    wrong.write_text("open barley\n", encoding="utf-8")
    assert answer("init", source, "--passphrase-file", secret)["encrypted"]
    assert all(is_encrypted(path.read_bytes()) for path in (tmp_path / "source-keys").rglob("*.key"))
    run("add", source, entry)
    attempt = ("sign", source, "--key", key(source, "root-1"))
    assert refused(*attempt).exit_code == ExitCode.UNTRUSTED
    assert refused(*attempt, "--passphrase-file", wrong).exit_code == ExitCode.UNTRUSTED
    names = ("root-1", "root-3", "targets-1")
    run("sign", source, *(part for name in names for part in ("--key", key(source, name))), "--passphrase-file", secret)
    assert refused("publish", source, tmp_path / "www").exit_code == ExitCode.UNTRUSTED
    run("publish", source, tmp_path / "www", "--passphrase-file", secret)


def test_people_sign_with_keys_of_their_own(home: Path, tmp_path: Path, entry: Path) -> None:
    people = {}
    for name in ("ann", "bob", "cid", "dora"):
        people[name] = PrivateKey.generate()
        (tmp_path / f"{name}.pub").write_text(people[name].public.pem, encoding="ascii")
        (tmp_path / f"{name}.key").write_bytes(people[name].to_pem())
    source = tmp_path / "source"
    given = [part for name in ("ann", "bob", "cid") for part in ("--root-key", tmp_path / f"{name}.pub")]
    made = answer("init", source, *given, "--threshold", "2", "--targets-key", tmp_path / "dora.pub")
    assert [Path(path).name for path in made["keys"]] == ["snapshot.key", "timestamp.key"]
    run("add", source, entry)
    assert answer("sign", source, "--key", tmp_path / "ann.key")["waiting"][0]["missing"] == 1
    assert "signs for nothing that is staged" in refused("sign", source, "--key", _stranger(tmp_path)).message
    found = refused("publish", source, tmp_path / "www")
    assert (found.exit_code, "root 1: 1 more signature" in found.message) == (ExitCode.UNTRUSTED, True)
    run("sign", source, "--key", tmp_path / "cid.key")
    assert "targets 1: 1 more signature" in refused("publish", source, tmp_path / "www").message
    assert answer("sign", source, "--key", tmp_path / "dora.key")["waiting"][1]["missing"] == 0
    assert answer("publish", source, tmp_path / "www")["versions"]["root"] == 1
    rotated = answer("rotate", source, "root", "--remove", tmp_path / "bob.pub", "--add", tmp_path / "dora.pub")
    assert rotated["waiting"][0]["missing"] == 2
    run("sign", source, "--key", tmp_path / "ann.key", "--key", tmp_path / "cid.key")
    assert answer("publish", source, tmp_path / "www")["versions"]["root"] == 2
    assert "root 3" in run("renew", source, "root").stdout


def _stranger(folder: Path) -> Path:
    path = folder / "stranger.key"
    path.write_bytes(PrivateKey.generate().to_pem())
    return path


def test_content_comes_from_an_origin_against_the_promised_digest(source: Path, home: Path, entry: Path) -> None:
    added = answer("add", source, entry)["added"]
    assert added[0]["tree"] == str(tree().digest)  # the first origin is gone, the second has it
    assert Store.open(home / "store").has_tree(tree().digest)


def test_content_that_changed_is_refused(source: Path, home: Path, entry: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("other weights", encoding="utf-8")
    assert refused("add", source, entry).exit_code == ExitCode.CORRUPT
    assert answer("list", source)["targets"] == []
    (tmp_path / "model.gguf").unlink()
    assert refused("add", source, entry).exit_code == ExitCode.SOURCE


def test_the_tree_must_be_the_entrys(source: Path, entry: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("x", encoding="utf-8")
    other = Store.open(home / "store").ingest(tmp_path / "other", move=False)
    assert "--tree says" in refused("add", source, entry, "--tree", str(other.digest)).message
    assert "--tree: not a digest" in refused("add", source, entry, "--tree", "latest").message
    assert (
        refused("add", source, "steps/intaglio/finetune@1", "--tree", str(other.digest)).exit_code == ExitCode.CORRUPT
    )


def test_without_a_digest_what_the_origin_has_is_taken_and_told(source: Path, entry: Path) -> None:
    entry.write_text(entry.read_text().replace("tree = ", "# tree = "), encoding="utf-8")
    added = answer("add", source, entry)
    assert added["added"][0]["tree"] == str(tree().digest)
    assert str(tree().digest) in "".join(added["waiting"][1]["changes"])
    wrong = "sha256:" + "0" * 64
    assert refused("add", source, entry, "--tree", wrong).exit_code in (ExitCode.CORRUPT, ExitCode.SOURCE)


def test_several_entries_at_once_are_added_all_or_none(source: Path, entry: Path) -> None:
    assert "expected one entry" in refused("add", source, entry, "steps/intaglio/merge@1", "--tree", "x").message
    assert "no catalogue entry" in refused("add", source, entry, "steps/intaglio/nothing@1").message
    assert answer("list", source)["targets"] == []
    names = [one["name"] for one in answer("add", source, entry, "steps/intaglio/merge@1")["added"]]
    assert names == ["models/acme/base@1.0.0", "steps/intaglio/merge@1"]


@pytest.fixture
def carried(source: Path, tmp_path: Path) -> Path:
    """A source with a policy and a key of ours, published."""
    (tmp_path / "ours.toml.txt").write_text(images.policy_text(), encoding="utf-8")
    (tmp_path / "release.pub").write_text(images.key("release").public.pem, encoding="ascii")
    for kind, word, file in (("policies", "release", "ours.toml.txt"), ("keys", "bank", "release.pub")):
        (tmp_path / f"{word}.toml").write_text(CARRIED.format(kind=kind, word=word, file=file), encoding="utf-8")
    run("add", source, tmp_path / "release.toml", tmp_path / "bank.toml", "policies/intaglio/strict@1.0.0")
    run("publish", signed(source), tmp_path / "www")
    run("refresh", "--url", tmp_path / "www", "--root", tmp_path / "www" / "metadata" / "1.root.json")
    return source


def trusted(home: Path) -> TrustedSource:
    return TrustedSource.load(home, datetime.now(UTC))


def test_policies_and_keys_are_carried_by_the_source_itself(carried: Path, home: Path, tmp_path: Path) -> None:
    policy, pem = (tmp_path / name for name in ("ours.toml.txt", "release.pub"))
    shutil.move(tmp_path / "www", tmp_path / "unplugged")  # what was refreshed needs no mirror
    assert trusted(home).file(Name.parse("policies/acme/release@1")) == policy.read_bytes()
    assert trusted(home).file(Name.parse("keys/acme/bank@1")) == pem.read_bytes()
    assert b"[licences]" in trusted(home).file(Name.parse("policies/intaglio/strict@1.0.0"))
    shown = answer("show", "policies/acme/release@1")
    assert (shown["kind"], shown["origins"]) == ("policy", [])
    assert shown["text"] == policy.read_text()
    assert pem.read_text().splitlines()[1] in run("show", "keys/acme/bank@1").stdout
    blobs = {path.name for path in (tmp_path / "unplugged" / "blobs" / "sha256").iterdir()}
    assert Digest.of(policy.read_bytes()).hex in blobs
    assert len(blobs) == 3


def test_a_carried_file_that_was_changed_is_refused_wherever_it_was_changed(
    carried: Path, home: Path, tmp_path: Path
) -> None:
    name, text = Name.parse("policies/acme/release@1"), (tmp_path / "ours.toml.txt").read_bytes()
    place = Path("blobs", "sha256", Digest.of(text).hex)
    kept, published = home / "tuf" / place, tmp_path / "www" / place
    for path in (kept, published):
        path.write_bytes(text.replace(b"pickle", b"tickle") + b"# allow everything\n")
    with pytest.raises(CorruptContent):
        trusted(home).file(name)
    assert refused("refresh").exit_code == ExitCode.CORRUPT
    published.write_bytes(text)
    run("refresh")  # and what was damaged at home is fetched again
    assert trusted(home).file(name) == text


def test_a_yanked_or_missing_policy_is_none(carried: Path, home: Path, tmp_path: Path) -> None:
    name = Name.parse("policies/acme/release@1")
    kept = home / "tuf" / "blobs" / "sha256"
    for path in kept.iterdir():
        path.unlink()
    with pytest.raises(NotVerifiable, match="is listed, and is not here"):
        trusted(home).file(name)
    assert answer("show", str(name))["text"] is None
    assert "was not fetched" in run("show", str(name)).stdout
    with pytest.raises(UsageError):
        trusted(home).file(Name.parse("models/acme/base@1.0.0"))
    run("yank", carried, str(name), "--reason", "too lax")
    run("publish", signed_by_targets(carried), tmp_path / "www")
    run("refresh")
    with pytest.raises(PolicyRefusal, match="too lax"):
        trusted(home).file(name)
    assert trusted(home).file(Name.parse("keys/acme/bank@1")).startswith(b"-----BEGIN PUBLIC KEY")


def test_a_machine_that_only_verifies_needs_the_anchor_and_a_policys_name(
    source: Path, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "policy").write_text(images.policy_text(), encoding="utf-8")
    given = ("add", source, "policies/acme/release@1", "--file", tmp_path / "policy")
    assert "belong together" in refused(*given).message
    assert "policy or key" in refused("add", source, "models/a/b@1", *given[3:], "--publisher", "Acme").message
    run(*given, "--publisher", "Acme")
    run("publish", signed(source), tmp_path / "www")
    root = tmp_path / "www" / "metadata" / "1.root.json"
    assert "expected a name" in refused("anchor", root, "--policy", "release.toml").message
    assert not home.joinpath("root.json").exists()
    assert "verifying by" in run("anchor", root, "--policy", "policies/acme/release@1").stdout
    run("refresh", "--url", tmp_path / "www")
    assert Setting(home, home / "store", False, "none").policy().releasers == (images.key("release").public,)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("policies", "version = 1\n"),
        ("policies", "not TOML"),
        ("keys", "not PEM"),
        ("keys", PrivateKey.generate().to_pem()),
    ],
)
def test_what_is_no_policy_or_key_cannot_be_added_as_one(
    source: Path, tmp_path: Path, kind: str, content: str | bytes
) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "given").write_bytes(data)
    (tmp_path / "entry.toml").write_text(CARRIED.format(kind=kind, word="release", file="given"), encoding="utf-8")
    assert refused("add", source, tmp_path / "entry.toml").exit_code == ExitCode.USAGE
    assert answer("list", source)["targets"] == []


def test_names_of_the_catalogue(source: Path) -> None:
    assert "did you mean steps/intaglio/finetune" in refused("add", source, "steps/intaglio/finetun@1").message
    assert "has no version of its own" in refused("add", source, "steps/intaglio/finetune").message
    names = {one["name"] for one in answer("catalogue")["entries"]}
    assert {"models/huggingfacetb/smollm2-135m-instruct", "toolchains/intaglio/train-cpu"} <= names
    for name in sorted(names - {"models/huggingfacetb/smollm2-135m-instruct"}):
        run("add", source, f"{name}@1.0.0")
    assert len(answer("list", source)["targets"]) == len(names) - 1


def test_anchor_refresh_list_show(source: Path, entry: Path, home: Path, tmp_path: Path) -> None:
    run("add", source, entry)
    www = tmp_path / "www"
    published = answer("publish", signed(source), www)
    anchored = answer("anchor", www / "metadata" / "1.root.json")
    assert anchored["digest"] == published["anchor"]
    assert "where is the source?" in refused("refresh").message
    run("refresh", "--url", www)
    assert answer("refresh")["address"] == str(www)
    assert "models/acme/base@1.0.0" in run("list").stdout
    assert "2 of 3 keys" in run("show").stdout
    shown = answer("show", "models/acme/base@1.0.0")
    assert (shown["tree"], shown["status"], shown["licence"]) == (str(tree().digest), "active", "Apache-2.0")
    assert "pypi" not in run("show", "models/acme/base@1.0.0").stdout
    assert refused("show", "models/acme/bass@1.0.0").exit_code == ExitCode.POLICY
    assert refused("show", "models/acme/base").exit_code == ExitCode.USAGE
    other = tmp_path / "other"
    run("init", other, "--keys", tmp_path / "others")
    names = ("root-1", "root-2", "targets-1")
    run("sign", other, *(part for name in names for part in ("--key", tmp_path / "others" / "offline" / f"{name}.key")))
    run("publish", other, tmp_path / "elsewhere", "--keys", tmp_path / "others")
    root = tmp_path / "elsewhere" / "metadata" / "1.root.json"
    assert "another anchor" in refused("anchor", root).message
    assert "another anchor" in refused("refresh", "--url", tmp_path / "elsewhere", "--root", root).message
    assert refused("refresh", "--url", tmp_path / "elsewhere").exit_code == ExitCode.UNTRUSTED
    run("anchor", root, "--replace")
    assert refused("list").exit_code == ExitCode.NOT_VERIFIABLE


def test_publishing_needs_the_online_keys(source: Path, entry: Path, tmp_path: Path) -> None:
    run("add", source, entry)
    found = refused("publish", signed(source), tmp_path / "www", "--keys", tmp_path / "nowhere")
    assert (found.exit_code, "snapshot.key" in found.message) == (ExitCode.MACHINE, True)
    assert not (tmp_path / "www").exists()


def test_an_address_that_is_not_safe(source: Path, home: Path, tmp_path: Path) -> None:
    run("publish", signed(source), tmp_path / "www")
    run("anchor", tmp_path / "www" / "metadata" / "1.root.json")
    for address in ("http://trust.example.org", "ftp://trust.example.org"):
        assert "expected an https: address" in refused("refresh", "--url", address).message
    assert refused("refresh", "--url", tmp_path / "nowhere").exit_code == ExitCode.SOURCE


@pytest.mark.parametrize("name", sorted(command.commands))
def test_help_begins_with_examples(name: str) -> None:
    text = CliRunner().invoke(command, [name, "--help"]).stdout
    assert "Examples:" in text
    assert f"intaglio trust {name}" in text


def test_a_key_that_is_yanked_releases_nothing_any_more(carried: Path, home: Path, tmp_path: Path) -> None:
    draft = images.Draft().sign()
    draft.write(tmp_path / "layout")
    text = images.policy_text()
    begin = text.index("[keys.release]")
    end = text.index("-----END PUBLIC KEY-----", begin)
    rest = text[text.index('"""', end) + 3 :]
    policy = home / "policy.toml"
    policy.write_text(f'{text[:begin]}[keys.release]\ntarget = "keys/acme/bank@1"\n{rest}', encoding="utf-8")

    def judged() -> Any:
        return CliRunner().invoke(verify, [str(tmp_path / "layout")], obj={}, standalone_mode=False).return_value

    assert judged() == ExitCode.OK
    run("yank", carried, "keys/acme/bank@1", "--reason", "stolen")
    run("publish", signed_by_targets(carried), tmp_path / "www")
    run("refresh")
    assert judged() == ExitCode.UNTRUSTED
