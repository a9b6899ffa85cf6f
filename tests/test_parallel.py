"""Work in threads: every item once, in order; the first fault ends it."""

from __future__ import annotations

import threading

import pytest

from intaglio.parallel import each


@pytest.mark.parametrize("workers", [0, 1, 2, 8])
def test_results_come_in_order(workers: int) -> None:
    assert each(lambda one: one * 2, range(50), workers) == [one * 2 for one in range(50)]
    assert each(lambda one: one, [], workers) == []


def test_it_works_on_several_at_once() -> None:
    meeting = threading.Barrier(3, timeout=30)
    assert len(each(lambda _: meeting.wait(), range(3), 3)) == 3


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_fault_is_raised_and_ends_it(workers: int) -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        raise ValueError(item)

    with pytest.raises(ValueError):
        each(work, range(1000), workers)
    assert len(begun) <= workers
