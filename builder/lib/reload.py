"""A model as it lies in its tree, loaded as it would be served: what is measured is the artifact, not its memory image.

* Dense, compressed-tensors (AWQ, GPTQ, FP8, INT8) and bitsandbytes weights are loaded by transformers as their
  configuration says; no code of the model's own is run.
* GGUF is dequantised by transformers: the weights are the file's own, the arithmetic is not llama.cpp's.
* An adapter is put on its base, unmerged.

torch and transformers are imported inside the functions: a bad parameter is reported before they are loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bpe
import weights
from request import Fault

ADAPTER = "adapter_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def load(folder: Path, base: Path | None, work: Path, dtype: str) -> tuple[Any, Any]:
    """Return model and tokenizer of the tree ``folder``.

    Args:
        folder: the tree that is measured.
        base: the model that an adapter belongs to, or whose tokenizer is taken where ``folder`` has none.
        work: private scratch folder.
        dtype: name of a torch type, or ``auto``.

    Raises:
        Fault: it holds no model, or none that transformers can load.
    """
    files = sorted(folder.rglob("*.gguf"))
    if len(files) > 1:
        raise Fault(f"model: expected one GGUF file, found {', '.join(path.name for path in files)}")
    try:
        if files:
            return _gguf(files[0], base, work, dtype)
        if (folder / ADAPTER).is_file():
            return _adapted(folder, base, dtype)
        return _folder(folder, dtype), _tokenizer(folder if _has_tokenizer(folder) else base)
    except (ValueError, OSError, KeyError, ImportError, RuntimeError, NotImplementedError) as problem:
        hint = "Only what the toolchain `evaluate` can load can be measured: docs/evaluation.md lists it."
        raise Fault(
            f"model: cannot be loaded: {str(problem).splitlines()[0] if str(problem) else problem!r}", hint
        ) from (problem)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZERS)


def _folder(folder: Path, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").is_file():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise Fault(f"model: expected config.json, {ADAPTER} or a GGUF file, found {found}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in config:
        raise Fault("model: config.json names code of the model's own to be run (key 'auto_map')")
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=_type(dtype) if dtype != "auto" else "auto",
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )


def _adapted(folder: Path, base: Path | None, dtype: str) -> tuple[Any, Any]:
    from peft import PeftModel

    if base is None:
        raise Fault("model: an adapter alone cannot be measured", "Give the model it belongs to as the input `base`.")
    model = PeftModel.from_pretrained(_folder(base, dtype), str(folder), local_files_only=True)
    return model, _tokenizer(folder if _has_tokenizer(folder) else base)


def _gguf(file: Path, base: Path | None, work: Path, dtype: str) -> tuple[Any, Any]:
    import functools

    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    for name in ("GGUFReader", "get_tensor_name_map"):  # transformers asks for both again and again: seconds each time
        setattr(gguf, name, functools.cache(getattr(gguf, name)))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32 if dtype == "auto" else _type(dtype),
        attn_implementation="sdpa",
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
    )
    model.config.quantization_config = None  # it is dense now, and must not be taken for a quantized one
    if base is not None:
        return model, _tokenizer(base)
    fields = gguf.GGUFReader(str(file)).fields
    if fields["tokenizer.ggml.model"].contents() != bpe.KIND:
        return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    folder = work / "tokenizer"
    folder.mkdir()
    limit = getattr(model.config, "max_position_embeddings", None)
    bpe.Vocabulary.of(fields).write(folder, limit if isinstance(limit, int) else 2048)
    return model, _tokenizer(folder)


def _tokenizer(folder: Path | None) -> Any:
    from transformers import AutoTokenizer

    if folder is None or not _has_tokenizer(folder):
        hint = "Give a folder that has one, such as the model it was made from, as the input `base`."
        raise Fault("model: expected a tokenizer beside the weights, found none", hint)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _type(name: str) -> Any:
    import torch

    return getattr(torch, name)


def require_finite(model: Any, tokenizer: Any) -> None:
    """Refuse a model whose answers are no numbers: most metrics turn them into a value that looks like one.

    Raises:
        Fault: a weight, or what the model answers to a few words, is not finite.
    """
    import torch

    floats = ((name, value) for name, value in model.named_parameters() if value.is_floating_point())
    wide = ((name, value.float() if value.element_size() == 1 else value) for name, value in floats)  # FP8 has no sums
    weights.check_finite(wide, "What was made of this model is damaged.")
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = model(ids).logits
    if not bool(logits.isfinite().all()):
        raise Fault("model: expected finite logits, found NaN or infinity", 'Try dtype = "float32".')
