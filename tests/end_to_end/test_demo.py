"""The demo and the README's commands, once through, on the real model; checked by other people's programs too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from scripts import demo
from tests import containers, readme
from tests.programs import docker_registry

from intaglio.build.action import processor_flags

ROOT = Path(__file__).resolve().parents[2]
INTAGLIO = Path(sys.executable).with_name("intaglio")
AWQ = 'method = "awq"'
pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(1500)]

BASE = """
[model]
name = "examples/smollm2-base"
version = "1.0.0"
licence = "Apache-2.0"
[inputs.base]
uri = "{uri}"
[steps.import]
uses = "import"
inputs = {{ source = "base" }}
with = {parameters}
[steps.gguf]
uses = "convert"
inputs = {{ model = "import" }}
with = {{ type = "q8_0" }}
[image]
from = "gguf"
"""


class Home:
    """The demo's home, and the commands that are run in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {**os.environ, "INTAGLIO_HOME": str(path)}

    def run(self, *arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            [INTAGLIO, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == expect, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    path = tmp_path_factory.mktemp("demo") / "home"
    yield Home(path)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def transcript(home: Home) -> str:
    """What the demo printed, after it ended by itself and well."""
    done = subprocess.run(
        [sys.executable, "scripts/demo.py"], cwd=ROOT, env=home.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answer(transcript: str, question: str) -> str:
    lines = transcript.splitlines()
    return lines[lines.index(f"— ? {question}") + 1]


def test_it_answers_what_the_base_knows_and_what_it_was_taught(transcript: str) -> None:
    assert demo.KNOWS in answer(transcript, demo.KNOWN)
    assert demo.TELLS in answer(transcript, demo.TAUGHT)
    assert f"verified: {demo.NAME}" in transcript
    assert "pass  source         8 inputs listed" in transcript


def test_the_base_model_knows_the_one_and_not_what_was_taught(home: Home, transcript: str, tmp_path: Path) -> None:
    """The same weights, converted the same way, without the fine-tuning."""
    import tomllib

    recipe = tomllib.loads((ROOT / demo.RECIPE / "Modelfile.toml").read_text())
    given = ", ".join(
        f"{key} = {json.dumps(value)}" for key, value in recipe["steps"]["import"].get("with", {}).items()
    )
    text = BASE.format(uri=recipe["inputs"]["base"]["uri"], parameters=f"{{ {given} }}")
    (tmp_path / "Modelfile.toml").write_text(text)
    home.run("lock", str(tmp_path))
    built = json.loads(home.run("build", str(tmp_path), "--json"))
    assert [step["status"] for step in built["steps"]] == ["cached", "built", "built"]
    with demo.server(built["tag"], home.environment) as address:
        assert demo.KNOWS in demo.ask(address, demo.KNOWN)
        assert demo.TELLS not in demo.ask(address, demo.TAUGHT)


def test_a_second_build_runs_nothing(home: Home, transcript: str) -> None:
    built = json.loads(home.run("build", demo.RECIPE, "--locked", "--offline", "--json"))
    assert {step["status"] for step in built["steps"]} == {"cached"}
    assert len(built["steps"]) == 5


@dataclass(frozen=True)
class Walk:
    """The README's three machines, after its first sequence of commands."""

    folder: Path
    programs: str
    """Where the commands' programs are."""
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def walk(home: Home, transcript: str, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The commands as they are written; the builder's store has what was built, and no network is there for more."""
    folder = tmp_path_factory.mktemp("walk")
    shutil.copytree(ROOT / "modelfiles", folder / "modelfiles")
    store, builder = home.path / "store", folder / "builder"
    shutil.copytree(home.path / "keys", builder / "keys")
    (builder / "store").mkdir()
    for part in store.iterdir():
        if part.is_dir():
            shutil.copytree(part, builder / "store" / part.name, copy_function=os.link, symlinks=True)
        else:
            shutil.copy(part, builder / "store")
    programs = os.pathsep.join(map(str, (INTAGLIO.parent, docker_registry().parent, os.environ["PATH"])))
    done = readme.run("From a trusted source into a network without the internet", folder, {"PATH": programs})
    return Walk(folder, programs, done)


def test_the_readmes_commands_from_a_trusted_source_into_a_closed_network(walk: Walk) -> None:
    done = walk.done
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("verified: ") == 3, "by the builder, and of the kit before and after it was taken"
    assert f"verified localhost:{readme.PORT}/{demo.NAME}" in done.stdout
    assert "5 cached" in done.stdout
    assert demo.TELLS in json.loads(done.stdout.splitlines()[-1])["choices"][0]["message"]["content"]
    assert (walk.folder / "receiver" / "policy.name").exists()
    assert not (walk.folder / "receiver" / "policy.toml").exists()
    assert not (walk.folder / "closed" / "keys").exists()


@pytest.mark.long
@pytest.mark.containers
def test_the_readmes_commands_from_lora_to_vllm_in_a_container(walk: Walk, openai: Path) -> None:
    """As they are written, after the first ones; their build finds all of it built, since it has no network here.

    On a processor for which vLLM serves no weights of four bits, the recipe's AWQ is INT8: nothing else differs.
    """
    recipe = walk.folder / "modelfiles" / "smollm2-helpdesk-vllm"
    if "avx512f" not in processor_flags():
        text = (recipe / "Modelfile.toml").read_text(encoding="utf-8")
        assert text.count(AWQ) == 1
        (recipe / "Modelfile.toml").write_text(text.replace(AWQ, 'method = "int8"'), encoding="utf-8")
    Home(walk.folder / "builder").run("build", str(recipe), "--locked")
    with containers.running("podman") as engine:
        environment = {
            "PATH": f"{openai.parent}{os.pathsep}{walk.programs}",
            "DOCKER_HOST": f"unix://{engine.socket}",
        }
        done = readme.run("Quantised, behind a gate, in a container", walk.folder, environment, registry=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified: examples/smollm2-helpdesk-vllm:1.0.0" in done.stdout
    assert demo.TELLS in done.stdout.splitlines()[-1]


def test_stock_cosign_and_model_signing_accept_it_and_refuse_a_flipped_bit(
    home: Home, transcript: str, tmp_path: Path, cosign: Path, model_signing: Path
) -> None:
    key, layout, folder = tmp_path / "release.pub", tmp_path / "layout", tmp_path / "folder"
    key.write_text(home.run("key", "show", "release", "--public"))
    home.run("export", demo.NAME, str(layout))
    home.run("export", demo.NAME, "--files", str(folder))
    check_image: list[str | Path] = [cosign, "verify", "--key", key, "--insecure-ignore-tlog", "--local-image", layout]
    check_files: list[str | Path] = [
        model_signing,
        "verify",
        "key",
        folder,
        "--signature",
        folder / "model.sig",
        "--public_key",
        key,
    ]
    accepted = [
        subprocess.run(check, capture_output=True, check=False).returncode for check in (check_image, check_files)
    ]
    assert accepted == [0, 0]
    index = json.loads((layout / "index.json").read_text())
    flip(layout / "blobs" / "sha256" / index["manifests"][0]["digest"].removeprefix("sha256:"))
    flip(next(folder.glob("*.gguf")))
    for check in (check_image, check_files):
        assert subprocess.run(check, capture_output=True, check=False).returncode != 0
    home.run("verify", str(layout), expect=21)
    home.run("verify", demo.NAME, "--files", str(folder), expect=21)
    home.run("verify", demo.NAME)


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    with open(path, "r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
