"""Canonical files: the same content gives the same bytes, and no trace of where it was made."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import canonical
import pytest


def header_of(path: Path) -> dict[str, object]:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    found: dict[str, object] = json.loads(raw[8 : 8 + length])
    return found


def write(path: Path, names: list[str]) -> None:
    ordered = canonical.layout(canonical.Tensor(name, "F32", (2,)) for name in names)
    canonical.write_safetensors(path, ordered, [tensor.name.encode().ljust(8) for tensor in ordered])


def test_safetensors_do_not_depend_on_the_order_of_the_tensors(tmp_path: Path) -> None:
    write(tmp_path / "a", ["b", "a", "c"])
    write(tmp_path / "b", ["c", "b", "a"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_safetensors_golden_bytes(tmp_path: Path) -> None:
    ordered = canonical.layout([canonical.Tensor("v", "BF16", (1,)), canonical.Tensor("m", "F32", (1, 1))])
    canonical.write_safetensors(tmp_path / "x", ordered, [b"\0\0\x80?", b"\x80?"])
    text = (
        b'{"__metadata__":{"format":"pt"},"m":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
        b'"v":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]}}'
    )
    text += b" " * (-len(text) % 8)
    assert (tmp_path / "x").read_bytes() == struct.pack("<Q", len(text)) + text + b"\0\0\x80?\x80?"


def test_wide_types_come_first_so_that_every_tensor_is_aligned() -> None:
    tensors = [canonical.Tensor("a", "I8", (3,)), canonical.Tensor("b", "F16", (1,)), canonical.Tensor("c", "F64", ())]
    assert [tensor.name for tensor in canonical.layout(tensors)] == ["c", "b", "a"]
    assert [tensor.size for tensor in canonical.layout(tensors)] == [8, 2, 3]


def test_a_tensor_with_too_few_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 8 bytes, found 4"):
        canonical.write_safetensors(tmp_path / "x", [canonical.Tensor("a", "F32", (2,))], [b"1234"])


@pytest.mark.parametrize("metadata", [{"z": "1", "format": "pt", "a": "2"}, {"a": "2", "z": "1"}, None])
def test_foreign_metadata_is_replaced_and_tensor_bytes_are_kept(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    entries: dict[str, object] = {
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
    }
    document = entries if metadata is None else {"__metadata__": metadata, **entries}
    text = json.dumps(document).encode()
    (tmp_path / "in").write_bytes(struct.pack("<Q", len(text)) + text + b"xyz")
    canonical.canonicalise_safetensors(tmp_path / "in", tmp_path / "out")
    found = header_of(tmp_path / "out")
    assert list(found) == ["__metadata__", "a", "b"]
    assert found["__metadata__"] == {"format": "pt"}
    assert (tmp_path / "out").read_bytes().endswith(b"xyz")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o644
    assert not (tmp_path / "in").exists()


def test_what_is_canonical_stays_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "a", ["a", "b"])
    before = (tmp_path / "a").read_bytes()
    canonical.canonicalise_safetensors(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == before


def test_json_is_sorted_and_ends_with_a_newline(tmp_path: Path) -> None:
    canonical.write_json(tmp_path / "x", {"b": [1, {"d": "é", "c": None}], "a": True})
    text = '{\n  "a": true,\n  "b": [\n    1,\n    {\n      "c": null,\n      "d": "é"\n    }\n  ]\n}\n'
    assert (tmp_path / "x").read_text(encoding="utf-8") == text
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical.write_json(tmp_path / "x", {"a": float("nan")})


def test_config_loses_its_traces_at_any_depth(tmp_path: Path) -> None:
    nested = {"_name_or_path": "/home/a", "hidden_size": 4, "transformers_version": "1"}
    config = {"_name_or_path": "/home/a", "torch_dtype": "float16", "use_cache": False, "text_config": nested}
    canonical.write_config(tmp_path / "x", config, "float32")
    found = json.loads((tmp_path / "x").read_text(encoding="utf-8"))
    assert found == {"dtype": "float32", "use_cache": True, "text_config": {"hidden_size": 4}}


def test_adapter_config_names_no_path_and_sorts_its_sets(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": "/in/base", "target_modules": ["v", "q"], "peft_version": "1", "r": 4}
    canonical.write_adapter_config(tmp_path / "x", config)
    found = json.loads((tmp_path / "x").read_text(encoding="utf-8"))
    assert found == {"base_model_name_or_path": None, "target_modules": ["q", "v"], "r": 4}


def test_only_what_is_there_is_copied(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("tokenizer.json", "modeling_evil.py", "training_args.bin"):
        (tmp_path / "in" / name).write_text(name, encoding="utf-8")
    assert canonical.copy_files(tmp_path / "in", tmp_path / "out", canonical.TOKENIZER_FILES) == ["tokenizer.json"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tokenizer.json"]
