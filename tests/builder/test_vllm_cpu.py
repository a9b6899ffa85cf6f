"""The plugin for vLLM, in processes of their own: what it changes in PyTorch stays in the process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.builder.bare import BUILDER

PROGRAM = """
import ctypes, json, sys
from pathlib import Path
import torch
import vllm_cpu

library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
isa = (ctypes.c_ubyte * 128).in_dll(library, "cpuinfo_isa")

def able(name):
    torch.cpu.get_capabilities.cache_clear()
    return torch.cpu.get_capabilities()[name]

def pretend(name, there):
    if able(name) == there:
        return
    for place in range(len(isa)):
        before, isa[place] = isa[place], int(there)
        if able(name) == there:
            return
        isa[place] = before
    raise SystemExit(f"no place for {name}")

pretend("amx_int8", sys.argv[1] == "1")
pretend("amx_fp16", sys.argv[2] == "1")
stock = torch._scaled_mm
vllm_cpu.multiply_fp8_in_floats()
changed = torch._scaled_mm
vllm_cpu.multiply_fp8_in_floats()
found = {"changed": changed is not stock, "once": torch._scaled_mm is changed}
if found["changed"]:
    torch.manual_seed(0)
    a, b = (torch.randn(*shape).to(torch.float8_e4m3fn) for shape in ((3, 64), (32, 64)))
    one, mkldnn = torch.ones(()), torch.backends.mkldnn
    product = torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.float32)
    found["near"] = torch.allclose(product, a.float() @ b.float().t(), rtol=1e-4, atol=1e-4)
    found["kept"] = mkldnn.enabled
    try:
        torch._scaled_mm(a, b)
    except TypeError:
        found["kept after a failure"] = mkldnn.enabled
print(json.dumps(found))
"""
"""Makes PyTorch believe of the processor what the arguments say: it asks cpuinfo, whose answers are a row of bytes."""

pytestmark = [pytest.mark.slow, pytest.mark.real]


def found(environment: Callable[[str], str], *believed: str) -> dict[str, bool]:
    argv = [environment("train-cpu"), "-B", "-s", "-c", PROGRAM, *believed]
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(BUILDER / "lib")}
    done = subprocess.run(argv, env=variables, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, bool] = json.loads(done.stdout)
    return answer


def test_fp8_is_multiplied_without_onednn_where_that_has_no_kernel(environment: Callable[[str], str]) -> None:
    """Without the change PyTorch would ask oneDNN, which has reference loops with AVX-512 and nothing with AVX2."""
    told = found(environment, "1", "0")
    assert told == {"changed": True, "once": True, "near": True, "kept": True, "kept after a failure": True}


@pytest.mark.parametrize("believed", [("0", "0"), ("1", "1")])
def test_elsewhere_it_is_left_alone(environment: Callable[[str], str], believed: tuple[str, str]) -> None:
    assert found(environment, *believed) == {"changed": False, "once": True}


def test_the_plugin_is_found_where_it_is_announced(tmp_path: Path) -> None:
    code = "import sys, vllm_cpu; from pathlib import Path; vllm_cpu.announce(Path(sys.argv[1]))"
    ask = "from importlib.metadata import entry_points as found; [one] = found(group='vllm.general_plugins'); "
    ask += "print(one.name, one.load().__module__, one.load().__name__)"
    path = {"PYTHONPATH": f"{tmp_path}:{BUILDER / 'lib'}"}
    subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path)], env=path, check=True, timeout=60)
    done = subprocess.run([sys.executable, "-P", "-c", ask], env=path, check=True, timeout=60, stdout=subprocess.PIPE)
    assert done.stdout.decode().split() == ["cpus", "vllm_cpu", "register"]
