"""What can serve what: forms read from configurations, and the choice of a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from intaglio.build import servers
from intaglio.build.servers import Form
from intaglio.errors import CorruptContent, MachineError, RecipeError, UsageError
from intaglio.recipe.modelfile import RUNTIMES

MANUAL = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
FILES = ("config.json", "model.safetensors", "tokenizer.json")


def group(bits: int, kind: str = "int", *, dynamic: bool | None = None, **more: Any) -> dict[str, Any]:
    """A group of compressed-tensors; ``dynamic`` says that activations are quantised, and how."""
    inputs = None if dynamic is None else {"num_bits": bits, "type": kind, "dynamic": dynamic}
    return {"weights": {"num_bits": bits, "type": kind}, "input_activations": inputs, "targets": ["Linear"], **more}


def compressed(*groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    named = {f"group_{number}": one for number, one in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "quantization_status": "compressed", "config_groups": named, **more}


def bits_and_bytes(**more: Any) -> dict[str, Any]:
    return {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False, **more}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (None, "none"),
        (compressed(group(4)), "int4"),
        (compressed(group(4), group(4)), "int4"),
        (compressed(group(8)), "int8-weights"),
        (compressed(group(8, dynamic=True)), "int8"),
        (compressed(group(8, dynamic=False)), "int8"),
        (compressed(group(8, "float", dynamic=True), sparsity_config={}), "fp8"),
        (compressed(group(8, "float", dynamic=False)), "fp8-static"),
        (bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "nf4"),
        (bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"), "fp4"),
        (bits_and_bytes(load_in_8bit=True), "bnb-int8"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        # and what there is no word for
        (compressed(group(4), group(8)), "other"),
        (compressed(group(3)), "other"),
        (compressed(group(4, "float")), "other"),
        (compressed(group(8, "float")), "other"),
        (compressed(group(4, dynamic=True)), "other"),
        (compressed(group(8, dynamic=True), kv_cache_scheme={"num_bits": 8}), "other"),
        (compressed(group(8, dynamic=True, output_activations={"num_bits": 8})), "other"),
        (compressed(group(4), quantization_status="frozen"), "other"),
        (compressed(group(4), sparsity_config={"format": "sparse-24-bitmask"}), "other"),
        (compressed(), "other"),
        (compressed(group_0="?"), "other"),
        ({**compressed(), "config_groups": {"group_0": "?"}}, "other"),
        ({**compressed(), "config_groups": []}, "other"),
        (bits_and_bytes(), "other"),
        (bits_and_bytes(load_in_4bit="yes", bnb_4bit_quant_type="nf4"), "other"),
        (bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type=["nf4"]), "other"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "other"),
        ({"quant_method": ["awq"]}, "other"),
        ({}, "other"),
        ("nf4", "other"),
    ],
)
def test_the_form_is_read_from_the_configuration(quantization: object, expected: str) -> None:
    config = {"model_type": "llama"} | ({} if quantization is None else {"quantization_config": quantization})
    found = servers.form_of(FILES, json.dumps(config).encode())
    assert (found.format, found.quantization) == ("safetensors", expected)
    assert bool(found.found) == (expected == "other")
    assert expected in servers.QUANTIZATIONS


@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        (("model.gguf",), None, "gguf"),
        (("model.gguf", "config.json"), b"{}", "gguf"),
        (("adapter_config.json", "adapter_model.safetensors"), None, "adapter"),
        (("model.safetensors",), None, "other"),
        (("config.json", "model.bin"), b"{}", "other"),
        ((), None, "other"),
    ],
)
def test_the_format_is_told_by_the_files(files: tuple[str, ...], config: bytes | None, expected: str) -> None:
    assert servers.form_of(files, config).format == expected


@pytest.mark.parametrize("config", [b"", b"[]", b"{", b'{"a": 1, "a": 2}', b"\xff"])
def test_a_configuration_that_is_none_is_refused(config: bytes) -> None:
    with pytest.raises(CorruptContent, match=r"config\.json"):
        servers.form_of(FILES, config)


def test_without_a_wish_the_first_that_can_serves() -> None:
    assert servers.choose(Form("gguf"), None).name == "llama-cpp"
    assert servers.choose(Form("safetensors"), None).name == "transformers"
    assert servers.choose(Form("safetensors", "gptq"), None).name == "vllm"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_of_a_recipe_is_a_server(runtime: str) -> None:
    form = Form("gguf" if runtime == "llama.cpp" else "safetensors")
    assert servers.choose(form, runtime).name == servers.program_name(runtime)


def test_a_server_that_cannot_is_refused_and_the_others_are_named() -> None:
    with pytest.raises(UsageError, match="vllm does not serve safetensors quantised as nf4") as caught:
        servers.choose(Form("safetensors", "nf4"), "vllm")
    assert caught.value.hint == "it is served by transformers (--runtime)"
    with pytest.raises(UsageError, match=r"llama\.cpp does not serve safetensors$") as caught:
        servers.choose(Form("safetensors"), "llama.cpp")
    assert "transformers, vllm" in str(caught.value.hint)


def test_what_nothing_serves_is_refused() -> None:
    with pytest.raises(UsageError, match="no server here serves adapter") as caught:
        servers.choose(Form("adapter"), None)
    assert "merge" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"no server here serves safetensors quantised as other \(hqq\)"):
        servers.choose(Form("safetensors", "other", "hqq"), None)
    with pytest.raises(UsageError, match="no server here serves other"):
        servers.choose(Form("other", found="bin"), None)


def test_an_unknown_server_is_a_mistake() -> None:
    with pytest.raises(RecipeError, match="did you mean vllm"):
        servers.choose(Form("safetensors"), "vlm")


OLD, NEW = frozenset({"avx2"}), frozenset({"avx2", "avx512f"})


def test_a_server_that_needs_another_processor_is_not_taken() -> None:
    assert servers.choose(Form("safetensors", "gptq"), "vllm", processor=NEW).name == "vllm"
    assert servers.choose(Form("safetensors", "gptq"), "vllm").name == "vllm", "a recipe may be served elsewhere"
    with pytest.raises(MachineError, match=r"vllm serves safetensors quantised as int4 on .* avx512f") as caught:
        servers.choose(Form("safetensors", "int4"), "vllm", processor=OLD)
    assert caught.value.hint == "here it is served by transformers (--runtime)"
    with pytest.raises(MachineError, match="avx512f") as caught:
        servers.choose(Form("safetensors", "gptq"), None, processor=OLD)
    assert caught.value.hint == "serve it on another machine"
    assert servers.choose(Form("safetensors", "int4"), None, processor=OLD).name == "transformers"
    with pytest.raises(UsageError, match="does not serve"):
        servers.choose(Form("safetensors", "nf4"), "vllm", processor=OLD)


def test_servers_speak_of_known_quantisations() -> None:
    for program in servers.programs():
        assert set(program.quantizations) <= servers.QUANTIZATIONS.keys() - {"other"}, program.name
        for words, _ in program.needs:
            assert words <= set(program.quantizations), program.name


def test_the_manual_has_the_table_and_the_words() -> None:
    assert servers.table() in MANUAL
    for word, meaning in servers.QUANTIZATIONS.items():
        assert f"| `{word}` | {meaning} |" in MANUAL
