"""Examples as token ids and labels.

Which tokens of a conversation are the assistant's is found by rendering its beginnings with the chat template: what a
turn adds after the generation prompt is what the model must learn to say. The template needs no special marks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import events
from examples import Example
from request import Fault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
"""Label of a token that the loss leaves out."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """Token ids of one training sequence with their labels."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def first_label(self) -> int:
        """Position of the first token that counts; at least 1, for nothing predicts the first token."""
        return max(1, next(index for index, label in enumerate(self.labels) if label != IGNORED))


def encode(examples: list[Example], tokenizer: PreTrainedTokenizerFast, max_length: int, loss: str) -> list[Sequence]:
    """Encode all examples: texts longer than ``max_length`` tokens are cut into pieces, conversations are cut off.

    Raises:
        Fault: the tokenizer has no chat template, or one that cannot be followed turn by turn, or nothing is left.
    """
    if any(example.messages for example in examples) and not tokenizer.chat_template:
        hint = 'Use a base model with a chat template, or data of the form {"text": …}.'
        raise Fault("data holds conversations, but the base model's tokenizer has no chat template", hint)
    sequences: list[Sequence] = []
    cut = 0
    for example in examples:
        whole = _encode_chat(example, tokenizer, loss) if example.messages else _encode_text(example, tokenizer)
        step = max_length if example.text else len(whole.ids)
        cut += bool(example.messages) and len(whole.ids) > max_length
        for start in range(0, len(whole.ids), step):
            piece = slice(start, min(start + step, start + max_length))
            sequences.append(Sequence(whole.ids[piece], whole.labels[piece]))
    if cut:
        events.message(f"{cut} of {len(examples)} conversations were cut off at {max_length} tokens")
    useful = [sequence for sequence in sequences if any(label != IGNORED for label in sequence.labels[1:])]
    if not useful:
        raise Fault("data: expected tokens to learn from, found none", "Raise max_length.")
    return useful


def _encode_text(example: Example, tokenizer: PreTrainedTokenizerFast) -> Sequence:
    ids = list(tokenizer(example.text)["input_ids"])
    end = tokenizer.eos_token_id
    if end is not None and (not ids or ids[-1] != end):
        ids.append(end)
    return Sequence(tuple(ids), tuple(ids))


def _encode_chat(example: Example, tokenizer: PreTrainedTokenizerFast, loss: str) -> Sequence:
    text = _render(example, len(example.messages), tokenizer, prompt=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = tuple(encoded["input_ids"])
    if loss == "all":
        return Sequence(ids, ids)
    spans = _assistant_spans(example, text, tokenizer)
    starts = [start for start, _ in encoded["offset_mapping"]]
    said = [any(first <= start < last for first, last in spans) for start in starts]
    return Sequence(ids, tuple(token if learn else IGNORED for token, learn in zip(ids, said, strict=True)))


def _assistant_spans(example: Example, text: str, tokenizer: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    """Character ranges of ``text`` that the assistant said, its end-of-turn marks included."""
    spans = []
    for index, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        before = _render(example, index, tokenizer, prompt=True)
        after = _render(example, index + 1, tokenizer, prompt=False)
        if not (after.startswith(before) and text.startswith(after)):
            hint = 'Set loss = "all" to learn from every token.'
            raise Fault(f"{example.where}: the chat template does not render messages[{index}] where it stands", hint)
        spans.append((len(before), len(after)))
    return spans


def _render(example: Example, count: int, tokenizer: PreTrainedTokenizerFast, *, prompt: bool) -> str:
    messages = list(example.messages[:count])
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    return text
