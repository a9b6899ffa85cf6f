"""Tensors of a model on their way to ``/out``: finite, in one canonical safetensors file.

torch and transformers are imported inside the functions: a bad parameter is reported before they are loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import canonical
from request import Fault

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

WEIGHTS = "model.safetensors"
ONE_FILE = "100TB"


def dtype_names() -> dict[torch.dtype, str]:
    """The format's name of each torch type that it knows."""
    import torch

    return {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
        torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
        torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    }  # fmt: skip


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], hint: str) -> None:
    """Refuse a NaN or an infinity: a diverged run is perfectly reproducible, and worthless.

    Raises:
        Fault: names the first tensor that holds one.
    """
    for name, tensor in tensors:
        if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):
            continue  # one value that is not finite would make the sum so, at a fraction of the cost
        if not bool(tensor.isfinite().all()):
            raise Fault(f"tensor {name!r}: expected finite values, found NaN or infinity", hint)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a state dict as one canonical file. Tensors that share memory are written each on its own."""
    names = dtype_names()
    described = [canonical.Tensor(name, names[value.dtype], tuple(value.shape)) for name, value in tensors.items()]
    ordered = canonical.layout(described)
    canonical.write_safetensors(path, ordered, _contents(tensors, ordered))


def _contents(tensors: Mapping[str, torch.Tensor], ordered: list[canonical.Tensor]) -> Iterator[memoryview]:
    import torch

    for entry in ordered:
        flat = tensors[entry.name].detach().contiguous().reshape(-1).view(torch.uint8)
        yield memoryview(flat.numpy())


def save_model(model: PreTrainedModel, work: Path, out: Path) -> None:
    """Save the weights alone, under the names that Hugging Face gives them, tied ones once."""
    saved = work / "saved"
    model.save_pretrained(saved, max_shard_size=ONE_FILE)
    canonical.canonicalise_safetensors(saved / WEIGHTS, out / WEIGHTS)
    shutil.rmtree(saved)


def start_torch(seed: int) -> None:
    """Seed torch and fix its threads to what the environment says; refuse what is not deterministic."""
    import os

    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False


def load_model(
    folder: Path, dtype: torch.dtype, attention: str, quantization: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """Load a causal language model from its safetensors; no code of the model's own is run.

    ``quantization``: how its weights are held in memory, where that is not as ``dtype``.

    Raises:
        Fault: the folder holds no such model.
    """
    from transformers import AutoModelForCausalLM

    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            found = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
            raise Fault(f"base model: expected {name}, found {found}", "Bring the model in with the step `import`.")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=attention,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        quantization_config=quantization,
    )
    return model
