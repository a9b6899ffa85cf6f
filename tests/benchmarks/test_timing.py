from __future__ import annotations

from collections.abc import Callable

from benchmarks.timing import interleave, ratio, stopwatch


def test_each_round_runs_each_variant_once_and_begins_with_another() -> None:
    order: list[str] = []
    notes: list[str] = []

    def variant(name: str) -> Callable[[], float]:
        def once() -> float:
            order.append(name)
            return float(len(order))

        return once

    seconds = interleave({name: variant(name) for name in "abc"}, 3, notes.append)
    assert "".join(order) == "abcbcacab"
    assert seconds == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}
    assert notes[0] == "round 1 of 3: a 1.000 s, b 2.000 s, c 3.000 s"


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    assert ratio([1.0, 10.0, 3.0], [2.0, 10.0, 1.0]) == 1.0


def test_the_stopwatch_runs_what_it_times() -> None:
    done = []
    assert stopwatch(lambda: done.append(1)) >= 0.0
    assert done == [1]
