"""Measuring side by side: every round runs each variant once, so that the machine's other load falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

Variant = Callable[[], float]
"""Does its work once and returns the seconds that count."""


def interleave(
    variants: Mapping[str, Variant], rounds: int, note: Callable[[str], None] = lambda _: None
) -> dict[str, list[float]]:
    """Run each of ``variants`` once a round, each round beginning with another; return the seconds by variant."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            seconds[name].append(variants[name]())
        note(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {seconds[name][-1]:.3f} s" for name in names))
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median over the rounds of ``numerator / denominator``, round by round."""
    return median(above / below for above, below in zip(numerator, denominator, strict=True))


def stopwatch(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
