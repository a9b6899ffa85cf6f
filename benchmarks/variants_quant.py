"""The rows of ``quantize`` in the table of :mod:`benchmarks.variants`."""

from __future__ import annotations

from benchmarks.variants import Variant


def _quantize(name: str, method: str, settings: str = "", *, calibrated: bool = False) -> Variant:
    """Return a row for a method that takes safetensors."""
    data = ', calibration = "data"' if calibrated else ""
    step = f'[steps.quantize]\nuses = "quantize"\ninputs = {{ model = "base"{data} }}\n'
    return Variant(name, f'{step}with = {{ method = "{method}"{settings} }}\n', "quantize", "quantize")


def _k_quant(name: str, method: str) -> Variant:
    """Return a row for one of llama.cpp's K-quants, made from a GGUF file of bfloat16."""
    wide = '[steps.wide]\nuses = "convert"\ninputs = { model = "base" }\nwith = { type = "bf16" }\n'
    step = '[steps.quantize]\nuses = "quantize"\ninputs = { model = "wide" }\n'
    return Variant(name, f'{wide}{step}with = {{ method = "{method}" }}\n', "quantize", "quantize")


_GROUPS = ", group_size = 64, samples = 32, max_length = 128"
_Q8_0 = '[steps.gguf]\nuses = "convert"\ninputs = { model = "base" }\nwith = { type = "q8_0" }\n'

QUANTIZATION = (
    _quantize("AWQ", "awq", _GROUPS, calibrated=True),
    _quantize("AutoAWQ", "autoawq", ", group_size = 64, samples = 8, max_length = 64", calibrated=True),
    _quantize("GPTQ", "gptq", _GROUPS, calibrated=True),
    _quantize("FP8-dynamic", "fp8"),
    _quantize("INT8", "int8", ", samples = 32, max_length = 128", calibrated=True),
    _quantize("NF4", "nf4"),
    _k_quant("Q4_K_M", "q4_k_m"),
    _k_quant("Q6_K", "q6_k"),
    Variant("Q8_0", _Q8_0, "gguf", "gguf"),
)
"""``quantize``, each way, and the 8-bit type that ``convert`` writes."""
