"""Held files: what was verified is what is read, whatever the store's owner does."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from intaglio.digest import Digest
from intaglio.errors import CorruptContent, MachineError
from intaglio.guard import memory
from intaglio.guard.memory import hold

NOBODY = 65534


@dataclass(frozen=True)
class Verified:
    path: str
    digest: Digest
    size: int
    source: Path


def verified(place: Path, name: str, data: bytes) -> Verified:
    source = place / name.replace("/", "_")
    source.write_bytes(data)
    return Verified(name, Digest.of(data), len(data), source)


def read(descriptor: int) -> bytes:
    return Path(f"/proc/self/fd/{descriptor}").read_bytes()


def test_files_are_copied_and_sealed(tmp_path: Path) -> None:
    data = [os.urandom(3_000_001), b"", b"x"]
    files = [verified(tmp_path, f"part/{index}", content) for index, content in enumerate(data)]
    with hold(files) as held:
        assert [file.path for file in held] == ["part/0", "part/1", "part/2"]
        assert [read(file.descriptor) for file in held] == data
        for file in held:
            assert file.copied
            _cannot_be_changed(file.descriptor)
        numbers = [file.descriptor for file in held]
    for number in numbers:
        with pytest.raises(OSError):
            os.fstat(number)


def _cannot_be_changed(descriptor: int) -> None:
    writable = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    try:
        for change in (
            lambda: os.pwrite(writable, b"y", 0),
            lambda: os.ftruncate(writable, 1 << 24),
            lambda: mmap.mmap(writable, 1, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
            lambda: fcntl.fcntl(writable, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
        ):
            with pytest.raises((OSError, ValueError)) as caught:
                change()
            assert getattr(caught.value, "errno", errno.EPERM) in (errno.EPERM, errno.EACCES)
    finally:
        os.close(writable)


def test_a_later_change_of_the_blob_changes_nothing(tmp_path: Path) -> None:
    file = verified(tmp_path, "model.gguf", b"A" * 1_000_000)
    with hold([file]) as held:
        file.source.write_bytes(b"B" * 1_000_000)
        assert read(held[0].descriptor) == b"A" * 1_000_000


@pytest.mark.parametrize("data", [b"B" * 1000, b"A" * 999, b"A" * 1001, b"", b"A" * 5_000_000])
def test_a_change_before_is_refused(tmp_path: Path, data: bytes) -> None:
    file = verified(tmp_path, "model.gguf", b"A" * 1000)
    file.source.write_bytes(data)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(CorruptContent, match=r"model\.gguf: expected sha256"), hold([file]):
        pytest.fail("handed out")
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["missing", "symlink", "fifo", "folder"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    file = verified(tmp_path, "model.gguf", b"A" * 1000)
    file.source.rename(tmp_path / "elsewhere")
    if kind == "symlink":
        file.source.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(file.source)
    elif kind == "folder":
        file.source.mkdir()
    with pytest.raises((CorruptContent, MachineError)), hold([file]):
        pytest.fail("handed out")


def test_too_little_memory_is_said_before_copying(tmp_path: Path) -> None:
    file = verified(tmp_path, "model.gguf", b"A")
    with (
        pytest.raises(MachineError, match="not enough memory"),
        hold([Verified("x", file.digest, 1 << 60, file.source)]),
    ):
        pytest.fail("handed out")


def in_another_user(work: Callable[[], int]) -> int:
    """Return what ``work`` does in a child that gives up its rights; they cannot be taken back."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def place() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can play two users")
    found = Path("/tmp", f"intaglio-test-{os.getpid()}")
    found.mkdir()
    found.chmod(0o755)
    try:
        yield found
    finally:
        shutil.rmtree(found)


@pytest.mark.parametrize(("mode", "copied"), [(0o755, False), (0o777, True), (0o1777, True)])
def test_another_users_blob_is_held_as_it_is(place: Path, mode: int, copied: bool) -> None:
    file = verified(place, "model.gguf", b"A" * 1000)
    file.source.chmod(0o444)
    place.chmod(mode)

    def work() -> int:
        with hold([file]) as held:
            if held[0].copied is not copied or read(held[0].descriptor) != b"A" * 1000:
                return 1
            if not copied:
                with pytest.raises(PermissionError):
                    os.open(f"/proc/self/fd/{held[0].descriptor}", os.O_RDWR)
        return 0

    assert in_another_user(work) == 0


@pytest.mark.parametrize(
    ("mode", "owner", "copied"),
    [
        (0o755, 0, False),
        (0o755, NOBODY, True),  # root's folder in our own: we can rename it away
        (0o777, 0, True),
        (0o1777, 0, False),  # as /tmp: what is another's cannot be renamed there
        (0o1777, NOBODY, True),
    ],
)
@pytest.mark.parametrize("through_link", [False, True])
def test_every_folder_above_must_be_anothers(
    place: Path, mode: int, owner: int, copied: bool, through_link: bool
) -> None:
    model = place / "home" / "deep" / "model"
    model.mkdir(parents=True)
    for folder in (model, model.parent):
        folder.chmod(0o755)
    file = verified(model, "model.gguf", b"A" * 1000)
    file.source.chmod(0o444)
    if through_link:  # the link stands in the folder in question, the files where nobody can reach them
        model.parent.rename(place / "away")
        (place / "home" / "deep").symlink_to("../away")
    os.chown(place / "home", owner, 0)
    (place / "home").chmod(mode)

    def work() -> int:
        with hold([file]) as held:
            return int(held[0].copied is not copied)

    assert in_another_user(work) == 0


@pytest.mark.parametrize(("owner", "copied"), [(0, False), (NOBODY, True)])
def test_a_link_of_our_own_can_be_replaced_in_a_sticky_folder_too(place: Path, owner: int, copied: bool) -> None:
    model = place / "model"
    model.mkdir(mode=0o755)
    file = verified(model, "model.gguf", b"A" * 1000)
    file.source.chmod(0o444)
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "link").symlink_to(model)
    os.lchown(shared / "link", owner, owner)
    through = Verified(file.path, file.digest, file.size, shared / "link" / "model.gguf")

    def work() -> int:
        with hold([through]) as held:
            return int(held[0].copied is not copied)

    assert in_another_user(work) == 0


def test_the_containers_own_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 999)
    file = verified(tmp_path, "model.gguf", b"A" * 1000)
    with pytest.raises(MachineError, match="expected 1000 bytes, found 999 available") as caught, hold([file]):
        pytest.fail("handed out")
    assert caught.value.exit_code == 50


def test_root_is_never_trusted_not_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    file = verified(tmp_path, "x", b"x")
    descriptor = os.open(file.source, os.O_RDONLY)
    try:
        assert not memory._theirs(file.source, descriptor)
    finally:
        os.close(descriptor)
