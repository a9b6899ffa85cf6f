"""Work on many things at once, in threads: for what waits for the disk or lets go of the interpreter, as hashing does.

(:mod:`concurrent.futures` does more, and takes a guard as long to import as it takes to verify a small model.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def each(work: Callable[[_T], _R], items: Sequence[_T], workers: int) -> list[_R]:
    """Return what ``work`` makes of each of ``items``, in their order; at most ``workers`` are worked on at once.

    The first fault ends it: what is under way is finished, nothing new is begun, and the fault is raised.
    """
    found: dict[int, _R] = {}
    faults: list[BaseException] = []
    pending, lock = iter(enumerate(items)), threading.Lock()

    def drain() -> None:
        while not faults:
            with lock:
                place, item = next(pending, (-1, None))
            if place < 0:
                return
            try:
                found[place] = work(item)  # type: ignore[arg-type]
            except BaseException as error:  # noqa: BLE001 - raised again, in the thread that asked
                faults.append(error)

    threads = [threading.Thread(target=drain) for _ in range(min(workers, len(items)) - 1)]
    for thread in threads:
        thread.start()
    drain()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return [found[place] for place in range(len(items))]
