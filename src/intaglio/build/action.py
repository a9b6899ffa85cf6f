"""Actions: one step with everything that can change its output, and the key that names it.

- The preimage is a canonical, versioned document; the key is its sha256, so the preimage is a blob named by the key.
- In it: program, toolchain, parameters, inputs by content, declared outputs, platform class, host digests, the whole
  determinism environment. Never in it: names of recipes and steps, limits other than threads, paths, host names,
  credentials, time.
- Two preimages differ in leaves; the first of them is why a step is built again.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from functools import cached_property

from intaglio import strictjson
from intaglio.dataclass import dataclass
from intaglio.digest import ActionKey, Digest
from intaglio.errors import MachineError
from intaglio.recipe.program import Reproducible
from intaglio.strictjson import Json, Object

ACTION_TYPE = "https://intaglio.dev/action/v1"
ASSEMBLE = "intaglio:assemble/v1"
"""The program of assembling an image: built in, and named by its version alone, whatever the engine's."""

_DETERMINISM = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LC_ALL": "C.UTF-8",
    "MKL_CBWR": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
    "TZ": "UTC",
}


@dataclass(frozen=True)
class Action:
    """One computation, fully resolved."""

    program: str
    """Digest of the program's tree, or :data:`ASSEMBLE`."""
    toolchain: Digest | None
    parameters: Object
    inputs: Mapping[str, Digest]
    """Name → digest of the tree, which is its content."""
    outputs: tuple[str, ...]
    platform: str
    host: Mapping[str, str]
    environment: Mapping[str, str]

    @cached_property
    def preimage(self) -> bytes:
        """The document that the key is the digest of."""
        return strictjson.canonical(
            {
                "type": ACTION_TYPE,
                "program": self.program,
                "toolchain": str(self.toolchain) if self.toolchain else None,
                "parameters": self.parameters,
                "inputs": {name: str(digest) for name, digest in self.inputs.items()},
                "outputs": list(self.outputs),
                "platform": self.platform,
                "host": dict(self.host),
                "environment": dict(self.environment),
                "salt": "",
            }
        )

    @cached_property
    def key(self) -> ActionKey:
        """Names the computation."""
        return ActionKey(Digest.of(self.preimage).value)


def determinism(threads: int) -> dict[str, str]:
    """Return the environment that makes a step's arithmetic repeatable with ``threads`` threads."""
    return {**_DETERMINISM, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def platform_class(reproducible: Reproducible = "bit") -> str:
    """Return this machine's platform class, such as ``linux/amd64/v3``: hardware alone, as OCI writes platforms.

    Where the bytes are not the same everywhere, whose processor it is belongs to it (``linux/amd64/v3+intel``): the
    math library has kernels of its own for each vendor, whatever level it is held to, and sums differ in the last bits.

    Raises:
        MachineError: an x86-64 processor without AVX2, which level v3 needs, or an unknown kind of machine.
    """
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        if "avx2" not in processor_flags():
            raise MachineError("expected a processor with AVX2 (x86-64-v3), found one without")
        return "linux/amd64/v3" if reproducible == "bit" else f"linux/amd64/v3+{_vendor()}"
    if machine in ("aarch64", "arm64"):
        return "linux/arm64/v8"
    raise MachineError(f"expected an amd64 or arm64 machine, found {machine}")


def _vendor() -> str:
    """Return who made this machine's x86 processor, such as ``intel``."""
    names = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}
    found = next(iter(_cpuinfo("vendor_id")), "unknown")
    return names.get(found, found.lower())


def processor_flags() -> frozenset[str]:
    """Return what this machine's processor can do, in the words of ``/proc/cpuinfo``."""
    return frozenset(_cpuinfo("flags", "Features"))


def _cpuinfo(*names: str) -> list[str]:
    """Return the words of the first line of ``/proc/cpuinfo`` that has one of ``names``; none where there is none."""
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        fields = (line.partition(":") for line in stream)
        return next((value.split() for name, _, value in fields if name.strip() in names), [])


@dataclass(frozen=True, slots=True)
class Difference:
    """One leaf in which two documents differ; ``None`` stands for a leaf that is not there."""

    path: str
    old: Json
    new: Json


def differences(old: Json, new: Json, path: str = "") -> Iterator[Difference]:
    """Yield the leaves in which ``new`` differs from ``old``, in the order of their paths."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            below = f"{path}.{name}" if path else name
            if (name in old) != (name in new):
                yield Difference(below, old.get(name), new.get(name))
            else:
                yield from differences(old[name], new[name], below)
    elif strictjson.canonical(old) != strictjson.canonical(new):  # true is not 1, though Python thinks so
        yield Difference(path, old, new)
