"""Quantizing with llm-compressor: AWQ, GPTQ, FP8, INT8, written in the compressed-tensors format.

* What is quantized are the linear layers, save those that are ignored.
* It computes in float32: processors of level v3 are four times as fast in it as in bfloat16. Scales are rounded to the
  type that they are written in before anything is divided by them.
* The recipes are objects, not files; what llm-compressor writes about its own run is left behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import events
import weights
from request import Fault, Request

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def quantize(model: PreTrainedModel, data: list[torch.Tensor] | None, request: Request) -> None:
    """Quantize ``model`` in place, with the method and the parameters of ``request``.

    Raises:
        Fault: llm-compressor does not know how to treat this kind of model.
    """
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader

    spare_memory_pinning()
    loader: Any = None
    if data is not None:
        batches: Any = [{"input_ids": ids, "attention_mask": ids.new_ones(ids.shape)} for ids in data]
        loader = DataLoader(batches, batch_size=None)
        tell_progress(int(getattr(model.config, "num_hidden_layers", 1)))
    try:
        oneshot(model=model, dataset=loader, recipe=modifiers(request))
    except (KeyError, NotImplementedError, ValueError) as problem:
        hint = "Another method may do: fp8 and gptq need not know how the model's layers follow each other."
        raise Fault(f"llm-compressor cannot quantize this model: {problem}", hint) from problem


def modifiers(request: Request) -> list[Any]:
    """What llm-compressor shall do."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    method, ignore = request.text("method"), request.texts("ignore")
    if method == "awq":
        return [AWQModifier(), QuantizationModifier(config_groups=groups(request), ignore=ignore)]
    if method == "gptq":
        damping = request.number("damping")
        return [GPTQModifier(config_groups=groups(request), ignore=ignore, dampening_frac=damping)]
    rounding = QuantizationModifier(config_groups=channels(request), ignore=ignore)
    if method == "fp8":
        return [rounding]
    return [SmoothQuantModifier(smoothing_strength=request.number("smoothing")), rounding]


def groups(request: Request) -> dict[str, Any]:
    """The scheme of the weight-only methods: integers, a scale for every so many columns of a row."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    symmetric = request.optional_boolean("symmetric")
    weights = QuantizationArgs(
        num_bits=request.integer("bits"),
        type="int",
        strategy="group",
        group_size=request.integer("group_size"),
        symmetric=request.text("method") == "gptq" if symmetric is None else symmetric,
        scale_dtype=getattr(torch, request.text("dtype")),
    )
    return {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}


def channels(request: Request) -> dict[str, Any]:
    """The scheme of FP8 and INT8: a scale for each row of the weights; one for each token, found when it comes."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    kind = {"num_bits": 8, "type": "float" if request.text("method") == "fp8" else "int", "symmetric": True}
    scale = getattr(torch, request.text("dtype"))
    weights = QuantizationArgs(**kind, strategy="channel", scale_dtype=scale)
    activations = QuantizationArgs(**kind, strategy="token", dynamic=True)
    return {"group_0": QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)}


def tell_progress(layers: int) -> None:
    """Make llm-compressor tell which layer it has done."""
    from llmcompressor.core import LifecycleCallbacks

    done = 0
    original = LifecycleCallbacks.sequential_epoch_end

    def told(*arguments: Any, **options: Any) -> Any:
        nonlocal done
        result = original(*arguments, **options)
        done += 1
        events.progress(min(done, layers), layers, "layers")
        return result

    LifecycleCallbacks.sequential_epoch_end = told


def spare_memory_pinning() -> None:
    """Keep llm-compressor from pinning memory where there is no device to copy it to: torch refuses that."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache._pin_intermediate = classmethod(lambda _cls, _value: None)


def check_finite(model: PreTrainedModel) -> None:
    """Refuse a NaN or an infinity; bytes are widened first, for torch cannot count with them.

    Raises:
        Fault: names the first tensor that holds one.
    """
    floating = ((name, tensor) for name, tensor in model.state_dict().items() if tensor.is_floating_point())
    wide = ((name, tensor.float() if tensor.element_size() == 1 else tensor) for name, tensor in floating)
    weights.check_finite(wide, "Is dtype wide enough?")


def save(model: PreTrainedModel, target: Path, dtype: torch.dtype) -> None:
    """Let llm-compressor write the compressed model into ``target``, with ``dtype`` in place of float32."""
    import torch
    from safetensors.torch import load_file, save_file

    model.save_pretrained(str(target), max_shard_size=weights.ONE_FILE)
    path = target / weights.WEIGHTS
    tensors = load_file(path)
    save_file(
        {name: value.to(dtype) if value.dtype == torch.float32 else value for name, value in tensors.items()}, path
    )
