"""Step programs for real, on the tiny model: what they write is the same in another place, and right."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.builder.bare import Result, run_step

from intaglio.recipe.program import load

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "modelfiles" / "tiny-from-scratch"
RECIPE = tomllib.loads((TINY / "Modelfile.toml").read_text(encoding="utf-8"))["steps"]

GOLDEN_WEIGHTS = "e25ab2a783991519c69d2ef80d8ea683a9c43962a5d1c001dc22af0242e675f0"
GOLDEN_TOKENIZER = "fad8bf89277865ddf65df60715d42d3e3a2582b6044ec903a4c4433ec5ed9296"

pytestmark = [pytest.mark.slow, pytest.mark.real]


@dataclass
class Bench:
    """Runs steps below one folder, each in the environment of its toolchain."""

    root: Path
    environment: Callable[[str], str]
    count: int = 0

    checkpoint: Path | None = None
    """Given to the steps that run, while it is set."""

    def run(
        self, step: str, given: Mapping[str, object], hash_seed: str = "0", /, **inputs: Path
    ) -> tuple[Path, Result]:
        description = tomllib.loads((ROOT / "builder" / "steps" / f"{step}.toml").read_text(encoding="utf-8"))
        self.count += 1
        out = self.root / f"{self.count}-{'x' * self.count}" / step
        chain = load(step, ROOT / "builder").toolchain_for(given)
        variables = {"PYTHONHASHSEED": hash_seed}
        python = self.environment(chain)
        result = run_step(step, inputs, out, given, python=python, environment=variables, checkpoint=self.checkpoint)
        if result.status == 0:
            for pattern in description["outputs"]:
                assert list(out.glob(pattern)), pattern
            assert all(path.is_file() and not path.is_symlink() for path in out.rglob("*"))
            for path in out.rglob("*"):
                assert str(self.root).encode() not in path.read_bytes(), f"{path} knows where it was made"
        return out, result

    def made(self, step: str, given: Mapping[str, object], hash_seed: str = "0", /, **inputs: Path) -> Path:
        out, result = self.run(step, given, hash_seed, **inputs)
        assert result.status == 0, result.log
        return out


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    body = raw[8 + length :]
    return {name: (entry["dtype"], body[slice(*entry["data_offsets"])]) for name, entry in header.items()}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, environment: Callable[[str], str]) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), environment)


@pytest.fixture(scope="module")
def base(bench: Bench) -> Path:
    return bench.made("scratch", RECIPE["seed"]["with"], corpus=TINY / "data")


@pytest.fixture(scope="module")
def tuned(bench: Bench, base: Path) -> Path:
    return bench.made("finetune", RECIPE["tune"]["with"], base=base, data=TINY / "data")


@pytest.fixture(scope="module")
def adapter(bench: Bench, base: Path) -> Path:
    given = {"method": "lora", "steps": 4, "max_length": 128, "learning_rate": 5e-3, "lora_dropout": 0.1}
    return bench.made("finetune", given, base=base, data=TINY / "data")


def test_scratch_golden(base: Path) -> None:
    """The class is ``bit``: these digests hold on every machine."""
    assert digests(base)["model.safetensors"] == GOLDEN_WEIGHTS
    assert digests(base)["tokenizer.json"] == GOLDEN_TOKENIZER
    assert json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"] > 300


def test_a_full_fine_tune_is_the_same_in_another_place(bench: Bench, base: Path, tuned: Path) -> None:
    again = bench.made("finetune", RECIPE["tune"]["with"], "7", base=base, data=TINY / "data")
    assert digests(again) == digests(tuned)
    assert digests(tuned)["tokenizer.json"] == digests(base)["tokenizer.json"]
    assert digests(tuned)["model.safetensors"] != digests(base)["model.safetensors"]
    assert set(tensors(tuned / "model.safetensors")) == set(tensors(base / "model.safetensors"))


def test_the_loss_falls_and_progress_is_told(bench: Bench, base: Path) -> None:
    given = {**RECIPE["tune"]["with"], "gradient_accumulation": 2, "schedule": "constant", "weight_decay": 0.01}
    given |= {"steps": None, "epochs": 1, "precision": "bfloat16", "gradient_checkpointing": True}
    _, result = bench.run("finetune", given, base=base, data=TINY / "data")
    assert result.status == 0, result.log
    loss = [event["value"] for event in result.events if event.get("name") == "loss"]
    steps = [event["done"] for event in result.events if event["event"] == "progress"]
    assert steps == [1, 2, 3]
    assert isinstance(loss[0], float)
    assert isinstance(loss[-1], float)
    assert loss[-1] < loss[0]


def test_an_adapter_merges_into_a_dense_model(bench: Bench, base: Path, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] is None
    assert config["target_modules"] == sorted(config["target_modules"])
    merged = bench.made("merge", {}, base=base, adapter=adapter)
    assert digests(bench.made("merge", {}, "7", base=base, adapter=adapter)) == digests(merged)
    before, after = tensors(base / "model.safetensors"), tensors(merged / "model.safetensors")
    changed = {name for name in before if before[name] != after[name]}
    assert set(after) == set(before)
    assert changed == {name for name in before if "_proj" in name}


def test_a_gguf_comes_back_as_the_model_that_it_was(bench: Bench, tuned: Path) -> None:
    given = {"type": "f32", "pre_tokenizer": "gpt-2"}
    made = bench.made("convert", given, model=tuned)
    assert digests(bench.made("convert", given, "7", model=tuned)) == digests(made)
    back = bench.made("import", {"dtype": "float32"}, source=made)
    assert tensors(back / "model.safetensors") == tensors(tuned / "model.safetensors")
    for name in ("vocab", "merges"):
        written = json.loads((back / "tokenizer.json").read_text(encoding="utf-8"))["model"][name]
        assert written == json.loads((tuned / "tokenizer.json").read_text(encoding="utf-8"))["model"][name]
    config = json.loads((back / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (config["bos_token"], config["eos_token"]) == ("<|endoftext|>", "<|im_end|>")
    assert "<|im_start|>" in config["chat_template"]


def test_a_pickle_and_safetensors_become_the_same_model(bench: Bench, base: Path, tmp_path: Path) -> None:
    script = (
        "import sys, torch, shutil, json\n"
        "from safetensors.torch import load_file, save_file\n"
        "source, pickled, shards = sys.argv[1:]\n"
        "state = load_file(source + '/model.safetensors')\n"
        "half = len(state) // 2\n"
        "parts = [dict(list(state.items())[:half]), dict(list(state.items())[half:])]\n"
        "for n, part in enumerate(parts): save_file(part, f'{shards}/m-{n}.safetensors', {'a': 'b', 'format': 'pt'})\n"
        "names = {k: f'm-{n}.safetensors' for n, part in enumerate(parts) for k in part}\n"
        "json.dump({'weight_map': names}, open(shards + '/model.safetensors.index.json', 'w'))\n"
        "state['lm_head.weight'] = state['model.embed_tokens.weight']\n"
        "torch.save(state, pickled + '/pytorch_model.bin')\n"
        "for folder in (pickled, shards):\n"
        "    for name in ('config', 'tokenizer', 'tokenizer_config'): shutil.copy(f'{source}/{name}.json', folder)\n"
    )
    folders = [tmp_path / "pickled", tmp_path / "shards"]
    for folder in folders:
        folder.mkdir()
    subprocess.run([bench.environment("train-cpu"), "-c", script, str(base), *map(str, folders)], check=True)
    (folders[0] / "modeling_own.py").write_text("raise SystemExit\n", encoding="utf-8")
    made = [digests(bench.made("import", {"dtype": "keep"}, source=folder)) for folder in folders]
    assert made[0] == made[1]
    assert made[0]["model.safetensors"] == digests(base)["model.safetensors"]
    assert "modeling_own.py" not in made[0]


def test_what_does_not_belong_into_a_model_is_refused(bench: Bench, base: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    proof = tmp_path / "executed"
    script = (
        "import sys, torch, pathlib\n"
        "class Evil:\n"
        "    def __reduce__(self): return (pathlib.Path.touch, (pathlib.Path(sys.argv[2]),))\n"
        "torch.save({'a': Evil()}, sys.argv[1])\n"
    )
    target = str(evil / "pytorch_model.bin")
    subprocess.run([bench.environment("train-cpu"), "-c", script, target, str(proof)], check=True)
    (evil / "config.json").write_bytes((base / "config.json").read_bytes())
    _, result = bench.run("import", {}, source=evil)
    assert result.status == 1
    assert "cannot be read as pickle" in str(result.error["message"])
    assert not proof.exists()
    (evil / "config.json").write_text('{"text_config": {"auto_map": {"AutoModel": "own.Model"}}}', encoding="utf-8")
    _, result = bench.run("import", {}, source=evil)
    assert "names code of the model's own" in str(result.error["message"])


def test_a_run_that_diverges_fails(bench: Bench, base: Path) -> None:
    given = {**RECIPE["tune"]["with"], "learning_rate": 1e30, "schedule": "constant", "warmup_steps": 0}
    out, result = bench.run("finetune", given, base=base, data=TINY / "data")
    assert result.status == 1
    assert "finite" in str(result.error["message"])
    assert "learning rate" in str(result.error["hint"])
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "given", "message"),
    [
        ("finetune", {}, "expected exactly one of the parameters steps and epochs, found neither"),
        ("finetune", {"steps": 1, "epochs": 1}, "expected exactly one of the parameters steps and epochs, found both"),
        ("finetune", {"epochs": 0}, "expected a number above 0, found 0.0"),
        ("finetune", {"steps": 1, "max_length": 4096}, "expected at most 512, the model's own limit, found 4096"),
        ("convert", {"file": "../x.gguf"}, "expected a file name that ends in .gguf, found '../x.gguf'"),
        ("merge", {}, "adapter: expected adapter_config.json, found none"),
        ("import", {"file": "x.gguf"}, "expected the file 'x.gguf', found no GGUF file"),
        ("scratch", {"hidden_size": 100}, "expected a multiple of 64, found 100"),
    ],
)
def test_a_bad_parameter_is_told_at_once(
    bench: Bench, base: Path, step: str, given: dict[str, object], message: str
) -> None:
    slots = {"finetune": ("base", "data"), "convert": ("model",), "merge": ("base", "adapter"), "import": ("source",)}
    inputs = {slot: TINY / "data" if slot in ("data", "adapter") else base for slot in slots.get(step, ())}
    out = bench.root / f"bad-{bench.count}"
    bench.count += 1
    python = bench.environment("convert" if step == "convert" else "train-cpu")
    result = run_step(step, inputs, out, given, python=python, environment={"PYTHONPROFILEIMPORTTIME": "1"})
    assert result.status == 1
    assert message in str(result.error["message"])
    imported = {line.rpartition("|")[2].strip() for line in result.log.splitlines() if line.startswith("import time:")}
    assert "events" in imported
    assert imported.isdisjoint({"torch", "transformers", "numpy", "tokenizers"}), "told only after seconds"


def test_bad_data_is_told_with_its_line(bench: Bench, base: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": 1}\n', encoding="utf-8")
    _, result = bench.run("finetune", {"steps": 1}, base=base, data=tmp_path)
    assert result.status == 1
    assert str(result.error["message"]).startswith("x.jsonl:2: text: expected a string")


def test_the_wheel_is_the_one_that_the_lock_promises(bench: Bench, tmp_path: Path) -> None:
    lock = Path(__file__).with_name("toolchains") / "docopt" / "pylock.toml"
    package = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"][0]
    fetch = ["pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", "--dest", str(tmp_path)]
    name = f"{package['name']}=={package['version']}"
    subprocess.run([sys.executable, "-m", *fetch, name], check=True)
    promised = package["tool"]["intaglio"]["wheel"]
    for seed in ("0", "7"):
        out = bench.made("wheel", {}, seed, source=tmp_path)
        assert digests(out) == {promised["name"]: promised["sha256"]}
