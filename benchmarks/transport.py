"""Push and pull against stock ``crane``: 4 × 512 MiB through Debian's registry on loopback, in the same run.

    python -m benchmarks.transport                     the full size, five rounds
    python -m benchmarks.transport --mebibytes 16 --rounds 1

Both are whole processes. Ours also verifies what it pulled, by policy, and brings it to disk before it is visible
(fsync); crane does neither, so its pull is shown once as it is and once with ``sync`` after it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests import programs
from tests.attacks.registries.distribution import Distribution, running
from tests.images import Draft, policy_text

from benchmarks.table import Table, verdict
from intaglio import strictjson
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
from intaglio.content.layout import Store
from intaglio.content.tree import File

FILES = 4
RATIO, PEAK = 1.3, 150.0
"""Most that is wanted: of crane's time, and megabytes of resident memory."""
OURS = ("intaglio push", "intaglio pull")


@dataclass(frozen=True)
class Measured:
    """One process."""

    seconds: float
    peak: int
    """Most resident memory, bytes (``VmHWM``)."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one kind of transfer came to: medians over the rounds, but the highest peak."""

    what: str
    seconds: float
    rate: float
    """Megabytes a second."""
    ratio: float
    """To crane's time for the same."""
    peak: float
    """Megabytes of resident memory."""


class BigDraft(Draft):
    """A signed image over files that stand in a store already."""

    def __init__(self, files: tuple[File, ...]) -> None:
        self._files = files
        super().__init__(files={})

    @property
    def entries(self) -> tuple[File, ...]:
        """The image's files."""
        return self._files


@dataclass(frozen=True, slots=True)
class Transport:
    """Every kind of transfer, a row each."""

    size: int
    """Bytes that each of them moved."""
    rows: tuple[Row, ...]

    @property
    def met(self) -> bool:
        """Whether ours keep within what is wanted."""
        return all(row.ratio <= RATIO and row.peak <= PEAK for row in self.rows if row.what in OURS)

    def table(self) -> Table:
        """Return it as rows."""
        rows = []
        for row in self.rows:
            ours = row.what in OURS
            said = f"≤ {RATIO}, ≤ {PEAK:.0f} MB" if ours else ""
            met = verdict(row.ratio <= RATIO and row.peak <= PEAK) if ours else ""
            figures = (f"{row.seconds:.2f} s", f"{row.rate:.0f} MB/s", f"{row.ratio:.2f}", f"{row.peak:.0f} MB")
            rows.append((row.what, *figures, said, met))
        columns = (f"{FILES} × {self.size // FILES >> 20} MiB", "median", "speed", "ratio to crane", "peak memory")
        note = (
            "Whole processes through Debian's registry on loopback. Ours also verifies what it pulled and brings it to "
            "disk before it is visible; crane does neither, so its pull is shown with `sync` after it, too."
        )
        return Table("Transport", (*columns, "target", "met"), tuple(rows), note)

    def to_json(self) -> list[dict[str, str | float]]:
        """Return the figures, for programs."""
        return [asdict(row) for row in self.rows]


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=512, help="size of each of the four files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scratch", type=Path, help="where to work; a temporary folder when not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="transport-", dir=arguments.scratch) as folder:
        found = compare(Path(folder) / "work", arguments.mebibytes << 20, arguments.rounds, lambda _: None)
    print(json.dumps(found.to_json()) if arguments.json else found.table().markdown())


def compare(folder: Path, size: int, rounds: int, note: Callable[[str], None]) -> Transport:
    """Return one row for each kind of transfer of files of ``size`` bytes; the kinds take turns within each round."""
    folder.mkdir()
    home = folder / "home"
    store, image = make_image(home / "store", folder / "files", size)
    (home / "policy.toml").write_text(policy_text())
    layout(store, image, folder / "layout")
    found: dict[str, list[Measured]] = {}
    for number in range(rounds):
        kinds = ["intaglio push", "crane push", "intaglio pull", "crane pull", "crane pull, then sync"]
        kinds[:2] = kinds[:2][:: 1 if number % 2 else -1]
        with registry(folder / "registry") as full:
            run([*intaglio(), "push", "--json", str(image.digest), full.reference()], home)
            for kind in kinds:
                os.sync()
                found.setdefault(kind, []).append(one(kind, folder, home, image, full))
        note(f"round {number + 1} of {rounds}")
    rows = []
    for kind in ("intaglio push", "crane push", "intaglio pull", "crane pull", "crane pull, then sync"):
        seconds = statistics.median(each.seconds for each in found[kind])
        base = f"crane {kind.split()[1].rstrip(',')}"
        ratio = statistics.median(
            ours.seconds / theirs.seconds for ours, theirs in zip(found[kind], found[base], strict=True)
        )
        peak = max(each.peak for each in found[kind]) / 1e6
        rows.append(Row(kind, seconds, FILES * size / seconds / 1e6, ratio, peak))
    shutil.rmtree(folder)
    return Transport(FILES * size, tuple(rows))


def one(kind: str, folder: Path, home: Path, image: Descriptor, full: Distribution) -> Measured:
    """Return what one transfer took; what it wrote is gone afterwards."""
    target = folder / "target"
    try:
        if kind.endswith("push"):
            with registry(folder / "empty") as empty:
                if kind.startswith("crane"):
                    return run([str(programs.crane()), "push", str(folder / "layout"), empty.reference()], home)
                return run([*intaglio(), "push", str(image.digest), empty.reference()], home)
        if kind == "intaglio pull":
            return run([*intaglio(), "--store", str(target), "pull", full.reference()], home)
        pull = [str(programs.crane()), "pull", "--format=oci", full.reference(), str(target)]
        if kind.endswith("sync"):
            pull = ["/bin/sh", "-c", '"$@" && sync', "sh", *pull]
        return run(pull, home)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def make_image(root: Path, files: Path, size: int) -> tuple[Store, Descriptor]:
    """Return a store with a signed image of four safetensors files of about ``size`` bytes each."""
    files.mkdir()
    for number in range(FILES):
        header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        header += b" " * (-len(header) % 8)
        with open(files / f"model-{number}.safetensors", "wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            piece = os.urandom(min(size, 1 << 20))
            for place in range(0, size, len(piece)):
                stream.write(number.to_bytes(1, "little") + place.to_bytes(8, "little") + piece[9 : size - place])
    store = Store.open(root)
    draft = BigDraft(store.ingest(files, move=True).files).sign()
    for blob in draft.blobs().values():
        store.put(blob)
    for referrer in draft.referrers:
        store.put_referrer(referrer.manifest, referrer.blobs)
    return store, draft.image


def layout(store: Store, image: Descriptor, target: Path) -> None:
    """Write an OCI layout that holds the image alone: hard links, for crane to push."""
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    document = strictjson.parse_object(store.read(image.digest, what="image"), what="image")
    digests = [part["digest"] for part in (document["config"], *document["layers"])]
    for name in {image.digest.hex, *(digest.removeprefix("sha256:") for digest in digests)}:
        os.link(store.root / "blobs" / "sha256" / name, blobs / name)
    index: strictjson.Object = {
        "schemaVersion": 2,
        "manifests": [Descriptor(MANIFEST_TYPE, image.digest, image.size).to_json()],
    }
    (target / "index.json").write_bytes(strictjson.canonical(index))
    (target / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')


def intaglio() -> list[str]:
    """Return the command of this environment."""
    return [str(Path(sys.executable).with_name("intaglio"))]


@contextmanager
def registry(folder: Path) -> Iterator[Distribution]:
    """Run an empty registry that leaves nothing behind; trixie's takes half the processor time of bookworm's."""
    try:
        with running(folder, suite="trixie") as found:
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(command: list[str], home: Path) -> Measured:
    """Run one program to its end, looking at its memory meanwhile."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "INTAGLIO_HOME": str(home)}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _peak(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{command}: {said.read().decode()}")
    return Measured(seconds, peak)


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines())
    return next((int(line[1]) << 10 for line in lines if line[:1] == ["VmHWM:"]), 0)


if __name__ == "__main__":
    main()
