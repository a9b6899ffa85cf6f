"""What vLLM needs here and does not bring: a plugin in its own manner, which each of its processes loads.

* It counts processors without lscpu, which reads /sys: that is not there.
* It keeps FP8 from oneDNN where that has no kernel for it. PyTorch gives it every product of FP8 on processors with AMX
  for 8-bit integers; without AMX for FP16 it takes its reference loops, and a small model answers after minutes.
  PyTorch's own way, floats of 32 bits, is what it takes on other processors.

Source: vLLM 0.32, ``vllm/plugins``, ``vllm/utils/cpu_resource_utils.py``; PyTorch 2.13, ``_scaled_mm_out_cpu`` in
``aten/src/ATen/native/LinearAlgebra.cpp`` and its neighbours; oneDNN, ``check_isa_with_datatype`` of its matmul.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAME = "cpus"
"""What the plugin is called."""


def announce(place: Path) -> None:
    """Write into ``place``, a folder on the path, what makes a package of this module: vLLM finds its plugin there."""
    about = place / f"{NAME}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1\n", encoding="utf-8")
    entry = f"[vllm.general_plugins]\n{NAME} = {__name__}:{register.__name__}\n"
    (about / "entry_points.txt").write_text(entry, encoding="utf-8")


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
