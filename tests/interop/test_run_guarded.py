"""``intaglio run`` with the real guard in a real runtime image, by real podman and Docker; only the server is a toy."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests import images
from tests.build.test_runtime import BROKEN, CACHE, MUTE, fetched, make_shop
from tests.containers import engine
from tests.workshop import CLOCK, Finished, Workshop, _workshop_of_the_session

from intaglio.build import running
from intaglio.build.containers import DockerHost, Ended
from intaglio.build.engines import Engine
from intaglio.content.layout import Store
from intaglio.content.runtime_image import RuntimeImage
from intaglio.digest import Digest
from intaglio.errors import ExitCode
from intaglio.trust.statement import TEST_RESULT

__all__ = ["_workshop_of_the_session", "engine", "fetched"]
pytestmark = [pytest.mark.real, pytest.mark.containers, pytest.mark.filterwarnings("ignore::ResourceWarning")]
NAME = "tests/shop:1.0.0"
RUNTIME = f"{NAME}-llama.cpp"
BASE = "models/acme/base@1.0.0"
ENTRY = """
name = "{name}"
version = "1.0.0"
summary = "For a test."
licence = "Apache-2.0"
publisher = "Acme"
{where}
"""
RULES = f"""
[attestations]
"{TEST_RESULT}" = "evaluator"
[source]
required = true
[freshness]
max_age = "14d"
"""
MEASURE = """\
write(json.dumps({"metrics": {"size": len(read("model"))}, "samples": 1}), "results.json")
"""
COPY = '[steps.copy]\nuses = "./copy"\ninputs = { source = "data" }\n'
CHECK = '[steps.check]\nuses = "./measure"\ninputs = { model = "copy" }\n'
INPUTS = f'data = {{ uri = "{BASE}" }}'


@dataclass(frozen=True)
class Built:
    """A workshop with a trusted source, in which model and runtime image were built."""

    shop: Workshop
    answer: dict[str, Any]

    @property
    def runtime(self) -> RuntimeImage:
        data = self.shop.store.read(Digest(self.answer["runtime"]["image"]), what="runtime image")
        return RuntimeImage.parse(data, "runtime image")

    @property
    def lenient(self) -> Path:
        """A policy that names the right keys and asks no source: ``run`` passes by it what only the guard refuses."""
        return self.shop.root / "lenient.toml"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, fetched: None) -> Built:
    shop = make_shop(tmp_path_factory.mktemp("guarded") / "shop")
    root = shop.root
    entries = write_entries(shop)
    (root / "clock").mkdir()
    # What is signed by a clock that stands 20 days back is past its date, and past the policy's bound.
    (root / "clock" / "sitecustomize.py").write_text(CLOCK.format(days=-20))
    then = {"PYTHONPATH": str(root / "clock")}
    shop.run("trust", "init", root / "source", **then).ok()
    shop.run("trust", "add", root / "source", *entries, **then, XDG_CACHE_HOME=CACHE).ok()
    publish(shop, root / "source", root / "www", **then)
    shop.run("trust", "anchor", root / "www" / "metadata" / "1.root.json").ok()
    shop.run("trust", "refresh", "--url", root / "www", **then).ok()
    shutil.copytree(shop.home / "tuf", root / "long-ago")
    publish(shop, root / "source", root / "www")
    shop.run("trust", "refresh").ok()
    shutil.copy(shop.home / "policy.toml", root / "lenient.toml")
    with open(shop.home / "policy.toml", "a") as policy:
        policy.write(RULES)
    shop.step("measure", MEASURE, inputs=("model",), outputs=("results.json",))
    shop.write(COPY + CHECK, source="copy", inputs=INPUTS, more='runtime = "llama.cpp"\n')
    shop.lock()
    return Built(shop, shop.built(XDG_CACHE_HOME=CACHE))


def write_entries(shop: Workshop) -> list[Path]:
    """Write what a source has to list for the recipe, and return the files."""
    tree = tomllib.loads((shop.recipe / "Modelfile.lock").read_text())["inputs"]["data"]["tree"]
    listed = {
        "models/acme/base": f'tree = "{tree}"\norigins = ["file:data.txt"]',
        "toolchains/acme/tiny": 'source = "builder/toolchains/tiny"',
        "toolchains/acme/guard": 'source = "builder/toolchains/guard"',
        "runtimes/acme/debian-cpu": 'source = "builder/rootfs/debian-cpu"',
    }
    shutil.copy(shop.recipe / "data.txt", shop.root)
    paths = []
    for name, where in listed.items():
        paths.append(shop.root / f"{name.rpartition('/')[2]}.toml")
        paths[-1].write_text(ENTRY.format(name=name, where=where))
    return paths


def publish(shop: Workshop, source: Path, target: Path, **environment: str) -> None:
    """Sign what is staged in ``source`` with every offline key beside it, and publish it."""
    for key in sorted((source.parent / "source-keys" / "offline").glob("*.key")):
        shop.run("trust", "sign", source, "--key", key, **environment)  # refused where it signs for nothing
    shop.run("trust", "publish", source, target, **environment).ok()


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Built:
    """The same in a copy of the home, to be damaged."""
    return copy(built, tmp_path / "shop")


def copy(built: Built, place: Path) -> Built:
    shop = Workshop(place)
    for name in ("data", "recipe", "wheels"):
        shutil.copytree(built.shop.root / name, shop.root / name)
    shutil.copy(built.lenient, shop.root)
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


def refused(shop: Workshop, found: Engine, *words: str | Path, code: ExitCode, **environment: str) -> Finished:
    """Return ``intaglio run``, which must have been refused with ``code`` and left nothing behind."""
    done = shop.run("run", "--port", "0", *words, "--json", "--engine-socket", found.socket, **environment)
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


def spoil(place: Path) -> None:
    """Change one byte in the middle of a blob."""
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.unlink()
    place.write_bytes(data)


# --- the six refusals ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What somebody did, and where the model is run then."""

    home: Path
    store: Path
    model: str
    words: tuple[str | Path, ...] = ()
    """Further words of ``intaglio run``."""


def _changed(built: Built, place: Path) -> Case:
    """One byte of the model's file is another."""
    copied = copy(built, place)
    manifest = json.loads(copied.shop.store.read(Digest(copied.answer["image"]), what="image"))
    spoil(copied.shop.store.path(Digest(manifest["layers"][0]["digest"])))
    return Case(copied.shop.home, copied.shop.home / "store", NAME)


def _unattested(built: Built, place: Path) -> Case:
    """A model that nobody measured, by the same keys and of the same base."""
    build(built.shop, place, "tests/unmeasured", built.shop.home, steps=COPY)
    return Case(built.shop.home, built.shop.home / "store", "tests/unmeasured:1.0.0")


def _untrusted(built: Built, place: Path) -> Case:
    """A model that somebody released with a key of his own; all else is right."""
    home = mind(built, place / "home")
    shutil.copytree(built.shop.home / "keys", home / "keys")
    for path in (home / "keys").glob("release.*"):
        path.unlink()
    built.shop.run("key", "new", "release", INTAGLIO_HOME=str(home)).ok()
    build(built.shop, place, "tests/borrowed", home)
    return Case(built.shop.home, built.shop.home / "store", "tests/borrowed:1.0.0")


def _attacker(built: Built, place: Path) -> tuple[Built, Path]:
    """Put another model under the same name into a copy of the store: whole, by keys and a source of his own."""
    copied, home = copy(built, place / "shop"), place / "home"
    shop, theirs = copied.shop, {"INTAGLIO_HOME": str(home)}
    shop.recipe.joinpath("data.txt").write_bytes(images.Gguf(data=b"\x33" * 68 + bytes(28) + b"\x22" * 32).write())
    shop.write(COPY + CHECK, source="copy")
    shop.run("init", **theirs).ok()
    shop.recipe.joinpath("Modelfile.lock").unlink()
    shop.run("lock", **theirs).ok()
    shop.run("trust", "init", place / "source", **theirs).ok()
    shop.run("trust", "add", place / "source", *write_entries(shop), **theirs, XDG_CACHE_HOME=CACHE).ok()
    publish(shop, place / "source", place / "www", **theirs)
    shop.run("trust", "anchor", place / "www" / "metadata" / "1.root.json", **theirs).ok()
    shop.run("trust", "refresh", "--url", place / "www", **theirs).ok()
    build(shop, place, "tests/shop", home)
    assert shop.store.resolve(NAME) != Digest(built.answer["image"])
    return copied, home


def _resigned(built: Built, place: Path) -> Case:
    """The same, run by who does not know: his home is as it was."""
    copied, _ = _attacker(built, place)
    return Case(copied.shop.home, copied.shop.home / "store", NAME)


def _replaced(built: Built, place: Path) -> Case:
    """The same, with the passport under the other root as well: run by the attacker."""
    copied, home = _attacker(built, place)
    return Case(home, copied.shop.home / "store", NAME, ("--policy", copied.lenient))


def _yanked(built: Built, place: Path) -> Case:
    """The base model was taken back since, and this side knows."""
    home = mind(built, place / "home")
    for name in ("source", "source-keys"):
        shutil.copytree(built.shop.root / name, place / name)
    shop, theirs = built.shop, {"INTAGLIO_HOME": str(home)}
    shop.run("trust", "yank", place / "source", BASE, "--reason", "poisoned").ok()
    publish(shop, place / "source", place / "www")
    shop.run("trust", "refresh", "--url", place / "www", **theirs).ok()
    return Case(home, shop.home / "store", NAME)


def _stale(built: Built, place: Path) -> Case:
    """This side has not heard of its source for 20 days: its metadata is past its date, and past the bound of 14."""
    home = mind(built, place / "home")
    shutil.rmtree(home / "tuf")
    shutil.copytree(built.shop.root / "long-ago", home / "tuf")
    return Case(home, built.shop.home / "store", NAME, ("--policy", built.lenient))


def mind(built: Built, home: Path) -> Path:
    """Return a home that knows what the workshop's does, and has no keys."""
    home.mkdir(parents=True)
    for name in ("root.json", "policy.toml"):
        shutil.copy(built.shop.home / name, home)
    shutil.copytree(built.shop.home / "tuf", home / "tuf")
    return home


def build(
    shop: Workshop, place: Path, name: str, home: Path, *, steps: str = COPY + CHECK, more: str = ""
) -> dict[str, Any]:
    """Build a model called ``name`` with the keys of ``home`` into the workshop's store; return the answer."""
    recipe = place / "recipe"
    shutil.copytree(shop.recipe, recipe)
    (recipe / "Modelfile.lock").unlink(missing_ok=True)
    (recipe / "Modelfile.toml").write_text(
        f'[model]\nname = "{name}"\nversion = "1.0.0"\nlicence = "Apache-2.0"\n'
        f'[inputs]\n{INPUTS}\n{steps}[image]\nfrom = "copy"\n{more}'
    )
    words = (recipe, "--store", shop.home / "store", "--json")
    settings = {"INTAGLIO_HOME": str(home), "XDG_CACHE_HOME": CACHE}
    shop.run("lock", *words, **settings).ok()
    return shop.run("build", *words, **settings).ok().json


REFUSALS: dict[str, tuple[Callable[[Built, Path], Case], ExitCode, str, str]] = {
    "one byte of the model changed": (_changed, ExitCode.CORRUPT, "content", "model.gguf: expected sha256:"),
    "a missing attestation": (_unattested, ExitCode.UNTRUSTED, "attestations", "test-result"),
    "an untrusted key": (_untrusted, ExitCode.UNTRUSTED, "signature", ""),
    "replaced and re-signed": (_resigned, ExitCode.UNTRUSTED, "signature", ""),
    "replaced and re-signed under another root": (
        _replaced,
        ExitCode.UNTRUSTED,
        "anchor",
        "expected 1 good signatures, found 0",
    ),
    "a yanked base model": (_yanked, ExitCode.POLICY, "source", "poisoned"),
    "metadata past the bound": (_stale, ExitCode.STALE, "freshness", "the policy allows 14 d"),
}


@pytest.fixture(scope="module")
def cases(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """What was done to the models: done once for both engines, by commands of ``intaglio``."""
    made: dict[str, Case] = {}

    def case(what: str) -> Case:
        if what not in made:
            made[what] = REFUSALS[what][0](built, tmp_path_factory.mktemp("case"))
        return made[what]

    return case


def container_of(case: Case, found: Engine) -> Ended:
    """Return how the container ends that ``intaglio run`` makes: nothing but what it wrote itself is looked at."""
    host, store = DockerHost(found), Store.open(case.store)
    chosen = running.choose(store, case.model, image=RUNTIME)
    with store.scratch("run") as scratch:
        order = running.lay_out(store, chosen, scratch, case.home, datetime.now(UTC))
        (scratch / "socket").mkdir()
        (scratch / "socket").chmod(0o777)
        container = host.start(order)
        try:
            ended = host.wait(container)
            assert not (scratch / "socket" / "server.sock").exists(), "a server has begun"
        finally:
            host.remove(container)
    return ended


@pytest.mark.parametrize("what", list(REFUSALS))
def test_what_the_guard_refuses(what: str, built: Built, cases: Callable[[str], Case], engine: Engine) -> None:
    _, code, rule, said = REFUSALS[what]
    case = cases(what)
    words = (case.model, "--image", RUNTIME, "--store", case.store, *case.words)
    done = refused(built.shop, engine, *words, code=code, INTAGLIO_HOME=str(case.home))
    assert "verified the runtime image" in done.err
    ended = container_of(case, engine)
    (line,) = ended.said.splitlines()
    told = json.loads(line)
    assert told.keys() == {"verdict", "exit_code", "rule", "detail", "image", "hint"}
    assert (ended.status, told["exit_code"], told["rule"]) == (code, code, rule), line
    assert told["verdict"] == ("stale" if code == ExitCode.STALE else "refused")
    assert said in told["detail"]
    assert done.json["error"]["message"] == f"the guard refused: {rule}: {told['detail']}"


def test_what_is_stale_here_reaches_no_engine(built: Built, cases: Callable[[str], Case], engine: Engine) -> None:
    """By the home's own policy, the runtime image already is."""
    case = cases("metadata past the bound")
    words = (case.model, "--store", case.store)
    done = refused(built.shop, engine, *words, code=ExitCode.STALE, INTAGLIO_HOME=str(case.home))
    assert "the guard refused" not in done.json["error"]["message"]


# --- with the model inside -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(built: Built, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a model whose runtime image holds it, passport and all but the source's metadata."""
    place = tmp_path_factory.mktemp("embedded")
    answer = build(built.shop, place, "tests/inside", built.shop.home, more='runtime = "llama.cpp"\nembed = true\n')
    assert answer["runtime"]["embed"] is True
    return "tests/inside:1.0.0"


def test_a_model_inside_is_served_with_the_metadata_of_today(built: Built, engine: Engine, embedded: str) -> None:
    process, said = start(built.shop, engine, embedded)
    try:
        answer = ask(said["url"])
    finally:
        done = end(process)
    assert done.status == 0, done.err
    assert (answer["data"], answer["copied"]) == ([{"id": embedded}], False)


def test_a_model_inside_is_refused_with_metadata_past_the_bound(
    built: Built, cases: Callable[[str], Case], engine: Engine, embedded: str
) -> None:
    case = cases("metadata past the bound")
    words = (embedded, "--store", case.store, *case.words)
    done = refused(built.shop, engine, *words, code=ExitCode.STALE, INTAGLIO_HOME=str(case.home))
    assert done.json["error"]["message"].startswith("the guard refused: freshness: ")


# --- what goes wrong otherwise ---------------------------------------------------------------------------------------


def test_a_server_that_does_not_answer_in_time(built: Built, engine: Engine) -> None:
    words = (NAME, "--context", str(MUTE), "--startup", "5")
    done = refused(built.shop, engine, *words, code=ExitCode.STEP)
    assert done.json["error"]["message"] == "the server did not answer within 5 s"
    assert "--startup" in done.json["error"]["hint"]


def test_a_server_that_ends_by_itself(built: Built, engine: Engine) -> None:
    done = refused(built.shop, engine, NAME, "--context", str(BROKEN), code=ExitCode.STEP)
    assert done.json["error"]["message"].startswith("the server ended by itself with status 1\n")
    assert "no server today" in done.json["error"]["message"]


def test_an_engine_that_refuses(built: Built, engine: Engine) -> None:
    done = refused(built.shop, engine, NAME, "--name", "no such name!", code=ExitCode.MACHINE)
    assert done.json["error"]["message"].startswith(f"{engine.name} at {engine.socket}: ")


def test_a_port_that_is_taken(built: Built, engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = refused(built.shop, engine, NAME, "--port", port, code=ExitCode.MACHINE)
    assert f"cannot listen on 127.0.0.1:{port}: " in done.json["error"]["message"]


def test_no_engine_answers(built: Built, tmp_path: Path) -> None:
    done = built.shop.run("run", NAME, "--engine-socket", tmp_path / "none.sock").failed(ExitCode.MACHINE)
    assert f"no container engine answers: {tmp_path}/none.sock: no socket" in done.err
    assert "--engine-socket names another" in done.err


def test_the_docker_package_is_missing(built: Built, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "docker.py").write_text("raise ImportError\n")
    done = refused(built.shop, engine, NAME, code=ExitCode.MACHINE, PYTHONPATH=str(tmp_path))
    assert done.json["error"]["message"] == "Python's docker package is not installed"
    assert "pip install" in done.json["error"]["hint"]
