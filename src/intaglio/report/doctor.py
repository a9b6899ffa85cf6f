"""What the facts about a machine mean: a finding each, with what to do.

- ``missing`` means that nothing can be built here; ``warning`` that something may not work; both say what to do.
- Facts in, findings out: nothing is looked at here (:mod:`intaglio.build.machine` does that).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Literal

from intaglio.build.machine import Disk, Facts, Fault
from intaglio.build.wheels import where_from
from intaglio.dataclass import dataclass
from intaglio.report.terminal import amount
from intaglio.strictjson import Object
from intaglio.trust import freshness

Status = Literal["ok", "warning", "missing"]
_GIB = 1 << 30
_SKEW = timedelta(minutes=5)
"""How far two clocks may differ without anyone's fault."""
_OURSELVES = "run intaglio doctor"
"""The hint of errors whose next step is this."""
_BY_HAND = (
    "try `bwrap --unshare-all --ro-bind / / /bin/true`; inside a container, allow user namespaces and unmasked /proc"
)
_HELD = {
    "cgroup2": "limits held by control groups (version 2)",
    "cgroup1": "limits held by control groups (version 1)",
    "polling": "limits watched by polling",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer."""

    name: str
    status: Status
    detail: str
    hint: str | None = None

    def to_json(self) -> Object:
        """Return the interface of ``intaglio doctor --json``."""
        return {"name": self.name, "status": self.status, "detail": self.detail, "hint": self.hint}


def ready(findings: tuple[Finding, ...]) -> bool:
    """Return whether something can be built."""
    return all(one.status != "missing" for one in findings)


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Return what ``facts`` mean, in the order in which things are best put right."""
    return tuple(
        found
        for part in (
            _system, _processor, _python, _wheels, _sandbox, _limits, _memory, _disks, _keys, _policy, _source, _clock,
            _compilers, _engines, _accelerators, _registry,
        )
        for found in part(facts)
    )  # fmt: skip


# --- the machine -----------------------------------------------------------------------------------------------------


def _system(facts: Facts) -> Iterator[Finding]:
    told = f"{facts.system} {facts.kernel}"
    if facts.system == "Linux":
        yield Finding("system", "ok", told)
    else:
        hint = "build on Linux; verify, pull, kits and trust work here"
        yield Finding("system", "missing", f"expected Linux, found {told}", hint)


def _processor(facts: Facts) -> Iterator[Finding]:
    if facts.platform is not None:
        yield Finding("processor", "ok", f"{facts.platform}, {facts.processors} processors")
    else:
        fault = facts.platform_fault or Fault("unknown")
        yield Finding("processor", "missing", fault.message, "use an amd64 machine with AVX2, or an arm64 one")


def _python(facts: Facts) -> Iterator[Finding]:
    broken = [one for one in facts.interpreters if one.fault is not None]
    for one in broken:
        # Some other toolchain may do: whether a recipe needs this one is known when it is built.
        status: Status = "missing" if len(broken) == len(facts.interpreters) else "warning"
        fault = one.fault or Fault("")
        yield Finding("python", status, f"{fault.message} ({', '.join(one.toolchains)})", fault.hint)
    if not facts.interpreters:
        hint = "reinstall intaglio, or bring toolchains of your own in INTAGLIO_DATA"
        yield Finding("python", "warning", f"{facts.python}; no toolchain is shipped here", hint)
    elif not broken:
        served = ", ".join(sorted({one.requires.removeprefix("==") for one in facts.interpreters}))
        yield Finding("python", "ok", f"{facts.python}; toolchains are for {served}")


def _wheels(facts: Facts) -> Iterator[Finding]:
    if facts.wheels_fault is not None:
        yield Finding("wheels", "warning", facts.wheels_fault.message, facts.wheels_fault.hint)
    for chain, files in facts.absent_wheels.items():
        # Some recipes do without this toolchain, and a kit may still bring it.
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        detail = f"toolchain {chain}: {files[0]}{more} neither here nor offered by pip's configuration"
        yield Finding("wheels", "warning", detail, where_from(files))
    if not facts.absent_wheels and facts.wheels_fault is None:
        yield Finding("wheels", "ok", "every toolchain's are here, or offered by pip's configuration")


def _sandbox(facts: Facts) -> Iterator[Finding]:
    box = facts.sandbox
    if box.program is None:
        hint = "install bubblewrap (on Debian and Ubuntu: apt install bubblewrap)"
        yield Finding("sandbox", "missing", "no bwrap on PATH", hint)
    elif box.fault is not None:
        settings = "; ".join(f"{path.removeprefix('/proc/sys/')} = {text}" for path, text in box.namespaces.items())
        detail = box.fault.message + (f" ({settings})" if settings else "")
        told = None if box.fault.hint == _OURSELVES else box.fault.hint
        yield Finding("sandbox", "missing", detail, _namespace_hint(facts) or told or _BY_HAND)
    else:
        yield Finding("sandbox", "ok", f"bubblewrap {box.version or 'of unknown version'} works, system calls filtered")


def _namespace_hint(facts: Facts) -> str | None:
    """Return which of the kernel's settings keeps user namespaces away, and how to change it."""
    for path, text in facts.sandbox.namespaces.items():
        name = path.removeprefix("/proc/sys/").replace("/", ".")
        if name == "kernel.unprivileged_userns_clone" and text == "0":
            return f"as root: sysctl {name}=1"
        if name == "user.max_user_namespaces" and text == "0":
            return f"as root: sysctl {name}=15000"
        if name == "kernel.apparmor_restrict_unprivileged_userns" and text != "0":
            return f"as root: sysctl {name}=0, or an AppArmor profile that lets bwrap make user namespaces"
    return None


def _limits(facts: Facts) -> Iterator[Finding]:
    held = facts.sandbox.enforced
    if held == "polling":
        hint = "delegate a control group: run under `systemd-run --user --scope -p Delegate=yes`, or as root"
        yield Finding("limits", "warning", f"{_HELD[held]}: a fast step can pass them for a moment", hint)
    elif held is not None:
        yield Finding("limits", "ok", _HELD.get(held, held))


def _memory(facts: Facts) -> Iterator[Finding]:
    told = f"{facts.memory / _GIB:.1f} GiB"
    if facts.memory < facts.memory_wanted:
        wanted = f"{facts.memory_wanted / _GIB:.1f} GiB"
        hint = "larger models need more memory; limits = { memory = … } of a step states less"
        yield Finding("memory", "warning", f"{told}; shipped steps may take {wanted}", hint)
    else:
        yield Finding("memory", "ok", told)


def _disks(facts: Facts) -> Iterator[Finding]:
    for disk in facts.disks:
        told = f"{disk.path}: {amount(disk.free, 'B')} free"
        if not disk.writable:
            yield Finding("disk", "missing", f"{disk.what} {disk.path}: cannot be written", _elsewhere(disk))
        elif disk.free < facts.disk_wanted:
            wanted = f"{facts.largest_recipe} fills about {amount(facts.disk_wanted, 'B')}"
            yield Finding("disk", "warning", f"{disk.what} {told}; {wanted}", _elsewhere(disk))
        else:
            yield Finding("disk", "ok", f"{disk.what} {told}")


def _elsewhere(disk: Disk) -> str:
    if disk.what == "store":
        return "free some space, or put the store elsewhere with --store or INTAGLIO_HOME"
    return "free some space, or put the cache elsewhere with XDG_CACHE_HOME"


# --- the home --------------------------------------------------------------------------------------------------------


def _keys(facts: Facts) -> Iterator[Finding]:
    missing = facts.home.missing_keys
    if missing:
        detail = f"no {' and no '.join(missing)} key in {facts.home.path}: claims and images are always signed"
        yield Finding("keys", "missing", detail, "intaglio init")
    else:
        yield Finding("keys", "ok", f"builder and release in {facts.home.path}")


def _policy(facts: Facts) -> Iterator[Finding]:
    fault = facts.home.policy
    if fault is not None:
        yield Finding("policy", "missing", fault.message, fault.hint)
    else:
        yield Finding("policy", "ok", f"{facts.home.policy_name!r} in {facts.home.path}")


def _source(facts: Facts) -> Iterator[Finding]:
    home = facts.home
    if home.source is not None:
        yield Finding("source", "warning", home.source.message, home.source.hint or "intaglio trust refresh")
    elif not home.has_source:
        if home.needs_source:
            hint = "intaglio trust anchor FILE, then intaglio trust refresh --url …"
            yield Finding("source", "warning", "the policy asks for a trusted source, and none was fetched", hint)
        else:
            yield Finding("source", "ok", "none, and the policy asks for none")
    elif home.source_age is not None:
        told = f"known to be current {freshness.words(home.source_age)} ago"
        if home.max_age is not None and home.source_age > home.max_age:
            told += f"; the policy allows {freshness.words(home.max_age)}"
            yield Finding("source", "warning", told, "intaglio trust refresh   (or import a newer kit)")
        else:
            yield Finding("source", "ok", told)


def _clock(facts: Facts) -> Iterator[Finding]:
    told = freshness.write(facts.clock)
    behind = facts.home.behind
    if behind is not None and behind > _SKEW:
        detail = f"{told}, {freshness.words(behind)} behind what the trusted source proves"
        yield Finding("clock", "warning", detail, "set the clock: certificates and freshness are judged by it")
    else:
        yield Finding("clock", "ok", told)


# --- what only some need ---------------------------------------------------------------------------------------------


def _compilers(facts: Facts) -> Iterator[Finding]:
    absent = [name for name, place in facts.compilers.items() if place is None]
    if absent:
        hint = (
            "only for toolchains that build wheels from source; on Debian and Ubuntu: apt install g++ make python3-dev"
        )
        yield Finding("compilers", "warning", f"no {', no '.join(absent)} below /usr", hint)
    else:
        yield Finding("compilers", "ok", ", ".join(place for place in facts.compilers.values() if place))


def _engines(facts: Facts) -> Iterator[Finding]:
    for engine in facts.engines:
        yield Finding("containers", "ok", f"{engine.name} {engine.version} at {engine.socket}")
    if not facts.engines:
        why = "; ".join(facts.engine_faults) or "neither Docker's nor podman's socket is here"
        hint = "only `intaglio run` needs one; `intaglio serve` does without"
        yield Finding("containers", "warning", why, hint)
    elif not facts.docker_sdk:
        yield Finding(
            "containers", "warning", "Python's docker package is not installed", "pip install 'intaglio[run]'"
        )


def _accelerators(facts: Facts) -> Iterator[Finding]:
    for one in facts.accelerators:
        if one.driver is None:
            hint = "install the driver to use it; the shipped toolchains compute on the processor"
            yield Finding("gpu", "warning", f"{one.name}: no driver answers (kernel {facts.kernel})", hint)
        else:
            yield Finding("gpu", "ok", f"{one.name}, driver {one.driver}, kernel {facts.kernel}")
    if not facts.accelerators:
        yield Finding("gpu", "ok", "none; the shipped toolchains compute on the processor")


def _registry(facts: Facts) -> Iterator[Finding]:
    registry = facts.registry
    if registry is None:
        return
    if registry.fault is not None:
        yield Finding("registry", "warning", registry.fault.message, registry.fault.hint)
        return
    kinds = {
        "api": "lists referrers itself (OCI 1.1)",
        "fallback": "has no referrers API: tags stand in for it",
        None: "does not say whether it has the referrers API: name a repository, HOST/REPO",
    }
    yield Finding("registry", "ok", f"{registry.host} {kinds[registry.referrers]}")
