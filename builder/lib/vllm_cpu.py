"""What vLLM needs here and does not bring: a plugin in its own manner, which each of its processes loads.

* It counts processors without lscpu, which reads /sys: that is not there.
* It keeps FP8 from oneDNN where that has no kernel for it. PyTorch gives it every product of FP8 on processors with AMX
  for 8-bit integers; without AMX for FP16 it takes its reference loops, and a small model answers after minutes.
  PyTorch's own way, floats of 32 bits, is what it takes on other processors.

Source: vLLM 0.32, ``vllm/plugins``, ``vllm/utils/cpu_resource_utils.py``; PyTorch 2.13, ``_scaled_mm_out_cpu`` in
``aten/src/ATen/native/LinearAlgebra.cpp`` and its neighbours; oneDNN, ``check_isa_with_datatype`` of its matmul.
"""

from __future__ import annotations

from typing import Any

ENTRY_POINT = "[vllm.general_plugins]\ncpus = vllm_cpu:register\n"
"""How vLLM finds it."""


def register() -> None:
    """Do all of it; vLLM may call this more than once in a process."""
    from vllm.utils import cpu_resource_utils

    cpu_resource_utils._get_cpu_list = cpu_resource_utils._synthesize_cpu_list
    multiply_fp8_in_floats()


def multiply_fp8_in_floats() -> None:
    """Keep ``torch._scaled_mm`` from oneDNN on processors where that would take its reference loops."""
    import torch

    able, mkldnn, stock = torch.cpu.get_capabilities(), torch.backends.mkldnn, torch._scaled_mm
    if not able.get("amx_int8") or able.get("amx_fp16") or hasattr(stock, "stock"):
        return

    def scaled_mm(*matrices: Any, **options: Any) -> Any:
        before, mkldnn.enabled = mkldnn.enabled, False
        try:
            return stock(*matrices, **options)
        finally:
            mkldnn.enabled = before

    scaled_mm.stock = stock  # type: ignore[attr-defined]
    torch._scaled_mm = scaled_mm
