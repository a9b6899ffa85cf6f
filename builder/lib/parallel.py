"""A model in training: alone in one process, or shared among several by a strategy.

All of them answer the same few questions, so that the training loop is one:

* ``none``: one process. ``ddp``: each process has the whole model; gradients are averaged.
* ``fsdp``: each process has a share of every weight and of the optimizer's state (FSDP2, ``fully_shard``).
* ``zero2``: of gradients and optimizer's state; ``zero3``: of the weights too (DeepSpeed, with torch's own AdamW).

A loss is divided by the tokens that count in the whole step, not only in this process's batches: gradients are summed,
so that what the strategies average is multiplied by the number of processes first.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from request import Fault

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BETAS = (0.9, 0.999)
EPSILON = 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKETS = {"reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000}
"""Elements that DeepSpeed exchanges at once: a tenth of its defaults, which take 2 GB in each process beforehand."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How weights are updated."""

    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    accumulation: int
    """Batches of a process in an optimizer step."""
    batch_size: int
    deepspeed: str | None
    """JSON: what is added to DeepSpeed's configuration."""


def share(strategy: str, model: PreTrainedModel, rules: Rules) -> Alone:
    """Put ``model`` under ``strategy``; where it is not ``none``, all processes call this.

    Raises:
        Fault: DeepSpeed's configuration is not one.
    """
    kinds: dict[str, type[Alone]] = {"none": Alone, "ddp": Replicated, "fsdp": Sharded, "zero2": Zero, "zero3": Zero3}
    return kinds[strategy](model, rules)


def groups(parameters: list[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """The optimizer's groups: weight decay on matrices alone."""
    found = [
        {"params": [p for p in parameters if _dimensions(p) >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if _dimensions(p) < 2], "weight_decay": 0.0},
    ]
    return [group for group in found if group["params"]]


def _dimensions(parameter: torch.nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))


class Alone:
    """A model in one process."""

    shared = True
    """Whether a process needs the first one's state beside its own."""

    def __init__(self, model: PreTrainedModel, rules: Rules) -> None:
        import torch

        self.inner = model
        self.rules = rules
        self.rank, self.world = 0, 1
        if torch.distributed.is_initialized():
            self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.model: Any = self.wrap(model)
        self.trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
        self.start()

    def wrap(self, model: PreTrainedModel) -> Any:
        """What is called in the model's place."""
        return model

    def start(self) -> None:
        """Make the optimizer."""
        self.optimizer: Any = self.make_optimizer()

    def make_optimizer(self) -> torch.optim.AdamW:
        """AdamW for what is trained."""
        import torch

        parameters = groups([one for _, one in self.trained], self.rules.weight_decay)
        return torch.optim.AdamW(parameters, lr=self.rules.learning_rate, betas=BETAS, eps=EPSILON, fused=True)

    @contextlib.contextmanager
    def part(self, *, last: bool) -> Iterator[None]:  # noqa: ARG002 - some strategies ask
        """Around the forward and backward pass of a batch; ``last`` of the step's."""
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add to the gradients."""
        (loss * self.world).backward()

    def begin(self, rate: float) -> None:
        """Begin an optimizer step at the learning rate ``rate``."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def update(self) -> None:
        """Take the optimizer step."""
        import torch

        if self.rules.max_grad_norm:
            torch.nn.utils.clip_grad_norm_([one for _, one in self.trained], self.rules.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def total(self, value: float) -> float:
        """The sum of what each process has."""
        import torch

        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        torch.distributed.all_reduce(tensor)
        return float(tensor.item())

    def barrier(self) -> None:
        """Wait for all processes."""
        import torch

        if self.world > 1:
            torch.distributed.barrier()

    def weights(self) -> dict[str, torch.Tensor] | None:
        """What was trained, whole, on the first process and empty on others; ``None``: it stands in ``inner``."""
        return None

    # --- going on from a checkpoint ------------------------------------------------------------------------------

    def state(self) -> dict[str, torch.Tensor]:
        """What this process must have again to go on as if nothing had happened."""
        import torch

        random = {"random": torch.get_rng_state()}
        if self.shared and self.rank > 0:  # the first process keeps what all have
            return random
        tensors = {f"weight/{name}": _local(one) for name, one in self.trained}
        for name, one in self.trained:
            for key, value in self.optimizer.state[one].items():
                tensors[f"{key}/{name}"] = _local(value)
        return {**tensors, **random}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take a state again."""
        import torch

        with torch.no_grad():
            for name, one in self.trained:
                _local(one).copy_(tensors[f"weight/{name}"])
                state: dict[str, torch.Tensor] = {"step": tensors[f"step/{name}"].clone()}
                for key in MOMENTS:
                    state[key] = torch.zeros_like(one)
                    _local(state[key]).copy_(tensors[f"{key}/{name}"])
                self.optimizer.state[one] = state
        torch.set_rng_state(tensors["random"])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's share of a tensor."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


class Replicated(Alone):
    """Data parallel: the whole model in each process."""

    def wrap(self, model: PreTrainedModel) -> Any:
        """DDP, in a form in which its buckets stay as they are.

        By default it arranges them anew after the first step: a run that goes on from a checkpoint would add in another
        order than one that was never interrupted.
        """
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)

    @contextlib.contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """Gradients are exchanged with the last batch of the step."""
        with contextlib.nullcontext() if last else self.model.no_sync():
            yield


class Sharded(Alone):
    """Fully sharded data parallel."""

    shared = False

    def wrap(self, model: PreTrainedModel) -> Any:
        """Shard each block of the model on its own, and the rest together."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (self.world,))
        blocks = set(model._no_split_modules or ())
        for module in model.modules():
            if type(module).__name__ in blocks:
                fully_shard(module, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """Gather each weight in turn."""
        from torch.distributed.tensor import DTensor

        found = {}
        for name, one in self.trained:
            whole = one.full_tensor().detach() if isinstance(one, DTensor) else one.detach()
            if self.rank == 0:
                found[name] = whole
        return found


class Zero(Alone):
    """DeepSpeed's ZeRO, stage 2."""

    stage = 2
    _OURS = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "optimizer",
        "scheduler",
        "fp16",
        "bf16",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
    )

    def wrap(self, model: PreTrainedModel) -> Any:
        """The model itself: DeepSpeed wraps model and optimizer together."""
        return model

    def start(self) -> None:
        """Hand model and optimizer to DeepSpeed."""
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        # It would compile operators of its own with the compiler of this machine, and compute with them.
        for name in deepspeed.ops.__compatible_ops__:
            deepspeed.ops.__compatible_ops__[name] = False
        made = deepspeed.initialize(
            model=self.inner, optimizer=self.make_optimizer(), config=self.configuration(), dist_init_required=False
        )
        self.model, self.optimizer = made[0], made[1]

    def configuration(self) -> dict[str, Any]:
        """DeepSpeed's configuration: what the parameters say, and what the user adds to it.

        Raises:
            Fault: what is added is not JSON, or says again what a parameter says.
        """
        try:
            added = json.loads(self.rules.deepspeed or "{}")
        except ValueError as problem:
            raise Fault(f"parameter deepspeed: expected a JSON object: {problem}") from None
        if not isinstance(added, dict):
            raise Fault(f"parameter deepspeed: expected a JSON object, found {self.rules.deepspeed}")
        zero = added.get("zero_optimization", {})
        taken = [key for key in self._OURS if key in added]
        taken += ["zero_optimization.stage"] if isinstance(zero, dict) and "stage" in zero else []
        if taken:
            raise Fault(f"parameter deepspeed: {', '.join(taken)}: decided by the step's own parameters")
        return {
            "train_micro_batch_size_per_gpu": self.rules.batch_size,
            "gradient_accumulation_steps": self.rules.accumulation,
            "gradient_clipping": self.rules.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            **added,
            "zero_optimization": {"stage": self.stage, **BUCKETS, **zero},
        }

    def backward(self, loss: torch.Tensor) -> None:
        """DeepSpeed divides by the batches of a step: we have done that with the tokens of all of them."""
        self.model.backward(loss * (self.world * self.rules.accumulation))

    def update(self) -> None:
        """Nothing is left to do: DeepSpeed counts the batches, and has updated after the last of them."""

    @contextlib.contextmanager
    def part(self, *, last: bool) -> Iterator[None]:  # noqa: ARG002 - DeepSpeed counts by itself
        """After every batch DeepSpeed is told, and takes the optimizer step after the last."""
        yield
        self.model.step()

    def masters(self) -> list[torch.Tensor]:
        """This process's share of what is trained, flat, a group each: what DeepSpeed's optimizer updates."""
        found: list[torch.Tensor] = self.optimizer.single_partition_of_fp32_groups
        return found

    def whole(self) -> dict[str, torch.Tensor]:
        """What is trained, on the first process."""
        return {name: one.detach() for name, one in self.trained} if self.rank == 0 else {}

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write what is trained into the model, from what :meth:`whole` gave."""
        for name, one in self.trained:
            one.data.copy_(tensors[f"weight/{name}"])

    def state(self) -> dict[str, torch.Tensor]:
        """The weights from the first process, from each its masters and their moments."""
        import torch

        tensors = {f"weight/{name}": tensor for name, tensor in self.whole().items()}
        for number, master in enumerate(self.masters()):
            tensors[f"master/{number}"] = master.detach()
            for key, value in self.optimizer.optimizer.state[master].items():
                tensors[f"{key}/{number}"] = value
        return {**tensors, "random": torch.get_rng_state()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take a state again."""
        import torch

        with torch.no_grad():
            self.fill(tensors)
            for number, master in enumerate(self.masters()):
                master.copy_(tensors[f"master/{number}"])
                state = {key: tensors[f"{key}/{number}"].clone() for key in ("step", *MOMENTS)}
                self.optimizer.optimizer.state[master] = state
        torch.set_rng_state(tensors["random"])


class Zero3(Zero):
    """ZeRO, stage 3."""

    stage = 3

    def masters(self) -> list[torch.Tensor]:
        """As in stage 2."""
        found: list[torch.Tensor] = self.optimizer.fp32_partitioned_groups_flat
        return found

    def whole(self) -> dict[str, torch.Tensor]:
        """Gather each weight in turn."""
        import deepspeed

        found = {}
        for name, one in self.trained:
            with deepspeed.zero.GatheredParameters([one]):
                if self.rank == 0:
                    found[name] = one.detach().clone()
        return found

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Give each process its share again."""
        import deepspeed

        for name, one in self.trained:
            with deepspeed.zero.GatheredParameters([one], modifier_rank=0):
                if self.rank == 0:
                    one.data.copy_(tensors[f"weight/{name}"])

    def weights(self) -> dict[str, torch.Tensor] | None:
        """What is trained, gathered."""
        return self.whole()
