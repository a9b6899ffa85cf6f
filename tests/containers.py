"""Real podman and Docker for tests: fetched from Debian, run from folders of their own, nothing on the system changed.

Both need root. The flags are those that work where root lacks CAP_SYS_RESOURCE and control groups are of version 1: no
network set-up of theirs, runc, cgroupfs, modest limits on files. Soft and hard limits of podman's are equal, since
podman 4.3 takes one for the other when it is asked through its socket. Where a container ends, conmon starts podman to
say so, and hands on no environment of its own accord: without its libraries, an end takes podman 20 seconds more.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests import programs

from intaglio.build import engines
from intaglio.build.engines import Engine
from intaglio.errors import MachineError

KINDS = ("podman", "docker")
_PACKAGES = {"podman": ("podman", "runc"), "docker": ("docker.io", "runc")}
_PROGRAM = {"podman": "usr/bin/podman", "docker": "usr/sbin/dockerd"}
_DOCKERD = (
    "--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false",
    "--storage-driver", "overlay2", "--exec-opt", "native.cgroupdriver=cgroupfs",
    "--default-ulimit", "nofile=1024:4096",
)  # fmt: skip


@functools.cache
def unpacked(kind: str) -> Path:
    """Return a folder with the engine's packages and what of their dependencies this machine lacks."""
    target = programs.cache() / "debian" / kind
    with programs._lock(target):
        if not ((target / _PROGRAM[kind]).exists() and (target / programs.VERSION).exists()):
            _unpack(_PACKAGES[kind], target)
    print(f"{kind}: {(target / programs.VERSION).read_text()}")
    return target


def _unpack(packages: tuple[str, ...], target: Path) -> None:
    root = programs.cache() / "apt" / "bookworm"
    with programs._lock(root):
        programs._refresh(root, "bookworm")
    with programs._scratch(target) as fresh:
        archives = fresh / "archives"
        (archives / "partial").mkdir(parents=True)
        own = ["--option=Dir::State::Status=/var/lib/dpkg/status", f"--option=Dir::Cache::archives={archives}"]
        fetch = ["install", "--download-only", "--yes", "--no-install-recommends", "--option=Debug::NoLocking=1"]
        programs._run([*programs._apt(root), *own, *fetch, *packages], fresh)
        debs = sorted(archives.glob("*.deb"))
        for deb in debs:
            programs._run(["dpkg", "-x", str(deb), str(fresh / "root")], fresh)
        (fresh / "root" / programs.VERSION).write_text(", ".join(deb.stem for deb in debs))
        shutil.rmtree(target, ignore_errors=True)
        (fresh / "root").rename(target)


@contextlib.contextmanager
def running(kind: str) -> Iterator[Engine]:
    """Run an engine with its data in a folder of its own; it is gone afterwards."""
    if os.geteuid() != 0:
        programs.missing(f"{kind}: its tests need root")
    try:
        programs_of = unpacked(kind)
    except programs.NotHere as error:
        programs.missing(f"{kind}: {error}")
    # A path short enough for a Unix socket, and on a real disk: overlay takes no overlay below it.
    folder = Path(tempfile.mkdtemp(prefix=f"intaglio-{kind}-", dir="/var/tmp"))
    place = folder / "engine.sock"
    path = f"{programs_of / 'usr/bin'}:{programs_of / 'usr/sbin'}:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {"PATH": path, "HOME": str(folder), "LD_LIBRARY_PATH": str(programs_of / "usr/lib/x86_64-linux-gnu")}
    command = _podman(programs_of, folder, environment) if kind == "podman" else _docker(folder)
    try:
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
            try:
                yield _answering(place, process, folder / "log")
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                if process.poll() is None:
                    process.kill()
                    process.wait()
    finally:
        _remove(folder)


@contextlib.contextmanager
def containerd() -> Iterator[Callable[..., str]]:
    """Run Docker's containerd alone; yield what asks it with ``ctr``."""
    if os.geteuid() != 0:
        programs.missing("containerd: its tests need root")
    try:
        root = unpacked("docker")
    except programs.NotHere as error:
        programs.missing(f"containerd: {error}")
    folder = Path(tempfile.mkdtemp(prefix="intaglio-containerd-", dir="/var/tmp"))
    place = folder / "c.sock"
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH": str(root / "usr/lib/x86_64-linux-gnu")}

    def ask(*words: str) -> str:
        command = [str(root / "usr/bin/ctr"), "--address", str(place), *words]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout

    command = [str(root / "usr/bin/containerd"), "--root", str(folder / "root"), "--state", str(folder / "state")]
    try:
        with (
            open(folder / "log", "wb") as log,
            subprocess.Popen(
                [*command, "--address", str(place)], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            ) as process,
        ):
            try:
                for _ in range(600):
                    if place.is_socket() or process.poll() is not None:
                        break
                    time.sleep(0.05)
                yield ask
            finally:
                process.terminate()
    finally:
        _remove(folder)


def _podman(root: Path, folder: Path, environment: dict[str, str]) -> list[str]:
    (folder / "containers.conf").write_text(f"""
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=32768:32768"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
conmon_path = ["{root}/usr/bin/conmon"]
conmon_env_vars = ["PATH={environment["PATH"]}", "LD_LIBRARY_PATH={environment["LD_LIBRARY_PATH"]}"]
[engine.runtimes]
runc = ["{root}/usr/bin/runc"]
""")
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    environment |= {
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
    }
    if not Path("/etc/containers/policy.json").exists():
        (folder / ".config" / "containers").mkdir(parents=True)
        (folder / ".config" / "containers" / "policy.json").write_text(
            '{"default": [{"type": "insecureAcceptAnything"}]}'
        )
    return ["podman", "system", "service", "--time=0", f"unix://{folder}/engine.sock"]


def _docker(folder: Path) -> list[str]:
    places = ("--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "-p", f"{folder}/pid")
    return ["dockerd", *places, "-H", f"unix://{folder}/engine.sock", *_DOCKERD]


def _answering(place: Path, process: subprocess.Popen[bytes], log: Path) -> Engine:
    for _ in range(600):
        with contextlib.suppress(MachineError):
            return engines.ask(place)
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the container engine does not answer:\n{log.read_text()[-3000:]}")


def _remove(folder: Path) -> None:
    """Remove what an engine left: its mounts first, the deepest of them before those above."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A running container engine: podman, then Docker."""
    with running(request.param) as found:
        yield found


__all__ = ["KINDS", "containerd", "engine", "running"]
