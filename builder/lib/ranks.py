"""One step as several processes of this machine, started by torchrun's launcher and joined by gloo over the loopback.

* The launcher is the step's first process: it computes nothing, and ends when all others have.
* The first of the processes speaks for all: the others' events go nowhere.
* When one dies, the launcher ends the others at once, and says which one died of what.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from request import Fault

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

EVENTS = "INTAGLIO_EVENTS_PATH"
"""Where a process that was launched finds the launcher's pipe for events."""


def inside() -> bool:
    """Whether this is one of the launched processes."""
    return EVENTS in os.environ


def launch(count: int, threads: int, work: Path) -> None:
    """Run this very program as ``count`` processes with ``threads`` threads each, and wait for their end.

    Raises:
        Fault: one of them failed or was killed.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[EVENTS] = f"/proc/{os.getpid()}/fd/{os.environ.get('INTAGLIO_EVENTS_FD', '2')}"
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="step",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-B", "-s", "-P", *sys.argv)
    except ChildFailedError as failed:
        raise _cause(failed, count, work) from None


def _cause(failed: ChildFailedError, count: int, work: Path) -> Fault:
    """What the processes said, or how the one that failed first ended; those that the launcher ended say nothing."""
    for path in sorted(work.glob("fault-*.json")):
        said = json.loads(path.read_text(encoding="utf-8"))
        return Fault(said["message"], said["hint"])
    killed = {rank: -failure.exitcode for rank, failure in failed.failures.items() if failure.exitcode < 0}
    killed = {rank: number for rank, number in killed.items() if number != signal.SIGTERM}
    for rank, number in sorted(killed.items()):
        hint = "The kernel kills the process that takes most memory: raise memory, or make the batches smaller."
        name = signal.Signals(number).name
        return Fault(f"process {rank + 1} of {count} was killed by {name}", hint if name == "SIGKILL" else "")
    rank, first = failed.get_first_failure()
    return Fault(f"process {rank + 1} of {count} ended with exit status {first.exitcode}")


def work_as_one(step: Callable[[], None], work: Path) -> None:
    """Run ``step`` as one of the launched processes; a :class:`Fault` is left for the launcher to say."""
    import torch.distributed

    rank = int(os.environ["RANK"])
    target = os.environ[EVENTS] if rank == 0 else os.devnull
    os.environ["INTAGLIO_EVENTS_FD"] = str(os.open(target, os.O_WRONLY | os.O_APPEND))
    try:
        torch.distributed.init_process_group("gloo")
        step()
        torch.distributed.destroy_process_group()
    except Fault as fault:
        draft = work / f".fault-{rank}"
        draft.write_text(json.dumps({"message": str(fault), "hint": fault.hint}), encoding="utf-8")
        draft.rename(work / f"fault-{rank}.json")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
