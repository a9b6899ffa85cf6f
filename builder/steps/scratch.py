"""Make a small Llama with its own BPE tokenizer and chat template from a seed.

* Every weight is an integer of the seeded PCG64 stream, scaled: no transcendental function takes part, so that the
  bytes are the same on every machine.
* The tokenizer splits as GPT-2 does: converters are told ``gpt-2``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))  # in a checkout

import canonical
import events
from request import Fault, Request, run

if TYPE_CHECKING:
    import numpy
    from tokenizers import Tokenizer

HEAD = 32
SPREAD = 0.02
END_OF_TEXT, TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SENTENCES = (
    "A plate is engraved once and printed many times.",
    "The same recipe gives the same bytes on another day.",
    "What is not required to be there is refused.",
    "A claim says that this action gave these outputs.",
    "Which command builds the model, and which one verifies it?",
)


def read_corpus(folder: Path | None) -> list[str]:
    """Lines that the tokenizer is trained on; of JSONL the strings alone.

    Raises:
        Fault: a file is not UTF-8, or there is no line.
    """
    if folder is None:
        return list(SENTENCES)
    lines: list[str] = []
    files = [path for path in folder.rglob("*") if path.suffix in (".txt", ".jsonl", ".md")]
    for path in sorted(files, key=lambda path: path.as_posix()):
        try:
            lines += [line for line in path.read_text(encoding="utf-8").splitlines() if line]
        except UnicodeDecodeError as problem:
            where = path.relative_to(folder).as_posix()
            raise Fault(f"{where}: expected UTF-8, found byte {problem.start} that is not") from None
    if not lines:
        raise Fault("corpus: expected lines of text in *.txt, *.jsonl or *.md files, found none")
    return [text for line in lines for text in strings(line)]


def strings(line: str) -> Iterator[str]:
    """The strings of a JSON line, or the line itself."""
    try:
        document = json.loads(line)
    except json.JSONDecodeError:
        yield line
        return
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()


def make_tokenizer(lines: list[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True) for text in (END_OF_TEXT, TURN, END_OF_TURN)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def shapes(vocabulary: int, hidden: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of the model."""
    inner, half = hidden * 11 // 4, hidden // 2
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        found[f"{prefix}.input_layernorm.weight"] = (hidden,)
        found[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        found[f"{prefix}.self_attn.q_proj.weight"] = (hidden, hidden)
        found[f"{prefix}.self_attn.k_proj.weight"] = (half, hidden)
        found[f"{prefix}.self_attn.v_proj.weight"] = (half, hidden)
        found[f"{prefix}.self_attn.o_proj.weight"] = (hidden, hidden)
        found[f"{prefix}.mlp.gate_proj.weight"] = (inner, hidden)
        found[f"{prefix}.mlp.up_proj.weight"] = (inner, hidden)
        found[f"{prefix}.mlp.down_proj.weight"] = (hidden, inner)
    return found


def draw(ordered: list[canonical.Tensor], seed: int) -> Iterator[bytes]:
    """The weights' bytes in order: matrices uniform with standard deviation 0.02, vectors one."""
    import numpy

    bits = numpy.random.PCG64(seed)
    for tensor in ordered:
        count = tensor.size // 4
        values: numpy.ndarray[tuple[int], numpy.dtype[numpy.float32]] = numpy.ones(count, dtype="<f4")
        if len(tensor.shape) > 1:
            whole = (bits.random_raw(count) >> numpy.uint64(40)).astype(numpy.float64)  # 24 bits: exact in float32
            values = ((whole / 2**23 - 1.0) * (SPREAD * 1.7320508)).astype("<f4")
        yield values.tobytes()


def config(vocabulary: int, hidden: int, layers: int, context: int) -> dict[str, object]:
    """The model's ``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": SPREAD,
        "intermediate_size": hidden * 11 // 4,
        "max_position_embeddings": context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": hidden // HEAD,
        "num_hidden_layers": layers,
        "num_key_value_heads": hidden // 2 // HEAD,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": vocabulary,
    }


def tokenizer_config(context: int) -> dict[str, object]:
    """The model's ``tokenizer_config.json``."""
    return {
        "add_prefix_space": False,
        "bos_token": END_OF_TEXT,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "model_max_length": context,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": END_OF_TEXT,
    }


def scratch(request: Request) -> None:
    """The step."""
    hidden, layers, context = (request.integer(name) for name in ("hidden_size", "layers", "context"))
    if hidden % (2 * HEAD):
        raise Fault(f"parameter hidden_size: expected a multiple of {2 * HEAD}, found {hidden}")
    lines = read_corpus(request.inputs.get("corpus"))
    tokenizer = make_tokenizer(lines, request.integer("vocabulary"))
    vocabulary = tokenizer.get_vocab_size()
    out = request.out
    tokenizer.save(str(out / "tokenizer.json"))
    canonical.write_json(out / "tokenizer_config.json", tokenizer_config(context))
    canonical.write_config(out / "config.json", config(vocabulary, hidden, layers, context), "float32")
    generation = {"bos_token_id": 0, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    canonical.write_json(out / "generation_config.json", generation)
    named = shapes(vocabulary, hidden, layers)
    ordered = canonical.layout(canonical.Tensor(name, "F32", shape) for name, shape in named.items())
    canonical.write_safetensors(out / "model.safetensors", ordered, draw(ordered, request.integer("seed")))
    parameters = sum(tensor.size for tensor in ordered) // 4
    events.message(f"{parameters / 1e6:.2f} million parameters, {vocabulary} tokens")
    events.progress(1, 1, "models")


if __name__ == "__main__":
    sys.exit(run(scratch))
