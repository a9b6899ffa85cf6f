"""A published source is read by stock TUF clients, with the digests that OCI tools know; and attacks are compared."""

from __future__ import annotations

import fcntl
import functools
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests import programs
from tests.attacks.tuf.cases import CASES, Case
from tests.trust.sources import NOW, Files
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.ngclient import FetcherInterface, Updater

from intaglio.cli.trust import command
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import Error, ExitCode

pytestmark = pytest.mark.real

TUF_JS = "5.0.1"
TUF_JS_OF_OLD_NODES = "3.1.0"
"""The newest version that runs on the node 18 of Debian bookworm: later ones want 20.17 or 22.9."""
READER = """
const { Updater } = require('tuf-js');
const [folder, url, ...paths] = process.argv.slice(2);
(async () => {
  const updater = new Updater({
    metadataDir: folder,
    metadataBaseUrl: `${url}/metadata`,
    targetDir: `${folder}/targets`,
    targetBaseUrl: `${url}/targets`,
  });
  await updater.refresh();
  const found = {};
  for (const path of paths) {
    const info = await updater.getTargetInfo(path);
    const file = await updater.downloadTarget(info);
    found[path] = { sha256: info.hashes.sha256, length: info.length, custom: info.custom, file };
  }
  console.log(JSON.stringify(found));
})().catch((error) => { console.error(String(error)); process.exit(1); });
"""
ENTRY = """
name = "{name}"
version = "1.0.0"
tree = "{tree}"
licence = "Apache-2.0"
publisher = "Acme"
summary = "For a test."
origins = ["file:gone"]
"""


def trust(*arguments: str | Path) -> Any:
    """Run ``intaglio trust`` and return its answer."""
    result = CliRunner().invoke(command, [*map(str, arguments), "--json", "--progress", "none"], obj={})
    if result.exception:
        raise result.exception
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def tuf_js() -> Path:
    """The folder in whose ``node_modules`` npm's ``tuf-js`` stands, outside the checkout."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            programs.missing(f"{tool} is not installed")
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    node = tuple(map(int, said.strip().removeprefix("v").split(".")[:2]))
    version = TUF_JS if (20, 17) <= node < (21, 0) or node >= (22, 9) else TUF_JS_OF_OLD_NODES
    folder = programs.cache() / "npm" / f"tuf-js-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"tuf-js@{version}"]
            done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                programs.missing(f"npm install tuf-js: {done.stderr.strip()[-300:]}")
            (folder / "done").touch()
    (folder / "read.js").write_text(READER, encoding="utf-8")
    return folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("INTAGLIO_HOME", str(tmp_path / "home"))
    return Store.open(tmp_path / "home" / "store")


@pytest.fixture
def published(store: Store, tmp_path: Path) -> dict[str, Digest]:
    """A source with two trees of the store and a program of the engine, made by the commands; path → tree."""
    source, keys = tmp_path / "source", tmp_path / "source-keys"
    trust("init", source)
    found = {}
    for name in ("models/acme/base", "datasets/acme/text"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "data.bin").write_text(name, encoding="utf-8")
        tree = store.ingest(folder, move=False)
        entry = tmp_path / f"{name.replace('/', '-')}.toml"
        entry.write_text(ENTRY.format(name=name, tree=tree.digest), encoding="utf-8")
        trust("add", source, entry)
        found[f"{name}/1.0.0"] = tree.digest
    answer = trust("add", source, "steps/intaglio/finetune@1.0.0")
    found["steps/intaglio/finetune/1.0.0"] = Digest.parse(answer["added"][0]["tree"])
    files = [keys / "offline" / name for name in ("root-1.key", "root-2.key", "targets-1.key")]
    trust("sign", source, *(part for file in files for part in ("--key", file)))
    trust("publish", source, tmp_path / "www")
    return found


@pytest.fixture
def url(published: dict[str, Digest], tmp_path: Path) -> Iterator[str]:
    """Any static server: the standard library's."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_python_tuf(published: dict[str, Digest], url: str, store: Store, tmp_path: Path) -> None:
    anchor = (tmp_path / "www" / "metadata" / "1.root.json").read_bytes()
    for name in ("metadata", "targets"):
        (tmp_path / "client" / name).mkdir(parents=True)
    client = Updater(
        str(tmp_path / "client" / "metadata"),
        f"{url}/metadata",
        str(tmp_path / "client" / "targets"),
        f"{url}/targets",
        bootstrap=anchor,
    )
    client.refresh()
    for path, digest in published.items():
        info = client.get_targetinfo(path)
        assert info is not None
        data = Path(client.download_target(info)).read_bytes()
        assert (info.hashes, info.length) == ({"sha256": digest.hex}, len(data))
        assert Digest.of(data) == digest
        if store.has(digest):
            assert store.tree(digest).manifest() == data
        assert info.custom["intaglio"]["status"] == "active"
    assert client.get_targetinfo("models/acme/other/1.0.0") is None


def test_tuf_js(published: dict[str, Digest], url: str, tuf_js: Path, tmp_path: Path) -> None:
    client = tmp_path / "client"
    (client / "targets").mkdir(parents=True)
    shutil.copy(tmp_path / "www" / "metadata" / "1.root.json", client / "root.json")
    command = ["node", str(tuf_js / "read.js"), str(client), url, *published]
    done = subprocess.run(command, cwd=tuf_js, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for path, found in json.loads(done.stdout).items():
        data = Path(found["file"]).read_bytes()
        assert (found["sha256"], found["length"]) == (published[path].hex, len(data))
        assert Digest.of(data) == published[path]
        assert found["custom"]["intaglio"]["licence"] == "Apache-2.0"


def test_ours_and_the_way_of_a_yank(published: dict[str, Digest], url: str, tmp_path: Path) -> None:
    with pytest.raises(Error, match="there is no anchor") as caught:
        trust("refresh", "--url", url)
    assert caught.value.exit_code == ExitCode.NOT_VERIFIABLE
    answer = trust("refresh", "--url", url, "--root", tmp_path / "www" / "metadata" / "1.root.json")
    assert answer["versions"] == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
    listed = {one["name"].replace("@", "/"): one["tree"] for one in trust("list")["targets"]}
    assert listed == {path: str(digest) for path, digest in published.items()}
    trust("yank", tmp_path / "source", "models/acme/base@1.0.0", "--reason", "it leaked")
    with pytest.raises(Error, match="1 more signature"):
        trust("publish", tmp_path / "source", tmp_path / "www")
    trust("sign", tmp_path / "source", "--key", tmp_path / "source-keys" / "offline" / "targets-1.key")
    trust("publish", tmp_path / "source", tmp_path / "www")
    assert trust("show", "models/acme/base@1.0.0")["status"] == "active"
    assert trust("refresh")["versions"]["targets"] == 2  # from where it was fetched before
    shown = trust("show", "models/acme/base@1.0.0")
    assert (shown["status"], shown["reason"]) == ("yanked", "it leaked")
    with pytest.raises(Error, match="does not list it") as unlisted:
        trust("show", "models/acme/other@1.0.0")
    assert unlisted.value.exit_code == ExitCode.POLICY


class Fetcher(FetcherInterface):
    """Serves a state of the corpus to python-tuf's client."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.removeprefix("memory://source/")
        if path not in self._files:
            raise DownloadHTTPError(f"{path}: not there", 404)
        return iter([self._files[path]])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attacks_on_python_tuf(case: Case, tmp_path: Path) -> None:
    """What it refuses we refuse; what it lets pass is known: a change of that is news."""
    attack = case.build()

    def refresh(files: Files) -> None:
        client = Updater(str(tmp_path), "memory://source/metadata", fetcher=Fetcher(files), bootstrap=attack.anchor)
        client._trusted_set.reference_time = NOW
        client.refresh()

    for state in attack.states[:-1]:
        refresh(state)
    work: Callable[[], None] = functools.partial(refresh, attack.states[-1])
    if not case.stock:
        work()
        return
    with pytest.raises((RepositoryError, DownloadError)):
        work()
