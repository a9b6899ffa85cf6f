"""``hf:`` — a real local server that speaks the hub's API, and everything that it may do wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.recipe.sources.kept import blobs, leftovers
from tests.recipe.sources.test_https import Bytes
from tests.recipe.sources.web import Hub, Server

from intaglio.content.layout import Store
from intaglio.content.tree import File, Tree
from intaglio.dataclass import replace
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, SourceUnreachable, UsageError
from intaglio.progress import Progress, Silent
from intaglio.recipe.sources.hf import HubSource, current_revision
from intaglio.recipe.sources.http import Network
from intaglio.recipe.sources.interface import BadUri, FloatingRevision, resolve

CHANCE = random.Random(2)
FILES = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "README.md": b"# A model\n",
    "config.json": b'{"model_type": "llama"}',
    "empty.txt": b"",
    "model-00001.safetensors": CHANCE.randbytes(200_000),
    "model-00002.safetensors": CHANCE.randbytes(100_000),
    "sub dir/tokenizer#1.json": "{}é".encode(),
}
LFS = {"model-00001.safetensors", "model-00002.safetensors"}
URI = f"hf:org/name@{Hub.REVISION}"
BIG = f"/org/name/resolve/{Hub.REVISION}/model-00001.safetensors"
SMALL = f"/org/name/resolve/{Hub.REVISION}/config.json"
CDN = "/cdn/" + Digest.of(FILES["model-00001.safetensors"]).hex


def of(data: dict[str, bytes]) -> Tree:
    return Tree.of(File(path, Digest.of(body), len(body)) for path, body in data.items())


TREE = of(FILES)


@pytest.fixture
def fetch(hub: Hub, store: Store, network: Network, tmp_path: Path) -> Callable[..., Tree]:
    hub.add("org/name", FILES, LFS)

    def fetcher(
        uri: str = URI, expected: Digest | None = None, offline: bool = False, progress: Progress | None = None
    ) -> Tree:
        source = resolve(uri, tmp_path, name="base")
        assert isinstance(source, HubSource)
        source = replace(source, network=replace(network, attempts=4))
        return source.fetch(store, expected=expected, progress=progress or Silent(), offline=offline)

    return fetcher


def test_a_repository(fetch: Callable[..., Tree], store: Store, hub: Hub) -> None:
    progress = Bytes()
    assert fetch(progress=progress) == TREE
    assert store.has_tree(TREE.digest)
    assert progress.count == TREE.total_size
    assert not leftovers(store)
    listings = [path for path, _ in hub.requests if "/tree/" in path]
    assert len(listings) == 3  # the listing goes over several pages


def test_a_dataset(fetch: Callable[..., Tree], hub: Hub) -> None:
    hub.add("datasets/org/data", {"train.jsonl": b"{}\n"}, set())
    assert fetch(f"hf:datasets/org/data@{Hub.REVISION}") == of({"train.jsonl": b"{}\n"})


@pytest.mark.parametrize("mark", ["#", "?include="])
def test_only_some_files(fetch: Callable[..., Tree], hub: Hub, mark: str) -> None:
    tree = fetch(f"{URI}{mark}*.json,model-00002*")
    assert [file.path for file in tree.files] == ["config.json", "model-00002.safetensors", "sub dir/tokenizer#1.json"]
    assert not hub.asked(BIG)


def test_a_pattern_that_matches_nothing(fetch: Callable[..., Tree]) -> None:
    with pytest.raises(SourceUnreachable) as caught:
        fetch(f"{URI}#*.json,*.gguf")
    assert "no file matches '*.gguf'" in caught.value.message


def test_a_pinned_repository_needs_no_network_twice(fetch: Callable[..., Tree], hub: Hub, cdn: Server) -> None:
    fetch()
    hub.requests.clear()
    cdn.requests.clear()
    assert fetch(expected=TREE.digest, offline=True) == TREE
    assert not hub.requests
    assert not cdn.requests


def test_offline_and_not_in_the_store(fetch: Callable[..., Tree], hub: Hub) -> None:
    with pytest.raises(SourceUnreachable) as caught:
        fetch(expected=TREE.digest, offline=True)
    assert "--offline" in caught.value.message
    assert not hub.requests


def test_another_tree_than_pinned_is_refused_before_its_weights(
    fetch: Callable[..., Tree], cdn: Server, store: Store
) -> None:
    with pytest.raises(CorruptContent) as caught:
        fetch(expected=Digest.of(b"other"))
    assert f"{URI}: the bytes changed" in caught.value.message
    assert "intaglio update base" in (caught.value.hint or "")
    assert not cdn.requests
    assert not blobs(store)
    assert not leftovers(store)


@pytest.mark.parametrize("fault", ["429", "503", "close", "stall"])
@pytest.mark.parametrize("where", ["listing", "small", "resolve", "cdn"])
def test_faults_that_pass(fetch: Callable[..., Tree], hub: Hub, cdn: Server, fault: str, where: str) -> None:
    if where == "cdn":
        cdn.faults[CDN] = [fault, fault]
    elif where != "resolve" or fault.isdigit():
        path = {"listing": f"/api/models/org/name/tree/{Hub.REVISION}", "small": SMALL, "resolve": BIG}[where]
        hub.faults[path] = [fault, fault]
    assert fetch() == TREE


def test_an_lfs_file_goes_on_where_it_ended(fetch: Callable[..., Tree], cdn: Server) -> None:
    cdn.faults[CDN] = ["close"]
    assert fetch() == TREE
    first, second = cdn.asked(CDN)
    assert "range" not in first
    assert second["range"] == "bytes=100000-"


def test_what_is_here_already_is_not_fetched_again(fetch: Callable[..., Tree], cdn: Server, store: Store) -> None:
    store.put(FILES["model-00001.safetensors"])
    assert fetch() == TREE
    assert not cdn.asked(CDN)


def test_wrong_bytes_of_the_same_size_once(fetch: Callable[..., Tree], hub: Hub, cdn: Server) -> None:
    cdn.faults[CDN] = ["wrong-bytes"]
    hub.faults[SMALL] = ["wrong-bytes"]
    assert fetch() == TREE


@pytest.mark.parametrize("where", ["small", "large"])
def test_wrong_bytes_of_the_same_size_again(
    fetch: Callable[..., Tree], hub: Hub, cdn: Server, store: Store, where: str
) -> None:
    if where == "large":
        cdn.faults[CDN] = ["wrong-bytes"] * 9
    else:
        hub.faults[SMALL] = ["wrong-bytes"] * 9
    with pytest.raises(CorruptContent) as caught:
        fetch()
    assert ("model-00001.safetensors" if where == "large" else "config.json") in caught.value.message
    assert "topsecret" not in caught.value.message
    good = set(FILES.values())
    assert blobs(store) <= good
    assert not store.has(TREE.digest)
    assert not leftovers(store)


@pytest.mark.parametrize(
    ("path", "lie"),
    [
        ("model-00001.safetensors", {"lfs": {"oid": "0" * 64, "size": 200_000, "pointerSize": 42}}),
        ("config.json", {"oid": "0" * 40}),
        ("config.json", {"size": 5}),
        ("model-00001.safetensors", {"lfs": {"oid": "0" * 64, "size": 5, "pointerSize": 42}}),
        ("model-00001.safetensors", {"lfs": {"oid": "short", "size": 200_000}}),
        ("config.json", {"path": "../../escape"}),
        ("config.json", {"path": "README.md"}),
        ("config.json", {"oid": 7}),
        ("config.json", {"type": "symlink"}),
        ("config.json", {"size": -1}),
        ("config.json", {"size": True}),
    ],
)
def test_a_listing_that_lies(
    fetch: Callable[..., Tree], hub: Hub, store: Store, path: str, lie: dict[str, Any]
) -> None:
    hub.lies[path] = lie
    with pytest.raises((CorruptContent, SourceUnreachable)):
        fetch()
    assert blobs(store) <= set(FILES.values())
    assert not store.has(TREE.digest)
    assert not leftovers(store)


@pytest.mark.parametrize("etag", ['"' + "0" * 64 + '"', '"not-a-digest"'])
def test_a_wrong_etag_decides_nothing(fetch: Callable[..., Tree], hub: Hub, cdn: Server, etag: str) -> None:
    for server, path in ((hub, SMALL), (cdn, CDN)):
        server.headers[path] = {"ETag": etag, "X-Linked-ETag": etag, "X-Linked-Size": "1"}
    assert fetch() == TREE


def test_a_listing_that_goes_on_elsewhere(fetch: Callable[..., Tree], hub: Hub, cdn: Server) -> None:
    listing = f"/api/models/org/name/tree/{Hub.REVISION}"
    hub.headers[listing] = {"Link": f'<{cdn.url}{listing}>; rel="next"'}
    with pytest.raises(CorruptContent) as caught:
        fetch()
    assert "goes on at another server" in caught.value.message


def test_a_listing_without_end(fetch: Callable[..., Tree], hub: Hub) -> None:
    listing = f"/api/models/org/name/tree/{Hub.REVISION}"
    hub.headers[listing] = {"Link": f'<{hub.url}{listing}>; rel="next"'}
    with pytest.raises(CorruptContent) as caught:
        fetch()
    assert "more than 64 pages" in caught.value.message


@pytest.mark.parametrize(
    "body", [b"{}", b"[", b'[{"type": "file", "path": 1}]', b"[1]", b"[NaN]", b'[{"a": 1, "a": 2}]']
)
def test_a_listing_that_is_none(fetch: Callable[..., Tree], hub: Hub, body: bytes) -> None:
    hub.repositories.clear()
    hub.pages[f"/api/models/org/name/tree/{Hub.REVISION}"] = body
    with pytest.raises(CorruptContent):
        fetch()


def test_the_token_goes_to_the_endpoint_and_to_nobody_else(
    fetch: Callable[..., Tree], hub: Hub, cdn: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.needs_token = "hf_topsecrettoken"  # noqa: S105 - none
    with pytest.raises(SourceUnreachable) as caught:
        fetch()
    assert "401" in caught.value.message
    assert "HF_TOKEN" in (caught.value.hint or "")
    monkeypatch.setenv("HF_TOKEN", "hf_topsecrettoken")
    assert fetch() == TREE
    assert cdn.requests
    assert all("authorization" not in headers for _, headers in cdn.requests)


def test_a_refused_token_is_not_shown(fetch: Callable[..., Tree], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.needs_token = "another"  # noqa: S105 - none
    monkeypatch.setenv("HF_TOKEN", "hf_topsecrettoken")
    progress = Bytes()
    with pytest.raises(SourceUnreachable) as caught:
        fetch(progress=progress)
    assert "permission was refused" in caught.value.message
    assert not any("topsecret" in text for text in (caught.value.message, caught.value.hint or "", *progress.notes))


def test_nothing_of_the_token_reaches_the_store(
    fetch: Callable[..., Tree], store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_topsecrettoken")
    fetch()
    for path in store.root.rglob("*"):
        assert path.is_dir() or b"topsecrettoken" not in path.read_bytes()


def test_a_mirror_when_the_hub_is_down(
    fetch: Callable[..., Tree], hub: Hub, cdn: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Hub(cdn)
    mirror.add("org/name", FILES, LFS)
    monkeypatch.setenv("HF_TOKEN", "hf_topsecrettoken")
    monkeypatch.setenv("INTAGLIO_HF_MIRRORS", f"{mirror.url}/")
    for path in (f"/api/models/org/name/tree/{Hub.REVISION}",):
        hub.faults[path] = ["503"] * 99
    try:
        progress = Bytes()
        assert fetch(progress=progress) == TREE
        assert any(hub.url in note for note in progress.notes)
        assert all("authorization" not in headers for _, headers in mirror.requests)
    finally:
        mirror.close()


def test_a_mirror_that_gives_other_bytes_is_caught_by_the_pin(
    fetch: Callable[..., Tree], hub: Hub, cdn: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Hub(cdn)
    mirror.add("org/name", {**FILES, "config.json": b"{}"}, LFS)
    monkeypatch.setenv("INTAGLIO_HF_MIRRORS", mirror.url)
    hub.faults[f"/api/models/org/name/tree/{Hub.REVISION}"] = ["503"] * 99
    try:
        with pytest.raises(CorruptContent) as caught:
            fetch(expected=TREE.digest)
        assert "the bytes changed" in caught.value.message
    finally:
        mirror.close()


def test_an_endpoint_with_a_password(fetch: Callable[..., Tree], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://me:topsecret@example.org")
    with pytest.raises(UsageError) as caught:
        fetch()
    assert "topsecret" not in caught.value.message


def test_an_endpoint_over_http(fetch: Callable[..., Tree], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://example.org")
    with pytest.raises(SourceUnreachable) as caught:
        fetch()
    assert "expected an https: address" in caught.value.message


def test_what_a_branch_means_now(hub: Hub, network: Network) -> None:
    hub.add("org/name", FILES, LFS)
    assert current_revision("hf:org/name@main", network) == Hub.REVISION
    assert current_revision("hf:org/gone@main", network) is None
    assert current_revision("file:x", network) is None


@pytest.mark.parametrize(
    "uri", ["hf:org/name@main", "hf:org/name@v1.0", "hf:org/name@refs/pr/1", "hf:org/name@0123abc"]
)
def test_a_branch_is_no_pin(tmp_path: Path, uri: str) -> None:
    with pytest.raises(FloatingRevision) as caught:
        resolve(uri, tmp_path)
    assert "a commit of 40 hex digits" in caught.value.message


@pytest.mark.parametrize(
    "uri", ["hf:org/name", "hf:a/b/c@" + "0" * 40, "hf:../x@" + "0" * 40, "hf:@" + "0" * 40, "hf:org/name@"]
)
def test_bad_addresses(tmp_path: Path, uri: str) -> None:
    with pytest.raises(BadUri):
        resolve(uri, tmp_path)
