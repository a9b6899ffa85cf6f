"""What facts about a machine mean: on made-up machines, each with one thing wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from intaglio.build.engines import Engine
from intaglio.build.machine import Accelerator, Disk, Facts, Fault, Home, Interpreter, Registry, Sandbox
from intaglio.dataclass import replace
from intaglio.report import doctor
from intaglio.report.doctor import Finding

GB = 10**9
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOME = Home(Path("/home/ci"), (), None, "default")
SANDBOX = Sandbox("/usr/bin/bwrap", "0.8.0", "cgroup2", None)
GOOD = Facts(
    clock=NOW,
    system="Linux",
    kernel="6.1.0",
    python="3.11.2",
    platform="linux/amd64/v3",
    platform_fault=None,
    processors=2,
    memory=32 << 30,
    memory_wanted=8 << 30,
    interpreters=(Interpreter("==3.11.*", ("train-cpu", "convert"), None),),
    sandbox=SANDBOX,
    disks=(Disk("store", Path("/s"), 100 * GB, True), Disk("cache", Path("/c"), 100 * GB, True)),
    disk_wanted=4 * GB,
    largest_recipe="smollm2-helpdesk",
    home=HOME,
    compilers={
        "cc": "/usr/bin/cc",
        "c++": "/usr/bin/c++",
        "make": "/usr/bin/make",
        "Python.h": "/usr/include/Python.h",
    },
    engines=(Engine("podman", "4.3.1", Path("/run/podman/podman.sock")),),
    engine_faults=(),
    docker_sdk=True,
    accelerators=(),
)


def judged(**changes: Any) -> tuple[list[Finding], bool]:
    """Return the findings that are not ok about the good machine with ``changes``, and whether it can build."""
    found = doctor.findings(replace(GOOD, **changes))
    return [one for one in found if one.status != "ok"], doctor.ready(found)


def test_a_good_machine_has_nothing_to_complain_of() -> None:
    assert judged() == ([], True)
    names = [one.name for one in doctor.findings(GOOD)]
    assert names == [
        *("system", "processor", "python", "wheels", "sandbox", "limits", "memory", "disk", "disk", "keys", "policy"),
        *("source", "clock", "compilers", "containers", "gpu"),
    ]


def home(**changes: Any) -> dict[str, Any]:
    return {"home": replace(HOME, **changes)}


def sandbox(**changes: Any) -> dict[str, Any]:
    return {"sandbox": replace(SANDBOX, **changes)}


BROKEN = Fault("it does not come up", "look")
CLONE = {"/proc/sys/kernel/unprivileged_userns_clone": "0"}
MISSING: dict[str, tuple[dict[str, Any], str, str]] = {
    "not Linux": ({"system": "Darwin"}, "system", "build on Linux"),
    "an old processor": ({"platform": None, "platform_fault": Fault("no AVX2")}, "processor", "AVX2"),
    "no Python": ({"interpreters": (Interpreter("==3.11.*", ("a",), Fault("none", "apt")),)}, "python", "apt"),
    "no bubblewrap": (sandbox(program=None, fault=BROKEN, enforced=None), "sandbox", "apt install bubblewrap"),
    "no namespaces": (
        sandbox(fault=BROKEN, enforced=None, namespaces=CLONE),
        "sandbox",
        "sysctl kernel.unprivileged_userns_clone=1",
    ),
    "none at all": (
        sandbox(fault=BROKEN, enforced=None, namespaces={"/proc/sys/user/max_user_namespaces": "0"}),
        "sandbox",
        "sysctl user.max_user_namespaces=15000",
    ),
    "AppArmor": (
        sandbox(
            fault=BROKEN, enforced=None, namespaces={"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"}
        ),
        "sandbox",
        "AppArmor",
    ),
    "a sandbox that fails": (
        sandbox(fault=BROKEN, enforced=None, namespaces={"/proc/sys/user/max_user_namespaces": "99"}),
        "sandbox",
        "look",
    ),
    "a sandbox that fails and sends people here": (
        sandbox(fault=Fault("it does not come up", "run intaglio doctor"), enforced=None),
        "sandbox",
        "bwrap --unshare-all",
    ),
    "a store that is read-only": ({"disks": (Disk("store", Path("/s"), 100 * GB, False),)}, "disk", "--store"),
    "no keys": (home(missing_keys=("builder", "release")), "keys", "intaglio init"),
    "no policy": (home(policy=Fault("there is none", "intaglio init")), "policy", "intaglio init"),
}


@pytest.mark.parametrize("case", list(MISSING))
def test_what_every_build_needs_is_missing(case: str) -> None:
    changes, name, hint = MISSING[case]
    found, possible = judged(**changes)
    assert [(one.name, one.status) for one in found] == [(name, "missing")]
    assert hint in (found[0].hint or "")
    assert not possible


PARTLY = (Interpreter("==3.11.*", ("a",), None), Interpreter("==3.12.*", ("b",), Fault("no python3.12", "apt")))
WARNINGS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "one of two Pythons": ({"interpreters": PARTLY}, "python", "no python3.12 (b)", "apt"),
    "no wheel for CPUs": (
        {"absent_wheels": {"train-cpu": ("torch-2+cpu-py3-none-any.whl", "x-1-py3-none-any.whl")}},
        "wheels",
        "toolchain train-cpu: torch-2+cpu-py3-none-any.whl and 1 more neither here nor offered",
        "https://download.pytorch.org/whl/cpu",
    ),
    "a wheel that no index has": (
        {"absent_wheels": {"x": ("x-1-py3-none-any.whl",)}},
        "wheels",
        "x-1",
        "pip config list",
    ),
    "no answer from pip": (
        {"wheels_fault": Fault("no answer", "pip config list")},
        "wheels",
        "no answer",
        "pip config",
    ),
    "no toolchain": ({"interpreters": ()}, "python", "no toolchain", "reinstall"),
    "limits by polling": (sandbox(enforced="polling"), "limits", "polling", "Delegate"),
    "little memory": ({"memory": 4 << 30}, "memory", "4.0 GiB; shipped steps may take 8.0 GiB", "memory"),
    "little disk": (
        {"disks": (Disk("cache", Path("/c"), GB, True),)},
        "disk",
        "1.00 GB free; smollm2-helpdesk fills about 4.00 GB",
        "XDG_CACHE_HOME",
    ),
    "no source": (home(needs_source=True), "source", "none was fetched", "trust anchor"),
    "a damaged source": (home(has_source=True, source=Fault("damaged")), "source", "damaged", "trust refresh"),
    "an old source": (
        home(has_source=True, source_age=timedelta(days=40), max_age=timedelta(days=30)),
        "source",
        "40 d ago; the policy allows 30 d",
        "trust refresh",
    ),
    "a clock set back": (home(behind=timedelta(days=2)), "clock", "2 d behind", "set the clock"),
    "no compiler": ({"compilers": {"cc": None, "make": "/usr/bin/make"}}, "compilers", "no cc", "apt install"),
    "no engine": ({"engines": ()}, "containers", "neither Docker's nor podman's", "intaglio serve"),
    "a closed engine": ({"engines": (), "engine_faults": ("/s: closed",)}, "containers", "/s: closed", "intaglio run"),
    "no SDK": ({"docker_sdk": False}, "containers", "docker package", "pip install 'intaglio[run]'"),
    "a GPU without a driver": (
        {"accelerators": (Accelerator("NVIDIA 0x2330", None),)},
        "gpu",
        "no driver answers (kernel 6.1.0)",
        "install the driver",
    ),
    "a registry that is down": (
        {"registry": Registry("r:5000", Fault("r:5000: no answer", "is it up?"), None)},
        "registry",
        "no answer",
        "is it up?",
    ),
}


@pytest.mark.parametrize("case", list(WARNINGS))
def test_what_only_some_need_is_a_warning(case: str) -> None:
    changes, name, detail, hint = WARNINGS[case]
    found, possible = judged(**changes)
    assert [(one.name, one.status) for one in found] == [(name, "warning")]
    assert detail in found[0].detail
    assert hint in (found[0].hint or "")
    assert possible


@pytest.mark.parametrize(
    ("changes", "name", "detail"),
    [
        (home(has_source=True, source_age=timedelta(hours=3)), "source", "current 3 h 0 min ago"),
        (home(behind=timedelta(seconds=30)), "clock", "2026-03-01T12:00:00Z"),
        (sandbox(enforced="cgroup1"), "limits", "version 1"),
        ({"accelerators": (Accelerator("H100", "550.1"),)}, "gpu", "H100, driver 550.1, kernel 6.1.0"),
        ({"registry": Registry("r", None, "api")}, "registry", "lists referrers itself"),
        ({"registry": Registry("r", None, "fallback")}, "registry", "tags stand in"),
        ({"registry": Registry("r", None, None)}, "registry", "HOST/REPO"),
    ],
)
def test_what_is_fine_is_told(changes: dict[str, Any], name: str, detail: str) -> None:
    found = doctor.findings(replace(GOOD, **changes))
    (one,) = [one for one in found if one.name == name]
    assert one.status == "ok"
    assert detail in one.detail


def test_a_finding_has_one_form() -> None:
    document = Finding("disk", "warning", "little", "more").to_json()
    assert document == {"name": "disk", "status": "warning", "detail": "little", "hint": "more"}
