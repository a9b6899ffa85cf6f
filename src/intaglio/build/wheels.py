"""Wheels: a toolchain's files brought into the store by the user's own pip configuration, against their hashes.

- pip decides where files come from (indexes, find-links, proxies, certificates); the lock decides what they are.
- Nothing is resolved: ``--no-deps``, exact versions, ``--require-hashes``; and no code of a package runs: wheels are
  only downloaded, and an sdist is fetched without pip's asking its build backend anything.
- Every file is hashed on its way into the store, whoever brought it.
- Downloads are kept for all stores of a user in ``${XDG_CACHE_HOME:-~/.cache}/intaglio/wheels/<sha256>/``.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from intaglio.build import downloads
from intaglio.build.toolchain import Distribution, Toolchain
from intaglio.content.descriptor import EMPTY
from intaglio.content.layout import Store
from intaglio.errors import CorruptContent, MachineError, SourceUnreachable
from intaglio.progress import Progress, Task

_BATCHES = 2
"""pips at a time: one waits for the network while another hashes or starts."""
_BEGINS = re.compile(r"(?:Collecting|Processing) ")
_MISMATCH = "DO NOT MATCH THE HASHES"
_NO_PIP = "No module named pip"
_TAIL = 6
_CONFIGURATION = "look at `pip config list`: indexes and find-links there are where toolchains come from"
_SDIST_FETCHER = Path(__file__).with_name("sdist_fetch.py")
_OFFERS = Path(__file__).with_name("wheel_offers.py")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where PyTorch publishes its CPU wheels, whose versions (``+cpu``) PyPI cannot have."""


def missing(toolchain: Toolchain, store: Store) -> tuple[Distribution, ...]:
    """Return the files that the store does not have yet; wheels still to be built are not among them."""
    return tuple(file for file in toolchain.downloads if not store.has(file.digest, file.size))


def unobtainable(
    toolchains: Iterable[Toolchain], store: Path, *, patience: float, cache: Path | None = None
) -> dict[str, tuple[str, ...]]:
    """Return which files cannot be had, by toolchain: neither here nor offered by pip's configuration.

    Nothing is downloaded; where everything is in the store or the user's cache, nothing is asked either.

    Args:
        toolchains: whose files.
        store: the folder of a store, which need not be there.
        patience: seconds that indexes get to answer, all together.
        cache: as for :func:`fetch`.

    Raises:
        SourceUnreachable: pip did not answer.
    """
    folder = _kept(cache)
    blobs = store / "blobs" / "sha256"
    wanted: dict[Distribution, list[str]] = {}
    for toolchain in toolchains:
        for file in toolchain.downloads:
            if not (blobs / file.digest.hex).is_file() and not (folder / file.digest.hex / file.name).is_file():
                wanted.setdefault(file, []).append(toolchain.name)
    offered = _offered(wanted, patience) if wanted else set()
    absent: dict[str, list[str]] = {}
    for file, names in wanted.items():
        for name in names if file.name not in offered else ():
            absent.setdefault(name, []).append(file.name)
    return {name: tuple(sorted(files)) for name, files in sorted(absent.items())}


def _offered(files: Iterable[Distribution], patience: float) -> set[str]:
    command = [sys.executable, "-P", str(_OFFERS)]
    lines = "".join(f"{file.package} {file.name}\n" for file in files)
    try:
        done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False, timeout=patience)
    except subprocess.TimeoutExpired:
        raise SourceUnreachable(f"pip's indexes did not answer within {patience:g} s", hint=_CONFIGURATION) from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise SourceUnreachable(
            f"pip could not be asked: {said[-1] if said else 'no reason given'}", hint=_CONFIGURATION
        )
    return set(done.stdout.splitlines())


def where_from(names: Iterable[str]) -> str:
    """Return the hint for whoever cannot get files of those names."""
    if any("+cpu" in name for name in names):
        return (
            "PyPI has no +cpu versions; PyTorch's own index for CPUs does: "
            f"pip config set global.extra-index-url {TORCH_INDEX}"
        )
    return _CONFIGURATION


def _kept(cache: Path | None) -> Path:
    return cache / "wheels" if cache else downloads.folder("wheels")


def fetch(toolchain: Toolchain, store: Store, *, offline: bool, progress: Progress, cache: Path | None = None) -> None:
    """Bring every file of ``toolchain`` into ``store``, and its lock; one that is there is not fetched again.

    Raises:
        SourceUnreachable: no index has a file, or it would have to be fetched and ``offline`` forbids it.
        CorruptContent: a file does not have the hash in the lock.
        MachineError: the engine's Python has no pip.
    """
    store.put(toolchain.lock)
    store.put(toolchain.tree().manifest())
    store.put(EMPTY)
    folder = _kept(cache)
    wanted = [
        file
        for file in missing(toolchain, store)
        if not downloads.take(folder / file.digest.hex / file.name, file.digest, store)
    ]
    if not wanted:
        return
    if offline:
        raise SourceUnreachable(
            f"toolchain {toolchain.name}: {len(wanted)} files are not in the store, {wanted[0].name} first, "
            "and --offline forbids fetching them",
            hint="build once without --offline, or bring them in a kit",
        )
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(file.size for file in wanted)
    with (
        progress.task(f"fetching toolchain {toolchain.name}", total) as task,
        ThreadPoolExecutor(_BATCHES) as pool,
    ):
        sources = {sdist.source for sdist in toolchain.sdists}
        batches = [("wheels", batch) for batch in _split([file for file in wanted if file not in sources])]
        batches += [("sdist", [file]) for file in wanted if file in sources]
        jobs = [pool.submit(_fetch, kind, batch, toolchain, folder, store, task) for kind, batch in batches]
        for job in jobs:
            job.result()


def _split(files: Sequence[Distribution]) -> list[list[Distribution]]:
    """Return the files in batches of like size, the largest first."""
    batches: list[list[Distribution]] = [[] for _ in range(min(_BATCHES, len(files)))]
    for file in sorted(files, key=lambda file: -file.size):
        min(batches, key=lambda batch: sum(one.size for one in batch) + len(batch) * 1_000_000).append(file)
    return batches


def _fetch(
    kind: str, files: Sequence[Distribution], toolchain: Toolchain, folder: Path, store: Store, task: Task
) -> None:
    """Download ``files`` with one pip, and take them into cache and store."""
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
        place = Path(temporary) / "files"
        place.mkdir()
        if kind == "wheels":
            requirements = Path(temporary) / "requirements.txt"
            lines = (f"{file.package}=={file.version} --hash=sha256:{file.digest.hex}\n" for file in files)
            requirements.write_text("".join(lines), encoding="utf-8")
            _run(_download_command(toolchain, place, requirements), files, task)
        else:
            (file,) = files
            _run([sys.executable, "-P", str(_SDIST_FETCHER), file.package, file.name, str(place)], files, task)
        for file in files:
            _take(place / file.name, file, folder, store)


def _download_command(toolchain: Toolchain, place: Path, requirements: Path) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    if sys.version_info[:2] != toolchain.python:
        command.append("--python-version={}.{}".format(*toolchain.python))
    return [*command, "--dest", str(place), "--requirement", str(requirements)]


def _run(command: Sequence[str], files: Sequence[Distribution], task: Task) -> None:
    """Run pip and report each file as the next one begins.

    Raises:
        CorruptContent, SourceUnreachable, MachineError: by what pip said.
    """
    lines: list[str] = []
    begun = 0
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        for line in process.stdout:
            lines.append(line.rstrip())
            if _BEGINS.match(line) and begun < len(files):
                begun += 1
                if begun > 1:
                    task.advance(files[begun - 2].size)
    if process.returncode == 0:
        task.advance(sum(file.size for file in files[max(begun - 1, 0) :]))
        return
    said = "\n".join(lines)
    if _NO_PIP in said:
        raise MachineError(
            f"{sys.executable} has no pip", hint=f"run `{sys.executable} -m ensurepip`, or install intaglio with pip"
        )
    tail = "\n".join(line for line in lines[-_TAIL * 4 :] if line.startswith((" ", "ERROR", "WARNING: Retr")))
    tail = "\n".join(tail.splitlines()[-_TAIL:])
    if _MISMATCH in said:
        raise CorruptContent(
            f"a downloaded file does not have the hash in the lock:\n{tail}",
            hint="the index serves other bytes than the ones that were locked: find out why before you lock again",
        )
    raise SourceUnreachable(
        f"pip could not fetch {files[0].name if len(files) == 1 else f'{len(files)} files'}:\n{tail}",
        hint=where_from(file.name for file in files if f"{file.package}=={file.version}" in tail),
    )


def _take(path: Path, file: Distribution, folder: Path, store: Store) -> None:
    """Copy a download into the store, hashed on the way, then keep it in the cache."""
    if not path.is_file():
        raise SourceUnreachable(f"{file.name}: pip brought {', '.join(os.listdir(path.parent)) or 'nothing'} instead")
    try:
        store.adopt(path, expected=file.digest, move=False)
    except CorruptContent as error:
        raise CorruptContent(f"{file.name}: {error.message}", hint=error.hint) from None
    target = folder / file.digest.hex / file.name
    target.parent.mkdir(exist_ok=True)
    with contextlib.suppress(OSError):
        path.replace(target)
