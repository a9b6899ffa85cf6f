"""Every lie of a registry gets the answer that is due, and leaves nothing to be seen in the store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attacks.registries import authority, client
from tests.attacks.registries.cases import CASES, Case
from tests.attacks.registries.fake import NAME, Asked, Registry, Reply
from tests.images import Draft, key, policy

from intaglio.content.credentials import Credential
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, Error, ExitCode, RegistryError, Untrusted
from intaglio.verify import verify_image


@pytest.fixture
def draft() -> Draft:
    return Draft().sign()


@pytest.fixture
def registry(draft: Draft) -> Iterator[Registry]:
    with Registry() as running:
        running.load(draft)
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def test_the_good_image_is_pulled(registry: Registry, draft: Draft, store: Store) -> None:
    done = client.pull(registry.reference(), store)
    assert done.image == draft.image.digest
    assert done.bytes == sum(map(len, {b for r in draft.referrers for b in r.blobs} | set(draft.files.values()))) + len(
        registry.blobs[draft.document["config"]["digest"]]
    )
    assert verify_image(store, draft.image.digest, policy()).verdict == "verified"
    assert store.tags().keys() == {registry.reference()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attack(case: Case, registry: Registry, draft: Draft, store: Store) -> None:
    case.spoil(registry, draft)
    network = client.STALLING if "stall" in case.name else client.QUICK
    if case.due == ExitCode.OK:
        client.pull(registry.reference(), store, network=network)
        assert verify_image(store, draft.image.digest, policy()).verdict == "verified"
        assert store.verify()[1] == ()
        return
    with pytest.raises(Error) as caught:
        client.pull(registry.reference(), store, network=network)
    assert caught.value.exit_code == case.due, caught.value.message
    assert client.is_untouched(store)


def test_a_refusal_leaves_no_byte_behind(tmp_path: Path, store: Store) -> None:
    with Registry() as registry:
        registry.load(Draft(release=key("stranger")).sign())
        with pytest.raises(Untrusted):
            client.pull(registry.reference(), store)
    assert client.is_untouched(store)
    assert list((store.root / "partial").iterdir()) == []


def test_a_broken_connection_leaves_what_the_next_pull_goes_on_with(
    registry: Registry, draft: Draft, store: Store
) -> None:
    blob = str(Digest.of(draft.files["model.gguf"]))

    def break_off(asked: Asked, reply: Reply) -> Reply:
        if asked.what == blob:
            reply.cut = 40 if reply.status == 200 else 0
        return reply

    registry.tamper = break_off
    with pytest.raises(RegistryError, match="ended"):
        client.pull(registry.reference(), store)
    assert client.is_untouched(store)
    registry.tamper = lambda asked, reply: reply
    before = len(registry.requests)
    done = client.pull(registry.reference(), store)
    ranges = [asked.headers.get("range") for asked in registry.requests[before:] if asked.what == blob]
    assert ranges == [f"bytes=40-{len(draft.files['model.gguf']) - 1}"]
    assert done.skipped_bytes >= 40
    assert list((store.root / "partial").iterdir()) == []


def test_damage_in_what_a_broken_pull_left_is_noticed(registry: Registry, draft: Draft, store: Store) -> None:
    good = draft.files["model.gguf"]
    store.partial(Digest.of(good)).write_bytes(b"x" * 40)
    client.pull(registry.reference(), store)
    assert verify_image(store, draft.image.digest, policy()).verdict == "verified"


def test_more_in_a_partial_file_than_the_blob_has(registry: Registry, draft: Draft, store: Store) -> None:
    good = draft.files["model.gguf"]
    store.partial(Digest.of(good)).write_bytes(good + b"x")
    client.pull(registry.reference(), store)
    assert verify_image(store, draft.image.digest, policy()).verdict == "verified"


def test_a_damaged_blob_of_the_store_is_fetched_anew(registry: Registry, draft: Draft, store: Store) -> None:
    client.pull(registry.reference(), store)
    path = store.path(Digest.of(draft.files["model.gguf"]))
    path.chmod(0o600)
    path.write_bytes(draft.files["model.gguf"][:-1] + b"?")
    done = client.pull(registry.reference(), store)
    assert done.bytes == path.stat().st_size
    assert verify_image(store, draft.image.digest, policy()).verdict == "verified"


def test_tag_and_digest_must_agree(registry: Registry, draft: Draft, store: Store) -> None:
    client.pull(f"{registry.reference()}@{draft.image.digest}", store)
    other = Store.open(store.root.with_name("other"))
    with pytest.raises(CorruptContent, match="expected the digest beside it"):
        client.pull(f"{registry.reference()}@{Digest.of(b'another')}", other)
    assert client.is_untouched(other)


def test_a_digest_alone_is_the_image_or_nothing(registry: Registry, draft: Draft, store: Store) -> None:
    registry.manifests[str(draft.image.digest)] = registry.manifests[str(draft.referrers[0].digest)]
    with pytest.raises(CorruptContent):
        client.pull(f"{registry.host}/{NAME}@{draft.image.digest}", store)
    assert client.is_untouched(store)


def test_a_tag_that_moves_meanwhile_changes_nothing(registry: Registry, draft: Draft, store: Store) -> None:
    other = Draft(files={"LICENSE": b"MIT\n"}).sign()

    def move(asked: Asked, reply: Reply) -> Reply:
        if asked.what == "1":
            registry.put(other.manifest, "1")
        return reply

    registry.tamper = move
    assert client.pull(registry.reference(), store).image == draft.image.digest
    assert [asked.what for asked in registry.asked("GET", "manifests")].count("1") == 1
    assert store.resolve(registry.reference()) == draft.image.digest


def test_a_referrer_of_another_image_is_not_brought(registry: Registry, draft: Draft, store: Store) -> None:
    other = Draft(files={"LICENSE": b"MIT\n"}).sign()
    registry.load(other, "2")
    tag = f"sha256-{draft.image.digest.hex}"
    kind, index = registry.manifests[tag]
    document = json.loads(index)
    document["manifests"] += [entry.to_json() for entry in registry.listing(other.image.digest)]
    registry.put(json.dumps(document).encode(), tag, kind)
    client.pull(registry.reference(), store)
    assert store.referrers(other.image.digest) == ()
    assert not any(store.has(one.digest) for one in other.referrers)


def test_what_the_race_for_the_index_lost_is_found_by_its_own_tag(
    registry: Registry, draft: Draft, store: Store
) -> None:
    tag = f"sha256-{draft.image.digest.hex}"
    del registry.manifests[tag]
    for one in draft.referrers:
        registry.put(one.manifest, f"{tag}.referrer-{one.digest.hex[:16]}")
    client.pull(registry.reference(), store)
    assert verify_image(store, draft.image.digest, policy()).verdict == "verified"


@pytest.mark.parametrize("page_size", [1, 2, 1000])
def test_the_referrers_api_is_read_page_by_page(draft: Draft, store: Store, page_size: int) -> None:
    with Registry(referrers_api=True) as registry:
        registry.page_size = page_size
        registry.load(draft)
        client.pull(registry.reference(), store)
    assert len(store.referrers(draft.image.digest)) == len(draft.referrers)


def test_a_list_that_goes_on_elsewhere_is_refused(draft: Draft, store: Store) -> None:
    with Registry(referrers_api=True) as registry, Registry() as elsewhere:
        registry.load(draft)

        def lead_away(asked: Asked, reply: Reply) -> Reply:
            if asked.kind == "referrers":
                reply.headers["Link"] = f'<{elsewhere.url}/more>; rel="next"'
            return reply

        registry.tamper = lead_away
        with pytest.raises(RegistryError, match="another host"):
            client.pull(registry.reference(), store)
        assert elsewhere.requests == []


def test_a_list_without_end_ends(draft: Draft, store: Store) -> None:
    with Registry(referrers_api=True) as registry:
        registry.load(draft)

        def again(asked: Asked, reply: Reply) -> Reply:
            if asked.kind == "referrers":
                reply.headers["Link"] = f'<{asked.path}>; rel="next"'
            return reply

        registry.tamper = again
        client.pull(registry.reference(), store)
        assert len(registry.asked("GET", "referrers")) < 100


# --- credentials and certificates -------------------------------------------------------------------------------------


def test_a_redirect_to_another_host_takes_no_credential(registry: Registry, draft: Draft, store: Store) -> None:
    registry.basic = ("ci", "secret")
    with Registry() as cdn:
        cdn.load(draft)

        def away(asked: Asked, reply: Reply) -> Reply:
            if asked.kind == "blobs" and reply.status < 400:
                return Reply(307, headers={"Location": f"{cdn.url}{asked.path}"})
            return reply

        registry.tamper = away
        client.pull(registry.reference(), store, find=lambda host: Credential("ci", "secret"))
        assert cdn.asked("GET", "blobs")
        assert not any("authorization" in asked.headers for asked in cdn.requests)
        assert any("authorization" in asked.headers for asked in registry.requests)


def test_another_hosts_401_gets_no_credential(registry: Registry, draft: Draft, store: Store) -> None:
    with Registry() as cdn:
        cdn.load(draft)
        cdn.basic = ("ci", "secret")
        registry.tamper = lambda asked, reply: (
            Reply(307, headers={"Location": f"{cdn.url}{asked.path}"}) if asked.kind == "blobs" else reply
        )
        with pytest.raises(RegistryError):
            client.pull(registry.reference(), store, find=lambda host: Credential("ci", "secret"))
        assert not any("authorization" in asked.headers for asked in [*cdn.requests, *registry.requests])


def test_https_is_never_left(draft: Draft, store: Store, tmp_path: Path) -> None:
    made = authority.make(tmp_path / "tls")
    with Registry(tls=made.server_context()) as registry, Registry() as plain:
        registry.load(draft)
        plain.load(draft)
        registry.tamper = lambda asked, reply: (
            Reply(307, headers={"Location": f"{plain.url}{asked.path}"}) if asked.kind == "blobs" else reply
        )
        with pytest.raises(RegistryError, match="from https: to"):
            client.pull(registry.reference(), store, ca=made.ca)
        assert plain.requests == []


def test_an_unknown_authority_is_refused(
    draft: Draft, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, other = authority.make(tmp_path / "tls"), authority.make(tmp_path / "other")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(made.ca))
    with Registry(tls=made.server_context()) as registry:
        registry.load(draft)
        with pytest.raises(RegistryError, match="certificate is not trusted") as caught:
            client.pull(registry.reference(), store, ca=other.ca)
        assert "INTAGLIO_CA_FILE" in (caught.value.hint or "")
        assert registry.requests == []
        client.pull(registry.reference(), store, ca=made.ca)


def test_a_certificate_for_another_name_is_refused(draft: Draft, store: Store, tmp_path: Path) -> None:
    made = authority.make(tmp_path / "tls", name="registry.example.com")
    with Registry(tls=made.server_context()) as registry:
        registry.load(draft)
        with pytest.raises(RegistryError, match="certificate is not trusted"):
            client.pull(registry.reference(), store, ca=made.ca)


# --- up ---------------------------------------------------------------------------------------------------------------


def test_a_damaged_blob_is_refused_before_any_manifest(draft: Draft, tmp_path: Path) -> None:
    store = draft.store(tmp_path / "store")
    path = store.path(Digest.of(draft.files["model.gguf"]))
    path.chmod(0o600)
    path.write_bytes(draft.files["model.gguf"][:-1] + b"?")
    with Registry() as registry:
        with pytest.raises(CorruptContent, match="digest"):
            client.push(store, draft.image.digest, registry.reference())
        assert registry.manifests == {}
        assert path.name not in " ".join(registry.blobs)
        sent = [asked for asked in registry.asked("PUT", "blobs") if path.name in asked.path]
        assert sent == [], "the last bytes of a damaged blob were sent"


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name.startswith("attestations_")], ids=lambda case: case.name
)
def test_what_a_stranger_put_under_cosigns_tag_stops_no_push(case: Case, draft: Draft, tmp_path: Path) -> None:
    with Registry() as registry:
        case.spoil(registry, draft)
        (tag,) = [name for name in registry.manifests if name.endswith(".att")]
        theirs = registry.manifests[tag][1]
        client.push(draft.store(tmp_path / "store"), draft.image.digest, registry.reference())
        kept = registry.manifests[tag][1]
        client.pull(registry.reference(), Store.open(tmp_path / "other"))
    if case.name == "attestations_without_their_blobs":  # it is cosign's form: ours stand beside
        assert json.loads(kept)["layers"][0] == json.loads(theirs)["layers"][0]
        assert len(json.loads(kept)["layers"]) == 2
    else:
        assert kept == theirs


@pytest.mark.parametrize("size", [-1, 1])
def test_a_blob_of_another_size_is_refused(draft: Draft, tmp_path: Path, size: int) -> None:
    store = draft.store(tmp_path / "store")
    path = store.path(Digest.of(draft.files["model.gguf"]))
    path.chmod(0o600)
    path.write_bytes((draft.files["model.gguf"] + b"?")[: len(draft.files["model.gguf"]) + size])
    with Registry() as registry:
        with pytest.raises(CorruptContent):
            client.push(store, draft.image.digest, registry.reference())
        assert registry.manifests == {}


def test_a_registry_that_kept_something_else_is_found_out(draft: Draft, tmp_path: Path) -> None:
    def lie(asked: Asked, reply: Reply) -> Reply:
        if asked.method == "PUT":
            reply.headers["Docker-Content-Digest"] = str(Digest.of(b"another"))
        return reply

    with Registry() as registry:
        registry.tamper = lie
        with pytest.raises(CorruptContent, match="the registry says"):
            client.push(draft.store(tmp_path / "store"), draft.image.digest, registry.reference())
        assert "1" not in registry.manifests


def test_an_upload_that_breaks_off_begins_again(draft: Draft, tmp_path: Path) -> None:
    failures = [500, 503, 429]

    def fail(asked: Asked, reply: Reply) -> Reply:
        if asked.method in ("PUT", "POST") and failures:
            return Reply(failures.pop(), headers={"Retry-After": "0"})
        return reply

    with Registry() as registry:
        registry.tamper = fail
        client.push(draft.store(tmp_path / "store"), draft.image.digest, registry.reference())
        assert failures == []
        assert set(registry.blobs) >= {str(Digest.of(data)) for data in draft.files.values()}


def test_an_upload_sent_in_clear_elsewhere_is_refused(draft: Draft, tmp_path: Path) -> None:
    with Registry() as registry:
        registry.tamper = lambda asked, reply: (
            Reply(202, headers={"Location": "http://192.0.2.1/upload"}) if asked.method == "POST" else reply
        )
        with pytest.raises(RegistryError, match="https"):
            client.push(draft.store(tmp_path / "store"), draft.image.digest, registry.reference())
