"""Quantizing for real, on the tiny model: the same bytes in another place, what they say of themselves, and refusals.

Every method of llm-compressor and bitsandbytes is here, and of llama.cpp's K-quants two: the others are its own affair.
"""

from __future__ import annotations

import json
import struct
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.builder.bare import Result, run_step
from tests.builder.test_steps import digests, tensors

from intaglio.recipe import program

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "modelfiles" / "tiny-from-scratch"
STEP = program.load("quantize", ROOT / "builder")

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.long]


@dataclass
class Bench:
    """Quantizes the tiny model, each time in another folder."""

    root: Path
    environment: Callable[[str], str]
    model: Path
    count: int = 0

    def run(self, model: Path | None = None, data: Path | None = None, seed: str = "0", **given: object) -> Result:
        """Run the step; its output stands in :attr:`out`."""
        self.count += 1
        python = self.environment(STEP.toolchain_for(given))
        inputs = {"model": model or self.model, **({"calibration": data} if data else {})}
        return run_step("quantize", inputs, self.out, given, python=python, environment={"PYTHONHASHSEED": seed})

    @property
    def out(self) -> Path:
        return self.root / f"{self.count}-{'x' * self.count}" / "out"

    def made(self, data: Path | None = None, seed: str = "0", *, model: Path | None = None, **given: object) -> Path:
        result = self.run(model, data, seed, **given)
        assert result.status == 0, result.log
        assert all(str(self.root).encode() not in path.read_bytes() for path in self.out.iterdir())
        return self.out


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, environment: Callable[[str], str]) -> Bench:
    root = tmp_path_factory.mktemp("quantize")
    given = tomllib.loads((TINY / "Modelfile.toml").read_text(encoding="utf-8"))["steps"]["seed"]["with"]
    made = run_step("scratch", {"corpus": TINY / "data"}, root / "base", given, python=environment("train-cpu"))
    assert made.status == 0, made.log
    return Bench(root, environment, root / "base")


@pytest.fixture(scope="module")
def wide(bench: Bench) -> Path:
    """The model as a GGUF file of bfloat16."""
    given = {"type": "bf16", "pre_tokenizer": "gpt-2"}
    out = bench.root / "wide"
    made = run_step("convert", {"model": bench.model}, out, given, python=bench.environment("convert"))
    assert made.status == 0, made.log
    return out


def how(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    return found


def test_awq_is_the_same_in_another_place(bench: Bench) -> None:
    given: dict[str, Any] = {"method": "awq", "group_size": 64, "samples": 4}
    first = bench.made(TINY / "data", **given)
    assert digests(bench.made(TINY / "data", "7", **given)) == digests(first)
    found = tensors(first / "model.safetensors")
    packed = found["model.layers.0.mlp.up_proj.weight_packed"]
    assert packed[0] == "I32"
    assert len(packed[1]) == 704 * 256 // 2  # four bits a weight
    assert found["model.layers.0.mlp.up_proj.weight_scale"][0] == "BF16"
    assert found["model.norm.weight"][0] == "BF16"
    assert how(first)["format"] == "pack-quantized"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert digests(first)[name] == digests(bench.model)[name]


@pytest.mark.parametrize(
    ("method", "given", "tensor", "kind", "size", "form"),
    [
        ("gptq", {"group_size": 64}, "weight_packed", "I32", 704 * 256 // 2, "pack-quantized"),
        ("int8", {}, "weight", "I8", 704 * 256, "int-quantized"),
    ],
)
def test_what_is_calibrated_is_the_same_in_another_place(
    bench: Bench, method: str, given: dict[str, Any], tensor: str, kind: str, size: int, form: str
) -> None:
    given = {"method": method, "samples": 4, **given}
    first = bench.made(TINY / "data", **given)
    assert digests(bench.made(TINY / "data", "7", **given)) == digests(first)
    dtype, data = tensors(first / "model.safetensors")[f"model.layers.0.mlp.up_proj.{tensor}"]
    assert (dtype, len(data)) == (kind, size)
    assert how(first)["format"] == form


@pytest.mark.parametrize(("method", "file_type"), [("q4_k_m", 15), ("q6_k", 18)])
def test_a_k_quant_is_the_same_in_another_place(bench: Bench, wide: Path, method: str, file_type: int) -> None:
    first = bench.made(model=wide, method=method)
    assert digests(bench.made(None, "7", model=wide, method=method)) == digests(first)
    (path,), (before,) = first.iterdir(), wide.iterdir()
    data = path.read_bytes()
    assert data.startswith(b"GGUF")
    assert len(data) < before.stat().st_size
    key = b"general.file_type" + struct.pack("<I", 4)  # of type uint32
    assert data.split(key)[1][:4] == struct.pack("<I", file_type)


def test_fp8_needs_no_data_and_keeps_the_rest(bench: Bench) -> None:
    found = tensors(bench.made(method="fp8", dtype="float16") / "model.safetensors")
    assert found["model.layers.0.mlp.up_proj.weight"][0] == "F8_E4M3"
    assert found["model.embed_tokens.weight"][0] == "F16"
    assert how(bench.out)["format"] == "float-quantized"
    config = json.loads((bench.out / "config.json").read_text(encoding="utf-8"))
    assert (config["dtype"], config["tie_word_embeddings"]) == ("float16", True)


def test_nf4_is_the_same_in_another_place(bench: Bench) -> None:
    first = bench.made(method="nf4")
    assert digests(bench.made(None, "7", method="nf4")) == digests(first)
    found = tensors(first / "model.safetensors")
    assert len(found["model.layers.0.mlp.up_proj.weight"][1]) == 704 * 256 // 2
    (table,) = (entry for name, entry in found.items() if name == "model.layers.0.mlp.up_proj.weight.quant_map")
    assert (table[0], len(table[1])) == ("F32", 16 * 4), "what is scaled back by it must not be rounded"
    assert how(first)["quant_method"] == "bitsandbytes"


def test_rows_that_cannot_be_cut_into_groups(bench: Bench) -> None:
    error = bench.run(data=TINY / "data", method="gptq", group_size=96).error
    assert "expected rows of a multiple of group_size = 96, found 704" in str(error["message"])
    assert error["hint"] == "Set group_size = 64."  # 704 is no multiple of 128
    names = ["re:.*"]
    assert "calibration" in str(bench.run(method="gptq", group_size=96, ignore=names).error["message"])


@pytest.mark.parametrize("method", ["awq", "gptq", "int8"])
def test_calibration_is_missed(bench: Bench, method: str) -> None:
    """By the check of the recipe, and by the step when it is run bare."""
    assert [slot.name for slot in STEP.missing(["model"], {"method": method})] == ["calibration"]
    error = bench.run(method=method, group_size=64).error
    assert "expected the input calibration, found none" in str(error["message"])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("q4_k_m", "model: expected one GGUF file, found config.json, "),
        ("nf4", "model: expected config.json, found model.gguf"),
    ],
)
def test_the_wrong_format(bench: Bench, tmp_path: Path, method: str, message: str) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    error = bench.run(bench.model if method == "q4_k_m" else tmp_path, method=method).error
    assert str(error["message"]).startswith(message)
    assert "convert" in str(error["hint"]) or "import" in str(error["hint"])


def test_what_is_quantized_is_not_quantized_again(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {}}', encoding="utf-8")
    header = b"{}"
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "not quantized" in str(bench.run(tmp_path, method="nf4").error["message"])


def test_toolchain_and_promise_follow_from_the_method() -> None:
    chosen = [STEP.toolchain_for({"method": method}) for method in ("awq", "int8", "nf4", "q2_k")]
    assert chosen == ["quantize", "quantize", "train-cpu", "quantize-gguf"]
    promised = [STEP.class_for({"method": method}) for method in ("awq", "gptq", "int8", "nf4", "fp8", "q4_k_m")]
    assert promised == ["platform"] * 4 + ["bit"] * 2
    for method in STEP.parameters["method"].choices:
        assert (STEP.toolchain_for({"method": method}) == "quantize-gguf") == ("_k" in str(method)), method
