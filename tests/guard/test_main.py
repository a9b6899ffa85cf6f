"""The guard as it is run: six ways to be refused before any server starts, and what a server finds."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest
from tests.guard import site as sites
from tests.guard.site import LONG_AGO, WITH_SOURCE, Site
from tests.images import Draft, key, policy_text
from tests.trust import sources
from tests.trust.sources import Source

from intaglio.errors import UsageError
from intaglio.guard import main, memory


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A model that verifies, under a policy that asks for the trusted source and its age."""
    return Site(tmp_path / "site", source=sites.source(), policy=WITH_SOURCE)


def test_a_verified_model_is_served(site: Site) -> None:
    done = site.run()
    assert done.returncode == 0, done.stderr
    said, found = json.loads(done.stderr), site.started()
    total = sum(len(data) for data in site.draft.files.values())
    assert said == {
        "verdict": "verified", "exit_code": 0, "image": str(site.draft.image.digest),
        "rules": said["rules"], "copied": said["copied"], "served": total - said["copied"],
    }  # fmt: skip
    assert said["rules"] >= 9
    assert found["bytes"] == {path: len(data) for path, data in site.draft.files.items()}
    assert found["request"]["protocol"] == 1
    assert found["request"]["name"] == "examples/demo:1.0.0"
    assert found["request"]["socket"] == "/run/intaglio/server.sock"
    assert found["request"]["context"] is None


def test_the_server_finds_hubs_offline_whatever_the_environment_says(site: Site) -> None:
    assert site.run(HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="0", KEPT="yes").returncode == 0
    environment = site.started()["environment"]
    assert environment["KEPT"] == "yes"
    expected = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "VLLM_NO_USAGE_STATS")
    assert [environment[name] for name in expected] == ["1"] * 4


def test_the_environment_names_model_socket_and_context(site: Site) -> None:
    server = (sys.executable, "-c", sites.SERVER, "{model}", "{request}", str(site.mark), "{name}", "{socket}")
    done = site.run(server=server, INTAGLIO_MODEL_NAME="team/x", INTAGLIO_SOCKET="/tmp/s.sock", INTAGLIO_CONTEXT="512")
    assert done.returncode == 0, done.stderr
    request = site.started()["request"]
    assert (request["name"], request["socket"], request["context"]) == ("team/x", "/tmp/s.sock", 512)


def test_what_our_own_user_could_change_is_served_from_sealed_memory(site: Site) -> None:
    assert site.run().returncode == 0
    assert all(site.started()["copied"])


# --- the six ----------------------------------------------------------------------------------------------------------


def test_one_byte_of_the_model_changed(site: Site) -> None:
    place = site.model / "model.safetensors"
    data = bytearray(place.read_bytes())
    data[-1] ^= 1
    place.write_bytes(data)
    said = site.refused(site.run(), 21, "content")
    assert said["detail"].startswith("model.safetensors: expected sha256:")
    assert said["image"] == str(site.draft.image.digest)


def test_a_missing_attestation(tmp_path: Path) -> None:
    asked = '\n[attestations]\n"https://slsa.dev/verification_summary/v1" = "release"\n'
    site = Site(tmp_path / "site", policy=asked)
    said = site.refused(site.run(), 22, "attestations")
    assert "no release's verification_summary/v1" in said["detail"]


def test_an_untrusted_key(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", draft=Draft(release=key("stranger")))
    assert "not signed by a key" in site.refused(site.run(), 22, "signature")["detail"]


def test_model_and_passport_both_replaced_and_signed_under_another_root(site: Site, tmp_path: Path) -> None:
    theirs = Source(
        root=sites.source().root, targets=sites.source().targets, snapshot=sites.source().snapshot,
        timestamp=sites.source().timestamp, signed_at=sites.now(),
        signers=dict.fromkeys(("root", "targets", "snapshot", "timestamp"), (sources.STRANGER,)),
    )  # fmt: skip
    stranger = key("stranger")
    other = Site(
        tmp_path / "other", draft=Draft({"model.gguf": Draft().files["model.gguf"]}, stranger, stranger), source=theirs
    )
    other.anchor.joinpath("policy.toml").replace(other.passport / "policy.toml")  # no good to them there
    done = other.run(root=site.anchor)
    other.refused(done, 22, "anchor")
    # Nor without any metadata: keys that this side's policy does not name.
    shutil.rmtree(other.passport / "metadata")
    site.anchor.joinpath("policy.toml").write_text(policy_text())
    other.refused(other.run(root=site.anchor), 22, "signature")


def test_a_yanked_base_model(site: Site) -> None:
    assert site.source is not None
    sites.yank(site.source)
    site.republish()
    assert "poisoned" in site.refused(site.run(), 23, "source")["detail"]


def test_metadata_older_than_the_policy_allows(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", source=sites.source(sites.now() - LONG_AGO), policy=WITH_SOURCE)
    assert "the policy allows 14 d" in site.refused(site.run(), 24, "freshness")["detail"]


# --- and others -------------------------------------------------------------------------------------------------------


def test_a_policy_that_asks_for_a_source_and_a_passport_without_metadata(site: Site) -> None:
    shutil.rmtree(site.passport / "metadata")
    site.refused(site.run(), 25, "source")


def test_a_file_beside_the_model(site: Site) -> None:
    (site.model / "extra.py").write_text("import os")
    assert "extra.py" in site.refused(site.run(), 21, "content")["detail"]


def test_a_link_in_place_of_a_file(site: Site) -> None:
    place = site.model / "LICENSE"
    place.replace(site.root / "LICENSE")
    place.symlink_to(site.root / "LICENSE")
    assert "found a symbolic link" in site.refused(site.run(), 21, "content")["detail"]


def test_a_file_that_is_missing(site: Site) -> None:
    (site.model / "LICENSE").unlink()
    site.refused(site.run(), 21, "content")


def test_no_anchor(site: Site, tmp_path: Path) -> None:
    said = site.refused(site.run(root=tmp_path / "nowhere"), 25, "anchor")
    assert "nothing is trusted without one" in said["detail"]


def test_an_anchor_in_the_passport_or_beside_the_model_counts_for_nothing(site: Site, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (site.passport, site.model):
        shutil.copy(site.anchor / "policy.toml", folder / "policy.toml")
        shutil.copy(site.anchor / "root.json", folder / "root.json")
    site.refused(site.run(root=empty), 25, "anchor")


def test_an_empty_passport(site: Site) -> None:
    shutil.rmtree(site.passport)
    site.passport.mkdir()
    site.refused(site.run(), 21, "content")


def test_a_passport_of_two_models(site: Site) -> None:
    other = Draft({"model.gguf": Draft().files["model.gguf"]}).sign()
    index = json.loads((site.passport / "index.json").read_text())
    (site.passport / "blobs" / "sha256" / other.image.digest.hex).write_bytes(other.manifest)
    index["manifests"].append(other.image.to_json())
    (site.passport / "index.json").write_text(json.dumps(index))
    assert "expected one model image, found 2" in site.refused(site.run(), 25, "content")["detail"]


def test_a_server_that_is_not_there(site: Site) -> None:
    done = site.run(server=("/nowhere/server",))
    assert done.returncode == 50
    assert "/nowhere/server: cannot be started" in json.loads(done.stderr.splitlines()[-1])["detail"]


def test_a_port_that_is_taken_is_the_only_thing_said(site: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert (
            f"cannot listen on 0.0.0.0:{port}" in site.refused(site.run(INTAGLIO_PORT=str(port)), 50, "guard")["detail"]
        )


def test_a_number_that_is_none(site: Site) -> None:
    for port in ("many", "0", "65536", "1" * 5000):
        assert "INTAGLIO_PORT" in site.refused(site.run(INTAGLIO_PORT=port), 2, "guard")["detail"]
    assert "INTAGLIO_CONTEXT" in site.refused(site.run(INTAGLIO_CONTEXT="-1"), 2, "guard")["detail"]


@pytest.mark.parametrize(
    "argv",
    [(), ("--passport", "p", "--model", "m"), ("--passport", "p", "--", "x"), ("--passport", "p", "--model", "m", "--"),
     ("--passport", "p", "--model", "m", "--unknown", "--", "x"), ("--pass", "p", "--model", "m", "--", "x"),
     ("--passport", "p", "--model", "--", "x"), ("p", "--passport", "p", "--model", "m", "--", "x"),
     ("--model=m", "--", "x")],
)  # fmt: skip
def test_a_command_line_that_is_none(argv: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        main.parse(argv)


def test_everything_behind_the_dashes_is_the_servers() -> None:
    asked = main.parse(["--passport", "p", "--model", "m", "--", "server", "--root", "x", "--", "y"])
    assert asked.server == ("server", "--root", "x", "--", "y")
    assert asked.root == Path("/etc/intaglio")


def test_a_value_may_stand_behind_an_equals_sign() -> None:
    asked = main.parse(["--passport=a=b", "--model", "m", "--policy=tight", "--", "x"])
    assert (asked.passport, asked.policy) == (Path("a=b"), "tight")


def test_help_is_shown_without_a_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["intaglio-guard", "--help"])
    assert main.main() == 0
    said = capsys.readouterr().out
    assert all(f"--{name}" in said for name in ("root", "passport", "model", "policy"))


def test_a_model_that_the_container_has_no_room_for(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 3)
    argv = ["--root", site.anchor, "--passport", site.passport, "--model", site.model, "--", "/nowhere"]
    monkeypatch.setattr(sys, "argv", ["intaglio-guard", *map(str, argv)])
    assert main.main() == 50
    said = json.loads(capsys.readouterr().err)
    assert (said["verdict"], said["exit_code"], said["rule"]) == ("refused", 50, "guard")
    assert "found 3 available" in said["detail"]


def test_a_fault_of_the_guard_is_a_refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(main, "guard", broken)
    monkeypatch.setattr(sys, "argv", ["intaglio-guard", "--passport", "p", "--model", "m", "--", "x"])
    assert main.main() == 70
    assert json.loads(capsys.readouterr().err)["detail"] == "the guard itself failed: RuntimeError: boom"


def test_a_manifest_that_was_changed(site: Site) -> None:
    place = site.passport / "blobs" / "sha256" / site.draft.image.digest.hex
    place.write_bytes(place.read_bytes() + b" ")
    site.refused(site.run(), 21, "content")
