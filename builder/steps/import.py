"""Bring a model in: GGUF, safetensors or a PyTorch pickle become a canonical safetensors folder.

* A pickle is read here and nowhere else, in the sandbox, by torch's reader that knows tensors alone (``weights_only``).
* A model that wants code of its own to be run (``auto_map``) is refused; no ``.py`` file is ever carried over.
* Only configuration, tokenizer and weights are carried over.
* A weight that is not finite, or too large for the type asked for, is refused.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))  # in a checkout

import bpe
import canonical
import events
import weights
from request import Fault, Request, run

if TYPE_CHECKING:
    import torch

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
GGUF_TRACES = ("_model_name_or_path", "quantization_config")
FINITE = "The source itself is damaged, or the type asked for is too narrow for it."


def find_gguf(source: Path, name: str | None) -> Path | None:
    """The GGUF file to take, if the source is one.

    Raises:
        Fault: the one named is not there, or there are several and none was named.
    """
    files = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*.gguf"))}
    if name is not None:
        if name not in files:
            raise Fault(f"source: expected the file {name!r}, found {', '.join(files) or 'no GGUF file'}")
        return files[name]
    if len(files) > 1:
        raise Fault(f"source: expected one GGUF file, found {', '.join(files)}", "Name one by the parameter `file`.")
    return next(iter(files.values()), None)


def find_shards(source: Path) -> tuple[str, list[Path]]:
    """The kind of weights that a Hugging Face folder has, ``safetensors`` or ``pickle``, and their files.

    Raises:
        Fault: there are none.
    """
    for kind, patterns in (("safetensors", ("*.safetensors",)), ("pickle", PICKLES)):
        found = sorted(
            {path for pattern in patterns for path in source.glob(pattern) if path.name != "training_args.bin"}
        )
        if found:
            return kind, indexed(source, found)
    entries = ", ".join(sorted(path.name for path in source.iterdir())) or "nothing"
    raise Fault(f"source: expected *.gguf, *.safetensors or one of {', '.join(PICKLES)}, found {entries}")


def indexed(source: Path, found: list[Path]) -> list[Path]:
    """Of the files found those that the folder's index names, or the one that there is.

    Raises:
        Fault: there are several and no index says which belong together, or one of those is missing.
    """
    suffix = found[0].suffix
    for index in sorted(source.glob(f"*{suffix}.index.json")):
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if source / name not in found]
        if missing:
            raise Fault(f"source: {index.name} names {', '.join(map(str, missing))}, which is not there")
        return [source / name for name in names]
    whole = [path for path in found if path.name in ("model.safetensors", "pytorch_model.bin")] or found
    if len(whole) > 1:
        several = ", ".join(path.name for path in whole)
        raise Fault(f"source: expected one file of weights or an index of them, found {several}")
    return whole


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Fault: the file holds none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise Fault(f"{path.name}: expected JSON, found an error: {problem}") from None
    if not isinstance(document, dict):
        raise Fault(f"{path.name}: expected an object, found {type(document).__name__}")
    return document


def refuse_code(document: object, name: str) -> None:
    """Refuse a configuration that names code to run.

    Raises:
        Fault: it does.
    """
    if isinstance(document, dict):
        for key, value in document.items():
            if key == "auto_map" or key == "trust_remote_code":
                hint = "Only architectures that the toolchain itself knows can be imported."
                raise Fault(f"{name}: names code of the model's own to be run (key {key!r})", hint)
            refuse_code(value, name)
    elif isinstance(document, list):
        for value in document:
            refuse_code(value, name)


def read_shards(kind: str, files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of each tensor.

    Raises:
        Fault: a file is not what its name says, or holds something else than tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for done, path in enumerate(files):
        try:
            if kind == "safetensors":
                state = load_file(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as problem:
            raise Fault(f"{path.name}: cannot be read as {kind}: {str(problem).splitlines()[0]}") from None
        if not isinstance(state, dict):
            raise Fault(f"{path.name}: expected named tensors, found {type(state).__name__}")
        if isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                raise Fault(f"{path.name}: {name}: expected a tensor, found {type(value).__name__}")
            yield name, value
        events.progress(done + 1, len(files), "files")


def untie(state: dict[str, torch.Tensor], config: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Without the output layer where it is the input layer once more and the configuration says so."""
    head = state.get("lm_head.weight")
    if head is None or not config.get("tie_word_embeddings"):
        return state
    twins = [value for name, value in state.items() if name.endswith("embed_tokens.weight")]
    same = any(twin.shape == head.shape and twin.dtype == head.dtype and bool((twin == head).all()) for twin in twins)
    return {name: value for name, value in state.items() if not (same and name == "lm_head.weight")}


def import_folder(request: Request) -> None:
    """Safetensors or pickle: tensor by tensor, for any architecture."""
    import torch

    source, out, dtype = request.inputs["source"], request.out, request.text("dtype")
    kind, files = find_shards(source)
    path = source / "config.json"
    if not path.is_file():
        raise Fault("source: expected a config.json beside the weights, found none")
    config = read_json(path)
    for name in ("config.json", "tokenizer_config.json"):
        if (source / name).is_file():
            refuse_code(read_json(source / name), name)

    state = dict(read_shards(kind, files))
    weights.check_finite(state.items(), FINITE)
    state = untie(state, config)
    if dtype != "keep":
        wanted = getattr(torch, dtype)
        state = {name: value.to(wanted) if value.is_floating_point() else value for name, value in state.items()}
        weights.check_finite(state.items(), FINITE)
    floats = sorted({str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point()})
    weights.write_tensors(out / weights.WEIGHTS, state)
    canonical.write_config(out / "config.json", config, floats[0] if len(floats) == 1 else None)
    canonical.copy_files(source, out, (*canonical.TOKENIZER_FILES, *canonical.GENERATION_FILES))
    if (out / "tokenizer_config.json").is_file():
        canonical.write_tokenizer_config(out / "tokenizer_config.json", read_json(out / "tokenizer_config.json"))


def import_gguf(file: Path, request: Request) -> None:
    """GGUF: transformers dequantises it and knows what configuration and tokenizer it means.

    Raises:
        Fault: transformers cannot read it.
    """
    dtype = request.text("dtype")
    if dtype == "keep":
        hint = 'Set dtype = "float32", "bfloat16" or "float16".'
        raise Fault("parameter dtype: a GGUF file is dequantised, so its type cannot be kept", hint)

    import functools

    import gguf
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    weights.start_torch(0)
    for name in ("GGUFReader", "get_tensor_name_map"):  # transformers asks for both again and again: seconds each time
        setattr(gguf, name, functools.cache(getattr(gguf, name)))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=getattr(torch, dtype),
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
        fields = gguf.GGUFReader(str(file)).fields
    except (ValueError, OSError, KeyError, IndexError, NotImplementedError) as problem:
        raise Fault(f"{file.name}: cannot be read as GGUF: {problem}") from None
    events.progress(1, 2, "parts")
    save_gguf_companions(model, fields, file, request)
    weights.check_finite(model.named_parameters(), FINITE)
    weights.save_model(model, request.work, request.out)
    events.progress(2, 2, "parts")


def save_gguf_companions(model: Any, fields: Mapping[str, Any], file: Path, request: Request) -> None:
    """Configuration and tokenizer. Byte-level BPE is put together here, see ``bpe``; other kinds by transformers."""
    saved, out = request.work / "companions", request.out
    model.config.save_pretrained(saved)
    config = read_json(saved / "config.json")
    config["architectures"] = [type(model).__name__]
    limit = config.get("max_position_embeddings")
    kept = {key: value for key, value in config.items() if key not in GGUF_TRACES}
    canonical.write_config(out / "config.json", kept, request.text("dtype"))
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None}
    canonical.write_json(out / "generation_config.json", ends)
    if fields["tokenizer.ggml.model"].contents() == bpe.KIND:
        bpe.Vocabulary.of(fields).write(out, limit if isinstance(limit, int) else 2048)
        return

    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True).save_pretrained(saved)
    canonical.copy_files(saved, out, canonical.TOKENIZER_FILES)
    canonical.write_tokenizer_config(out / "tokenizer_config.json", read_json(saved / "tokenizer_config.json"))


def import_model(request: Request) -> None:
    """The step."""
    gguf = find_gguf(request.inputs["source"], request.optional_text("file"))
    if gguf is None:
        import_folder(request)
    else:
        import_gguf(gguf, request)


if __name__ == "__main__":
    sys.exit(run(import_model))
