"""Fine-tune a causal language model on chat or text data: all weights, or a LoRA adapter.

* The order of the examples is a function of the seed alone: they are sorted by the sha256 of seed, epoch and index.
* The loss of an optimizer step is the mean over the tokens that count in all of its batches.
* A loss or a weight that is not finite ends the step with an error; nothing diverged is ever written.
* What is written holds no path, time or order of the run: see ``canonical``.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))  # in a checkout

import canonical
import events
import weights
from encoding import IGNORED, Sequence, encode
from examples import read_examples
from request import Fault, Request, run

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DIVERGED = "Lower the learning rate, or raise warmup_steps."
WINDOW = 16
"""Batches among which sequences are sorted by length."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train."""

    method: str
    seed: int
    steps: int | None
    epochs: float | None
    batch_size: int
    accumulation: int
    group_by_length: bool
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    precision: str

    @classmethod
    def of(cls, request: Request) -> Settings:
        """Read the parameters.

        Raises:
            Fault: both or neither of ``steps`` and ``epochs`` are given.
        """
        steps, epochs = request.optional_integer("steps"), request.optional_number("epochs")
        if (steps is None) == (epochs is None):
            found = "neither" if steps is None else "both"
            raise Fault(f"expected exactly one of the parameters steps and epochs, found {found}")
        if epochs is not None and not (0 < epochs < math.inf):
            raise Fault(f"parameter epochs: expected a number above 0, found {epochs}")
        return cls(
            method=request.text("method"),
            seed=request.integer("seed"),
            steps=steps,
            epochs=epochs,
            batch_size=request.integer("batch_size"),
            accumulation=request.integer("gradient_accumulation"),
            group_by_length=request.boolean("group_by_length"),
            learning_rate=request.number("learning_rate"),
            schedule=request.text("schedule"),
            warmup_steps=request.integer("warmup_steps"),
            weight_decay=request.number("weight_decay"),
            max_grad_norm=request.number("max_grad_norm"),
            precision=request.text("precision"),
        )

    def total_steps(self, sequences: int) -> int:
        """Optimizer steps of the whole run."""
        if self.epochs is None:
            return self.steps or 1
        batches = math.ceil(self.epochs * math.ceil(sequences / self.batch_size))
        return max(1, math.ceil(batches / self.accumulation))

    def rate(self, step: int, total: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        share = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        return self.learning_rate * share[self.schedule]


def rank(seed: int, epoch: int, label: str, index: int) -> bytes:
    """Where an item stands in the order of an epoch."""
    return hashlib.sha256(f"{seed}:{epoch}:{label}:{index}".encode()).digest()


def batches(sequences: list[Sequence], settings: Settings) -> Iterator[list[Sequence]]:
    """Batches without end, epoch after epoch, each epoch in an order of its own."""
    epoch = 0
    while True:
        order = sorted(range(len(sequences)), key=lambda index: rank(settings.seed, epoch, "example", index))
        if settings.group_by_length:
            window = settings.batch_size * WINDOW
            parts = [order[start : start + window] for start in range(0, len(order), window)]
            order = [index for part in parts for index in sorted(part, key=lambda index: len(sequences[index].ids))]
        starts = list(range(0, len(order), settings.batch_size))
        if settings.group_by_length:
            starts.sort(key=lambda start: rank(settings.seed, epoch, "batch", start))
        for start in starts:
            yield [sequences[index] for index in order[start : start + settings.batch_size]]
        epoch += 1


def add_adapter(model: PreTrainedModel, request: Request) -> PreTrainedModel:
    """Put a LoRA adapter around the model; the base weights are frozen.

    Raises:
        Fault: no module of the model is named as the parameter says.
    """
    from peft import LoraConfig, get_peft_model

    targets = request.texts("lora_targets")
    config = LoraConfig(
        r=request.integer("lora_rank"),
        lora_alpha=request.number("lora_alpha"),  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=request.number("lora_dropout"),
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)  # type: ignore[return-value]
    except ValueError as problem:
        raise Fault(f"parameter lora_targets: {problem}") from None


def make_optimizer(model: PreTrainedModel, settings: Settings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


class Trainer:
    """One optimizer step at a time."""

    def __init__(self, model: PreTrainedModel, settings: Settings, pad: int) -> None:
        self.model = model
        self.settings = settings
        self.pad = pad
        self.optimizer = make_optimizer(model, settings)
        inner = model.get_base_model() if settings.method == "lora" else model
        self.keeps_logits = "logits_to_keep" in inspect.signature(inner.forward).parameters

    def step(self, parts: list[list[Sequence]], rate: float) -> tuple[float, int]:
        """Learn from some batches; return the mean loss a token and the number of tokens read."""
        import torch

        counted = sum(label != IGNORED for part in parts for sequence in part for label in sequence.labels[1:])
        loss = 0.0
        for part in parts:
            value = self.loss(part) / counted
            value.backward()  # type: ignore[no-untyped-call]
            loss += value.item()
        if self.settings.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, sum(len(sequence.ids) for part in parts for sequence in part)

    def loss(self, part: list[Sequence]) -> torch.Tensor:
        """Sum of the losses of the tokens that count. Logits are computed from the first such token on."""
        import torch

        longest = max(len(sequence.ids) for sequence in part)
        ids = torch.full((len(part), longest), self.pad)
        labels = torch.full((len(part), longest), IGNORED)
        mask = torch.zeros((len(part), longest), dtype=torch.long)
        for row, sequence in enumerate(part):
            length = len(sequence.ids)
            ids[row, :length] = torch.tensor(sequence.ids)
            labels[row, :length] = torch.tensor(sequence.labels)
            mask[row, :length] = 1
        first = min(sequence.first_label for sequence in part)
        keep = {"logits_to_keep": longest - first + 1} if self.keeps_logits else {}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits
        logits = logits[:, first - 1 - longest : -1].float()
        flat = labels[:, first:].reshape(-1)
        return torch.nn.functional.cross_entropy(
            logits.reshape(len(flat), -1), flat, ignore_index=IGNORED, reduction="sum"
        )


def train(model: PreTrainedModel, sequences: list[Sequence], settings: Settings, pad: int) -> None:
    """Run all steps, telling the loss, the learning rate and the speed of each.

    Raises:
        Fault: the loss is no longer finite.
    """
    trainer = Trainer(model, settings, pad)
    stream = batches(sequences, settings)
    total = settings.total_steps(len(sequences))
    model.train()
    for step in range(total):
        began = time.perf_counter()
        rate = settings.rate(step, total)
        loss, tokens = trainer.step([next(stream) for _ in range(settings.accumulation)], rate)
        if not math.isfinite(loss):
            raise Fault(f"step {step + 1} of {total}: expected a finite loss, found {loss}", DIVERGED)
        events.metric("loss", loss, step + 1)
        events.metric("learning_rate", rate, step + 1)
        events.metric("tokens_per_second", tokens / (time.perf_counter() - began), step + 1)
        events.progress(step + 1, total, "steps")


def read_base(base: Path, max_length: int) -> dict[str, object]:
    """The base model's ``config.json``.

    Raises:
        Fault: there is none, or the model cannot look at as many tokens as asked.
    """
    path = base / "config.json"
    if not path.is_file():
        raise Fault("base model: expected a config.json, found none", "Bring the model in with the step `import`.")
    config: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    limit = config.get("max_position_embeddings")
    if isinstance(limit, int) and max_length > limit:
        raise Fault(f"parameter max_length: expected at most {limit}, the model's own limit, found {max_length}")
    return config


def save_adapter(model: PreTrainedModel, request: Request) -> None:
    """Write the adapter and how to apply it."""
    saved = request.work / "adapter"
    model.save_pretrained(str(saved))
    canonical.canonicalise_safetensors(saved / "adapter_model.safetensors", request.out / "adapter_model.safetensors")
    config = json.loads((saved / "adapter_config.json").read_text(encoding="utf-8"))
    canonical.write_adapter_config(request.out / "adapter_config.json", config)


def save_full(model: PreTrainedModel, config: dict[str, object], request: Request) -> None:
    """Write the whole model, in the type that the base has, with the base's own tokenizer files."""
    import torch

    base = request.inputs["base"]
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    model.to(getattr(torch, dtype))
    weights.check_finite(model.named_parameters(), f"The weights do not fit into {dtype}.")
    weights.save_model(model, request.work, request.out)
    canonical.write_config(request.out / "config.json", config, dtype)
    canonical.copy_files(base, request.out, (*canonical.TOKENIZER_FILES, *canonical.GENERATION_FILES))


def finetune(request: Request) -> None:
    """The step."""
    settings = Settings.of(request)
    max_length = request.integer("max_length")
    base = request.inputs["base"]
    config = read_base(base, max_length)
    examples = read_examples(request.inputs["data"])

    import torch
    from transformers import AutoTokenizer

    weights.start_torch(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    sequences = encode(examples, tokenizer, max_length, request.text("loss"))
    tokens = sum(len(sequence.ids) for sequence in sequences)
    events.message(f"{len(examples)} examples, {len(sequences)} sequences, {tokens} tokens")

    small = settings.method == "lora" and settings.precision == "bfloat16"
    model = weights.load_model(base, torch.bfloat16 if small else torch.float32, request.text("attention"))
    if settings.method == "lora":
        model = add_adapter(model, request)
    if request.boolean("gradient_checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    train(model, sequences, settings, pad)
    weights.check_finite(model.named_parameters(), DIVERGED)
    if settings.method == "lora":
        save_adapter(model, request)
    else:
        save_full(model, config, request)


if __name__ == "__main__":
    sys.exit(run(finetune))
