"""Servers, a store and a short patience for the tests of sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.recipe.sources.web import Hub, Server

from intaglio.content.layout import Store
from intaglio.recipe.sources.http import Network

NETWORK = Network(timeout=1.0, slowest=4096, attempts=3, backoff=0.01, longest_wait=0.05)


@pytest.fixture
def network() -> Network:
    return NETWORK


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def cdn() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def hub(cdn: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(cdn)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("INTAGLIO_HF_MIRRORS", raising=False)
    yield hub
    hub.close()
