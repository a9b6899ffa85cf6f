"""What every test may ask for: stock programs, and a home of its own."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import hypothesis
import pytest
from tests import programs

_COUNT = itertools.count()
# No test asserts a time: a busy machine would make it fail.
hypothesis.settings.register_profile("intaglio", deadline=None)
hypothesis.settings.load_profile("intaglio")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that at the end no core waits for it."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name != "test_demo.py", item.path not in slow))


@pytest.fixture(scope="session")
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def _own_home(_homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own configuration, keys or store; the folder is not there yet."""
    for name in [name for name in os.environ if name.startswith("INTAGLIO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("INTAGLIO_HOME", str(_homes / str(next(_COUNT))))


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
def openai() -> Path:
    """A Python with OpenAI's own client."""
    return programs.openai()


@pytest.fixture(scope="session")
def model_signing() -> Path:
    """Stock ``model_signing``."""
    return programs.model_signing()
