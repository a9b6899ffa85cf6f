"""The tokenizer inside a GGUF file of the byte-level BPE kind, as Hugging Face files.

A GGUF file holds tokens and merges, and only the *name* of the rule by which text is split before merging. The rules
known here are those of the tokenizers' own ``tokenizer.json``; a name that is not known is refused, for a wrong rule
yields a model that reads other tokens than it was trained on. (transformers would split every one of them as GPT-2
does, and swap the special tokens.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import canonical
from request import Fault

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KIND = "gpt2"
"""What GGUF calls byte-level BPE."""

CONTROL, USER_DEFINED = 3, 4
"""Token types that are matched whole, before text is split."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {"llama-bpe": _WORDS + r"\p{N}{1,3}" + _REST, "qwen2": _WORDS + r"\p{N}" + _REST}
_PLAIN = ("gpt-2", "smollm")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file says about its tokenizer."""

    split: str
    """llama.cpp's name of the pre-tokenizer."""
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    """Token ids by Hugging Face's names of their parts, such as ``eos_token``."""
    add_bos: bool
    template: str | None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Vocabulary:
        """Read the fields of a GGUF reader.

        Raises:
            Fault: the tokenizer is split by a rule that is not known here.
        """

        def value(name: str, otherwise: Any) -> Any:
            field = fields.get(f"tokenizer.{name}")
            return otherwise if field is None else field.contents()

        split = str(value("ggml.pre", "gpt-2"))
        known = (*_PLAIN, *_SPLITS)
        if split not in known:
            hint = "Import the model from its safetensors form instead."
            raise Fault(f"tokenizer.ggml.pre: expected one of {', '.join(known)}, found {split!r}", hint)
        names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
        ids = {f"{short}_token": value(f"ggml.{long}_token_id", None) for long, short in names.items()}
        tokens = value("ggml.tokens", [])
        return cls(
            split=split,
            tokens=tokens,
            types=value("ggml.token_type", [1] * len(tokens)),
            merges=value("ggml.merges", []),
            special={name: number for name, number in ids.items() if number is not None},
            add_bos=bool(value("ggml.add_bos_token", False)),
            template=value("chat_template", None),
        )

    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

        merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in self.merges)]
        numbers = {token: number for number, token in enumerate(self.tokens)}
        tokenizer = Tokenizer(models.BPE(numbers, merges, ignore_merges=self.split == "llama-bpe"))
        if self.split == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = self._pre_tokenizer()
        tokenizer.decoder = decoders.ByteLevel()
        kinds = list(zip(self.tokens, self.types, strict=True))
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in kinds if k == CONTROL])
        tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t, k in kinds if k == USER_DEFINED])
        if self.add_bos:
            self._begin_with_bos(tokenizer)
        return tokenizer

    def _pre_tokenizer(self) -> Any:
        from tokenizers import Regex, pre_tokenizers

        if self.split in _SPLITS:
            split = pre_tokenizers.Split(Regex(_SPLITS[self.split]), behavior="isolated", invert=False)
            return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if self.split == "smollm":
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
        return plain

    def _begin_with_bos(self, tokenizer: Tokenizer) -> None:
        from tokenizers import processors

        number = self.special.get("bos_token")
        if number is None:
            raise Fault("tokenizer.ggml.add_bos_token is true, but the file names no such token")
        bos = self.tokens[number]
        pair = f"{bos} $A {bos}:1 $B:1"
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", pair=pair, special_tokens=[(bos, number)])

    def write(self, out: Path, context: int) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``; ``context`` is the model's limit in tokens."""
        self.tokenizer().save(str(out / "tokenizer.json"))
        config: dict[str, object] = {name: self.tokens[number] for name, number in self.special.items()}
        config |= {
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        if self.template is not None:
            config["chat_template"] = self.template
        canonical.write_json(out / "tokenizer_config.json", config)
