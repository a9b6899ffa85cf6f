"""What a figure was measured on: everything that explains it, and nothing that names the machine."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

GIB = 1 << 30


def describe(scratch: Path) -> dict[str, str]:
    """Return date, machine and versions; ``scratch`` is where the measured files stand."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    load = os.getloadavg()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory / GIB:.0f} GiB",
        "file system": file_system(scratch),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load when it began": f"{load:.1f}",
        "versions": f"intaglio {version('intaglio')}, Python {platform.python_version()}, {_bubblewrap()}",
    }


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        for line in stream:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _bubblewrap() -> str:
    program = shutil.which("bwrap")
    if program is None:
        return "no bubblewrap"
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def file_system(path: Path) -> str:
    """Return the kind of file system that ``path`` stands on."""
    found, kind = "", "unknown"
    with open("/proc/self/mounts", encoding="utf-8") as stream:
        for line in stream:
            place, name = line.split()[1:3]
            if len(place) >= len(found) and path.resolve().is_relative_to(place):
                found, kind = place, name
    return kind
