"""Fetching a toolchain's files with the user's own pip configuration: real pips, find-links made by hand."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import wheelhouse

from intaglio.build import toolchain, wheels
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, MachineError, SourceUnreachable
from intaglio.progress import Silent

THIS_PYTHON = "{}.{}".format(*sys.version_info)


class Recorder(Silent):
    """A progress that adds up what it is told."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0

    def task(self, what: str, total: int | None = None, unit: str = "B") -> Any:
        self.total += total or 0
        return self

    def advance(self, amount: int) -> None:
        self.done += amount

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A find-links folder that is all that pip is configured to know."""
    folder = tmp_path / "links"
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheelhouse.wheel(folder, "tiny_tool", "2.0", {"tiny_tool.py": b"ANSWER = 42\n"})
    wheelhouse.wheel(folder, "other", "1.0+cpu", {"other.py": b""})
    wheelhouse.wheel(folder, "third", "3.1", {"third.py": b""})
    return folder


@pytest.fixture
def tools(tmp_path: Path, links: Path) -> toolchain.Toolchain:
    return toolchain.load(wheelhouse.lock(tmp_path / "tools", links.iterdir(), python=THIS_PYTHON))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def fetch(tools: toolchain.Toolchain, store: Store, *, offline: bool = False) -> None:
    wheels.fetch(tools, store, offline=offline, progress=Silent())


def test_every_wheel_comes_into_the_store_and_all_bytes_are_reported(tools: toolchain.Toolchain, store: Store) -> None:
    progress = Recorder()
    wheels.fetch(tools, store, offline=False, progress=progress)
    assert wheels.missing(tools, store) == ()
    assert store.has(Digest.of(tools.lock))
    assert progress.done == progress.total == sum(wheel.size for wheel in tools.wheels)
    assert store.put_tree(tools.tree().files) == tools.tree()


def test_a_second_time_and_a_second_store_need_no_network(
    tools: toolchain.Toolchain, store: Store, links: Path, tmp_path: Path
) -> None:
    fetch(tools, store)
    shutil.rmtree(links)
    fetch(tools, store, offline=True)
    fresh = Store.open(tmp_path / "fresh")
    fetch(tools, fresh, offline=True)
    assert wheels.missing(tools, fresh) == ()


def test_offline_and_missing_is_an_unreachable_source(tools: toolchain.Toolchain, store: Store) -> None:
    with pytest.raises(SourceUnreachable, match=r"3 files are not in the store.*--offline"):
        fetch(tools, store, offline=True)


def test_a_wrong_hash_is_refused_and_nothing_of_it_is_kept(
    tools: toolchain.Toolchain, store: Store, links: Path, tmp_path: Path
) -> None:
    wheelhouse.wheel(links, "tiny_tool", "2.0", {"tiny_tool.py": b"ANSWER = 41\n"})
    with pytest.raises(CorruptContent, match="does not have the hash in the lock") as caught:
        fetch(tools, store)
    assert "tiny-tool==2.0" in caught.value.message
    wanted = {wheel.digest for wheel in tools.wheels if wheel.package == "tiny-tool"}
    bad = Digest.from_hex(wheelhouse.sha256(links / "tiny_tool-2.0-py3-none-any.whl"))
    assert wanted <= {wheel.digest for wheel in wheels.missing(tools, store)}
    assert not store.has(bad)
    assert not list((tmp_path / "cache").rglob("tiny_tool*"))


def test_a_lying_cache_is_thrown_away(tools: toolchain.Toolchain, store: Store, links: Path, tmp_path: Path) -> None:
    fetch(tools, store)
    (cached,) = (tmp_path / "cache").rglob("tiny_tool*.whl")
    cached.write_bytes(b"something else")
    fresh = Store.open(tmp_path / "fresh")
    fetch(tools, fresh)
    assert wheels.missing(tools, fresh) == ()
    assert cached.read_bytes() == (links / cached.name).read_bytes()


def test_what_no_index_has_is_an_unreachable_source_and_says_what_pip_said(
    tools: toolchain.Toolchain, store: Store, links: Path
) -> None:
    (links / "third-3.1-py3-none-any.whl").unlink()
    with pytest.raises(SourceUnreachable, match=r"third==3\.1") as caught:
        fetch(tools, store)
    assert "pip config list" in (caught.value.hint or "")


def absent(tools: toolchain.Toolchain, store: Store) -> dict[str, tuple[str, ...]]:
    return wheels.unobtainable([tools], store.root, patience=60)


def test_what_is_neither_here_nor_offered_is_told_without_a_download(
    tools: toolchain.Toolchain, store: Store, links: Path, tmp_path: Path
) -> None:
    assert absent(tools, store) == {}
    (links / "other-1.0+cpu-py3-none-any.whl").unlink()
    assert absent(tools, store) == {"tools": ("other-1.0+cpu-py3-none-any.whl",)}
    assert not (tmp_path / "cache").exists()
    assert wheels.missing(tools, store) == tools.downloads


def test_an_index_is_asked_for_its_pages_alone(
    tools: toolchain.Toolchain, store: Store, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            names = [path.name for path in links.glob(f"{self.path.strip('/').replace('-', '_')}-*.whl")]
            body = "".join(f'<a href="/files/{name}">{name}</a>' for name in names).encode()
            self.send_response(200 if names else 404)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/")
        assert absent(tools, store) == {}
        (links / "third-3.1-py3-none-any.whl").unlink()
        assert absent(tools, store) == {"tools": ("third-3.1-py3-none-any.whl",)}
        server.shutdown()
    assert set(asked) == {"/tiny-tool/", "/other/", "/third/"}


def test_what_is_in_the_store_or_the_cache_is_not_asked_about(
    tools: toolchain.Toolchain, store: Store, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(tools, store)
    monkeypatch.setattr(wheels, "_offered", lambda *_: pytest.fail("pip was asked"))
    assert absent(tools, store) == {}
    assert absent(tools, Store.open(tmp_path / "fresh")) == {}, "the cache has them"


def test_a_pip_that_cannot_be_asked_is_an_unreachable_source(
    tools: toolchain.Toolchain, store: Store, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_TIMEOUT", "soon")
    with pytest.raises(SourceUnreachable, match="pip could not be asked") as caught:
        absent(tools, store)
    assert "pip config list" in (caught.value.hint or "")


def test_where_versions_for_cpus_come_from_is_told_when_pip_has_none(
    tools: toolchain.Toolchain, store: Store, links: Path
) -> None:
    (links / "other-1.0+cpu-py3-none-any.whl").unlink()
    with pytest.raises(SourceUnreachable, match=r"other==1\.0\+cpu") as caught:
        fetch(tools, store)
    assert caught.value.hint == (
        "PyPI has no +cpu versions; PyTorch's own index for CPUs does: "
        "pip config set global.extra-index-url https://download.pytorch.org/whl/cpu"
    )


def test_the_wheels_of_another_python_are_asked_for_by_its_version(tmp_path: Path, links: Path, store: Store) -> None:
    made = wheelhouse.wheel(links, "old", "1.0", {"old.py": b""})
    other = made.rename(links / "old-1.0-cp310-cp310-manylinux_2_17_x86_64.whl")
    tools = toolchain.load(wheelhouse.lock(tmp_path / "old-tools", [other], python="3.10"))
    fetch(tools, store)
    assert wheels.missing(tools, store) == ()


def test_an_sdist_is_fetched_without_running_a_line_of_it(tmp_path: Path, links: Path, store: Store) -> None:
    mark = tmp_path / "was-here"
    made = wheelhouse.sdist(links, "sourceonly", "1.0", f"open({str(mark)!r}, 'w')\nraise SystemExit(3)\n")
    entry = f"""
[[packages]]
name = "sourceonly"
version = "1.0"
[packages.sdist]
name = "{made.name}"
path = "sdists/{made.name}"
size = {made.stat().st_size}
hashes = {{sha256 = "{wheelhouse.sha256(made)}"}}
[packages.tool.intaglio]
build-toolchain = "wheel-build"
[packages.tool.intaglio.wheel]
name = "sourceonly-1.0-py3-none-any.whl"
size = 1
sha256 = "{"0" * 64}"
"""
    tools = toolchain.load(wheelhouse.lock(tmp_path / "source-tools", [], python=THIS_PYTHON, extra=entry))
    fetch(tools, store)
    assert wheels.missing(tools, store) == ()
    assert not mark.exists()
    made.write_bytes(made.read_bytes() + b"\0")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(CorruptContent, match="sourceonly"):
        fetch(tools, Store.open(tmp_path / "fresh"))
    made.unlink()
    with pytest.raises(SourceUnreachable, match="no index or find-links has"):
        fetch(tools, Store.open(tmp_path / "fresh"))


@pytest.fixture
def index(tmp_path: Path, links: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A simple index (PEP 503) over HTTP on loopback, with credentials in its address; it is all that pip knows."""
    folder = tmp_path / "index"
    for path in links.iterdir():
        package = folder / "simple" / path.name.split("-")[0].replace("_", "-")
        package.mkdir(parents=True)
        shutil.copy(path, package)
        (package / "index.html").write_text(f'<!DOCTYPE html><a href="{path.name}">{path.name}</a>')
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://someone:s3cret@127.0.0.1:{server.server_port}/simple")
        yield folder
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_an_index_over_http_serves_as_well(tools: toolchain.Toolchain, store: Store, index: Path, links: Path) -> None:
    shutil.rmtree(links)
    fetch(tools, store)
    assert wheels.missing(tools, store) == ()


def test_credentials_of_an_index_are_in_no_message(tools: toolchain.Toolchain, store: Store, index: Path) -> None:
    shutil.rmtree(index / "simple" / "third")
    with pytest.raises(SourceUnreachable) as caught:
        fetch(tools, store)
    assert "third==3.1" in caught.value.message
    assert "s3cret" not in caught.value.message


def test_an_sdist_comes_from_an_index_over_http(tmp_path: Path, links: Path, index: Path) -> None:
    made = wheelhouse.sdist(index / "simple" / "sourceonly", "sourceonly", "1.0", "raise SystemExit(3)\n")
    (made.parent / "index.html").write_text(f'<!DOCTYPE html><a href="{made.name}">{made.name}</a>')
    place = tmp_path / "place"
    place.mkdir()
    command = [sys.executable, str(Path(wheels.__file__).with_name("sdist_fetch.py")), "sourceonly", made.name]
    subprocess.run([*command, str(place)], check=True, capture_output=True)
    assert (place / made.name).read_bytes() == made.read_bytes()


def test_a_python_without_pip_is_said_to_be_one(
    tools: toolchain.Toolchain, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'python: No module named pip'\nexit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(MachineError, match="has no pip"):
        fetch(tools, store)
