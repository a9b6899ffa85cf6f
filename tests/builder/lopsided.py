"""Make a model whose matrices have columns of very different size, and say how far a quantized one is from it.

    PYTHON tests/builder/lopsided.py make MODEL OUT
    PYTHON tests/builder/lopsided.py distance MODEL QUANTIZED

Run with the Python of an environment that has torch. Only such a model shows whether what a quantizer scaled to try it
was put back: the columns of one made from a seed are all alike.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

LAYER = "model.layers.0.mlp.up_proj"
NORM = "model.layers.0.post_attention_layernorm.weight"
PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where AutoAWQ puts eight numbers of 4 bits in one of 32."""


def make(source: Path, target: Path) -> None:
    """Write ``source`` with every fourth column of that layer eight times as large into ``target``."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    tensors[f"{LAYER}.weight"][:, ::4] *= 8
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def distance(dense: Path, quantized: Path) -> float:
    """Of what that layer and the norm before it do together: the length of the difference, as a share."""
    import torch
    from safetensors.torch import load_file

    def unpack(packed: Any) -> Any:
        return (packed.unsqueeze(-1) >> torch.arange(0, 32, 4) & 15)[..., PLACES].flatten(-2).float()

    old, new = load_file(dense / "model.safetensors"), load_file(quantized / "model.safetensors")
    numbers, zeros, scales = unpack(new[f"{LAYER}.qweight"]), unpack(new[f"{LAYER}.qzeros"]), new[f"{LAYER}.scales"]
    group = len(numbers) // len(scales)
    weight = (numbers - zeros.repeat_interleave(group, 0)) * scales.float().repeat_interleave(group, 0)
    was, now = old[f"{LAYER}.weight"].float() * old[NORM].float(), weight.t() * new[NORM].float()
    # the scales that the layer shares with the next one go by rows: they are taken out
    rows = (was * now).sum(1, keepdim=True) / now.square().sum(1, keepdim=True)
    return float((now * rows - was).norm() / was.norm())


def main() -> int:
    """Do what the command line says."""
    command, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if command == "make":
        make(source, target)
    else:
        print(distance(source, target))
    return 0


if __name__ == "__main__":
    sys.exit(main())
