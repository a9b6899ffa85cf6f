"""Quantizing for real, on the tiny model: the same bytes in another place, what they say of themselves, and refusals.

Every method of llm-compressor, bitsandbytes and AutoAWQ is here, and of llama.cpp's K-quants two: the others are its
own affair.
"""

from __future__ import annotations

import json
import struct
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.builder.bare import Result, run_step
from tests.builder.test_steps import digests, tensors

from intaglio.build import servers
from intaglio.recipe import program

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "modelfiles" / "tiny-from-scratch"
STEP = program.load("quantize", ROOT / "builder")
NEAR = 0.13
"""How far weights of four bits may be from what they were, as a share of their length: 0.09 is usual."""

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.long, pytest.mark.toolchains("train-cpu", "quantize")]


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


@pytest.mark.toolchains("convert", "quantize-gguf")
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


@pytest.mark.toolchains("quantize-autoawq")
def test_autoawq_is_the_same_in_another_place(bench: Bench) -> None:
    given: dict[str, Any] = {"method": "autoawq", "group_size": 64, "samples": 4, "max_length": 32}
    first = bench.made(TINY / "data", **given)
    assert digests(bench.made(TINY / "data", "7", **given)) == digests(first)
    found = tensors(first / "model.safetensors")
    layer = "model.layers.0.mlp.up_proj"
    assert (found[f"{layer}.qweight"][0], len(found[f"{layer}.qweight"][1])) == ("I32", 704 * 256 // 2)
    assert (found[f"{layer}.qzeros"][0], len(found[f"{layer}.qzeros"][1])) == ("I32", 704 * 256 // 64 // 2)
    assert (found[f"{layer}.scales"][0], len(found[f"{layer}.scales"][1])) == ("F16", 704 * 256 // 64 * 2)
    assert found["model.norm.weight"][0] == "BF16"
    assert "lm_head.weight" not in found, "it is tied to the embedding"
    assert how(first) == {
        "bits": 4,
        "group_size": 64,
        "modules_to_not_convert": None,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }
    form = servers.form_of([path.name for path in first.iterdir()], (first / "config.json").read_bytes())
    assert form == servers.Form("safetensors", "awq")


@pytest.mark.toolchains("quantize-autoawq")
def test_autoawq_puts_back_what_it_tried_scales_on(bench: Bench, tmp_path: Path) -> None:
    """Its own copy of the weights is none on a CPU: without ours, what comes out is scaled by a try."""
    python = bench.environment("quantize-autoawq")

    def lopsided(*words: str | Path) -> str:
        program = [python, str(Path(__file__).with_name("lopsided.py")), *map(str, words)]
        return subprocess.run(program, capture_output=True, text=True, check=True).stdout

    lopsided("make", bench.model, tmp_path / "model")
    given: dict[str, Any] = {"method": "autoawq", "group_size": 64, "samples": 4, "max_length": 32}
    result = bench.run(tmp_path / "model", TINY / "data", **given)
    assert result.status == 0, result.log
    assert float(lopsided("distance", tmp_path / "model", bench.out)) < NEAR


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


@pytest.mark.parametrize("method", ["awq", "gptq", "int8", "autoawq"])
def test_calibration_is_missed(bench: Bench, method: str) -> None:
    """By the check of the recipe, and by the step when it is run bare."""
    assert [slot.name for slot in STEP.missing(["model"], {"method": method})] == ["calibration"]
    error = bench.run(method=method, group_size=64).error
    assert "expected the input calibration, found none" in str(error["message"])


@pytest.mark.toolchains("quantize-gguf")
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
    chosen = [STEP.toolchain_for({"method": method}) for method in ("awq", "int8", "nf4", "autoawq", "q2_k")]
    assert chosen == ["quantize", "quantize", "train-cpu", "quantize-autoawq", "quantize-gguf"]
    promised = [
        STEP.class_for({"method": method}) for method in ("awq", "gptq", "int8", "nf4", "autoawq", "fp8", "q4_k_m")
    ]
    assert promised == ["platform"] * 5 + ["bit"] * 2
    for method in STEP.parameters["method"].choices:
        assert (STEP.toolchain_for({"method": method}) == "quantize-gguf") == ("_k" in str(method)), method
