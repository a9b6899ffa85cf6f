"""Quantize a causal language model: smaller weights, and for some methods smaller activations.

* ``awq``, ``gptq``, ``fp8``, ``int8`` write compressed-tensors (llm-compressor), ``nf4`` bitsandbytes, ``autoawq`` the
  files of AutoAWQ, the others a GGUF file with llama.cpp's K-quants.
* Methods that calibrate see examples chosen by the seed alone, in one order.
* What is written holds no path, time or version of a run; tokenizer files are the base's own.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))  # in a checkout

import autoawq
import calibration
import canonical
import compressed
import events
import weights
from request import Fault, Request, run

if TYPE_CHECKING:
    import torch

FILE_TYPES = {
    "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17,
    "q6_k": 18,
}  # fmt: skip
"""llama.cpp's numbers of its file types (``enum llama_ftype``)."""
GROUPED = ("awq", "gptq", "autoawq")
CALIBRATED = ("awq", "gptq", "int8", "autoawq")
GGUF_HINT = 'K-quants take the output of the step convert with type = "f16", "bf16" or "f32".'
NOT_LINEAR = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|lm_head)\.weight$")


def check_groups(model: Path, group_size: int, ignore: list[str]) -> None:
    """Check that every row that will be quantized can be cut into groups, from the header of the weights alone.

    Raises:
        Fault: a layer's rows are not a multiple of the group size long.
    """
    widths = {name: width for name, (_, width) in linear_shapes(model / weights.WEIGHTS)}
    for name, width in widths.items():
        if width % group_size and not any(_matches(name.removesuffix(".weight"), entry) for entry in ignore):
            fitting = [size for size in (128, 64, 32, 16) if all(width % size == 0 for width in widths.values())]
            hint = f"Set group_size = {fitting[0]}." if fitting else "Name the layer under ignore."
            raise Fault(f"{name}: expected rows of a multiple of group_size = {group_size}, found {width}", hint)


def linear_shapes(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name of each matrix that is no embedding, with the number and the length of its rows."""
    with path.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    for name, entry in sorted(header.items()):
        if name.endswith(".weight") and len(entry.get("shape", ())) == 2 and not NOT_LINEAR.search(name):
            yield name, (entry["shape"][0], entry["shape"][1])


def _matches(name: str, entry: str) -> bool:
    """Whether an entry of ``ignore`` means this module: its whole name, or ``re:`` and an expression it begins with."""
    return re.match(entry[3:], name) is not None if entry.startswith("re:") else name == entry


def require_dense(model: Path) -> dict[str, object]:
    """The ``config.json`` of a dense safetensors model.

    Raises:
        Fault: it is none, or quantized already.
    """
    for name in ("config.json", weights.WEIGHTS):
        if not (model / name).is_file():
            found = ", ".join(sorted(entry.name for entry in model.iterdir())) or "nothing"
            hint = "This method takes safetensors: the output of import, merge or a full fine-tune."
            raise Fault(f"model: expected {name}, found {found}", hint)
    config: dict[str, object] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise Fault("model: expected one that is not quantized, found a quantization_config", "Quantize the original.")
    return config


def save(saved: Path, config: dict[str, object], request: Request) -> None:
    """Take a quantized model over into ``/out``: canonical weights, the base's configuration and how it was quantized.

    Raises:
        Fault: what was written is not one file of weights.
    """
    files = sorted(path.name for path in saved.glob("*.safetensors"))
    if files != [weights.WEIGHTS]:
        raise Fault(f"the quantizer was expected to write {weights.WEIGHTS}, it wrote {', '.join(files) or 'nothing'}")
    canonical.canonicalise_safetensors(saved / weights.WEIGHTS, request.out / weights.WEIGHTS)
    written = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    kept = {name: written[name] for name in ("quantization_config", "tie_word_embeddings") if name in written}
    finish({**config, **kept}, request)


def finish(config: dict[str, object], request: Request) -> None:
    """Write what stands beside the weights in ``/out``: their configuration, and the base's own files."""
    canonical.write_config(request.out / "config.json", config, request.text("dtype"))
    model = request.inputs["model"]
    canonical.copy_files(model, request.out, (*canonical.TOKENIZER_FILES, *canonical.GENERATION_FILES))


def sequences(request: Request) -> list[torch.Tensor]:
    """What to calibrate with.

    Raises:
        Fault: the data is not as described, or does not go with the model's tokenizer.
    """
    return calibration.sequences(
        request.inputs["model"],
        request.inputs["calibration"],
        samples=request.integer("samples"),
        max_length=request.integer("max_length"),
        seed=request.integer("seed"),
    )


def to_compressed_tensors(request: Request, config: dict[str, object]) -> None:
    """AWQ, GPTQ, FP8 and INT8.

    Raises:
        Fault: model or data are not as they should be; weights came out that are not finite.
    """
    import torch

    weights.start_torch(request.integer("seed"))
    data = sequences(request) if request.text("method") in CALIBRATED else None
    model = weights.load_model(request.inputs["model"], torch.float32, "eager")
    compressed.quantize(model, data, request)
    compressed.check_finite(model)
    compressed.save(model, request.work / "saved", getattr(torch, request.text("dtype")))
    save(request.work / "saved", config, request)


def to_autoawq(request: Request, config: dict[str, object]) -> None:
    """AWQ as AutoAWQ does it, in AutoAWQ's own format.

    Raises:
        Fault: model or data are not as they should be; weights came out that are not finite.
    """
    import torch

    weights.start_torch(request.integer("seed"))
    model, how = autoawq.quantize(request.inputs["model"], sequences(request), request)
    tensors = autoawq.tensors(model, getattr(torch, request.text("dtype")))
    weights.check_finite(tensors.items(), "Is dtype wide enough?")
    weights.write_tensors(request.out / weights.WEIGHTS, tensors)
    finish({**config, "quantization_config": how}, request)


def to_nf4(request: Request, config: dict[str, object]) -> None:
    """4-bit NormalFloat, by bitsandbytes: rounded to the nearest of 16 values, a scale for every 64 weights.

    Raises:
        Fault: the model cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = request.text("dtype")
    weights.start_torch(request.integer("seed"))
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        bnb_4bit_use_double_quant=request.boolean("double_quantization"),
        llm_int8_skip_modules=request.texts("ignore"),
    )
    model = AutoModelForCausalLM.from_pretrained(
        request.inputs["model"],
        quantization_config=how,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    model.save_pretrained(str(request.work / "saved"), max_shard_size=weights.ONE_FILE)
    save(request.work / "saved", config, request)


def to_gguf(request: Request) -> None:
    """llama.cpp's K-quants, from a GGUF file of the wider types.

    Raises:
        Fault: there is not exactly one GGUF file, or llama.cpp refuses it.
    """
    folder = request.inputs["model"]
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise Fault(f"model: expected one GGUF file, found {found}", GGUF_HINT)

    import ctypes

    import llama_cpp

    said: list[str] = []

    def hear(_level: int, text: bytes, _data: object) -> None:
        line = text.decode("utf-8", "replace")
        said.append(line)
        sys.stderr.write(line)

    callback = llama_cpp.llama_log_callback(hear)  # named, or nothing would keep it while llama.cpp calls it
    llama_cpp.llama_log_set(callback, None)
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype = FILE_TYPES[request.text("method")]
    how.nthread = int(os.environ.get("OMP_NUM_THREADS", "2"))
    target = request.out / "model.gguf"
    status = llama_cpp.llama_model_quantize(os.fsencode(files[0]), os.fsencode(target), ctypes.byref(how))
    if status != 0:
        target.unlink(missing_ok=True)
        reason = said[-1].strip() if said else f"status {status}"
        raise Fault(f"{files[0].name}: llama.cpp cannot quantize it: {reason}", GGUF_HINT)


def quantize(request: Request) -> None:
    """The step."""
    method = request.text("method")
    events.progress(0, 1, "models")
    if method in FILE_TYPES:
        to_gguf(request)
        events.progress(1, 1, "models")
        return
    config = require_dense(request.inputs["model"])
    if method == "autoawq":
        autoawq.check_parameters(request)
        autoawq.check_rows(dict(linear_shapes(request.inputs["model"] / weights.WEIGHTS)))
    if method in GROUPED:
        check_groups(request.inputs["model"], request.integer("group_size"), request.texts("ignore"))
    if method in CALIBRATED and "calibration" not in request.inputs:
        raise Fault(f"method {method}: expected the input calibration, found none", "JSONL files, as for finetune.")
    if method == "nf4":
        to_nf4(request, config)
    elif method == "autoawq":
        to_autoawq(request, config)
    else:
        to_compressed_tensors(request, config)


if __name__ == "__main__":
    sys.exit(run(quantize))
