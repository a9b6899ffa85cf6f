"""``intaglio run`` with the real guard in a real runtime image, by real podman and Docker; only the server is a toy."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.build.test_runtime import CACHE, fetched, make_shop
from tests.containers import engine
from tests.guard import site as sites
from tests.guard.site import LONG_AGO, WITH_SOURCE, Site
from tests.images import Draft, key
from tests.trust import sources
from tests.trust.sources import Source
from tests.workshop import Finished, Workshop, _workshop_of_the_session

from intaglio.build import containers, relay
from intaglio.build.containers import DockerHost, Order
from intaglio.build.engines import Engine
from intaglio.content import archive
from intaglio.content.runtime_image import RuntimeImage
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, Error, ExitCode, PolicyRefusal, Stale, Untrusted
from intaglio.trust.key import PrivateKey

__all__ = ["_workshop_of_the_session", "engine", "fetched"]
pytestmark = [pytest.mark.real, pytest.mark.containers, pytest.mark.filterwarnings("ignore::ResourceWarning")]
NAME = "tests/shop:1.0.0"


@dataclass(frozen=True)
class Built:
    """A workshop in which model and runtime image were built."""

    shop: Workshop
    answer: dict[str, Any]

    @property
    def runtime(self) -> RuntimeImage:
        data = self.shop.store.read(Digest(self.answer["runtime"]["image"]), what="runtime image")
        return RuntimeImage.parse(data, "runtime image")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, fetched: None) -> Built:
    shop = make_shop(tmp_path_factory.mktemp("guarded") / "shop")
    return Built(shop, shop.built(XDG_CACHE_HOME=CACHE))


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Built:
    """The same in a copy of the home, to be damaged."""
    shop = Workshop(tmp_path / "shop")
    for name in ("data", "recipe", "wheels"):
        shutil.copytree(built.shop.root / name, shop.root / name)
    skipped = shutil.ignore_patterns("environments", "*.sqlite*")
    shutil.copytree(built.shop.home, shop.home, ignore=skipped, copy_function=_copy_small)
    return Built(shop, built.answer)


def _copy_small(source: str, target: str) -> None:
    """Copy what a test may change; link what is large."""
    (os.link if os.stat(source).st_size > 1 << 20 else shutil.copy2)(source, target)


def ask(url: str) -> Any:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port or 0, timeout=20)
    try:
        connection.request("GET", "/v1/models")
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def left(found: Engine) -> list[str]:
    """Return the containers that are there."""
    return [one["Id"] for one in DockerHost(found)._client.containers(all=True)]


def start(shop: Workshop, found: Engine, *words: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start ``intaglio run`` and return it with what it said once it served."""
    process = shop.start("run", *words, "--port", "0", "--json", "--engine-socket", str(found.socket))
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(process.communicate()[1])
    return process, json.loads(line)


def end(process: subprocess.Popen[str], number: int = signal.SIGINT) -> Finished:
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return Finished(process.returncode, out, err)


def refused(shop: Workshop, found: Engine, *words: str, code: ExitCode) -> Finished:
    """Return ``intaglio run``, which must have been refused with ``code`` and left nothing behind."""
    done = shop.run("run", *words, "--port", "0", "--json", "--engine-socket", found.socket)
    assert done.status == code, done.err
    assert done.json["error"]["exit_code"] == code
    assert left(found) == []
    return done


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_model_is_served_until_it_is_ended(built: Built, engine: Engine) -> None:
    process, said = start(built.shop, engine, NAME, "--name", "tests-served")
    try:
        assert said["image"] == built.answer["image"]
        assert said["runtime"] == built.answer["runtime"]["image"]
        assert said["engine"] == f"{engine.name} {engine.version}"
        assert left(engine) == [said["container"]]
        answer = ask(said["url"])
        assert answer["data"] == [{"id": NAME}]
        assert answer["uid"] == 65532
        assert answer["copied"] is False, "what is mounted read-only and belongs to another is served where it is"
    finally:
        done = end(process, signal.SIGTERM)
    assert done.status == 0, done.err
    assert "verified the runtime image" in done.err
    assert left(engine) == []


def test_the_runtime_image_can_be_named_instead(built: Built, engine: Engine) -> None:
    for words in ((f"{NAME}-llama.cpp",), (built.answer["image"], "--image", f"{NAME}-llama.cpp")):
        process, said = start(built.shop, engine, *words)
        done = end(process)
        assert (done.status, said["image"]) == (0, built.answer["image"]), done.err


def test_a_model_without_a_runtime_image(built: Built, engine: Engine) -> None:
    done = refused(built.shop, engine, NAME, "--runtime", "vllm", code=ExitCode.USAGE)
    assert "no vllm image stands beside" in done.json["error"]["message"]


def test_a_runtime_image_that_is_not_ours_reaches_no_engine(copied: Built, engine: Engine, tmp_path: Path) -> None:
    other = tmp_path / "other"
    copied.shop.run("init", INTAGLIO_HOME=str(other)).ok()
    words = (NAME, "--policy", str(other / "policy.toml"))
    done = refused(copied.shop, engine, *words, code=ExitCode.UNTRUSTED)
    assert "the guard refused" not in done.json["error"]["message"]


def test_a_damaged_layer_is_refused_before_the_engine_gets_it(copied: Built, engine: Engine) -> None:
    smallest = min(copied.runtime.files, key=lambda file: file.size)
    spoil(copied.shop.store.path(smallest.digest))
    done = refused(copied.shop, engine, NAME, code=ExitCode.CORRUPT)
    assert "the guard refused" not in done.json["error"]["message"]


def test_one_byte_of_the_model_changed_in_the_store(copied: Built, engine: Engine) -> None:
    manifest = json.loads(copied.shop.store.read(Digest(copied.answer["image"]), what="image"))
    spoil(copied.shop.store.path(Digest(manifest["layers"][0]["digest"])))
    done = refused(copied.shop, engine, NAME, code=ExitCode.CORRUPT)
    assert done.json["error"]["message"].startswith("the guard refused: content: model.gguf: expected sha256:")


def spoil(place: Path) -> None:
    """Change one byte in the middle of a blob."""
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.unlink()
    place.write_bytes(data)


# --- the six refusals, in containers ---------------------------------------------------------------------------------


def _changed(place: Path) -> Site:
    site = Site(place, source=sites.source(), policy=WITH_SOURCE)
    spoil(site.model / "model.safetensors")
    return site


def _unattested(place: Path) -> Site:
    return Site(place, policy='\n[attestations]\n"https://slsa.dev/verification_summary/v1" = "release"\n')


def _untrusted(place: Path) -> Site:
    return Site(place, draft=Draft(release=key("stranger")))


def _replaced(place: Path) -> Site:
    """Model and passport of a stranger, whole and consistent, before our anchor."""
    ours, theirs = sites.source(), sites.source()
    signers: dict[str, tuple[PrivateKey, ...]] = dict.fromkeys(theirs.signers, (sources.STRANGER,))
    strange = Source(
        root=theirs.root,
        targets=theirs.targets,
        snapshot=theirs.snapshot,
        timestamp=theirs.timestamp,
        signed_at=theirs.signed_at,
        signers=signers,
    )
    files = {"model.gguf": Draft().files["model.gguf"]}
    site = Site(place, draft=Draft(files, key("stranger"), key("stranger")), source=strange, policy=WITH_SOURCE)
    anchor = Site(place / "ours", source=ours, policy=WITH_SOURCE).anchor
    for name in ("policy.toml", "root.json"):
        shutil.copy(anchor / name, site.anchor / name)
    return site


def _yanked(place: Path) -> Site:
    site = Site(place, source=sites.source(), policy=WITH_SOURCE)
    assert site.source is not None
    sites.yank(site.source)
    site.republish()
    return site


def _stale(place: Path) -> Site:
    return Site(place, source=sites.source(sites.now() - LONG_AGO), policy=WITH_SOURCE)


REFUSALS: dict[str, tuple[Callable[[Path], Site], type[Error], str]] = {
    "one byte of the model changed": (_changed, CorruptContent, "content: model.safetensors: expected sha256:"),
    "a missing attestation": (_unattested, Untrusted, "attestations: "),
    "an untrusted key": (_untrusted, Untrusted, "signature: "),
    "replaced and signed under another root": (_replaced, Untrusted, "anchor: "),
    "a yanked base model": (_yanked, PolicyRefusal, "source: .*poisoned"),
    "metadata past the bound": (_stale, Stale, "freshness: .*the policy allows 14 d"),
}


@pytest.fixture
def host(engine: Engine, built: Built) -> DockerHost:
    """The engine, with the runtime image."""
    found = DockerHost(engine)
    image = built.runtime
    blobs = built.shop.store
    containers.install(found, archive.ids(image), archive.stream(image, blobs, "localhost/intaglio/guarded:1"))
    return found


@pytest.fixture
def scratch(built: Built) -> Iterator[Path]:
    with built.shop.store.scratch("run") as folder:
        folder.chmod(0o700)
        yield folder


def order(built: Built, site: Site, scratch: Path) -> Order:
    """Return a container over ``site``, whose anchor stands where the image's own is."""
    folders = {"/model": site.model, "/passport": site.passport, "/etc/intaglio": site.anchor}
    for folder in folders.values():
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    return Order(built.runtime.config.digest, folders, scratch, 512 << 20, 64)


@pytest.mark.parametrize("case", list(REFUSALS))
def test_six_refusals(case: str, built: Built, host: DockerHost, scratch: Path, tmp_path: Path) -> None:
    make, kind, said = REFUSALS[case]
    wanted = order(built, make(tmp_path / "site"), scratch)
    with relay.listen(0) as listener, pytest.raises(kind, match=f"the guard refused: {said}"):
        containers.serve(
            host, wanted, listener, startup=60.0, ready=lambda url, container: pytest.fail("it was served")
        )
    assert not (scratch / "socket" / "server.sock").exists(), "a server has begun"
    assert left(host.engine) == []


def test_what_verifies_is_served(built: Built, host: DockerHost, scratch: Path, tmp_path: Path) -> None:
    """The same site without a fault: the refusals above are not for another reason."""
    site = Site(tmp_path / "site", source=sites.source(), policy=WITH_SOURCE)
    found: list[Any] = []

    def ready(url: str, container: str) -> None:
        found.append(container)
        os.kill(os.getpid(), signal.SIGINT)

    with relay.listen(0) as listener:
        assert containers.serve(host, order(built, site, scratch), listener, startup=60.0, ready=ready) == 0
    assert len(found) == 1
    assert left(host.engine) == []
