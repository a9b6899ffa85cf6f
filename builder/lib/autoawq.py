"""Quantizing with AutoAWQ 0.2.9, which its authors have archived, in the file format that it brought in ("gemm").

* It computes in float32, like the other methods that calibrate; the format keeps its scales in float16.
* AutoAWQ quantizes every linear layer of the decoder's blocks and nothing else.
* It loads, writes and fetches nothing itself: model and calibration data come from the inputs, as everywhere.

It was written for devices that copy and for an older transformers. What that takes here is :func:`quantizer` and
:func:`spare_old_name`, and nothing else of it is touched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import events
import weights
from request import Fault, Request

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BITS = 4
ROWS = 64
"""AutoAWQ looks for the best clipping of so many rows at once."""
TOGETHER = 8
"""Calibration sequences that go through a layer at once: what they need of memory, not what comes out."""
LEFT_ALONE = ["lm_head"]
MODELS_HINT = "Another method may do: awq writes another form, which the same servers and more can serve."


def check_parameters(request: Request) -> None:
    """Refuse what the format or its program cannot do.

    Raises:
        Fault: names the parameter.
    """
    if request.integer("bits") != BITS:
        raise Fault(f"method autoawq: expected bits = {BITS}, found {request.integer('bits')}", MODELS_HINT)
    if request.optional_boolean("symmetric"):
        hint = "The format holds a zero point for each group; method awq or gptq can do without."
        raise Fault("method autoawq: expected symmetric = false, found true", hint)
    if request.texts("ignore") != LEFT_ALONE:
        hint = "AutoAWQ quantizes every linear layer of the decoder's blocks, never lm_head; method awq can leave more."
        raise Fault(f'method autoawq: expected ignore = ["lm_head"], found {json.dumps(request.texts("ignore"))}', hint)


def check_rows(shapes: dict[str, tuple[int, int]]) -> None:
    """Check that AutoAWQ can take the rows of every layer in equal parts.

    Raises:
        Fault: it cannot.
    """
    for name, (rows, _) in sorted(shapes.items()):
        if rows % ROWS:
            raise Fault(f"{name}: method autoawq expects rows in multiples of {ROWS}, found {rows}", MODELS_HINT)


def check_length(tokens: int, length: int) -> None:
    """Check that one piece comes out: AutoAWQ joins the sequences, cuts at every ``length`` tokens, drops the end.

    Raises:
        Fault: it does not.
    """
    if tokens < length:
        hint = "AutoAWQ cuts all its data into pieces of max_length. Give it more text, or a smaller max_length."
        raise Fault(f"calibration: expected at least max_length = {length} tokens, found {tokens}", hint)


def quantize(folder: Path, data: list[torch.Tensor], request: Request) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the model of ``folder`` and quantize it; return it with its ``quantization_config``.

    Raises:
        Fault: AutoAWQ does not know this kind of model, or there is not enough data.
    """
    import torch

    spare_old_name()
    from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP

    length = request.integer("max_length")
    check_length(sum(ids.shape[1] for ids in data), length)
    model = weights.load_model(folder, torch.float32, "sdpa")
    model.eval()
    model.config.use_cache = False  # each layer is called many times with the same text
    kind = model.config.model_type
    if kind not in AWQ_CAUSAL_LM_MODEL_MAP:
        raise Fault(f"model: AutoAWQ 0.2.9 does not know models of type {kind!r}", MODELS_HINT)
    known = AWQ_CAUSAL_LM_MODEL_MAP[kind](
        model, kind, is_quantized=False, config=model.config, quant_config=None, processor=None
    )
    how = {"w_bit": BITS, "q_group_size": request.integer("group_size"), "zero_point": True, "version": "gemm"}
    try:
        known.quantize(
            quant_config=how,
            calib_data=[ids[0].tolist() for ids in data],
            max_calib_samples=len(data),
            max_calib_seq_len=length,
            n_parallel_calib_samples=TOGETHER,
            quantizer_cls=quantizer(),
        )
    except (AttributeError, KeyError, NotImplementedError, ValueError) as problem:
        raise Fault(f"AutoAWQ cannot quantize this model: {problem!r}", MODELS_HINT) from problem
    return model, known.quant_config.to_transformers_dict()


def quantizer() -> type:
    """AutoAWQ's quantizer, which tells its progress and really keeps the weights that it tries scales on.

    It sets them aside with ``.cpu()``. Where they are on the CPU already that is no copy: what it puts back after each
    try is then scaled, and so is the model that comes out.
    """
    from awq.quantize.quantizer import AwqQuantizer

    def copy(_module: Any, state: dict[str, torch.Tensor], *_: Any) -> None:
        state.update({name: value.clone() for name, value in state.items()})

    class Quantizer(AwqQuantizer):  # type: ignore[misc]
        done = 0

        def _compute_best_scale(self, x: Any, w: Any, x_mean: Any, module: Any, *rest: Any, **more: Any) -> Any:
            hook = module.register_state_dict_post_hook(copy)
            try:
                return super()._compute_best_scale(x, w, x_mean, module, *rest, **more)
            finally:
                hook.remove()

        def _apply_quant(self, *arguments: Any, **options: Any) -> None:
            super()._apply_quant(*arguments, **options)
            self.done += 1
            events.progress(self.done, len(self.modules), "layers")

    return Quantizer


def spare_old_name() -> None:
    """Give transformers' activation ``GELUTanh`` back the name under which AutoAWQ imports it."""
    from transformers import activations

    activations.PytorchGELUTanh = activations.GELUTanh


def tensors(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What is to be written: tied weights once, what is in float32 in ``dtype``."""
    import torch

    tied = model.all_tied_weights_keys
    state = {name: value for name, value in model.state_dict().items() if name not in tied}
    return {name: value.to(dtype) if value.dtype == torch.float32 else value for name, value in state.items()}
