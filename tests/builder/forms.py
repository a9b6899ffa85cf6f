"""Make the quantised forms of a model that the table of servers speaks of: rounded to nearest, good for loading only.

    PYTHON tests/builder/forms.py MODEL OUT FORM…

Run with the Python of an environment that has the toolchain ``serve-transformers``. Each form becomes ``OUT/FORM``.
"""

from __future__ import annotations

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
FORMS = (*SCHEMES, *BITS_AND_BYTES)


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


def main() -> int:
    """Make what the command line names."""
    source, out, *forms = sys.argv[1:]
    for form in forms:
        target = Path(out) / form
        (bits_and_bytes if form in BITS_AND_BYTES else compress)(Path(source), target, form)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(source) / name, target / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
