"""Debian's registry, and what stock oras, crane, skopeo, cosign and model_signing make of what was pushed there."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.registries import authority, client, distribution
from tests.attacks.registries.authority import Authority
from tests.attacks.registries.distribution import PASSWORD, USER, Distribution
from tests.attacks.registries.fake import Registry
from tests.images import KEYS, Draft, key, policy, policy_text

from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import ExitCode
from intaglio.trust.key import PrivateKey
from intaglio.trust.statement import TEST_RESULT
from intaglio.verify import verify_image

pytestmark = pytest.mark.real
NONE: Mapping[str, str] = {}
INTAGLIO = [str(Path(sys.executable).with_name("intaglio"))]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distribution]:
    with distribution.running(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory, tls: Authority) -> Iterator[Distribution]:
    """A registry with TLS and a password."""
    folder = tmp_path_factory.mktemp("closed")
    with distribution.running(folder, tls=(tls.certificate, tls.key), password=True) as running:
        yield running


@pytest.fixture(scope="module")
def draft() -> Draft:
    return Draft(files=Draft().files | {"empty.txt": b""}).sign().measure()


@pytest.fixture(scope="module")
def store(draft: Draft, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return draft.store(tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(scope="module")
def pushed(registry: Distribution, store: Store, draft: Draft) -> str:
    """The reference of the image in the registry."""
    client.push(store, draft.image.digest, registry.reference())
    return registry.reference()


def run(
    command: list[str], folder: Path, *, code: int | None = 0, say: str = "", environment: Mapping[str, str] = NONE
) -> subprocess.CompletedProcess[str]:
    """Run a program in a home of its own, without any of the caller's certificates, proxies and credentials."""
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder), "INTAGLIO_HOME": str(folder / "intaglio"), **environment}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=clean, cwd=folder, input=say)
    assert code is None or result.returncode == code, result.stdout + result.stderr
    return result


def intaglio(
    folder: Path, *arguments: str, code: int = 0, say: str = "", environment: Mapping[str, str] = NONE
) -> tuple[dict[str, Any], str]:
    result = run([*INTAGLIO, *arguments, "--json"], folder, code=code, say=say, environment=environment)
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer, result.stderr


def home(folder: Path) -> Path:
    """Give the folder the fixed keys' policy."""
    (folder / "intaglio").mkdir(exist_ok=True)
    (folder / "intaglio" / "policy.toml").write_text(policy_text())
    return folder


# --- what other clients read ------------------------------------------------------------------------------------------


def test_oras_pulls_the_files(oras: Path, pushed: str, draft: Draft, tmp_path: Path) -> None:
    run([str(oras), "pull", "--plain-http", pushed, "--output", str(tmp_path / "model")], tmp_path)
    found = {path.relative_to(tmp_path / "model").as_posix(): path for path in (tmp_path / "model").rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == draft.files


def test_oras_discovers_the_referrers(oras: Path, pushed: str, draft: Draft, tmp_path: Path) -> None:
    check_discovery(oras, pushed, draft, tmp_path)


def test_oras_discovers_the_referrers_where_there_is_the_api(
    oras: Path, store: Store, draft: Draft, tmp_path: Path
) -> None:
    with Registry(referrers_api=True) as registry:
        client.push(store, draft.image.digest, registry.reference())
        check_discovery(oras, registry.reference(), draft, tmp_path)
        assert registry.asked("GET", "referrers"), "oras did not use the API"
        tags = {name for name in registry.manifests if not name.startswith("sha256:")}
        assert tags == {"1", *(f"sha256-{draft.image.digest.hex}{suffix}" for suffix in (".sig", ".att"))}


def check_discovery(oras: Path, reference: str, draft: Draft, folder: Path) -> None:
    result = run([str(oras), "discover", "--plain-http", "--format", "json", reference], folder)
    found = json.loads(result.stdout)
    listed = found.get("referrers") or found.get("manifests")
    assert {entry["digest"] for entry in listed} == {str(one.digest) for one in draft.referrers}
    kinds = {entry["digest"]: entry["artifactType"] for entry in listed}
    for one in draft.referrers:
        document = json.loads(one.manifest)
        assert kinds[str(one.digest)] == (document.get("artifactType") or document["config"]["mediaType"])


def test_crane_reads_the_same_manifest(crane: Path, pushed: str, draft: Draft, tmp_path: Path) -> None:
    assert run([str(crane), "manifest", pushed], tmp_path).stdout.encode() == draft.manifest
    assert run([str(crane), "digest", pushed], tmp_path).stdout.strip() == str(draft.image.digest)


def test_skopeo_copies_it_with_its_digest(skopeo: Path, pushed: str, draft: Draft, tmp_path: Path) -> None:
    copy = [str(skopeo), "--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false"]
    run([*copy, f"docker://{pushed}", f"oci:{tmp_path / 'layout'}:1"], tmp_path)
    index = json.loads((tmp_path / "layout" / "index.json").read_text())
    assert [entry["digest"] for entry in index["manifests"]] == [str(draft.image.digest)]


def cosign_verify(cosign: Path, reference: str, folder: Path, name: str, *options: str) -> int:
    verify = [str(cosign), "verify", "--key", str(KEYS / f"{name}.pub"), "--insecure-ignore-tlog"]
    return run([*verify, "--allow-http-registry", *options, reference], folder, code=None).returncode


@pytest.mark.parametrize("form", [(), ("--new-bundle-format",)], ids=["older", "bundle"])
def test_cosign_verifies_both_forms(cosign: Path, pushed: str, tmp_path: Path, form: tuple[str, ...]) -> None:
    assert cosign_verify(cosign, pushed, tmp_path, "release", *form) == 0
    assert cosign_verify(cosign, pushed, tmp_path, "builder", *form) != 0


ATTESTED = {"slsaprovenance1": KEYS / "builder.pub", TEST_RESULT: KEYS / "evaluator.pub"}


def cosign_attested(cosign: Path, reference: str, folder: Path, kind: str, key: Path) -> int:
    verify = [str(cosign), "verify-attestation", "--type", kind, "--key", str(key)]
    return run([*verify, "--insecure-ignore-tlog", "--allow-http-registry", reference], folder, code=None).returncode


@pytest.mark.parametrize("kind", ATTESTED)
def test_cosign_verifies_attestations(cosign: Path, pushed: str, tmp_path: Path, kind: str) -> None:
    assert cosign_attested(cosign, pushed, tmp_path, kind, ATTESTED[kind]) == 0
    for other in set(KEYS.glob("*.pub")) - {ATTESTED[kind]}:
        assert cosign_attested(cosign, pushed, tmp_path, kind, other) != 0, other


def test_attestations_of_others_stay_under_cosigns_tag(
    cosign: Path, crane: Path, registry: Distribution, tmp_path: Path
) -> None:
    """A stranger attests with stock cosign before anything of ours stands there, and after."""
    reference = registry.reference("models/attested:1")
    draft = Draft().sign().measure()
    bare = Draft().seal()
    client.push(bare.store(tmp_path / "bare"), draft.image.digest, reference)
    attest_as_stranger(cosign, reference, tmp_path, "https://example.com/scan/v1")
    client.push(draft.store(tmp_path / "store"), draft.image.digest, reference)
    attest_as_stranger(cosign, reference, tmp_path, "https://example.com/audit/v1")
    tag = f"{reference.rpartition(':')[0]}:sha256-{draft.image.digest.hex}.att"
    before = run([str(crane), "digest", tag], tmp_path).stdout
    assert client.push(Store.open(tmp_path / "store"), draft.image.digest, reference).bytes == 0
    assert run([str(crane), "digest", tag], tmp_path).stdout == before
    theirs = dict.fromkeys(("https://example.com/scan/v1", "https://example.com/audit/v1"), tmp_path / "cosign.pub")
    for kind, public in {**ATTESTED, **theirs}.items():
        assert cosign_attested(cosign, reference, tmp_path, kind, public) == 0, kind
        assert cosign_attested(cosign, reference, tmp_path, kind, KEYS / "release.pub") != 0, kind
    other = Store.open(tmp_path / "other")
    client.pull(reference, other)
    assert {one.digest for one in other.referrers(draft.image.digest)} == {one.digest for one in draft.referrers}


def attest_as_stranger(cosign: Path, reference: str, folder: Path, kind: str) -> None:
    no_password = {"COSIGN_PASSWORD": ""}
    if not (folder / "cosign.key").exists():
        run([str(cosign), "generate-key-pair"], folder, environment=no_password)
    (folder / "predicate.json").write_text('{"found": "nothing"}')
    attest = [str(cosign), "attest", "--key", "cosign.key", "--type", kind, "--predicate", "predicate.json"]
    run([*attest, "--tlog-upload=false", "--allow-http-registry", reference], folder, environment=no_password)


def test_what_is_no_attestation_stays_under_cosigns_tag(registry: Distribution, tmp_path: Path) -> None:
    reference = registry.reference("models/squatted:1")
    draft = Draft().sign()
    store = draft.store(tmp_path / "store")
    tag = f"sha256-{draft.image.digest.hex}.att"
    bare = Draft().seal()
    client.push(bare.store(tmp_path / "bare"), draft.image.digest, f"{reference.rpartition(':')[0]}:{tag}")
    folder = home(tmp_path)
    answer = run(
        [*INTAGLIO, "--store", str(store.root), "push", str(draft.image.digest), reference, "--plain-http"], folder
    )
    assert tag in answer.stderr
    with client.repository(reference) as there:
        assert there.manifest(tag).data == draft.manifest
    client.pull(reference, Store.open(tmp_path / "other"))


def test_model_signing_verifies_what_oras_pulled(
    oras: Path, model_signing: Path, pushed: str, draft: Draft, tmp_path: Path
) -> None:
    run([str(oras), "pull", "--plain-http", pushed, "--output", str(tmp_path / "model")], tmp_path)
    found = json.loads(run([str(oras), "discover", "--plain-http", "--format", "json", pushed], tmp_path).stdout)
    (signature,) = [
        entry["digest"]
        for entry in found.get("referrers") or found["manifests"]
        if "model_signing" in entry.get("annotations", {}).get("dev.sigstore.bundle.predicateType", "")
    ]
    repository = pushed.rpartition(":")[0]
    fetch = [str(oras), "manifest", "fetch", "--plain-http", f"{repository}@{signature}"]
    layer = json.loads(run(fetch, tmp_path).stdout)["layers"][0]["digest"]
    blob = [
        str(oras),
        "blob",
        "fetch",
        "--plain-http",
        f"{repository}@{layer}",
        "--output",
        str(tmp_path / "model.sig"),
    ]
    run(blob, tmp_path)
    verify = ["verify", "key", "--signature", str(tmp_path / "model.sig"), "--public_key", str(KEYS / "release.pub")]
    run([str(model_signing), *verify, str(tmp_path / "model")], tmp_path)
    (tmp_path / "model" / "LICENSE").write_bytes(b"MIT\n")
    assert run([str(model_signing), *verify, str(tmp_path / "model")], tmp_path, code=None).returncode != 0


# --- the registry as it is --------------------------------------------------------------------------------------------


def test_a_second_push_sends_no_blob(registry: Distribution, pushed: str, store: Store, draft: Draft) -> None:
    again = client.push(store, draft.image.digest, pushed)
    assert again.bytes == 0
    assert again.skipped_bytes == sum({blob: len(blob) for blob in draft.blobs().values()}.values()) - len(
        draft.manifest
    ) - sum(len(one.manifest) for one in draft.referrers)


def test_a_pulled_image_is_the_pushed_one(pushed: str, store: Store, draft: Draft, tmp_path: Path) -> None:
    other = Store.open(tmp_path / "store")
    first = client.pull(pushed, other)
    assert verify_image(other, draft.image.digest, policy()).verdict == "verified"
    assert {one.digest for one in other.referrers(draft.image.digest)} == {one.digest for one in draft.referrers}
    assert sorted(os.listdir(other.root / "blobs" / "sha256")) == sorted(os.listdir(store.root / "blobs" / "sha256"))
    again = client.pull(pushed, other)
    assert (again.bytes, again.skipped_bytes) == (0, first.bytes)
    assert other.verify()[1] == ()


def test_eight_at_once_lose_no_signature(registry: Distribution, tmp_path: Path) -> None:
    reference = registry.reference("models/raced:1")
    drafts = [Draft(release=PrivateKey.generate()).sign() for _ in range(8)]
    stores = [draft.store(tmp_path / str(number)) for number, draft in enumerate(drafts)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda store: client.push(store, drafts[0].image.digest, reference), stores))
    other = Store.open(tmp_path / "other")
    client.pull(reference, other, admit=lambda staged, image: None)
    wanted = {one.digest for draft in drafts for one in draft.referrers}
    assert len(wanted) > 24
    assert {one.digest for one in other.referrers(drafts[0].image.digest)} >= wanted


def test_signatures_of_others_stay_under_cosigns_tag(cosign: Path, registry: Distribution, tmp_path: Path) -> None:
    reference = registry.reference("models/twice:1")
    for name in ("release", "stranger", "release"):
        draft = Draft(release=key(name)).sign()
        client.push(draft.store(tmp_path / name), draft.image.digest, reference)
    assert [cosign_verify(cosign, reference, tmp_path, name) for name in ("release", "stranger")] == [0, 0]
    assert cosign_verify(cosign, reference, tmp_path, "builder") != 0
    client.pull(reference, Store.open(tmp_path / "other"))


def test_damage_in_the_registry_is_refused(registry: Distribution, tmp_path: Path) -> None:
    draft = Draft(files={"LICENSE": b"Apache-2.0, in another registry's words\n"}).sign()
    reference = registry.reference("models/damaged:1")
    client.push(draft.store(tmp_path / "from"), draft.image.digest, reference)
    place = registry.blob(str(Digest.of(draft.files["LICENSE"])))
    place.write_bytes(place.read_bytes()[:-2] + b"?\n")
    folder = home(tmp_path)
    answer, _ = intaglio(folder, "pull", reference, code=ExitCode.CORRUPT)
    assert answer["error"]["exit_code"] == ExitCode.CORRUPT
    assert client.is_untouched(Store.open(folder / "intaglio" / "store"))


# --- the commands, by TLS and password --------------------------------------------------------------------------------


def test_the_commands_say_what_they_must(registry: Distribution, store: Store, draft: Draft, tmp_path: Path) -> None:
    folder = home(tmp_path)
    reference = registry.reference("models/commands:2")
    image = str(draft.image.digest)
    push = ("--store", str(store.root), "push", image, reference, "--plain-http")
    first, _ = intaglio(folder, *push)
    assert first.keys() == {"image", "reference", "bytes", "skipped_bytes"}
    assert (first["image"], first["reference"], first["skipped_bytes"]) == (image, reference, 0)
    again, _ = intaglio(folder, *push)
    assert (again["bytes"], again["skipped_bytes"]) == (0, first["bytes"])
    down, _ = intaglio(folder, "pull", reference)  # loopback without TLS is found out
    assert down == {"image": image, "reference": reference, "bytes": first["bytes"], "skipped_bytes": 0}
    by_digest, _ = intaglio(folder, "pull", f"{reference.rpartition(':')[0]}@{image}", "--tag", "helpdesk:2")
    assert (by_digest["reference"], by_digest["bytes"]) == ("helpdesk:2", 0)
    for name in (reference, "helpdesk:2"):
        assert intaglio(folder, "verify", name)[0]["image"] == image


def test_tls_and_password(closed: Distribution, tls: Authority, store: Store, draft: Draft, tmp_path: Path) -> None:
    folder = home(tmp_path)
    reference = closed.reference()
    push = ("--store", str(store.root), "push", str(draft.image.digest), reference)
    ca = {"INTAGLIO_CA_FILE": str(tls.ca)}
    misleading = {"SSL_CERT_FILE": str(tls.ca), "REQUESTS_CA_BUNDLE": str(tls.ca)}
    answer, _ = intaglio(folder, *push, code=ExitCode.REGISTRY, environment=misleading)
    assert "certificate is not trusted" in answer["error"]["message"]
    answer, _ = intaglio(folder, *push, code=ExitCode.REGISTRY, environment=ca)
    assert "a credential is needed" in answer["error"]["message"]
    login = ("login", closed.host, "--username", USER, "--password-stdin")
    answer, _ = intaglio(folder, *login, code=ExitCode.REGISTRY, say="wrong\n", environment=ca)
    assert "refused" in answer["error"]["message"]
    kept = folder / "intaglio" / "auth.json"
    assert not kept.exists()
    answer, said = intaglio(folder, *login, say=f"{PASSWORD}\n", environment=ca)
    assert PASSWORD not in json.dumps(answer) + said
    assert kept.stat().st_mode & 0o777 == 0o600
    pushed, _ = intaglio(folder, *push, environment=ca)
    assert pushed["bytes"] > 0
    assert intaglio(folder, "pull", reference, environment=ca)[0]["bytes"] == pushed["bytes"]


def test_credentials_that_docker_keeps(
    closed: Distribution, tls: Authority, store: Store, draft: Draft, tmp_path: Path
) -> None:
    folder = home(tmp_path)
    push = ("--store", str(store.root), "push", str(draft.image.digest), closed.reference("models/docker:1"))
    ca = {"INTAGLIO_CA_FILE": str(tls.ca)}
    helper = folder / "docker-credential-test"
    answer = json.dumps({"ServerURL": closed.host, "Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\ncat > '{folder}/asked'\necho '{answer}'\n")
    helper.chmod(0o755)
    (folder / ".docker").mkdir()
    (folder / ".docker" / "config.json").write_text(json.dumps({"credHelpers": {closed.host: "test"}}))
    path = f"{folder}:{os.environ['PATH']}"
    pushed, _ = intaglio(folder, *push, environment={**ca, "PATH": path})
    assert pushed["bytes"] > 0
    assert (folder / "asked").read_text() == closed.host
    docker_login(folder, closed)
    assert intaglio(folder, *push, environment=ca)[0]["bytes"] == 0


def docker_login(folder: Path, closed: Distribution) -> None:
    """Write what ``docker login`` writes."""
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (folder / ".docker" / "config.json").write_text(json.dumps({"auths": {closed.host: {"auth": auth}}}))


def test_refusals_leave_nothing(registry: Distribution, pushed: str, draft: Draft, tmp_path: Path) -> None:
    folder = home(tmp_path)
    store = Store.open(folder / "intaglio" / "store")
    (folder / "intaglio" / "policy.toml").rename(folder / "policy.toml")
    assert intaglio(folder, "pull", pushed, code=ExitCode.NOT_VERIFIABLE)[0]["error"]["hint"]
    text = policy_text().replace(key("release").public.pem, key("stranger").public.pem)
    (folder / "strangers.toml").write_text(text)
    intaglio(folder, "pull", pushed, "--policy", str(folder / "strangers.toml"), code=ExitCode.UNTRUSTED)
    good = ("--policy", str(folder / "policy.toml"))
    intaglio(folder, "pull", registry.reference("models/nothing:1"), *good, code=ExitCode.REGISTRY)
    intaglio(folder, "pull", f"{pushed}@{Digest.of(b'another')}", *good, code=ExitCode.CORRUPT)
    intaglio(folder, "pull", "127.0.0.1:1/models/demo:1", *good, code=ExitCode.REGISTRY)
    intaglio(folder, "pull", "models/demo", *good, code=ExitCode.USAGE)
    intaglio(folder, "pull", pushed.rpartition(":")[0], *good, code=ExitCode.USAGE)
    assert client.is_untouched(store)
    assert list((store.root / "partial").iterdir()) == []
    intaglio(folder, "pull", pushed, *good)
