"""What every test may ask for: stock programs, and a home of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import programs


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own configuration, keys or store."""
    for name in ("INTAGLIO_STORE", "INTAGLIO_PASSPHRASE", "INTAGLIO_PASSPHRASE_FILE", "INTAGLIO_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INTAGLIO_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def cosign() -> Path:
    """Stock ``cosign``."""
    return programs.cosign()


@pytest.fixture(scope="session")
def oras() -> Path:
    """Stock ``oras``."""
    return programs.oras()


@pytest.fixture(scope="session")
def crane() -> Path:
    """Stock ``crane``."""
    return programs.crane()


@pytest.fixture(scope="session")
def skopeo() -> Path:
    """Stock ``skopeo``."""
    return programs.skopeo()


@pytest.fixture(scope="session")
def model_signing() -> Path:
    """Stock ``model_signing``."""
    return programs.model_signing()
