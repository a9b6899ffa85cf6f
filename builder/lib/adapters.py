"""Adapters: a few trained matrices beside the frozen weights of a base model (LoRA, DoRA, QLoRA).

QLoRA trains beside weights that are held in four bits (NF4, twice quantised); what comes out is an adapter like any
other, and is merged into the base as it is, not into its four bits.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import canonical
import weights
from request import Fault, Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHODS = ("lora", "dora", "qlora")


def load_base(request: Request, *, low: bool, four_bits: bool) -> PreTrainedModel:
    """Load the base model; ``low``: its weights are only read, in bfloat16; ``four_bits``: they are held in NF4.

    Raises:
        Fault: the folder holds no such model.
    """
    import torch

    dtype = torch.bfloat16 if low else torch.float32
    quantization = None
    if four_bits:
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return weights.load_model(request.inputs["base"], dtype, request.text("attention"), quantization)


def add(model: PreTrainedModel, request: Request, *, dora: bool) -> PreTrainedModel:
    """Put an adapter around the model; the base weights are frozen.

    Raises:
        Fault: no module of the model is named as the parameter says.
    """
    from peft import LoraConfig, get_peft_model

    targets = request.texts("lora_targets")
    config = LoraConfig(
        r=request.integer("lora_rank"),
        lora_alpha=request.number("lora_alpha"),
        lora_dropout=request.number("lora_dropout"),
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        use_dora=dora,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as problem:
        raise Fault(f"parameter lora_targets: {problem}") from None


def save(model: PreTrainedModel, request: Request) -> None:
    """Write the adapter and how to apply it."""
    saved = request.work / "adapter"
    model.save_pretrained(str(saved))
    canonical.canonicalise_safetensors(saved / "adapter_model.safetensors", request.out / "adapter_model.safetensors")
    config = json.loads((saved / "adapter_config.json").read_text(encoding="utf-8"))
    canonical.write_adapter_config(request.out / "adapter_config.json", config)
