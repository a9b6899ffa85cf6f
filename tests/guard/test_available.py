"""Memory that may be taken: the machine's, and what the control groups of a container leave of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from intaglio.guard.available import available

GIB = 1 << 30
UNLIMITED = (1 << 63) - 4096


class Machine:
    """Folders as the kernel has them, with 8 GiB available."""

    def __init__(self, root: Path) -> None:
        self.proc, self.groups = root / "proc", root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {8 * GIB // 1024} kB\n")

    def group(self, line: str) -> None:
        (self.proc / "self" / "cgroup").write_text(f"12:cpu:/x\n{line}\n")

    def second(self, path: str, most: int | str, used: int, cache: int = 0) -> None:
        folder = self.groups / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\nshmem {used}\ninactive_file {cache}\nactive_file 0\n")

    def first(self, path: str, most: int, used: int, cache: int = 0) -> None:
        folder = self.groups / "memory" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{most}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"inactive_file 7\ntotal_inactive_file 0\ntotal_active_file {cache}\n")

    def left(self) -> int:
        return available(self.proc, self.groups)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_control_groups_it_is_the_machines(machine: Machine) -> None:
    assert machine.left() == 8 * GIB


def test_a_container_of_version_2_has_its_own_limit(machine: Machine) -> None:
    machine.group("0::/")
    machine.second("", 4 * GIB, GIB)
    assert machine.left() == 3 * GIB


def test_a_group_above_counts_too(machine: Machine) -> None:
    machine.group("0::/user.slice/app.scope")
    machine.second("user.slice/app.scope", "max", GIB)
    machine.second("user.slice", 4 * GIB, 3 * GIB)
    assert machine.left() == GIB


def test_pages_of_files_are_given_back(machine: Machine) -> None:
    machine.group("0::/")
    machine.second("", 4 * GIB, 4 * GIB, cache=2 * GIB)
    assert machine.left() == 2 * GIB


def test_a_container_of_version_1(machine: Machine) -> None:
    machine.group("4:memory:/docker/abc")  # a path of the machine's, which is not seen inside
    machine.first("", 4 * GIB, 3 * GIB, cache=GIB)
    assert machine.left() == 2 * GIB


def test_no_limit_is_none(machine: Machine) -> None:
    machine.group("4:memory,hugetlb:/deep/er")
    machine.first("deep/er", UNLIMITED, GIB)
    assert machine.left() == 8 * GIB


def test_more_used_than_allowed_leaves_nothing(machine: Machine) -> None:
    machine.group("0::/")
    machine.second("", GIB, 2 * GIB)
    assert machine.left() == 0


def test_files_of_another_form_are_passed_over(machine: Machine) -> None:
    machine.group("0::/")
    machine.second("", "many", GIB)
    assert machine.left() == 8 * GIB
    assert available() > 0, "as it is here"
