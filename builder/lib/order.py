"""The order of the examples: a function of the seed alone, whoever asks and however often.

Items are sorted by the sha256 of seed, epoch, label and index: to go on from a step, no generator's state is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from encoding import Sequence

WINDOW = 16
"""Batches among which sequences are sorted by length."""


def rank(seed: int, epoch: int, label: str, index: int) -> bytes:
    """Where an item stands in the order of an epoch."""
    return hashlib.sha256(f"{seed}:{epoch}:{label}:{index}".encode()).digest()


def batches(sequences: list[Sequence], seed: int, size: int, *, by_length: bool) -> Iterator[list[Sequence]]:
    """Batches of ``size`` without end, epoch after epoch, each epoch in an order of its own.

    ``by_length`` puts sequences of about the same length into a batch.
    """
    epoch = 0
    while True:
        order = sorted(range(len(sequences)), key=lambda index: rank(seed, epoch, "example", index))
        if by_length:
            window = size * WINDOW
            parts = [order[start : start + window] for start in range(0, len(order), window)]
            order = [index for part in parts for index in sorted(part, key=lambda index: len(sequences[index].ids))]
        starts = list(range(0, len(order), size))
        if by_length:
            starts.sort(key=lambda start: rank(seed, epoch, "batch", start))
        for start in starts:
            yield [sequences[index] for index in order[start : start + size]]
        epoch += 1
