"""``https:`` — against a real server (on loopback, where http: is allowed) with every fault it may have."""

from __future__ import annotations

import os
import random
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tests.recipe.sources.kept import blobs, leftovers
from tests.recipe.sources.web import Server

from intaglio.content.layout import Store
from intaglio.content.tree import File, Tree
from intaglio.dataclass import replace
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, MachineError, SourceUnreachable
from intaglio.progress import Progress, Silent
from intaglio.recipe.sources.http import Client, Network, origin, plain
from intaglio.recipe.sources.https import HttpsSource
from intaglio.recipe.sources.interface import BadUri, resolve

DATA = random.Random(1).randbytes(300_000)
DIGEST = Digest.of(DATA)
TREE = Tree.of([File("model.bin", DIGEST, len(DATA))])


class Bytes:
    """A progress that adds up."""

    def __init__(self) -> None:
        self.count = self.whole = 0
        self.notes: list[str] = []

    def task(self, what: str, total: int | None = None, unit: str = "B") -> Bytes:
        return self

    def advance(self, amount: int) -> None:
        self.count += amount

    def say(self, text: str) -> None:
        self.notes.append(text)

    def total(self, amount: int, unit: str) -> None:
        self.whole = amount

    def note(self, text: str) -> None:
        self.notes.append(text)

    def __enter__(self) -> Bytes:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def fetch(server: Server, store: Store, network: Network, tmp_path: Path) -> Callable[..., Tree]:
    server.pages["/x/model.bin"] = DATA

    def fetcher(
        expected: Digest | None = None,
        offline: bool = False,
        progress: Progress | None = None,
        digest: Digest | None = DIGEST,
        uri: str | None = None,
        **changes: Any,
    ) -> Tree:
        source = resolve(uri or f"{server.url}/x/model.bin", tmp_path, name="weights", digest=digest)
        assert isinstance(source, HttpsSource)
        source = replace(source, network=replace(network, **changes))
        return source.fetch(store, expected=expected, progress=progress or Silent(), offline=offline)

    return fetcher


def test_a_file(fetch: Callable[..., Tree], store: Store, server: Server) -> None:
    assert fetch() == TREE
    assert store.has_tree(TREE.digest)
    assert len(server.requests) == 1
    assert not list((store.root / "partial").iterdir())


def test_what_is_in_the_store_is_not_asked_for(fetch: Callable[..., Tree], server: Server) -> None:
    fetch()
    server.requests.clear()
    assert fetch(expected=TREE.digest, offline=True) == TREE
    assert fetch(offline=True) == TREE
    assert not server.requests


def test_offline_and_not_in_the_store(fetch: Callable[..., Tree], server: Server) -> None:
    with pytest.raises(SourceUnreachable) as caught:
        fetch(offline=True)
    assert "--offline" in caught.value.message
    assert not server.requests


@pytest.mark.parametrize(
    "faults", [["429"], ["500", "503"], ["close"], ["close", "close", "502"], ["stall"], ["trickle"]]
)
def test_faults_that_pass(fetch: Callable[..., Tree], server: Server, faults: list[str]) -> None:
    server.faults["/x/model.bin"] = list(faults)
    progress = Bytes()
    assert fetch(progress=progress, attempts=5) == TREE
    assert len(server.requests) == len(faults) + 1
    assert progress.count == progress.whole == len(DATA)


def test_going_on_where_it_ended(fetch: Callable[..., Tree], server: Server) -> None:
    server.faults["/x/model.bin"] = ["close"]
    assert fetch() == TREE
    first, second = server.asked("/x/model.bin")
    assert "range" not in first
    assert second["range"] == f"bytes={len(DATA) // 2}-"


def test_going_on_in_another_process(fetch: Callable[..., Tree], server: Server, store: Store) -> None:
    store.partial(DIGEST).parent.mkdir(exist_ok=True)
    store.partial(DIGEST).write_bytes(DATA[:1000])
    assert fetch() == TREE
    assert server.asked("/x/model.bin")[0]["range"] == "bytes=1000-"


@pytest.mark.parametrize("fault", ["no-range", "wrong-range"])
def test_a_server_that_does_not_go_on(fetch: Callable[..., Tree], server: Server, store: Store, fault: str) -> None:
    store.partial(DIGEST).parent.mkdir(exist_ok=True)
    store.partial(DIGEST).write_bytes(DATA[:1000])
    server.faults["/x/model.bin"] = [fault]
    assert fetch() == TREE


@pytest.mark.parametrize("wrong", [b"x" * 1000, DATA + b"more", b"y" * len(DATA)])
def test_a_beginning_that_is_wrong_is_thrown_away(fetch: Callable[..., Tree], store: Store, wrong: bytes) -> None:
    store.partial(DIGEST).parent.mkdir(exist_ok=True)
    store.partial(DIGEST).write_bytes(wrong)
    assert fetch() == TREE


@pytest.mark.parametrize("fault", ["wrong-bytes", "longer"])
def test_other_bytes_are_refused_and_not_kept(
    fetch: Callable[..., Tree], server: Server, store: Store, fault: str
) -> None:
    server.faults["/x/model.bin"] = [fault] * 2
    with pytest.raises(CorruptContent) as caught:
        fetch()
    assert "the bytes changed: expected " + str(DIGEST) in caught.value.message
    assert "intaglio update weights" in (caught.value.hint or "")
    assert not blobs(store)
    assert not leftovers(store)
    assert not list((store.root / "partial").iterdir())


def test_a_lock_that_promises_another_tree(fetch: Callable[..., Tree], store: Store) -> None:
    with pytest.raises(CorruptContent) as caught:
        fetch(expected=Digest.of(b"other"))
    assert "intaglio update weights" in (caught.value.hint or "")


def test_a_server_that_never_helps(fetch: Callable[..., Tree], server: Server, store: Store) -> None:
    server.faults["/x/model.bin"] = ["close"] * 9
    with pytest.raises(SourceUnreachable) as caught:
        fetch()
    assert "3 tries" in caught.value.message
    assert not blobs(store)
    assert store.partial(DIGEST).stat().st_size > 0  # the next build goes on from here


@pytest.mark.parametrize(
    ("status", "part"), [("404", "does not have it (404)"), ("403", "answers 403"), ("400", "refuses (400)")]
)
def test_refusals_are_not_asked_again(fetch: Callable[..., Tree], server: Server, status: str, part: str) -> None:
    server.faults["/x/model.bin"] = [status]
    with pytest.raises(SourceUnreachable) as caught:
        fetch()
    assert part in caught.value.message
    assert len(server.requests) == 1


def test_an_encoded_body_is_refused(fetch: Callable[..., Tree], server: Server) -> None:
    server.faults["/x/model.bin"] = ["encoded"]
    with pytest.raises(SourceUnreachable):
        fetch()


def test_nobody_listens(fetch: Callable[..., Tree], server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SourceUnreachable) as caught:
        fetch(uri=f"http://127.0.0.1:{port}/model.bin")
    assert "cannot connect" in caught.value.message


def test_no_such_host(fetch: Callable[..., Tree], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)

    def unknown(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SourceUnreachable) as caught:
        fetch(uri="https://nowhere.invalid/model.bin")
    assert "no such host" in caught.value.message


def test_redirects_are_followed_and_counted(fetch: Callable[..., Tree], server: Server, cdn: Server) -> None:
    cdn.pages["/far/blob"] = DATA
    server.redirects["/x/model.bin"] = f"{cdn.url}/far/blob?X-Amz-Signature=topsecret"
    assert fetch() == TREE
    server.redirects["/x/model.bin"] = "/x/model.bin"
    with pytest.raises(SourceUnreachable) as caught:
        fetch(digest=Digest.of(b"new"))
    assert "more than 5 redirects" in caught.value.message


def test_redirects_only_go_where_addresses_may(fetch: Callable[..., Tree], server: Server) -> None:
    for target in ("http://example.org/x", "file:///etc/passwd", "ftp://example.org/x"):
        server.redirects["/x/model.bin"] = target
        with pytest.raises(SourceUnreachable) as caught:
            fetch()
        assert "expected an https: address" in caught.value.message


def test_a_signed_address_is_never_shown(fetch: Callable[..., Tree], server: Server, cdn: Server) -> None:
    server.redirects["/x/model.bin"] = f"{cdn.url}/gone?X-Amz-Signature=topsecret"
    with pytest.raises(SourceUnreachable) as caught:
        fetch()
    assert "topsecret" not in caught.value.message


def test_a_token_goes_to_its_own_origin_only(server: Server, cdn: Server, network: Network, tmp_path: Path) -> None:
    server.pages["/here"] = b"{}"
    cdn.pages["/far"] = b"{}"
    server.redirects["/there"] = f"{cdn.url}/far"
    client = Client(network, {origin(server.url): "hf_secret"})
    client.read(f"{server.url}/here", max_bytes=10)
    client.read(f"{server.url}/there", max_bytes=10)
    assert [headers.get("authorization") for _, headers in server.requests] == ["Bearer hf_secret"] * 2
    assert [headers.get("authorization") for _, headers in cdn.requests] == [None]
    cdn.redirects["/back"] = f"{server.url}/here"
    client.read(f"{cdn.url}/back", max_bytes=10)
    assert cdn.requests[-1][1].get("authorization") is None
    assert "hf_secret" not in repr(client)


def test_a_document_past_its_bound_is_refused(server: Server, network: Network) -> None:
    server.pages["/big"] = b"x" * 1000
    with pytest.raises(SourceUnreachable):
        Client(network).read(f"{server.url}/big", max_bytes=999)


def test_full_disk(server: Server, network: Network) -> None:
    server.pages["/x/model.bin"] = DATA
    with pytest.raises(MachineError) as caught:
        Client(network).download(f"{server.url}/x/model.bin", Path("/dev/full"), size=None, task=Bytes())
    assert "the disk is full" in caught.value.message
    with pytest.raises(MachineError) as caught:
        Client(network).download(f"{server.url}/x/model.bin", Path("/proc/nowhere"), size=None, task=Bytes())
    assert "cannot be written" in caught.value.message


@pytest.mark.parametrize(
    ("uri", "digest", "part"),
    [
        ("https://example.org/a", None, "not pinned"),
        ("http://example.org/a", DIGEST, "expected an https: address"),
        ("https://example.org/", DIGEST, "bad path"),
        ("https://example.org/a/..", DIGEST, "bad path"),
        ("https://example.org/%2e%2e", DIGEST, "bad path"),
        ("https://example.org/a%2Fb", DIGEST, ""),
        ("https://example.org/a%5Cb", DIGEST, "bad path"),
        ("https://example.org/a%ff", DIGEST, "expected https://host/path/file"),
        ("https:///a", DIGEST, "expected an https: address"),
        ("https://[::1/a", DIGEST, "expected https://host/path/file"),
        ("https://example.org/a#b", DIGEST, "without #"),
    ],
)
def test_bad_addresses(tmp_path: Path, uri: str, digest: Digest | None, part: str) -> None:
    if not part:
        assert resolve(uri, tmp_path, digest=digest)
        return
    with pytest.raises(BadUri) as caught:
        resolve(uri, tmp_path, digest=digest)
    assert part in caught.value.message


def test_what_is_shown_of_an_address() -> None:
    assert plain("https://me:pw@example.org:8/a/b?token=x#y") == "https://example.org:8/a/b"
    assert origin("https://Example.org/a") == origin("https://example.org:443/b")
    assert origin("https://example.org") != origin("http://example.org")


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, made with the engine's own library."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = built.public_bytes(serialization.Encoding.PEM)
    (folder / f"{name}.pem").write_bytes(pem)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{name}.key").write_bytes(private + pem)
    return folder / f"{name}.pem", folder / f"{name}.key"


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    authority, key = certificate(tmp_path, "ours")
    server = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(key)
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True, do_handshake_on_connect=False)
    server.pages["/a"] = b"{}"
    yield f"https://localhost:{server._http.server_port}/a", authority
    server.close()


def test_only_our_own_configuration_names_authorities(
    secure: tuple[str, Path], tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, authority = secure
    other, _ = certificate(tmp_path, "other")
    # What other tools listen to neither opens the door …
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    monkeypatch.delenv("INTAGLIO_CA_FILE", raising=False)
    quick = replace(Network.from_environment(), attempts=1)
    with pytest.raises(SourceUnreachable) as caught:
        Client(quick).read(url, max_bytes=10)
    assert "certificate is not trusted" in caught.value.message
    assert "INTAGLIO_CA_FILE" in (caught.value.hint or "")
    # … nor closes it.
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    monkeypatch.setenv("INTAGLIO_CA_FILE", str(authority))
    assert Client(Network.from_environment()).read(url, max_bytes=10).body == b"{}"
    monkeypatch.setenv("INTAGLIO_CA_FILE", str(other))
    with pytest.raises(SourceUnreachable):
        Client(replace(Network.from_environment(), attempts=1)).read(url, max_bytes=10)
    monkeypatch.setenv("INTAGLIO_CA_FILE", str(tmp_path / "gone.pem"))
    with pytest.raises(MachineError):
        Client(Network.from_environment()).read(url, max_bytes=10)


def test_https_never_goes_on_over_http(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(network)

    class Answer:
        status = 302
        headers = {"Location": "http://127.0.0.1:1/x"}  # noqa: RUF012

        def close(self) -> None:
            pass

    monkeypatch.setattr(client, "_ask", lambda url, headers: Answer())
    with pytest.raises(SourceUnreachable) as caught:
        client.read("https://example.org/a", max_bytes=10)
    assert "redirects from https:" in caught.value.message


def test_two_processes_fetch_once(server: Server, store: Store, tmp_path: Path) -> None:
    server.pages["/x/model.bin"] = DATA
    code = (
        "import sys, pathlib\n"
        "from intaglio.content.layout import Store\n"
        "from intaglio.digest import Digest\n"
        "from intaglio.progress import Silent\n"
        "from intaglio.recipe.sources.interface import resolve\n"
        "source = resolve(sys.argv[1], pathlib.Path('.'), digest=Digest(sys.argv[2]))\n"
        "source.fetch(Store.open(pathlib.Path(sys.argv[3])), expected=None, progress=Silent(), offline=False)\n"
    )
    command = [sys.executable, "-c", code, f"{server.url}/x/model.bin", str(DIGEST), str(store.root)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(server.requests) == 1
    assert store.has_tree(TREE.digest)
