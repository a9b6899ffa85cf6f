"""A language model that llama.cpp loads and talks from: one block, random weights, a vocabulary of bytes; 150 KB.

What it says means nothing, and is the same each time at temperature 0.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Sequence

from tests.images import Gguf, gguf_pair, gguf_string

WIDTH, HEADS, INNER, CONTEXT = 32, 2, 64, 256
SPECIAL = ("<unk>", "<s>", "</s>")
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
_UINT32, _FLOAT32, _STRING, _ARRAY, _INT32 = 4, 6, 8, 9, 5
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6
"""Token types of llama.cpp's."""


def write() -> bytes:
    """Return the file."""
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256]
    pairs = [
        _text("general.architecture", "llama"),
        _number("llama.context_length", CONTEXT),
        _number("llama.embedding_length", WIDTH),
        _number("llama.block_count", 1),
        _number("llama.feed_forward_length", INNER),
        _number("llama.attention.head_count", HEADS),
        gguf_pair("llama.attention.layer_norm_rms_epsilon", _FLOAT32, struct.pack("<f", 1e-5)),
        _text("tokenizer.ggml.model", "llama"),
        _array("tokenizer.ggml.tokens", _STRING, [gguf_string(token) for token in tokens]),
        _array("tokenizer.ggml.scores", _FLOAT32, [struct.pack("<f", 0.0)] * len(tokens)),
        _array("tokenizer.ggml.token_type", _INT32, [struct.pack("<i", kind) for kind in kinds]),
        _number("tokenizer.ggml.bos_token_id", 1),
        _number("tokenizer.ggml.eos_token_id", 2),
        _text("tokenizer.chat_template", TEMPLATE),
    ]
    square, wide, tall = [WIDTH, WIDTH], [WIDTH, INNER], [INNER, WIDTH]
    shapes = {
        "token_embd": [WIDTH, len(tokens)], "output_norm": [WIDTH], "output": [WIDTH, len(tokens)],
        "blk.0.attn_norm": [WIDTH], "blk.0.attn_q": square, "blk.0.attn_k": square, "blk.0.attn_v": square,
        "blk.0.attn_output": square, "blk.0.ffn_norm": [WIDTH], "blk.0.ffn_gate": wide, "blk.0.ffn_up": wide,
        "blk.0.ffn_down": tall,
    }  # fmt: skip
    draw, tensors, data = random.Random(7), [], b""
    for name, shape in shapes.items():
        count = math.prod(shape)
        values = [1.0] * count if len(shape) == 1 else [draw.gauss(0, 0.2) for _ in range(count)]
        tensors.append((f"{name}.weight", shape, 0, len(data)))
        data += struct.pack(f"<{count}f", *values)
    return Gguf(pairs, tensors, data).write()


def _text(name: str, value: str) -> bytes:
    return gguf_pair(name, _STRING, gguf_string(value))


def _number(name: str, value: int) -> bytes:
    return gguf_pair(name, _UINT32, struct.pack("<I", value))


def _array(name: str, kind: int, values: Sequence[bytes]) -> bytes:
    return gguf_pair(name, _ARRAY, struct.pack("<IQ", kind, len(values)) + b"".join(values))
