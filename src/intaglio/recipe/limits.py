"""How much of the machine a step may take, and how people write it: ``8GiB``, ``90m``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from intaglio.dataclass import dataclass, replace
from intaglio.recipe.shape import Key, Number, Text

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = Text(r"[1-9][0-9]{0,8}(B|KiB|MiB|GiB|TiB)", 'a size such as "8GiB" (units B, KiB, MiB, GiB, TiB)')
_TIME = Text(r"[1-9][0-9]{0,8}[smhd]", 'a time such as "90m" (units s, m, h, d)')

KEYS: dict[str, Key] = {
    "memory": Key(_SIZE, "Most memory that the step's processes take together."),
    "processes": Key(Number(whole=True, minimum=1, maximum=1 << 20), "Most processes and threads at once."),
    "time": Key(_TIME, "Longest time that the step runs."),
    "disk": Key(_SIZE, "Most bytes that the step writes."),
    "threads": Key(Number(whole=True, minimum=1, maximum=1024), "Threads for computing; enters the action key."),
}
"""The keys of a table of limits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step may take at most. Only ``threads`` can change the bytes that come out."""

    memory: int = 8 << 30
    """Bytes."""
    processes: int = 512
    """Processes and threads together."""
    time: int = 2 * 3600
    """Seconds."""
    disk: int = 64 << 30
    """Bytes."""
    threads: int = 2
    """A fixed default, never the machine's core count."""

    def override(self, written: Mapping[str, object]) -> Limits:
        """Return these limits with what is ``written`` (checked by :data:`KEYS`) in place."""
        values: dict[str, int] = {}
        for name, value in written.items():
            values[name] = value if isinstance(value, int) else parse(str(value))
        return replace(self, **values)


def parse(text: str) -> int:
    """Return bytes of a size, seconds of a time; ``text`` has been checked by :data:`KEYS`."""
    found = re.fullmatch(r"([0-9]+)([A-Za-z]+)", text)
    if not found:
        raise ValueError(text)
    return int(found[1]) * (_UNITS | _SPANS)[found[2]]
