"""Merge a LoRA adapter into the model that it was trained on; the result is a dense model like any other."""

from __future__ import annotations

import json
import os
import sys
import warnings

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))  # in a checkout

import canonical
import events
import weights
from request import Fault, Request, run


def merge(request: Request) -> None:
    """The step."""
    base, adapter = request.inputs["base"], request.inputs["adapter"]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            hint = "A full fine-tune needs no merge: use its output as it is."
            raise Fault(f"adapter: expected {name}, found none", hint)

    import torch
    from peft import PeftModel

    weights.start_torch(0)
    model = weights.load_model(base, torch.float32, "eager")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
        missing = [str(entry.message) for entry in caught if "missing adapter keys" in str(entry.message)]
    except (RuntimeError, ValueError) as problem:
        raise Fault(f"the adapter does not fit the base model: {problem}") from None
    if missing:
        raise Fault(f"the adapter does not fit the base model: {missing[0]}")
    events.progress(1, 2, "parts")
    merged = adapted.merge_and_unload()

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    dtype = request.text("dtype")
    if dtype == "keep":
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    merged.to(getattr(torch, dtype))
    weights.check_finite(merged.named_parameters(), f"Is {dtype} wide enough?")
    weights.save_model(merged, request.work, request.out)
    canonical.write_config(request.out / "config.json", config, dtype)
    canonical.copy_files(base, request.out, (*canonical.TOKENIZER_FILES, *canonical.GENERATION_FILES))
    events.progress(2, 2, "parts")


if __name__ == "__main__":
    sys.exit(run(merge))
