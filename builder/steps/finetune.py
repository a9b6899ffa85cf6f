"""Fine-tune a causal language model on chat or text data: all weights, or an adapter, in one process or several.

* The order of the examples is a function of the seed alone: see ``order``. Of the batches of an optimizer step the
  processes take turns: with N of them the step has N times as many.
* The loss of an optimizer step is the mean over the tokens that count in all of its batches, whoever computes them.
* A loss or a weight that is not finite ends the step with an error; nothing diverged is ever written.
* What is written holds no path, time or order of the run: see ``canonical``. A run that went on from a checkpoint
  writes the bytes of one that was never interrupted.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))  # in a checkout

import adapters
import canonical
import events
import ranks
import weights
from checkpoint import Keeper
from encoding import IGNORED, Sequence, encode
from examples import read_examples
from order import batches
from parallel import Alone, Rules, share
from request import Fault, Request, run

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DIVERGED = "Lower the learning rate, or raise warmup_steps."
SHARING = ("fsdp", "zero2", "zero3")
"""Strategies in which a process does not hold all of what is trained."""


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
    parallel: str
    processes: int
    deepspeed: str | None
    checkpoint_every: int

    @property
    def adapts(self) -> bool:
        """Whether an adapter is trained and not the model's own weights."""
        return self.method in adapters.METHODS

    @classmethod
    def of(cls, request: Request) -> Settings:
        """Read the parameters.

        Raises:
            Fault: both or neither of ``steps`` and ``epochs`` are given, or parameters do not go together.
        """
        steps, epochs = request.optional_integer("steps"), request.optional_number("epochs")
        if (steps is None) == (epochs is None):
            found = "neither" if steps is None else "both"
            raise Fault(f"expected exactly one of the parameters steps and epochs, found {found}")
        if epochs is not None and not (0 < epochs < math.inf):
            raise Fault(f"parameter epochs: expected a number above 0, found {epochs}")
        settings = cls(
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
            parallel=request.text("parallel"),
            processes=request.integer("processes"),
            deepspeed=request.optional_text("deepspeed"),
            checkpoint_every=request.integer("checkpoint_every"),
        )
        settings.check()
        return settings

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            Fault: says what, and what does.
        """
        if self.parallel == "none" and self.processes != 1:
            hint = 'Say how they share the work: parallel = "ddp", "fsdp", "zero2" or "zero3".'
            raise Fault(f'parameter processes: expected 1 with parallel = "none", found {self.processes}', hint)
        if self.parallel != "none" and self.processes < 2:
            hint = "Set processes = 2 or more, or leave parallel out."
            raise Fault(f'parameter processes: expected 2 or more with parallel = "{self.parallel}", found 1', hint)
        if self.processes > threads():
            hint = f"Raise threads under the step's limits to {self.processes} or more."
            raise Fault(
                f"parameter processes: expected at most {threads()}, a thread each, found {self.processes}", hint
            )
        if self.method == "qlora" and self.parallel in SHARING:
            hint = 'Weights in four bits cannot be shared out: use parallel = "ddp", or method = "lora".'
            raise Fault(f'method = "qlora" does not go with parallel = "{self.parallel}"', hint)
        if self.parallel.startswith("zero") and self.precision != "float32":
            hint = 'Use parallel = "fsdp", or precision = "float32".'
            raise Fault(f'parallel = "{self.parallel}" does not go with precision = "{self.precision}"', hint)
        if self.deepspeed is not None and not self.parallel.startswith("zero"):
            hint = 'Set parallel = "zero2" or "zero3", or leave deepspeed out.'
            raise Fault(f'parameter deepspeed: not read with parallel = "{self.parallel}"', hint)

    def rules(self) -> Rules:
        """How weights are updated."""
        return Rules(
            self.learning_rate,
            self.weight_decay,
            self.max_grad_norm,
            self.accumulation,
            self.batch_size,
            self.deepspeed,
        )

    def total_steps(self, sequences: int) -> int:
        """Optimizer steps of the whole run."""
        if self.epochs is None:
            return self.steps or 1
        batches = math.ceil(self.epochs * math.ceil(sequences / self.batch_size))
        return max(1, math.ceil(batches / (self.accumulation * self.processes)))

    def rate(self, step: int, total: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        share = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        return self.learning_rate * share[self.schedule]


def threads() -> int:
    """Threads that the step may compute with, all processes together."""
    return int(os.environ.get("OMP_NUM_THREADS", "2")) * (int(os.environ["WORLD_SIZE"]) if ranks.inside() else 1)


class Trainer:
    """One optimizer step at a time."""

    def __init__(self, model: PreTrainedModel, settings: Settings, pad: int) -> None:
        self.settings = settings
        self.pad = pad
        inner = model.get_base_model() if settings.adapts else model
        self.keeps_logits = "logits_to_keep" in inspect.signature(inner.forward).parameters
        self.shared: Alone = share(settings.parallel, model, settings.rules())

    def step(self, parts: list[list[Sequence]], rate: float) -> tuple[float, int]:
        """Learn from some batches, of all processes; return the mean loss a token and the number of tokens read."""
        counted = sum(label != IGNORED for part in parts for sequence in part for label in sequence.labels[1:])
        mine = parts[self.shared.rank :: self.shared.world]
        self.shared.begin(rate)
        loss = 0.0
        for number, part in enumerate(mine, 1):
            with self.shared.part(last=number == len(mine)):
                value = self.loss(part) / counted
                self.shared.backward(value)
            loss += value.item()
        self.shared.update()
        return self.shared.total(loss), sum(len(sequence.ids) for part in parts for sequence in part)

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
            logits = self.shared.model(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits
        logits = logits[:, first - 1 - longest : -1].float()
        flat = labels[:, first:].reshape(-1)
        return torch.nn.functional.cross_entropy(
            logits.reshape(len(flat), -1), flat, ignore_index=IGNORED, reduction="sum"
        )


def train(trainer: Trainer, sequences: list[Sequence], keeper: Keeper | None) -> None:
    """Run all steps, telling the loss, the learning rate and the speed of each.

    Raises:
        Fault: the loss is no longer finite.
    """
    settings, shared = trainer.settings, trainer.shared
    stream = batches(sequences, settings.seed, settings.batch_size, by_length=settings.group_by_length)
    total, each = settings.total_steps(len(sequences)), settings.accumulation * settings.processes
    done = resume(shared, keeper, total)
    stream = islice(stream, done * each, None)
    shared.inner.train()
    for step in range(done, total):
        if keeper is not None and step > done and keeper.due(step, total):
            keeper.save(step, shared.state())
        began = time.perf_counter()
        rate = settings.rate(step, total)
        loss, tokens = trainer.step([next(stream) for _ in range(each)], rate)
        if not math.isfinite(loss):
            raise Fault(f"step {step + 1} of {total}: expected a finite loss, found {loss}", DIVERGED)
        events.metric("loss", loss, step + 1)
        events.metric("learning_rate", rate, step + 1)
        events.metric("tokens_per_second", tokens / (time.perf_counter() - began), step + 1)
        events.progress(step + 1, total, "steps")


def resume(shared: Alone, keeper: Keeper | None, total: int) -> int:
    """Go on from the last checkpoint that is whole; return the steps that are behind us."""
    found = keeper.find() if keeper is not None else None
    if keeper is None or found is None:
        return 0
    done, folder = found
    shared.restore(keeper.load(folder, shared=shared.shared))
    events.resumed(done, total)
    return done


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


def build(request: Request, settings: Settings) -> PreTrainedModel:
    """Load the base model, and put an adapter around it where one is trained."""
    low = settings.adapts and settings.precision == "bfloat16"
    model = adapters.load_base(request, low=low, four_bits=settings.method == "qlora")
    return adapters.add(model, request, dora=settings.method == "dora") if settings.adapts else model


def whole(shared: Alone, request: Request, settings: Settings) -> PreTrainedModel:
    """The trained model in one piece, on the first process; all of them call this."""
    import torch

    found = shared.weights()
    if found is None or shared.rank > 0:
        return shared.inner
    torch.manual_seed(settings.seed)
    model = build(request, settings)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.requires_grad:
                one.copy_(found.pop(name))
    return model


def compute(request: Request, settings: Settings, config: dict[str, object]) -> None:
    """Train, as one process or as one of several; the first writes what came out."""
    import torch
    from transformers import AutoTokenizer

    weights.start_torch(settings.seed)
    base = request.inputs["base"]
    examples = read_examples(request.inputs["data"])
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    sequences = encode(examples, tokenizer, request.integer("max_length"), request.text("loss"))
    tokens = sum(len(sequence.ids) for sequence in sequences)
    events.message(f"{len(examples)} examples, {len(sequences)} sequences, {tokens} tokens")

    model = build(request, settings)
    if request.boolean("gradient_checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    trainer = Trainer(model, settings, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
    shared, keeper = trainer.shared, None
    if shared.world > 1:
        torch.manual_seed(settings.seed + shared.rank)  # until here each drew the same, from here its own
    if request.checkpoint is not None and settings.checkpoint_every:
        keeper = Keeper(request.checkpoint, settings.checkpoint_every, shared.rank, shared.world, shared.barrier)
    train(trainer, sequences, keeper)
    made = whole(shared, request, settings)
    if shared.rank == 0:
        weights.check_finite(made.named_parameters(), DIVERGED)
        if settings.adapts:
            adapters.save(made, request)
        else:
            save_full(made, config, request)
    shared.barrier()


def finetune(request: Request) -> None:
    """The step."""
    settings = Settings.of(request)
    config = read_base(request.inputs["base"], request.integer("max_length"))
    if settings.processes == 1:
        compute(request, settings, config)
    elif ranks.inside():
        ranks.work_as_one(lambda: compute(request, settings, config), request.work)
    else:
        read_examples(request.inputs["data"])
        ranks.launch(settings.processes, threads() // settings.processes, request.work)


if __name__ == "__main__":
    sys.exit(run(finetune))
