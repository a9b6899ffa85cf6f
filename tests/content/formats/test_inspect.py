"""What may be in a model, by name and by bytes."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.images import Gguf, model_files, safetensors

from intaglio.content.formats.inspect import OPERATIONS, Inspected, format_of, inspect
from intaglio.errors import CorruptContent, PolicyRefusal, VerificationError


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was run')",))


def look(path: str, data: bytes) -> Inspected:
    return inspect(io.BytesIO(data), len(data), path)


@pytest.mark.parametrize("path", model_files())
def test_a_models_files(path: str) -> None:
    assert look(path, model_files()[path]).format == format_of(path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.safetensors", "safetensors"),
        ("a/MODEL.GGUF", "gguf"),
        ("tokenizer.json", "json"),
        ("chat_template.jinja", "text"),
        ("merges.txt", "text"),
        ("README.md", "text"),
        ("NOTICE", "text"),
        ("weights", None),
        (".json", None),
        (".gitattributes", None),
        (".hidden.json", None),
        ("model.bin", None),
        ("modeling.py", None),
        ("model.safetensors.py", None),
        ("model.onnx", None),
        ("json", None),
    ],
)
def test_format_of_a_name(path: str, expected: str | None) -> None:
    assert format_of(path) == expected


@pytest.mark.parametrize(
    "name", ["a.bin", "a.pt", "a.pth", "a.pkl", "a.ckpt", "a.npz", "a.npy", "a.py", "a.so", "a.sh", "a", "a.onnx"]
)
@pytest.mark.parametrize("protocol", range(6))
def test_pickles_by_their_name(name: str, protocol: int) -> None:
    with pytest.raises(PolicyRefusal) as caught:
        look(name, pickle.dumps(Bomb(), protocol))
    assert caught.value.exit_code == 23


@pytest.mark.parametrize("name", ["a.safetensors", "a.gguf", "a.json", "a.txt", "README.md", "LICENSE", "a.jinja"])
@pytest.mark.parametrize("protocol", range(6))
def test_pickles_under_another_name(name: str, protocol: int) -> None:
    with pytest.raises(VerificationError):
        look(name, pickle.dumps(Bomb(), protocol))


@pytest.mark.parametrize("name", ["a.safetensors", "a.gguf", "a.json", "a.txt"])
def test_archives_of_pickles_under_another_name(name: str) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    with pytest.raises(PolicyRefusal, match="zip"):
        look(name, packed.getvalue())


@pytest.mark.parametrize("data", [b"\x7fELF\2\1\1", b"MZ\x90\0", b"#!/bin/sh\n", b"\x1f\x8b\x08", b"\x93NUMPY\1\0"])
def test_programs_and_archives_as_text(data: bytes) -> None:
    with pytest.raises(PolicyRefusal):
        look("notes.txt", data)


@pytest.mark.parametrize("data", [b"\xff", b"a\0b", "\ud800".encode("utf-8", "surrogatepass")])
def test_text_that_is_none(data: bytes) -> None:
    with pytest.raises(CorruptContent):
        look("notes.txt", data)


def test_what_a_pickle_can_begin_with() -> None:
    assert {one.code.encode("latin-1") for one in pickletools.opcodes} == OPERATIONS, "another Python knows others"


def test_prose_is_not_taken_for_a_pickle() -> None:
    for text in (b"cat\ndog\n", b"", b".", b"(the end)\n.", b"I am a model.\n", b"c\nd\n."[:3]):
        assert look("notes.txt", text).format == "text"


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":2}}',
        b"[" * 100_000,
        b"\xef\xbb\xbf{}",
        b"",
        b'{"a":1}{"b":2}',
    ],
)
def test_json_that_is_none(text: bytes) -> None:
    with pytest.raises(CorruptContent):
        look("tokenizer.json", text)


def test_numbers_that_real_tokenizers_hold_pass() -> None:
    assert look("tokenizer_config.json", b'{"model_max_length":1000000000000000019884624838656}').format == "json"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", b'{"auto_map":{"AutoModel":"modeling.Evil"}}'),
        ("config.json", b'{"nested":[{"auto_map":{"AutoModel":"org/repo--modeling.Evil"}}]}'),
        ("config.json", b'{"trust_remote_code":true}'),
        ("config.json", b'{"attn_implementation":"org/kernels"}'),
        ("config.json", b'{"_attn_implementation_internal":"org/kernels:fn"}'),
        ("generation_config.json", b'{"custom_pipelines":{"x":{"impl":"a.b"}}}'),
        ("tokenizer_config.json", b'{"auto_map":{"AutoTokenizer":["a.B",null]}}'),
        ("processor.json", b'{"auto_map":{"AutoProcessor":"a.B"}}'),
    ],
)
def test_configurations_that_run_code(name: str, text: bytes) -> None:
    with pytest.raises(PolicyRefusal):
        look(name, text)


@pytest.mark.parametrize(
    "text", [b'{"attn_implementation":"sdpa"}', b'{"trust_remote_code":false}', b'{"auto_map":null}', b"[]", b"1"]
)
def test_configurations_that_do_not(text: bytes) -> None:
    assert look("config.json", text).format == "json"


def test_an_index_names_its_shards() -> None:
    text = b'{"weight_map":{"a":"model-2.safetensors","b":"model-1.safetensors","c":"model-2.safetensors"}}'
    found = look("sub/model.safetensors.index.json", text)
    assert found.references == ("sub/model-1.safetensors", "sub/model-2.safetensors")


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a\\\\b"])
def test_an_index_that_points_outside(shard: str) -> None:
    with pytest.raises(CorruptContent):
        look("model.safetensors.index.json", b'{"weight_map":{"a":"%s"}}' % shard.encode())


@pytest.mark.parametrize("text", [b"{}", b'{"weight_map":[]}', b'{"weight_map":{"a":1}}'])
def test_an_index_without_a_map(text: bytes) -> None:
    with pytest.raises(CorruptContent):
        look("model.safetensors.index.json", text)


def test_weights_under_each_others_name() -> None:
    with pytest.raises(VerificationError):
        look("model.gguf", safetensors({"a": ("U8", [1], b"\0")}))
    with pytest.raises(VerificationError):
        look("model.safetensors", Gguf().write())


def test_long_text_that_disassembles_is_stopped() -> None:
    with pytest.raises(PolicyRefusal):
        look("notes.txt", b"0" * 3_000_000)


@given(st.sampled_from(["a.txt", "config.json", "x.index.json", "a.gguf", "a.safetensors", "a.bin"]), st.binary())
def test_garbage(name: str, data: bytes) -> None:
    with contextlib.suppress(VerificationError):
        look(name, data)
