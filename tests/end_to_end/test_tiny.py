"""The smallest real recipe, all the way: toolchains, three steps, signatures, verification, export, a served answer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.program import snapshot
from tests.attacks.registries import distribution
from tests.workshop import PREAMBLE

from intaglio.content.layout import Store
from intaglio.digest import Digest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).with_name("intaglio")
RECIPE = "modelfiles/tiny-from-scratch"
TAG = "examples/tiny-from-scratch:1.0.0"
pytestmark = [pytest.mark.slow, pytest.mark.real]


@dataclass(frozen=True)
class Home:
    """A home, and commands run in it from the checkout."""

    path: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """What the commands' environment has beside this process's."""

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "INTAGLIO_HOME": str(self.path), **self.variables}

    @property
    def store(self) -> Store:
        return Store.open(self.path / "store")

    def run(self, *words: str | Path, expect: int = 0) -> Any:
        """Run a command that must end with ``expect``; return what it answered under ``--json``."""
        argv = [str(PROGRAM), *map(str, words), "--json"]
        done = subprocess.run(argv, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        return subprocess.Popen(
            [str(PROGRAM), *words],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with keys, in which the recipe has been built."""
    made = Home(tmp_path_factory.mktemp("tiny") / "home")
    made.run("init")
    made.run("build", RECIPE)
    yield made
    shutil.rmtree(made.path, ignore_errors=True)


@pytest.fixture(scope="session")
def image(home: Home) -> Digest:
    return home.store.resolve(TAG)


@pytest.fixture
def model(home: Home, image: Digest) -> Path:
    """The blob of the model file."""
    manifest = json.loads(home.store.read(image, what="image"))
    return home.store.path(Digest(manifest["layers"][0]["digest"]))


@contextlib.contextmanager
def flipped(path: Path) -> Iterator[None]:
    """Let one bit of a file be wrong while the body runs."""
    flip(path)
    try:
        yield
    finally:
        flip(path)


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file, as its owner."""
    path.chmod(0o644)
    with open(path, "r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))


def test_it_is_built_from_pinned_inputs_once(home: Home, image: Digest) -> None:
    again = home.run("build", RECIPE, "--offline")
    assert [(step["name"], step["status"]) for step in again["steps"]] == [
        ("seed", "cached"),
        ("tune", "cached"),
        ("gguf", "cached"),
        ("image", "cached"),
    ]
    assert (again["image"], again["tag"]) == (str(image), TAG)


def test_it_verifies_and_refuses_a_flipped_bit(home: Home, image: Digest, model: Path) -> None:
    assert home.run("verify", TAG)["verdict"] == "verified"
    with flipped(model):
        answer = home.run("verify", TAG, expect=21)
        assert answer["verdict"] == "refused"
        assert "content" in [rule["rule"] for rule in answer["rules"] if rule["result"] == "fail"]
        home.run("serve", TAG, "--port", "0", expect=21)
    assert home.run("verify", str(image))["verdict"] == "verified"


def test_an_exported_layout_is_refused_after_a_flipped_bit(home: Home, image: Digest, tmp_path: Path) -> None:
    home.run("export", TAG, tmp_path / "layout")
    assert home.run("verify", tmp_path / "layout")["image"] == str(image)
    for path in sorted((tmp_path / "layout" / "blobs" / "sha256").iterdir()):
        if path.read_bytes() != b"{}":
            with flipped(path):
                assert status_of(home, tmp_path / "layout") in (21, 22, 23, 25), path.name
    assert home.run("verify", tmp_path / "layout")["verdict"] == "verified"


def status_of(home: Home, layout: Path) -> int:
    """Return how verifying the layout ends."""
    argv = [str(PROGRAM), "verify", str(layout)]
    return subprocess.run(argv, env=home.environment, capture_output=True, check=False).returncode


def test_an_exported_folder_must_stay_as_it_is(home: Home, tmp_path: Path) -> None:
    changes: dict[str, Callable[[Path], object]] = {
        "flipped": lambda folder: flip(next(folder.glob("*.gguf"))),
        "renamed": lambda folder: next(folder.glob("*.gguf")).rename(folder / "other.gguf"),
        "added": lambda folder: (folder / "README.md").write_text("hello"),
        "missing": lambda folder: next(folder.glob("*.gguf")).unlink(),
        "unsigned": lambda folder: (folder / "model.sig").write_text("{}"),
    }
    for name, change in changes.items():
        folder = tmp_path / name
        home.run("export", TAG, "--files", folder)
        assert home.run("verify", TAG, "--files", folder)["verdict"] == "verified"
        change(folder)
        argv = [str(PROGRAM), "verify", TAG, "--files", str(folder)]
        done = subprocess.run(argv, env=home.environment, capture_output=True, check=False)
        assert done.returncode in (21, 22), f"{name}: {done}"


def ask(url: str, question: dict[str, object] | None = None) -> Any:
    data = json.dumps(question).encode() if question else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return json.loads(answer.read())


QUESTION = {
    "model": TAG,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 8,
    "temperature": 0,
}


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Interrupt a process that serves when the body is through; it has to end by itself."""
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def ready(process: subprocess.Popen[str]) -> str:
    """Wait until a process serves, and return where."""
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    assert said["name"] == TAG
    assert said["url"].startswith("http://127.0.0.1:")
    return str(said["url"])


def answer(url: str) -> str:
    """Return what the model says to the question."""
    said = ask(f"{url}/chat/completions", QUESTION)
    assert said["usage"]["completion_tokens"] >= 1
    text = said["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def test_it_is_served_from_the_sandbox(home: Home) -> None:
    with ended(home.start("serve", TAG, "--port", "0", "--json")) as process:
        url = ready(process)
        assert [one["id"] for one in ask(f"{url}/models")["data"]] == [TAG]
        assert answer(url) == answer(url)
    with pytest.raises(OSError):
        ask(f"{url}/models")


# --- the store's blob is rewritten while the model is served ----------------------------------------------------------

SLOW_START = """
import pathlib, time
pathlib.Path("/work/started").touch()
while not pathlib.Path("/work/go-on").exists():
    time.sleep(0.05)
"""
"""Put before the server's own lines: it is at work in the sandbox, and has not opened the model yet."""


@contextlib.contextmanager
def rewritten(path: Path) -> Iterator[None]:
    """Let a file hold other bytes, written into it as its owner, while the body runs."""
    data = path.read_bytes()

    def write(content: bytes) -> None:
        path.chmod(0o644)
        with open(path, "r+b") as stream:
            stream.write(content)

    write(bytes(len(data)))
    try:
        yield
    finally:
        write(data)


def processes_below(parent: int) -> Iterator[Path]:
    """Yield the folder in ``/proc`` of each process that ``parent`` has begun, and of those that they have."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
    found = {parent}
    for _ in parents:
        found |= {process for process, above in parents.items() if above in found}
    yield from (Path("/proc", str(process)) for process in found - {parent})


def test_bytes_rewritten_between_verification_and_load_are_not_served(home: Home, model: Path, tmp_path: Path) -> None:
    """llama.cpp over the real store: the blob is rewritten when the server has begun, and before it opens the model."""
    data = snapshot(tmp_path / "data")
    program = data / "builder" / "servers" / "llama-cpp.py"
    head, begin, rest = program.read_text().partition("\nimport os\n")
    program.write_text(f"{head}\n{SLOW_START}{begin}{rest}")
    (tmp_path / "tmp").mkdir()
    slow = replace(home, variables={"INTAGLIO_DATA": str(data), "TMPDIR": str(tmp_path / "tmp")})
    size, digest = model.stat().st_size, model.name
    with ended(home.start("serve", TAG, "--port", "0", "--json")) as process:
        expected = answer(ready(process))
    with ended(slow.start("serve", TAG, "--port", "0", "--json")) as process:
        deadline = time.monotonic() + 120
        while not (started := list((tmp_path / "tmp").glob("intaglio-serve-*/work/started"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with rewritten(model):
            home.run("verify", TAG, expect=21)
            started[0].with_name("go-on").touch()
            url = ready(process)
            assert answer(url) == expected, "loaded after the blob was rewritten"
        with rewritten(model):
            assert answer(url) == expected, "rewritten after it was loaded"
        held = set()
        for place in processes_below(process.pid):
            with contextlib.suppress(FileNotFoundError):  # a process that has ended
                assert str(model.parent) not in (place / "maps").read_text()
                for link in (place / "fd").iterdir():
                    opened = str(link.readlink())
                    assert not opened.startswith(str(model.parent))
                    if "memfd:" in opened and link.stat().st_size == size:
                        held.add(hashlib.sha256(link.read_bytes()).hexdigest())
        assert held == {digest}, "what the server has open are the verified bytes, in memory"


# --- what is built again, and what is not -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workbench(home: Home, image: Digest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A copy of the home: what is built there adds no claim about the image to the other tests' store."""
    place = tmp_path_factory.mktemp("workbench") / "home"
    shutil.copytree(home.path / "store", place / "store", symlinks=True, copy_function=link_or_copy)
    shutil.copytree(home.path / "keys", place / "keys")
    shutil.copy(home.path / "policy.toml", place)
    return Home(place)


def link_or_copy(source: str, target: str) -> None:
    """Link a blob or a file of an environment; copy what is written to in place."""
    (shutil.copy if Path(source).parent.name == "store" else os.link)(source, target)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The recipes and step programs, to be changed."""
    return snapshot(tmp_path / "data")


def built(home: Home, data: Path, *words: str | Path) -> dict[str, str]:
    """Build the recipe below ``data`` and return the status of each step."""
    changed = replace(home, variables={"INTAGLIO_DATA": str(data)})
    made = changed.run("build", data / RECIPE, "--tag", "changed:1", *words)
    return {step["name"]: step["status"] for step in made["steps"]}


def changed_line(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_a_comment_and_the_stores_place_and_the_engines_version_rebuild_nothing(
    workbench: Home, image: Digest, data: Path, tmp_path: Path
) -> None:
    changed_line(data / RECIPE / "Modelfile.toml", "[steps.tune]\n", "# A comment.\n[steps.tune]\n")
    assert set(built(workbench, data).values()) == {"cached"}
    shutil.copytree(workbench.path / "store", tmp_path / "elsewhere", symlinks=True, copy_function=link_or_copy)
    assert set(built(workbench, data, "--store", tmp_path / "elsewhere").values()) == {"cached"}
    code = "import sys, intaglio; intaglio.__version__ = '99.0'; from intaglio.cli import main; main()"
    argv = [sys.executable, "-c", code, "build", str(data / RECIPE), "--tag", "changed:1", "--json"]
    done = subprocess.run(argv, env=workbench.environment, capture_output=True, text=True, check=True)
    made = json.loads(done.stdout)
    assert {step["status"] for step in made["steps"]} == {"cached"}
    assert made["image"] == str(image)


def test_the_learning_rate_rebuilds_tune_and_what_follows_and_explain_names_it(
    workbench: Home, image: Digest, data: Path
) -> None:
    assert set(built(workbench, data).values()) == {"cached"}, "what `explain` compares with"
    changed_line(data / RECIPE / "Modelfile.toml", "learning_rate = 2e-3", "learning_rate = 1e-3")
    said = workbench.run("explain", data / RECIPE, "tune")
    assert said["status"] == "build"
    assert said["differences"] == [{"path": "parameters.learning_rate", "old": 0.002, "new": 0.001}]
    assert built(workbench, data) == {"seed": "cached", "tune": "built", "gguf": "built", "image": "built"}
    assert workbench.store.tags()["changed:1"].digest != image


@pytest.mark.parametrize(("program", "step"), [("finetune", "tune"), ("scratch", "seed")])
def test_a_line_of_a_step_program_runs_its_users_and_nothing_below_when_the_bytes_are_the_same(
    workbench: Home, image: Digest, data: Path, program: str, step: str
) -> None:
    assert set(built(workbench, data).values()) == {"cached"}, "what `explain` compares with"
    path = data / "builder" / "steps" / f"{program}.py"
    changed_line(path, "import json\n", "import json  # standard library\n")
    elsewhere = replace(workbench, variables={"INTAGLIO_DATA": str(data)})
    said = elsewhere.run("explain", data / RECIPE, step)
    assert [one["path"] for one in said["differences"]] == [f"program ({program})"]
    assert built(workbench, data) == {
        name: "built" if name == step else "cached" for name in ("seed", "tune", "gguf", "image")
    }
    assert workbench.store.tags()["changed:1"].digest == image


# --- pickles ----------------------------------------------------------------------------------------------------------

PICKLE = """
import shutil, torch
from safetensors.torch import load_file
class Evil:
    def __reduce__(self):
        return exec, (given["code"], {})
state = load_file(IN["source"] + "/model.safetensors")
if given["code"]:
    state = {"first": Evil(), **state}
torch.save(state, OUT / "pytorch_model.bin")
for path in Path(IN["source"]).iterdir():
    if path.name != "model.safetensors":
        shutil.copyfile(path, OUT / path.name)
"""
DESCRIPTION = """
step = "pickle"
summary = "Write a model as PyTorch once did, perhaps with code in it."
toolchain = "train-cpu"
reproducible = "bit"
outputs = ["*"]
memory = "4GiB"
processes = 256
time = "5m"
[inputs.source]
summary = "A model."
[parameters.code]
type = "string"
default = ""
summary = "What is run when it is unpickled."
"""
IMPORTS = """
[model]
name = "tests/imported"
version = "1.0.0"
licence = "Apache-2.0"
[inputs.capitals]
uri = "file:capitals.jsonl"
[steps.seed]
uses = "scratch"
inputs = {{ corpus = "capitals" }}
with = {{ seed = 7 }}
[steps.pickled]
uses = "./pickle"
inputs = {{ source = "seed" }}
with = {{ code = {code} }}
[steps.imported]
uses = "import"
inputs = {{ source = "{source}" }}
[image]
from = "imported"
"""
PAYLOAD = """
import os, socket, sys
print("the payload ran", file=sys.stderr, flush=True)
for name in {places}:
    try:
        os.makedirs(os.path.dirname(name), exist_ok=True)
        open(name, "w").write("the payload was here")
    except OSError:
        pass
for address in (("127.0.0.1", {port}), ("1.1.1.1", 53)):
    try:
        socket.create_connection(address, 1).sendall(b"the payload was here")
        print("the payload has a network", file=sys.stderr, flush=True)
    except OSError:
        pass
"""


@pytest.fixture
def imports(tmp_path: Path) -> Callable[..., Path]:
    """Make a recipe that imports what ``source`` names, with ``code`` in the pickle."""
    folder = tmp_path / "imports"
    folder.mkdir()
    shutil.copy(ROOT / RECIPE / "data" / "capitals.jsonl", folder)
    (folder / "pickle.py").write_text(PREAMBLE + PICKLE)
    (folder / "pickle.toml").write_text(DESCRIPTION)

    def write(source: str, code: str = "") -> Path:
        (folder / "Modelfile.toml").write_text(IMPORTS.format(source=source, code=json.dumps(code)))
        return folder

    return write


def test_a_pickle_and_safetensors_are_imported_as_the_same_model(workbench: Home, imports: Callable[..., Path]) -> None:
    made = {}
    for source in ("seed", "pickled"):
        recipe = imports(source)
        workbench.run("lock", recipe)
        made[source] = workbench.run("build", recipe)
    outputs = {source: {step["name"]: step["output"] for step in one["steps"]} for source, one in made.items()}
    assert outputs["seed"]["imported"] == outputs["pickled"]["imported"]
    assert outputs["pickled"]["pickled"] != outputs["pickled"]["imported"]
    assert made["seed"]["image"] == made["pickled"]["image"]
    assert workbench.run("verify", "tests/imported:1.0.0")["verdict"] == "verified"
    files = {file.path for file in workbench.store.tree(Digest(outputs["pickled"]["imported"])).files}
    assert not {path for path in files if path.endswith((".bin", ".py"))}


@pytest.mark.parametrize("reader", ["shipped", "credulous"])
def test_code_in_a_pickle_leaves_no_trace_on_the_host(
    workbench: Home, imports: Callable[..., Path], data: Path, tmp_path: Path, reader: str
) -> None:
    """The shipped step refuses to run it; a step that would run it does so in the sandbox."""
    if reader == "credulous":
        changed_line(data / "builder" / "steps" / "import.py", "weights_only=True", "weights_only=False")
    places = [
        tmp_path / "trace",
        workbench.path / "trace",
        Path(sys.prefix, "trace"),
        Path("/var/tmp/payload-trace"),
    ]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        code = PAYLOAD.format(places=list(map(str, places)), port=listener.getsockname()[1])
        recipe = imports("pickled", code)
        there = replace(workbench, variables={"INTAGLIO_DATA": str(data)})
        there.run("lock", recipe)
        said = there.run("build", recipe, "--tag", "evil:1", expect=30)["error"]
        with pytest.raises(TimeoutError):
            listener.accept()
    assert [place for place in places if place.exists()] == []
    assert "evil:1" not in workbench.store.tags()
    refusal = {"shipped": "cannot be read as pickle", "credulous": "expected a tensor, found NoneType"}
    assert refusal[reader] in said["message"]
    last = max((workbench.path / "store" / "logs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    logs = "".join(path.read_text(errors="replace") for path in last.parent.glob(f"{last.stem}*"))
    assert ("the payload ran" in logs) == (reader == "credulous")
    assert "has a network" not in logs


# --- what stock programs make of what was pushed ----------------------------------------------------------------------


def test_stock_programs_accept_what_was_pushed(
    home: Home, image: Digest, tmp_path: Path, oras: Path, crane: Path, skopeo: Path, cosign: Path, model_signing: Path
) -> None:
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(program: Path, *words: str | Path, expect: int = 0) -> str:
        argv = [str(program), *map(str, words)]
        done = subprocess.run(argv, env=clean, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (expect == 0), done.stderr
        return done.stdout

    key, stranger = tmp_path / "release.pub", tmp_path / "builder.pub"
    for path in (key, stranger):
        path.write_text(home.run("key", "show", path.stem, "--public")["public"])
    with distribution.running(tmp_path / "registry") as registry:
        reference = registry.reference(TAG)
        assert home.run("push", TAG, reference, "--plain-http")["image"] == str(image)
        manifest = home.store.read(image, what="image")
        assert run(crane, "manifest", reference).encode() == manifest
        assert run(crane, "digest", reference).strip() == str(image)
        copy = ("--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false")
        run(skopeo, *copy, f"docker://{reference}", f"oci:{tmp_path / 'layout'}:1")
        index = json.loads((tmp_path / "layout" / "index.json").read_text())
        assert [entry["digest"] for entry in index["manifests"]] == [str(image)]
        for form in ((), ("--new-bundle-format",)):
            check = ("verify", "--insecure-ignore-tlog", "--allow-http-registry", *form, reference)
            run(cosign, *check, "--key", key)
            run(cosign, *check, "--key", stranger, expect=1)
        run(oras, "pull", "--plain-http", reference, "--output", tmp_path / "model")
        files = {layer["annotations"]["org.opencontainers.image.title"] for layer in json.loads(manifest)["layers"]}
        pulled = {path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*")}
        assert pulled == files
        found = json.loads(run(oras, "discover", "--plain-http", "--format", "json", reference))
        (signature,) = (
            entry["digest"]
            for entry in found.get("referrers") or found["manifests"]
            if "model_signing" in entry.get("annotations", {}).get("dev.sigstore.bundle.predicateType", "")
        )
        repository = reference.rpartition(":")[0]
        signed = json.loads(run(oras, "manifest", "fetch", "--plain-http", f"{repository}@{signature}"))
        bundle = f"{repository}@{signed['layers'][0]['digest']}"
        run(oras, "blob", "fetch", "--plain-http", bundle, "--output", tmp_path / "model.sig")
    verify = ("verify", "key", "--signature", tmp_path / "model.sig", "--public_key", key, tmp_path / "model")
    run(model_signing, *verify)
    flip(tmp_path / "model" / next(iter(files)))
    run(model_signing, *verify, expect=1)


# --- interruption -----------------------------------------------------------------------------------------------------


def test_killed_at_random_moments_the_next_build_gives_the_right_image(
    home: Home, image: Digest, tmp_path: Path
) -> None:
    """The whole process group, three times while it builds, from a store that holds nothing but the toolchains."""
    fresh = Home(tmp_path / "home")
    place = Path("store", "environments")
    shutil.copytree(home.path / place, fresh.path / place, copy_function=os.link, symlinks=True)
    (fresh.path / "store" / "blobs").mkdir()
    shutil.copytree(home.path / "keys", fresh.path / "keys")
    shutil.copy(home.path / "policy.toml", fresh.path)
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    for _ in range(3):
        process = fresh.start("build", RECIPE)
        time.sleep(moments.uniform(0.2, 8))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert fresh.run("store", "verify")["damaged"] == [], f"seed {seed}"
    assert fresh.run("build", RECIPE)["image"] == str(image), f"seed {seed}"
    assert fresh.run("verify", TAG)["verdict"] == "verified"
    assert fresh.run("store", "verify")["damaged"] == []
    shutil.rmtree(fresh.path, ignore_errors=True)


def test_two_builds_with_the_same_keys_keep_the_same_bytes(home: Home, image: Digest, tmp_path: Path) -> None:
    """From an empty store elsewhere, with another hash seed and user name: the same claims and signatures, too."""
    fresh = Home(tmp_path / "another place" / "home")
    place = Path("store", "environments")
    shutil.copytree(home.path / place, fresh.path / place, copy_function=os.link, symlinks=True)
    (fresh.path / "store" / "blobs").mkdir()
    shutil.copytree(home.path / "keys", fresh.path / "keys")
    shutil.copy(home.path / "policy.toml", fresh.path)
    argv = [str(PROGRAM), "build", RECIPE, "--json"]
    environment = {**fresh.environment, "PYTHONHASHSEED": "12345", "USER": "somebody", "LANG": "C"}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image"] == str(image)
    referrers = {one.digest for one in home.store.referrers(image)}
    assert len(referrers) == 5
    assert {one.digest for one in fresh.store.referrers(image)} == referrers
    shutil.rmtree(fresh.path, ignore_errors=True)
