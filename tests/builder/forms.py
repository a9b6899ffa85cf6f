"""Make the quantised forms of a model that the table of servers speaks of: rounded to nearest, good for loading only.

    PYTHON tests/builder/forms.py MODEL OUT FORM…

Run with the Python of an environment that has the toolchain ``serve-transformers``. Each form becomes ``OUT/FORM``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

SCHEMES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str]] = {
    "int4": (
        {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
        None,
        "pack-quantized",
    ),
    "int8-weights": (
        {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        None,
        "pack-quantized",
    ),
    "int8": (
        {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
        "int-quantized",
    ),
    "fp8": (
        {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
        {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True},
        "float-quantized",
    ),
    "fp8-static": (
        {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"},
        {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False},
        "float-quantized",
    ),
}
"""Weights, activations and format of compressed-tensors for each form that it writes."""
BITS_AND_BYTES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": "bfloat16"},
    "bnb-int8": {"load_in_8bit": True},
}
GROUP = 32
PACKED: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False},
}
"""The configurations of AutoAWQ and AutoGPTQ, whose files are written here, without either."""
FORMS = (*SCHEMES, *BITS_AND_BYTES, *PACKED)


def compress(source: Path, target: Path, form: str) -> None:
    """Write ``form`` of the model with compressed-tensors."""
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    weights, activations, kind = SCHEMES[form]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations, format=kind)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format=kind)
    apply_quantization_config(model, config)
    for module in model.modules():
        if not hasattr(module, "weight_scale"):
            continue
        scale, weight = module.weight_scale, module.weight.data
        blocks = weight.reshape(*scale.shape, -1) if scale.dim() > 1 else weight.reshape(1, -1)
        low, high = blocks.amin(-1), blocks.amax(-1)
        found, zero = calculate_qparams(low, high, module.quantization_scheme.weights)
        scale.data.copy_(found.reshape(scale.shape))
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(zero.reshape(module.weight_zero_point.shape))
        if hasattr(module, "input_scale"):
            module.input_scale.data.fill_(0.05)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(target)
    compressor.update_config(target)


def bits_and_bytes(source: Path, target: Path, form: str) -> None:
    """Write ``form`` of the model with bitsandbytes."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    given = BitsAndBytesConfig(**BITS_AND_BYTES[form])
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=given, device_map="cpu")
    model.save_pretrained(target)


def pack(source: Path, target: Path, form: str) -> None:
    """Write ``form`` of the model as AutoAWQ or AutoGPTQ lay it out: eight numbers of 4 bits in one of 32."""
    import torch
    from safetensors.torch import load_file, save_file

    places = (0, 2, 4, 6, 1, 3, 5, 7) if form == "awq" else range(8)

    def join(numbers: Any, dimension: int) -> Any:
        parts = numbers.unflatten(dimension, (-1, 8)).unbind(dimension + 1)
        joined = sum(parts[place].long() << (4 * at) for at, place in enumerate(places))
        return torch.where(joined >= 1 << 31, joined - (1 << 32), joined).int().contiguous()

    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor.half()
            continue
        groups = tensor.float().t().unflatten(0, (-1, GROUP))
        scales = groups.abs().amax(1).clamp(min=1e-4) / 7
        numbers = (groups / scales.unsqueeze(1)).round().clamp(-8, 7).flatten(0, 1).int() + 8
        stem = name.removesuffix("weight")
        tensors[f"{stem}qweight"] = join(numbers, 1 if form == "awq" else 0)
        # GPTQ's first format counts zero points from one.
        tensors[f"{stem}qzeros"] = join(torch.full(scales.shape, 8 if form == "awq" else 7, dtype=torch.int32), 1)
        tensors[f"{stem}scales"] = scales.half().contiguous()
        if form == "gptq":
            tensors[f"{stem}g_idx"] = torch.arange(len(numbers), dtype=torch.int32) // GROUP
    target.mkdir()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config |= {"dtype": "float16", "quantization_config": PACKED[form]}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")


def main() -> int:
    """Make what the command line names."""
    source, out, *forms = sys.argv[1:]
    for form in forms:
        target = Path(out) / form
        make = bits_and_bytes if form in BITS_AND_BYTES else pack if form in PACKED else compress
        make(Path(source), target, form)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(source) / name, target / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
