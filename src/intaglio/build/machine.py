"""What this machine has: facts, without a judgement (that is :mod:`intaglio.report.doctor`).

- Nothing is changed: what is tried (the sandbox) leaves nothing behind, and nothing is fetched.
- What cannot be found out is a fact as well; nothing here raises on account of the machine.
- Commands are asked with a time limit: a driver that hangs is a fault that is reported, not shared.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.build import engines
from intaglio.build.engines import Engine
from intaglio.dataclass import dataclass, field
from intaglio.errors import Error, MachineError

if TYPE_CHECKING:
    from intaglio.build.toolchain import Toolchain
    from intaglio.digest import Digest
    from intaglio.policy.document import Policy

_NAMESPACES = (
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
)
_PATIENCE = 20.0
"""Seconds that a command gets to answer."""
_LONG_PATIENCE = 90.0
"""Seconds that all of pip's indexes get together: some hundred pages on a machine that has no wheel yet."""
_WHEELS_GROW = 7
"""Bytes on disk for a byte of wheels: kept twice (cache, store), unpacked once; measured with torch."""
_INPUTS_GROW = 12
"""Bytes on disk for a byte of inputs: what every step makes of them; measured on the shipped recipes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why something does not work, and what to do."""

    message: str
    hint: str | None = None

    @classmethod
    def of(cls, error: Error) -> Fault:
        """Return what ``error`` says."""
        return cls(error.message, error.hint)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Bubblewrap, tried out."""

    program: str | None
    version: str | None
    enforced: str | None
    """How memory and processes are held: ``cgroup2``, ``cgroup1`` or ``polling``; ``None`` where it does not work."""
    fault: Fault | None
    namespaces: Mapping[str, str] = field(default_factory=dict)
    """The kernel's settings about user namespaces, by path; only those that it has."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that toolchains are locked for."""

    requires: str
    """As in ``==3.11.*``."""
    toolchains: tuple[str, ...]
    fault: Fault | None


@dataclass(frozen=True, slots=True)
class Disk:
    """A folder that builds fill."""

    what: str
    path: Path
    free: int
    """Bytes that this user may write."""
    writable: bool


@dataclass(frozen=True, slots=True)
class Home:
    """What stands in the home: keys, policy, trusted source."""

    path: Path
    missing_keys: tuple[str, ...]
    policy: Fault | None
    """Why the policy cannot be used; ``None`` where it can."""
    policy_name: str = ""
    needs_source: bool = False
    """Whether that policy asks for a trusted source."""
    has_source: bool = False
    """Whether one was fetched."""
    source: Fault | None = None
    """Why the trusted source that was fetched cannot be used."""
    source_age: timedelta | None = None
    """How long ago it is known to have been current."""
    max_age: timedelta | None = None
    """What the policy allows."""
    behind: timedelta | None = None
    """How far the clock here is behind the latest moment that the trusted source proves."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry that was asked for."""

    host: str
    fault: Fault | None
    referrers: str | None
    """``api``, or ``fallback``; ``None`` where the registry does not let that be seen."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A graphics processor."""

    name: str
    driver: str | None
    """Its version; ``None`` where there is a device and no driver."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is looked at."""

    clock: datetime
    system: str
    """As in ``Linux``."""
    kernel: str
    python: str
    platform: str | None
    """The platform class, as in ``linux/amd64/v3``."""
    platform_fault: Fault | None
    processors: int
    memory: int
    """Bytes, of the machine or of the container that this is."""
    memory_wanted: int
    """Bytes that the largest shipped step may take."""
    interpreters: tuple[Interpreter, ...]
    sandbox: Sandbox
    disks: tuple[Disk, ...]
    disk_wanted: int
    """Bytes that the largest shipped recipe fills."""
    largest_recipe: str
    home: Home
    compilers: Mapping[str, str | None]
    """Program or header → where it stands."""
    engines: tuple[Engine, ...]
    engine_faults: tuple[str, ...]
    docker_sdk: bool
    accelerators: tuple[Accelerator, ...]
    registry: Registry | None = None
    absent_wheels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Toolchain → its files that are neither here nor offered by pip's configuration."""
    wheels_fault: Fault | None = None
    """Why pip could not be asked about them."""


def gather(
    home: Path, store: Path, clock: datetime, policy: Callable[[], Policy], registry: Registry | None = None
) -> Facts:
    """Return the facts about this machine.

    Args:
        home: with keys, policy and trusted source.
        store: where builds would write.
        clock: the time here, with its zone.
        policy: gives the home's policy, or raises what is wrong with it.
        registry: what :func:`ask_registry` found, where one was named.
    """
    found, faults = _engines(os.environ)
    wanted, recipe = _disk_wanted()
    klass, fault = _platform()
    absent, wheels_fault = _absent_wheels(store)
    return Facts(
        clock=clock,
        system=platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        platform=klass,
        platform_fault=fault,
        processors=_processors(),
        memory=memory(),
        memory_wanted=_memory_wanted(),
        interpreters=_interpreters(),
        sandbox=_sandbox(),
        disks=_disks(store),
        disk_wanted=wanted,
        largest_recipe=recipe,
        home=look_at_home(home, clock, policy),
        compilers=_compilers(),
        engines=found,
        engine_faults=faults,
        docker_sdk=importlib.util.find_spec("docker") is not None,
        accelerators=_accelerators(),
        registry=registry,
        absent_wheels=absent,
        wheels_fault=wheels_fault,
    )


# --- processor, memory, Python ---------------------------------------------------------------------------------------


def _platform() -> tuple[str | None, Fault | None]:
    from intaglio.build.action import platform_class

    try:
        return platform_class(), None
    except MachineError as error:
        return None, Fault.of(error)
    except OSError as error:
        return None, Fault(f"the processor cannot be told: {error}")


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Return the bytes of memory that processes here can have together: the machine's, or the control group's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _text(Path(path))
        if text.isdecimal():
            total = min(total, int(text))
    return total


def _interpreters() -> tuple[Interpreter, ...]:
    from intaglio.build import interpreter

    wanted: dict[str, list[str]] = {}
    for chain in _toolchains():
        wanted.setdefault(chain.requires_python, []).append(chain.name)
    found = []
    for requires, names in sorted(wanted.items()):
        try:
            interpreter.find(requires)
            fault = None
        except Error as error:
            fault = Fault.of(error)
        found.append(Interpreter(requires, tuple(names), fault))
    return tuple(found)


def _absent_wheels(store: Path) -> tuple[dict[str, tuple[str, ...]], Fault | None]:
    from intaglio.build import wheels

    try:
        return wheels.unobtainable(_toolchains(), store, patience=_LONG_PATIENCE), None
    except Error as error:
        return {}, Fault.of(error)


def _compilers() -> dict[str, str | None]:
    """Return where a sandboxed build of a wheel would find its tools: only ``/usr`` is seen inside."""
    found: dict[str, str | None] = {}
    for name in ("cc", "c++", "make"):
        place = shutil.which(name, path="/usr/bin:/bin")
        found[name] = place
    import sysconfig

    header = Path(sysconfig.get_path("include"), "Python.h")
    found["Python.h"] = str(header) if header.is_file() else None
    return found


# --- sandbox ---------------------------------------------------------------------------------------------------------


def _sandbox() -> Sandbox:
    program = shutil.which("bwrap")
    version = _said([program, "--version"]).removeprefix("bubblewrap").strip() if program else None
    settings = {path: text for path in _NAMESPACES if (text := _text(Path(path)))}
    from intaglio.build import sandbox

    try:
        enforced, fault = sandbox.check(), None
    except Error as error:
        enforced, fault = None, Fault.of(error)
    return Sandbox(program, version or None, enforced, fault, settings)


# --- disk ------------------------------------------------------------------------------------------------------------


def _disks(store: Path) -> tuple[Disk, ...]:
    cache = os.environ.get("XDG_CACHE_HOME") or ""
    kept = (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "intaglio"
    return tuple(_disk(what, path) for what, path in (("store", store.absolute()), ("cache", kept)))


def _disk(what: str, path: Path) -> Disk:
    """Return the fact about a folder that may not be there yet: then the nearest one above it counts."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    free = os.statvfs(place)
    return Disk(what, path, free.f_bavail * free.f_frsize, os.access(place, os.W_OK | os.X_OK))


def _disk_wanted() -> tuple[int, str]:
    """Return the bytes that the largest shipped recipe fills, by its lock and the locks of its toolchains."""
    import tomllib

    from intaglio.recipe.data import data_folder

    wheels = {chain.name: {file.digest: file.size for file in chain.installed} for chain in _toolchains()}
    largest = (0, "")
    try:
        recipes = sorted(data_folder("modelfiles").glob("*/Modelfile.lock"))
    except MachineError:
        recipes = []
    for path in recipes:
        try:
            lock = tomllib.loads(path.read_text(encoding="utf-8"))
            inputs = sum(int(pin["size"]) for pin in lock.get("inputs", {}).values())
            names = lock.get("toolchains", {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # a recipe in the making
        files: dict[Digest, int] = {}
        for name in names:
            files |= wheels.get(name, {})
        largest = max(largest, (sum(files.values()) * _WHEELS_GROW + inputs * _INPUTS_GROW, path.parent.name))
    return largest


def _memory_wanted() -> int:
    """Return the bytes that the largest shipped step may take."""
    from intaglio.recipe.data import data_folder
    from intaglio.recipe.program import load, names

    largest = 0
    with contextlib.suppress(MachineError):
        builder = data_folder("builder")
        for name in names(builder / "steps"):
            with contextlib.suppress(Error):  # `build` says what is wrong with it
                largest = max(largest, load(name, builder).limits.memory)
    return largest


def _toolchains() -> Iterable[Toolchain]:
    from intaglio.build import toolchain
    from intaglio.recipe.data import data_folder

    try:
        folders = sorted(path.parent for path in data_folder("builder").glob("toolchains/*/pylock.toml"))
    except MachineError:
        return
    for folder in folders:
        try:
            yield toolchain.load(folder)
        except Error:
            continue  # `build` says what is wrong with it


# --- home ------------------------------------------------------------------------------------------------------------


def look_at_home(home: Path, clock: datetime, policy: Callable[[], Policy]) -> Home:
    """Return the facts about keys, policy and trusted source below ``home``; no network is asked, no key opened."""
    from intaglio.trust import keyring
    from intaglio.trust.kept import ANCHOR, FOLDER, STATE

    missing = tuple(name for name in (keyring.BUILDER, keyring.RELEASE) if not keyring.exists(home, name))
    try:
        rules = policy()
    except Error as error:
        return Home(home, missing, Fault.of(error))
    known = Home(home, missing, None, rules.name, rules.needs_source, max_age=rules.max_age)
    if not (home / ANCHOR).exists() or not (home / FOLDER / STATE).exists():
        return known
    return _with_source(known, clock)


def _with_source(home: Home, clock: datetime) -> Home:
    from intaglio.dataclass import replace
    from intaglio.trust.tuf import TrustedSource

    try:
        fresh = TrustedSource.load(home.path, clock).freshness
    except Error as error:
        return replace(home, has_source=True, source=Fault.of(error))
    behind = fresh.as_of - clock
    return replace(home, has_source=True, source_age=fresh.age, behind=behind if behind > timedelta(0) else None)


# --- registry --------------------------------------------------------------------------------------------------------


def ask_registry(name: str, home: Path, *, plain_http: bool) -> Registry:
    """Return whether the registry lets us in, and whether it lists referrers itself.

    ``name`` is ``HOST[:PORT]``, or ``HOST/REPO`` of a repository that is there: some registries say nothing about one
    that is not.

    Raises:
        UsageError: ``name`` is no registry's.
    """
    from functools import partial

    from intaglio.content import credentials
    from intaglio.content.reference import Reference
    from intaglio.content.remote import Repository
    from intaglio.content.remote_http import Network
    from intaglio.dataclass import replace
    from intaglio.digest import Digest

    place = Reference.parse(name if "/" in name else f"{name}/intaglio/doctor")
    network = replace(Network.from_environment(), attempts=1, timeout=_PATIENCE)
    find = partial(credentials.find, home=home)
    try:
        with Repository(place, find, network=network, plain_http=plain_http) as repository:
            repository.check_access()
    except Error as error:
        return Registry(place.registry, Fault.of(error), None)
    try:
        with Repository(place, find, network=network, plain_http=plain_http) as repository:
            # A registry with the API answers for any digest, never with 404 (distribution specification 1.1).
            listed = repository.referrers(Digest.of(b""))
    except Error:
        return Registry(place.registry, None, None)
    return Registry(place.registry, None, "fallback" if listed is None else "api")


# --- engines and accelerators ----------------------------------------------------------------------------------------


def _engines(environment: Mapping[str, str]) -> tuple[tuple[Engine, ...], tuple[str, ...]]:
    """Return the container engines that answer, and why others that stand there do not."""
    try:
        places = engines.places(environment)
    except MachineError as error:
        return (), (error.message,)
    found, faults = [], []
    for place in places:
        if not place.exists() and not environment.get(engines.VARIABLE):
            continue
        try:
            found.append(engines.ask(place))
        except MachineError as error:
            faults.append(error.message)
    return tuple(found), tuple(faults)


def _accelerators() -> tuple[Accelerator, ...]:
    """Return the graphics processors that compute, by what NVIDIA's program or the kernel says."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    told = [line.split(", ") for line in _said(query).splitlines()] if shutil.which("nvidia-smi") else []
    if told and all(len(line) == 2 for line in told):
        return tuple(Accelerator(name.strip(), driver.strip()) for name, driver in told)
    return tuple(Accelerator(name, None) for name in _devices())


def _devices() -> Iterable[str]:
    """Yield the display and 3D controllers of known makers on the PCI bus."""
    makers = {"0x10de": "NVIDIA", "0x1002": "AMD"}
    for folder in sorted(Path("/sys/bus/pci/devices").glob("*")):
        maker, kind = _text(folder / "vendor"), _text(folder / "class")
        if maker in makers and kind.startswith("0x03"):
            yield f"{makers[maker]} {_text(folder / 'device')}"


# --- asking ----------------------------------------------------------------------------------------------------------


def _said(command: list[str]) -> str:
    """Return what a command writes to standard output; nothing where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=_PATIENCE
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
