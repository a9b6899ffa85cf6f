"""Root file systems for runtime images: Debian packages by digest, unpacked; no suite, no script, no root needed.

- A root file system's identity is the tree of its lock and its packages, and it follows from the lock alone.
- Packages come from any mirror against the lock's digests; what mirrors have dropped, from the archive of snapshots.
- Unpacked once, it is a local cache; its standard library is compiled by its own Python, inside the sandbox.
- Its Python is the interpreter of every environment that goes into an image: no byte of this machine's gets in.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from intaglio.build import debian, downloads, sandbox
from intaglio.build.interpreter import Interpreter
from intaglio.build.sandbox import Limits, Mount, SandboxSpec
from intaglio.content.layer import Entry, from_folder
from intaglio.content.layout import Store
from intaglio.content.tree import File, Tree
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, LockError, MachineError, SourceUnreachable
from intaglio.progress import Progress

LOCK_NAME = "rootfs.toml"
LAYOUT = 1
"""Number of what is made of the packages: a change of it makes root file systems anew."""
MIRROR = "INTAGLIO_DEBIAN_MIRROR"
"""Environment variable: an ``https:`` mirror to ask before Debian's own."""
USER = 65532
"""The user of runtime images."""
_MIRRORS = ("https://deb.debian.org/debian",)
_SNAPSHOTS = "https://snapshot.debian.org/archive/debian/{}"
_PYTHON = "usr/bin/python3.11"
_MODULES = "usr/lib/python3.11"
_PROGRAM = Path(__file__).with_name("compile_modules.py")
_LIMITS = Limits(memory=2 << 30, processes=64, time=600.0, disk=1 << 30)
_SKIPPED = (
    *("usr/share/man/", "usr/share/locale/", "usr/share/lintian/", "usr/share/bug/", "usr/share/info/", "var/"),
    *("etc/python3.11/", "usr/lib/python3.11/sitecustomize.py/"),
)
"""Documentation, and what would change every start of Python."""
_FOLDERS = ("dev", "proc", "run", "run/intaglio", "sys", "tmp", "var", "etc/intaglio",
            "model", "passport", "passport/metadata", "passport/targets")  # fmt: skip
"""Made for mounts and for what runs."""
_WRITABLE = ("tmp", "run/intaglio")
_FILES = {
    "etc/group": f"root:x:0:\nintaglio:x:{USER}:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/passwd": (
        "root:x:0:0:root:/:/bin/false\n"
        f"intaglio:x:{USER}:{USER}:intaglio:/tmp:/bin/false\n"
        "nobody:x:65534:65534:nobody:/:/bin/false\n"
    ),
}
_KEYS = {"name", "version", "path", "size", "sha256"}
_PATH = re.compile(r"pool/[A-Za-z0-9+._~/-]+\.deb\Z")


@dataclass(frozen=True, slots=True)
class Package:
    """One Debian package."""

    name: str
    path: str
    """Below a mirror's address."""
    size: int
    digest: Digest

    @property
    def file(self) -> str:
        """File name."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Rootfs:
    """A root file system, pinned package by package."""

    name: str
    lock: bytes
    snapshot: str
    """Moment of the archive of snapshots at which every package was there."""
    packages: tuple[Package, ...]

    def tree(self) -> Tree:
        """Return its tree: ``rootfs.toml`` and ``debs/…``."""
        files = [File(LOCK_NAME, Digest.of(self.lock), len(self.lock))]
        return Tree.of([*files, *(File(f"debs/{one.file}", one.digest, one.size) for one in self.packages)])


def load(folder: Path) -> Rootfs:
    """Return the root file system in ``folder``, named as the folder is.

    Raises:
        LockError: there is none, or its lock is not one of ours.
    """
    path = folder / LOCK_NAME
    try:
        data = path.read_bytes()
        document = tomllib.loads(data.decode("utf-8"))
        if document.keys() != {"version", "suite", "platform", "snapshot", "packages"} or document["version"] != 1:
            raise ValueError("expected version 1 with suite, platform, snapshot and packages")
        if document["platform"] != "linux/amd64":
            raise ValueError(f"expected linux/amd64, found {document['platform']!r}")
        packages = tuple(_package(entry) for entry in document["packages"])
        if len({one.name for one in packages}) != len(packages):
            raise ValueError("a package stands there twice")
        return Rootfs(folder.name, data, str(document["snapshot"]), packages)
    except (OSError, ValueError, KeyError, TypeError, CorruptContent) as error:
        raise LockError(f"{path}: {error}", hint="lock it again: builder/rootfs/lock.py") from None


def _package(entry: dict[str, object]) -> Package:
    if entry.keys() != _KEYS or not _PATH.match(str(entry["path"])) or ".." in str(entry["path"]):
        raise ValueError(f"a package of another form: {str(entry)[:80]}")
    size = entry["size"]
    if type(size) is not int or size <= 0:
        raise ValueError(f"{entry['name']}: size is not a count of bytes")
    return Package(str(entry["name"]), str(entry["path"]), size, Digest.from_hex(str(entry["sha256"])))


# --- fetching ---------------------------------------------------------------------------------------------------------


def fetch(rootfs: Rootfs, store: Store, *, offline: bool, progress: Progress) -> None:
    """Bring every package into ``store``, with the tree that names them.

    Raises:
        SourceUnreachable: no mirror has a package, or it would have to be fetched and ``offline`` forbids it.
        CorruptContent: what a mirror gives does not have the digest in the lock.
    """
    kept = downloads.folder("debs")
    missing = [
        one
        for one in rootfs.packages
        if not store.has(one.digest, one.size) and not downloads.take(kept / one.digest.hex, one.digest, store)
    ]
    if missing and offline:
        raise SourceUnreachable(
            f"{rootfs.name}: {len(missing)} packages are not in the store, and no network may be used",
            hint="build once without --offline, or import a kit made with --toolchains",
        )
    for package in missing:
        _fetch(package, rootfs, store, kept, progress)
    store.put(rootfs.lock)
    store.put_tree(rootfs.tree().files)


def _fetch(package: Package, rootfs: Rootfs, store: Store, kept: Path, progress: Progress) -> None:
    from intaglio.recipe.sources.http import Client, Network

    client, faults = Client(Network.from_environment()), []
    mine = os.environ.get(MIRROR)
    for mirror in (*([mine.rstrip("/")] if mine else []), *_MIRRORS, _SNAPSHOTS.format(rootfs.snapshot)):
        partial = store.partial(package.digest)
        try:
            with progress.task(f"fetching {package.file}", package.size) as task:
                client.download(f"{mirror}/{quote(package.path)}", partial, size=package.size, task=task)
            store.adopt(partial, expected=package.digest, move=True)
        except (SourceUnreachable, CorruptContent) as error:
            partial.unlink(missing_ok=True)
            faults.append(error)
            continue
        downloads.keep(kept / package.digest.hex, package.digest, store)
        return
    raise next((one for one in faults if isinstance(one, CorruptContent)), faults[0])


# --- unpacking --------------------------------------------------------------------------------------------------------


def realise(rootfs: Rootfs, store: Store, *, offline: bool, progress: Progress) -> Path:
    """Return the folder of the unpacked root file system, made first where it is not there.

    Raises:
        SourceUnreachable, CorruptContent: see :func:`fetch`.
        MachineError: the sandbox failed.
    """
    target = store.root / "environments" / f"rootfs-{rootfs.tree().digest.hex}-{LAYOUT}"
    if target.is_dir():
        return target
    with store.lock("environments", progress):
        if target.is_dir():
            return target
        fetch(rootfs, store, offline=offline, progress=progress)
        target.parent.mkdir(exist_ok=True)
        with store.scratch("rootfs") as scratch:
            root = scratch / "root"
            root.mkdir()
            _lay_out(rootfs, store, root, progress)
            _compile(root, scratch)
            os.sync()
            root.replace(target)
    return target


def _lay_out(rootfs: Rootfs, store: Store, root: Path, progress: Progress) -> None:
    total = sum(package.size for package in rootfs.packages)
    with progress.task("unpacking the root file system", total) as task:
        for package in rootfs.packages:
            debian.unpack(store.path(package.digest), root, _SKIPPED)
            task.advance(package.size)
    for name in debian.MERGED:
        (root / name).symlink_to(f"usr/{name}")
    for folder in _FOLDERS:
        (root / folder).mkdir(exist_ok=True, parents=True)
    for path, text in _FILES.items():
        (root / path).write_text(text, encoding="utf-8")
    for name, program in (("sh", "dash"), ("python3", "python3.11")):
        link = root / "usr" / "bin" / name
        if not link.is_symlink():
            link.symlink_to(program)


def _compile(root: Path, scratch: Path) -> None:
    """Compile the standard library with its own Python, and put the bytecode beside it."""
    out, step, log = scratch / "out", scratch / "step", scratch / "log"
    out.mkdir()
    step.mkdir()
    shutil.copyfile(_PROGRAM, step / _PROGRAM.name)
    argv = ("/usr/bin/python3.11", "-I", "-S", "-B", f"/step/{_PROGRAM.name}", f"/{_MODULES}", "/out")
    spec = SandboxSpec(
        argv=argv,
        mounts=(*_mounts(root), Mount(step, "/step"), Mount(out, "/out", True)),
        environment={"PATH": "/usr/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"},
        limits=_LIMITS,
        cwd="/out",
    )
    outcome = sandbox.run(spec, log=log, on_event=lambda _: None)
    if outcome.status != 0 or outcome.limit:
        said = log.read_text(encoding="utf-8", errors="replace")[-2000:].strip() if log.exists() else ""
        raise MachineError(f"the root file system's Python does not run: exit status {outcome.status}\n{said}")
    for path, folders, names in os.walk(out):
        place = root / _MODULES / os.path.relpath(path, out)
        for folder in folders:
            (place / folder).mkdir(exist_ok=True)
        for name in names:
            os.rename(os.path.join(path, name), place / name)


def _mounts(root: Path) -> tuple[Mount, ...]:
    """Return what puts ``root`` in the place of this machine's own libraries and programs."""
    plain = [name for name in debian.MERGED if not Path("/", name).is_symlink() and Path("/", name).is_dir()]
    return (Mount(root / "usr", "/usr"), *(Mount(root / "usr" / name, f"/{name}") for name in plain))


def interpreter(root: Path) -> Interpreter:
    """Return the Python of the root file system that :func:`realise` made, for environments that go into an image."""
    # The folder's name says all that is in it. No interpreter of a machine has it, be it the very same Debian's.
    return Interpreter((3, 11), f"/{_PYTHON}", _mounts(root), {}, {"rootfs": root.name})


def entries(root: Path) -> Iterator[Entry]:
    """Yield the members of the root file system's layer."""
    for entry in from_folder(root):
        # What a file system in memory is mounted on says, to some engines, what permissions it has.
        yield Entry(entry.path, mode=0o1777) if entry.path in _WRITABLE else entry
