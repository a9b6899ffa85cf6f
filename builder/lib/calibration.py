"""Which examples a quantizer sees: chosen by the seed alone, encoded whole, as the model will be talked to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import events
from encoding import encode
from examples import read_examples

if TYPE_CHECKING:
    import torch


def sequences(model: Path, data: Path, *, samples: int, max_length: int, seed: int) -> list[torch.Tensor]:
    """The token ids of ``samples`` sequences, at most; one tensor each, of shape (1, tokens).

    Raises:
        Fault: the data is not as described, or does not go with the model's tokenizer.
    """
    examples = read_examples(data)

    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    found = encode(examples, tokenizer, max_length, "all")
    order = sorted(range(len(found)), key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
    chosen = [found[index].ids[:max_length] for index in order[:samples]]
    events.message(f"calibrating with {len(chosen)} of {len(found)} sequences, {sum(map(len, chosen))} tokens")
    return [torch.tensor([ids]) for ids in chosen]
