"""Files as a function of what they say: no paths, no tool versions, no order that a run chose.

* safetensors: one file, header with ``__metadata__`` first (sorted), then the tensors in the order of their bytes.
* JSON: sorted keys, two spaces, UTF-8, a final newline.
* What records where or by what a model was made is dropped from ``config.json`` and ``adapter_config.json``.
* Tokenizer files are copied from the base, never saved again: a tokenizer that was used says so in its files.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

METADATA = {"format": "pt"}

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)

GENERATION_FILES = ("generation_config.json",)

_CONFIG_TRACES = frozenset({"_name_or_path", "_commit_hash", "_attn_implementation_autoset", "transformers_version"})
_TOKENIZER_TRACES = frozenset({"_commit_hash", "is_local", "local_files_only", "name_or_path", "transformers_version"})
_ADAPTER_TRACES = frozenset({"peft_version"})
_ADAPTER_SETS = ("exclude_modules", "modules_to_save", "target_modules", "target_parameters")

ITEM_SIZES = {
    "F64": 8, "I64": 8, "U64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
"""Bytes an element, by the format's own names of the types."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor about to be written: its bytes are asked for when their turn comes."""

    name: str
    dtype: str
    """Name of the type in the format, such as ``BF16``."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count * ITEM_SIZES[self.dtype]


def layout(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The order of the bytes: wide types first, so that every tensor is aligned, then by name."""
    return sorted(tensors, key=lambda tensor: (-ITEM_SIZES[tensor.dtype], tensor.name))


def write_safetensors(path: Path, tensors: list[Tensor], contents: Iterable[memoryview | bytes]) -> None:
    """Write one safetensors file. ``tensors`` are in :func:`layout` order, ``contents`` are their bytes in that order.

    Raises:
        ValueError: the bytes of a tensor are not as many as its shape and type say.
    """
    entries: dict[str, object] = {}
    offset = 0
    for tensor in tensors:
        offsets = [offset, offset := offset + tensor.size]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    with path.open("wb") as stream:
        stream.write(_header(METADATA, entries))
        for tensor, content in zip(tensors, contents, strict=True):
            written = stream.write(content)
            if written != tensor.size:
                raise ValueError(f"{tensor.name}: expected {tensor.size} bytes, found {written}")


def canonicalise_safetensors(source: Path, target: Path) -> None:
    """Move ``source`` to ``target`` with a canonical header; the bytes of the tensors stay as they are."""
    with source.open("rb") as stream:
        prefix = stream.read(8)
        raw = stream.read(struct.unpack("<Q", prefix)[0])
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        ordered = dict(sorted(entries.items(), key=lambda item: (item[1]["data_offsets"], item[0])))
        header = _header(METADATA, ordered)
        if header == prefix + raw:
            shutil.move(source, target)
        else:
            with target.open("wb") as copy:
                copy.write(header)
                shutil.copyfileobj(stream, copy, 1 << 20)
            source.unlink()
    os.chmod(target, 0o644)


def _header(metadata: Mapping[str, str], entries: Mapping[str, object]) -> bytes:
    document = {"__metadata__": dict(sorted(metadata.items())), **entries}
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_json(path: Path, document: object) -> None:
    """Write a JSON file for people and tools: sorted, indented, no NaN."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def without_traces(document: Mapping[str, object], traces: frozenset[str] = _CONFIG_TRACES) -> dict[str, object]:
    """The document without the keys that tell where or by what it was made, at any depth."""
    return {key: _cleaned(value, traces) for key, value in document.items() if key not in traces}


def _cleaned(value: object, traces: frozenset[str]) -> object:
    if isinstance(value, dict):
        return without_traces(value, traces)
    if isinstance(value, list):
        return [_cleaned(entry, traces) for entry in value]
    return value


def write_config(path: Path, config: Mapping[str, object], dtype: str | None = None) -> None:
    """Write ``config.json``; ``dtype`` such as ``float32`` is the type that the weights beside it really have."""
    cleaned = without_traces(config)
    if dtype is not None:
        cleaned.pop("torch_dtype", None)
        cleaned["dtype"] = dtype
    if "use_cache" in cleaned:  # training switches it off, serving wants it
        cleaned["use_cache"] = True
    write_json(path, cleaned)


def write_adapter_config(path: Path, config: Mapping[str, object]) -> None:
    """Write ``adapter_config.json``: sets sorted, the base model not named by a path."""
    cleaned = {key: value for key, value in config.items() if key not in _ADAPTER_TRACES}
    for key in _ADAPTER_SETS:
        value = cleaned.get(key)
        if isinstance(value, (list, set, tuple)):
            cleaned[key] = sorted(value)
    cleaned["base_model_name_or_path"] = None
    write_json(path, cleaned)


def write_tokenizer_config(path: Path, config: Mapping[str, object]) -> None:
    """Write ``tokenizer_config.json`` without the traces that loading it leaves there."""
    write_json(path, without_traces(config, _TOKENIZER_TRACES))


def copy_files(source: Path, target: Path, names: Iterable[str]) -> list[str]:
    """Copy those of ``names`` that are in ``source``, byte for byte; return the ones copied."""
    return list(_copied(source, target, names))


def _copied(source: Path, target: Path, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
            yield name
