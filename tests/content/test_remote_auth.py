"""Passwords and tokens: who gets them, and what is said when they are not good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.attacks.registries import authority, client
from tests.attacks.registries.fake import Asked, Registry, Reply
from tests.images import Draft

from intaglio.content.credentials import Credential
from intaglio.content.layout import Store
from intaglio.content.reference import Reference
from intaglio.content.remote import Repository
from intaglio.content.remote_auth import challenges
from intaglio.errors import RegistryError

GOOD = Credential("ci", "secret")


@pytest.fixture
def draft() -> Draft:
    return Draft().sign()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def registry(draft: Draft) -> Iterator[Registry]:
    with Registry() as running:
        running.load(draft)
        yield running


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="x"', {"basic": {"realm": "x"}}),
        ("Negotiate", {"negotiate": {}}),
        (
            'Bearer realm="https://t/x",service="s",scope="repository:a/b:pull,push"',
            {"bearer": {"realm": "https://t/x", "service": "s", "scope": "repository:a/b:pull,push"}},
        ),
        (
            'Basic realm="a, \\"b\\"", charset=UTF-8, Bearer realm="t" , service=s',
            {"basic": {"realm": 'a, "b"', "charset": "UTF-8"}, "bearer": {"realm": "t", "service": "s"}},
        ),
        ("", {}),
        ("=,;", {}),
    ],
)
def test_challenges(header: str, expected: dict[str, dict[str, str]]) -> None:
    assert challenges([header]) == expected


@given(st.lists(st.text(max_size=80), max_size=3))
def test_whatever_the_header_it_is_read(headers: list[str]) -> None:
    challenges(headers)


def test_nothing_is_sent_before_it_is_asked_for(registry: Registry, store: Store) -> None:
    client.pull(registry.reference(), store, find=lambda host: pytest.fail("asked for a credential"))
    assert not any("authorization" in asked.headers for asked in registry.requests)


def test_a_password_is_asked_for_by_host_and_sent_from_then_on(registry: Registry, store: Store) -> None:
    registry.basic = (GOOD.user, GOOD.password)
    hosts = []

    def find(host: str) -> Credential:
        hosts.append(host)
        return GOOD

    client.pull(registry.reference(), store, find=find)
    assert hosts == [registry.host]
    assert ["authorization" in asked.headers for asked in registry.requests].count(False) == 1


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_password_goes_over_no_connection_that_was_guessed_to_be_plain(registry: Registry, kind: str) -> None:
    """Whoever listens on a port of this machine may be anyone; only ``--plain-http`` says that it is the registry."""
    if kind == "basic":
        registry.basic = (GOOD.user, GOOD.password)
    else:
        registry.bearer = f"{registry.url}/token"
    place = Reference.parse(registry.reference())
    with Repository(place, lambda host: GOOD, network=client.QUICK) as guessed:
        with pytest.raises(RegistryError, match="not sent") as caught:
            guessed.manifest("1")
        assert "--plain-http" in (caught.value.hint or "")
    assert not any("authorization" in asked.headers for asked in registry.requests)
    with Repository(place, lambda host: GOOD, network=client.QUICK, plain_http=True) as said:
        assert said.manifest("1").data


def test_without_a_credential_a_plain_loopback_registry_needs_no_option(registry: Registry) -> None:
    registry.bearer = f"{registry.url}/token"
    with Repository(Reference.parse(registry.reference()), lambda host: None, network=client.QUICK) as guessed:
        assert guessed.manifest("1").data


@pytest.mark.parametrize("credential", [None, Credential("ci", "wrong")])
def test_a_missing_or_wrong_password(registry: Registry, store: Store, credential: Credential | None) -> None:
    registry.basic = (GOOD.user, GOOD.password)
    with pytest.raises(RegistryError, match="refused" if credential else "needed") as caught:
        client.pull(registry.reference(), store, find=lambda host: credential)
    assert "intaglio login" in (caught.value.hint or "")
    assert "wrong" not in caught.value.message
    assert len(registry.requests) <= 2


def test_a_token_is_fetched_once_for_what_is_needed(registry: Registry, draft: Draft, tmp_path: Path) -> None:
    registry.bearer = f"{registry.url}/token"
    client.push(draft.store(tmp_path / "from"), draft.image.digest, registry.reference("2"))
    tokens = registry.asked("GET", "token")
    assert len(tokens) == 1
    query = parse_qs(urlsplit(tokens[0].path).query)
    assert query == {"service": ["test"], "scope": ["repository:models/demo:pull,push"]}


def test_a_password_goes_to_the_token_service_alone(registry: Registry, store: Store) -> None:
    with Registry() as service:
        service.basic = (GOOD.user, GOOD.password)
        registry.bearer, registry.tokens = f"{service.url}/token", service.tokens
        client.pull(registry.reference(), store, find=lambda host: GOOD)
        assert [asked.kind for asked in service.requests] == ["token"]
        assert not any(asked.headers.get("authorization", "").startswith("Basic") for asked in registry.requests)
        assert not any(asked.headers.get("authorization", "").startswith("Bearer") for asked in service.requests)


def test_a_token_service_that_refuses(registry: Registry, store: Store) -> None:
    registry.basic, registry.bearer = (GOOD.user, GOOD.password), f"{registry.url}/token"
    with pytest.raises(RegistryError, match="refused"):
        client.pull(registry.reference(), store, find=lambda host: Credential("ci", "wrong"))


def test_a_token_that_expires_is_fetched_anew(registry: Registry, store: Store) -> None:
    registry.bearer = f"{registry.url}/token"

    def expire(asked: Asked, reply: Reply) -> Reply:
        if asked.kind == "blobs":
            registry.tamper = lambda asked, reply: reply
            registry.tokens.clear()
            registry.tokens.add("another")
        return reply

    registry.tamper = expire
    client.pull(registry.reference(), store)
    assert len(registry.asked("GET", "token")) >= 2


def test_a_token_that_is_never_good(registry: Registry, store: Store) -> None:
    with Registry() as service:
        registry.bearer = f"{service.url}/token"  # its tokens are not this registry's
        with pytest.raises(RegistryError, match="401"):
            client.pull(registry.reference(), store)
        assert len(service.requests) < 5


@pytest.mark.parametrize("answer", [b"{}", b"[]", b'{"token": 3}', b'{"token": "a\\r\\nHost: evil"}', b"secret-token"])
def test_a_token_service_that_gives_none(registry: Registry, store: Store, answer: bytes) -> None:
    registry.bearer = f"{registry.url}/token"
    registry.tamper = lambda asked, reply: Reply(200, answer) if asked.kind == "token" else reply
    with pytest.raises(RegistryError, match="gives no token") as caught:
        client.pull(registry.reference(), store)
    assert "secret" not in caught.value.message


def test_a_token_service_that_redirects_gets_nothing_passed_on(registry: Registry, store: Store) -> None:
    with Registry() as elsewhere:
        registry.bearer = f"{registry.url}/token"
        registry.tamper = lambda asked, reply: (
            Reply(302, headers={"Location": f"{elsewhere.url}/token"}) if asked.kind == "token" else reply
        )
        with pytest.raises(RegistryError, match="302"):
            client.pull(registry.reference(), store, find=lambda host: GOOD)
        assert elsewhere.requests == []


def test_a_token_service_in_clear_gets_no_password_of_a_tls_registry(
    draft: Draft, store: Store, tmp_path: Path
) -> None:
    made = authority.make(tmp_path / "tls")
    with Registry(tls=made.server_context()) as registry, Registry() as service:
        registry.load(draft)
        registry.bearer = f"{service.url}/token"
        with pytest.raises(RegistryError, match="from https: to"):
            client.pull(registry.reference(), store, find=lambda host: GOOD, ca=made.ca)
        assert service.requests == []


def test_an_identity_token_is_exchanged(registry: Registry, store: Store) -> None:
    registry.bearer = f"{registry.url}/token"
    client.pull(registry.reference(), store, find=lambda host: Credential("", "", "identity"))
    (asked,) = registry.asked("POST", "token")
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "identity" not in asked.path


def test_a_challenge_that_nobody_knows(registry: Registry, store: Store) -> None:
    registry.tamper = lambda asked, reply: Reply(401, headers={"WWW-Authenticate": "Negotiate"})
    with pytest.raises(RegistryError):
        client.pull(registry.reference(), store, find=lambda host: GOOD)
