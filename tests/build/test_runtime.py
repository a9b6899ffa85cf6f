"""Runtime images: the same bytes from anywhere, readable by other tools, and refusing what does not verify.

The image is the real thing, the Debian packages and the guard's wheels too; only its server is a toy.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests import images, programs, workshop
from tests.attacks.registries import client
from tests.attacks.registries.fake import Registry
from tests.workshop import Workshop

from intaglio.build import rootfs, runtime, toolchain, wheels
from intaglio.content.layout import Store
from intaglio.content.runtime_image import RuntimeImage
from intaglio.content.staging import Staging
from intaglio.digest import Digest
from intaglio.errors import ExitCode, LockError
from intaglio.policy import document
from intaglio.progress import Silent
from intaglio.verify import verify_image

pytestmark = pytest.mark.real
ROOT = Path(__file__).resolve().parents[2]
CACHE = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
MUTE, BROKEN = 1, 2
"""Tokens of context with which the toy server never answers, and with which it ends by itself."""
SERVER = (
    f"""
import http.server, json, signal, socketserver, sys, os
request = json.load(open(sys.argv[1]))
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process of a container has no default
if request["context"] == {MUTE}: signal.pause()
if request["context"] == {BROKEN}: sys.exit("no server today")
"""
    + """
data = {name: open(path, "rb").read() for name, path in request["model"]["files"].items()}
linked = [os.path.islink(os.path.join(request["model"]["folder"], name)) for name in data]
answer = json.dumps({"data": [{"id": request["name"]}], "sizes": {n: len(d) for n, d in data.items()},
                     "copied": any(linked), "uid": os.getuid()}).encode()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", str(len(answer))); self.end_headers()
        self.wfile.write(answer)
    def address_string(self): return "x"
class Server(socketserver.UnixStreamServer):
    def get_request(self):
        connection, _ = super().get_request()
        return connection, ("local", 0)
print("serving", flush=True)
Server(request["socket"], Handler).serve_forever()
"""
)
DESCRIPTION = """server = "llama-cpp"
summary = "A toy."
toolchain = "tiny"
rootfs = "debian-cpu"
formats = ["gguf"]
memory = "256MiB"
processes = 64
"""


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Bring packages and wheels into the user's cache, where builds without a network find them."""
    store = Store.open(tmp_path_factory.mktemp("fetched") / "store")
    rootfs.fetch(rootfs.load(ROOT / "builder" / "rootfs" / "debian-cpu"), store, offline=False, progress=Silent())
    wheels.fetch(toolchain.load(ROOT / "builder" / "toolchains" / "guard"), store, offline=False, progress=Silent())


def make_shop(root: Path, *, embed: bool = False, model: bytes | None = None, toy: bool = True) -> Workshop:
    """A workshop whose recipe makes a model and a runtime image of it, with a toy for a server or with llama.cpp."""
    shop = workshop.furnish(root)
    builder = ROOT / "builder"
    shutil.copytree(builder / "rootfs", shop.builder / "rootfs")
    shutil.copytree(builder / "toolchains" / "guard", shop.builder / "toolchains" / "guard")
    if toy:
        (shop.builder / "servers" / "llama-cpp.toml").write_text(DESCRIPTION)
        (shop.builder / "servers" / "llama-cpp.py").write_text(SERVER)
    else:
        for path in ("servers/llama-cpp.toml", "servers/llama-cpp.py", "lib/serving.py"):
            shutil.copy(builder / path, shop.builder / path)
        chain = Path("toolchains", "serve-llama-cpp")
        shutil.copytree(builder / chain, shop.builder / chain)
    shop.recipe.joinpath("data.txt").write_bytes(model or images.Gguf().write())
    shop.step("copy", 'write(read("source"), "model.gguf")')
    more = f'runtime = "llama.cpp"\nembed = {str(embed).lower()}\n'
    shop.write('[steps.copy]\nuses = "./copy"\ninputs = { source = "data" }\n', source="copy", more=more)
    shop.lock()
    return shop


@dataclass(frozen=True)
class Built:
    """A workshop in which everything was built."""

    shop: Workshop
    answer: dict[str, Any]

    @property
    def runtime(self) -> Digest:
        return Digest(self.answer["runtime"]["image"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, fetched: None) -> Built:
    shop = make_shop(tmp_path_factory.mktemp("runtime") / "shop")
    return Built(shop, shop.built(XDG_CACHE_HOME=CACHE))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, built: Built) -> Path:
    """The image unpacked, as an engine would, with model and passport beside it."""
    place = tmp_path_factory.mktemp("site")
    store = built.shop.store
    image = RuntimeImage.parse(store.read(built.runtime, what="image"), "image")
    unpack(store, image, place / "root")
    built.shop.run("export", built.answer["tag"], "--files", place / "model", "--passport", place / "passport").ok()
    open_the_way(place)
    return place


def open_the_way(place: Path) -> None:
    """Let another user come to ``place``."""
    for path in (place, *place.parents):
        if path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)


def unpack(store: Store, image: RuntimeImage, target: Path) -> None:
    target.mkdir()
    for file in image.files:
        with tarfile.open(store.path(file.digest)) as archive:
            archive.extractall(target, filter=lambda member, _: member)  # noqa: S202 - our own


def settings(store: Store, image: Digest) -> dict[str, Any]:
    parsed = RuntimeImage.parse(store.read(image, what="image"), "image")
    config: dict[str, Any] = parsed.check_config(store.read(parsed.config.digest, what="config"), "config")["config"]
    return config


def box(site: Path, run: Path, config: dict[str, Any], *, mounts: bool = True) -> list[str]:
    """Return a command that runs the image as an engine would: read-only, no network, its own user where we may."""
    user = config["User"].split(":")
    # Whose files the image's are, its own user is not: root hands over first, so that nothing needs to be copied.
    argv = ["setpriv", "--reuid", user[0], "--regid", user[1], "--clear-groups"] if os.geteuid() == 0 else []
    argv += ["bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--clearenv"]
    argv += ["--uid", user[0], "--gid", user[1]]
    argv += ["--ro-bind", str(site / "root"), "/", "--proc", "/proc", "--dev", "/dev"]
    argv += ["--perms", "1777", "--tmpfs", "/tmp", "--bind", str(run), "/run/intaglio"]
    if mounts:
        argv += ["--ro-bind", str(site / "model"), "/model", "--ro-bind", str(site / "passport"), "/passport"]
    for setting in config["Env"]:
        argv += ["--setenv", *setting.split("=", 1)]
    return [*argv, "--", *config["Entrypoint"]]


@contextmanager
def running(argv: list[str], run: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Run a container until it answers; yield what the guard said, and the answer."""
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    try:
        yield json.loads(process.stderr.readline()), ask(run / "server.sock")
    finally:
        process.kill()
        process.communicate()


def ask(place: Path) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(place))
                client.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
                data = b""
                while chunk := client.recv(65536):
                    data += chunk
            found: dict[str, Any] = json.loads(data.partition(b"\r\n\r\n")[2])
            return found
        except OSError:
            assert time.monotonic() < deadline, "the server never answered"
            time.sleep(0.05)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    place = tmp_path / "run"
    place.mkdir()
    open_the_way(tmp_path)
    place.chmod(0o777)
    return place


def test_what_build_says(built: Built) -> None:
    assert built.answer["runtime"] == {
        "name": "llama.cpp", "image": str(built.runtime), "tag": "tests/shop:1.0.0-llama.cpp", "embed": False,
    }  # fmt: skip
    assert built.shop.store.resolve("tests/shop:1.0.0-llama.cpp") == built.runtime


def test_the_same_image_from_another_folder_and_another_recipe(built: Built, tmp_path: Path) -> None:
    shop = make_shop(tmp_path / "elsewhere")
    shop.edit("Modelfile.toml", 'name = "tests/shop"', 'name = "tests/other"')
    umask = os.umask(0o077)
    try:
        answer = shop.built("--tag", "x:1", XDG_CACHE_HOME=CACHE)
    finally:
        os.umask(umask)
    assert answer["image"] != built.answer["image"]
    assert answer["runtime"]["image"] == str(built.runtime), "a runtime image does not depend on the model"
    assert answer["runtime"]["tag"] == "x:1-llama.cpp"


def test_what_this_machine_compiled_before_is_not_in_it(built: Built, tmp_path: Path) -> None:
    shop = make_shop(tmp_path / "used")
    compiled = list((shop.home / "store" / "environments" / "wheels").rglob("*.pyc"))
    for path in compiled:
        data = path.read_bytes()
        path.parent.chmod(0o755)
        path.unlink()  # it is shared with other workshops
        path.write_bytes(data + b"this machine's")
    assert compiled
    assert shop.built(XDG_CACHE_HOME=CACHE)["runtime"]["image"] == str(built.runtime)


def test_a_second_build_makes_nothing(built: Built) -> None:
    before = {path.name for path in (built.shop.home / "store" / "blobs" / "sha256").iterdir()}
    answer = built.shop.built("--offline")
    assert answer["runtime"] == built.answer["runtime"]
    assert {path.name for path in (built.shop.home / "store" / "blobs" / "sha256").iterdir()} == before


def test_its_parts_are_pinned(built: Built) -> None:
    text = (built.shop.recipe / "Modelfile.lock").read_text()
    for name, digest in runtime_parts(built.shop).items():
        assert f'[toolchains.{name}]\ntree = "{digest}"' in text


def runtime_parts(shop: Workshop) -> dict[str, Digest]:
    chain = toolchain.load(shop.builder / "toolchains" / "tiny")
    guard = toolchain.load(shop.builder / "toolchains" / "guard")
    root = rootfs.load(shop.builder / "rootfs" / "debian-cpu")
    return {"tiny": chain.tree().digest, "guard": guard.tree().digest, "debian-cpu": root.tree().digest}


def test_it_verifies_by_rules_of_its_own(built: Built) -> None:
    report = built.shop.run("verify", "tests/shop:1.0.0-llama.cpp", "--json").ok().json
    rules = {rule["rule"]: rule["result"] for rule in report["rules"]}
    assert rules == {
        "content": "pass", "manifest": "pass", "signature": "pass", "cosign": "pass", "provenance": "pass",
        "lineage": "pass", "sandbox": "pass", "source": "skip", "freshness": "skip",
    }  # fmt: skip


def test_its_provenance_names_what_it_is_made_of(built: Built) -> None:
    report = built.shop.run("verify", "tests/shop:1.0.0-llama.cpp", "--json").ok().json
    detail = next(rule["detail"] for rule in report["rules"] if rule["rule"] == "provenance")
    for name in (
        "program:anchor",
        "program:intaglio-guard",
        "program:llama-cpp",
        "toolchain:debian-cpu",
        "toolchain:guard",
    ):
        assert name in detail


def test_a_damaged_layer_is_refused(built: Built, tmp_path: Path) -> None:
    built.shop.run("export", "tests/shop:1.0.0-llama.cpp", tmp_path / "oci").ok()
    layout = tmp_path / "oci"
    manifest = json.loads((layout / "blobs" / "sha256" / built.runtime.hex).read_bytes())
    place = layout / "blobs" / "sha256" / manifest["layers"][3]["digest"].removeprefix("sha256:")
    data = bytearray(place.read_bytes())
    data[700] ^= 1
    place.write_bytes(data)
    assert built.shop.run("verify", layout).status == ExitCode.CORRUPT


def test_other_tools_read_it(built: Built, tmp_path: Path) -> None:
    built.shop.run("export", "tests/shop:1.0.0-llama.cpp", tmp_path / "oci").ok()
    inspect = [str(programs.skopeo()), "inspect", f"oci:{tmp_path}/oci:tests/shop:1.0.0-llama.cpp"]
    said = json.loads(subprocess.run(inspect, capture_output=True, check=True).stdout)
    assert said["Digest"] == str(built.runtime)
    assert said["Labels"]["dev.intaglio.runtime"] == "llama.cpp"
    assert said["Architecture"] == "amd64"


def test_no_owner_time_or_name_of_this_machine_is_in_it(built: Built) -> None:
    store = built.shop.store
    image = RuntimeImage.parse(store.read(built.runtime, what="image"), "image")
    for file in image.files:
        with tarfile.open(store.path(file.digest)) as archive:
            names = []
            for member in archive:
                assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 0)
                assert not member.mode & 0o6000
                names.append(member.name.split("/"))
            assert names == sorted(names)


def test_its_layers_do_not_overlap(built: Built) -> None:
    store = built.shop.store
    image = RuntimeImage.parse(store.read(built.runtime, what="image"), "image")
    seen: set[str] = set()
    for file in image.files:
        with tarfile.open(store.path(file.digest)) as archive:
            files = {member.name for member in archive if not member.isdir()}
        assert not files & seen
        seen |= files
    assert {
        "opt/intaglio/bin/intaglio-guard",
        "env/bin/python",
        "etc/intaglio/policy.toml",
        "usr/bin/python3.11",
    } <= seen
    assert not [name for name in seen if name.startswith("opt/intaglio/") and "/intaglio/cli" in name]


def test_it_verifies_then_serves(built: Built, site: Path, run_folder: Path) -> None:
    config = settings(built.shop.store, built.runtime)
    with running(box(site, run_folder, config), run_folder) as (said, answer):
        assert (said["verdict"], said["image"]) == ("verified", built.answer["image"])
        assert answer["data"] == [{"id": "tests/shop:1.0.0"}]
        assert answer["sizes"] == {"model.gguf": len(images.Gguf().write())}
        assert answer["uid"] == 65532
        if os.geteuid() == 0:  # the model is another user's: nothing is copied
            assert not answer["copied"]
            assert (said["copied"], said["served"]) == (0, len(images.Gguf().write()))


def test_it_refuses_a_changed_model(built: Built, site: Path, run_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "site"
    other.mkdir()
    (other / "root").symlink_to(site / "root")
    shutil.copytree(site / "passport", other / "passport")
    shutil.copytree(site / "model", other / "model")
    place = other / "model" / "model.gguf"
    place.write_bytes(place.read_bytes()[:-1] + b"\0")
    open_the_way(other)
    config = settings(built.shop.store, built.runtime)
    argv = box(other, run_folder, config)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == ExitCode.CORRUPT, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["rule"] == "content"
    assert not (run_folder / "server.sock").exists()


def test_an_embedded_model(built: Built, run_folder: Path, tmp_path: Path) -> None:
    first, second = (make_shop(tmp_path / name, embed=True) for name in ("one", "two"))
    answers = [shop.built(XDG_CACHE_HOME=CACHE) for shop in (first, second)]
    assert answers[0]["runtime"] == answers[1]["runtime"]
    assert answers[0]["runtime"]["embed"] is True
    image = Digest(answers[0]["runtime"]["image"])
    assert image != built.runtime
    first.run("verify", "tests/shop:1.0.0-llama.cpp").ok()
    config = settings(first.store, image)
    assert config["Labels"]["dev.intaglio.model"] == answers[0]["image"]
    unpack(first.store, RuntimeImage.parse(first.store.read(image, what="image"), "image"), tmp_path / "root")
    open_the_way(tmp_path)
    with running(box(tmp_path, run_folder, config, mounts=False), run_folder) as (said, answer):
        assert said["image"] == answers[0]["image"]
        assert answer["data"] == [{"id": "tests/shop:1.0.0"}]


def test_the_server_says_what_its_root_file_system_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = make_shop(tmp_path / "shop")
    description = shop.builder / "servers" / "llama-cpp.toml"
    description.write_text(DESCRIPTION.replace("debian-cpu", "another"))
    monkeypatch.setenv("INTAGLIO_DATA", str(shop.data))
    with pytest.raises(LockError, match=r"another/rootfs\.toml"):
        runtime.parts("llama.cpp")
    (shop.builder / "rootfs" / "debian-cpu").rename(shop.builder / "rootfs" / "another")
    assert "another" in runtime.parts("llama.cpp").toolchains()


def test_names_are_those_of_the_recipe_language() -> None:
    from intaglio.recipe.modelfile import RUNTIMES

    assert [name.replace(".", "-") for name in RUNTIMES] == ["llama-cpp", "transformers", "vllm"]
    assert runtime.anchor_of(Path("/nowhere")) == {}


def test_a_registry_takes_it_and_gives_it_back(built: Built, tmp_path: Path) -> None:
    store, other = built.shop.store, Store.open(tmp_path / "other")
    rules = document.load(built.shop.home / "policy.toml")

    def admit(staged: Staging, image: Digest) -> None:
        verify_image(staged, image, rules).require()

    with Registry() as registry:
        up = client.push(store, built.runtime, registry.reference())
        assert client.pull(registry.reference(), other, admit=admit).image == up.image
    assert verify_image(other, built.runtime, rules).verdict == "verified"


def test_a_kit_carries_it(built: Built, tmp_path: Path) -> None:
    built.shop.run("kit", "export", "tests/shop:1.0.0-llama.cpp", "-o", tmp_path / "runtime.kit").ok()
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(built.shop.home / "policy.toml", home / "policy.toml")
    said = built.shop.run("kit", "import", tmp_path / "runtime.kit", "--json", INTAGLIO_HOME=str(home)).ok().json
    assert said["image"] == str(built.runtime)
    assert said["tag"].startswith("runtimes/llama.cpp:")
