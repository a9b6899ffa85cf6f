"""Debian packages made by hand: what is taken, and what is refused."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path

import pytest

from intaglio.build import debian
from intaglio.errors import CorruptContent


def member(
    name: str, data: bytes | None = b"", *, link: str | None = None, kind: bytes = b"", mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.mode = mode
    if link is not None:
        info.type, info.linkname = kind or tarfile.SYMTYPE, link
    elif data is None:
        info.type = kind or tarfile.DIRTYPE
    else:
        info.size = len(data)
    return info, data or b""


def package(place: Path, *members: tuple[tarfile.TarInfo, bytes], name: str = "data.tar.xz", raw: bytes = b"") -> Path:
    """Write a package with those members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    parts = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (name, raw or lzma.compress(stream.getvalue()))]
    out = b"!<arch>\n"
    for part, data in parts:
        out += f"{part:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    place.write_bytes(out)
    return place


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_files_go_below_usr(tmp_path: Path, root: Path) -> None:
    made = package(
        tmp_path / "a.deb",
        member("./", None),
        member("./bin/", None),
        member("./bin/tool", b"#!", mode=0o4755),
        member("./lib/x/libx.so.1", b"elf"),
        member("./lib/x/libx.so", link="libx.so.1"),
        member("./lib/x/deep", link="../../usr/share/deep"),
        member("./usr/share/deep", b"deep"),
        member("./usr/bin/again", link="./bin/tool", kind=tarfile.LNKTYPE),
        member("./usr/share/man/man1/tool.1", b"words"),
        member("./etc/conf", b"x", mode=0o600),
    )
    debian.unpack(made, root, ("usr/share/man/",))
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())
    assert found == ["etc/conf", "usr/bin/again", "usr/bin/tool", "usr/lib/x/deep", "usr/lib/x/libx.so",
                     "usr/lib/x/libx.so.1", "usr/share/deep"]  # fmt: skip
    assert (root / "usr/bin/tool").stat().st_mode & 0o7777 == 0o755
    assert (root / "etc/conf").stat().st_mode & 0o7777 == 0o644
    assert str((root / "usr/lib/x/deep").readlink()) == "/usr/share/deep"
    assert str((root / "usr/lib/x/libx.so").readlink()) == "libx.so.1"
    assert (root / "usr/bin/again").read_bytes() == b"#!"


@pytest.mark.parametrize(
    "members",
    [
        [member("../out", b"x")],
        [member("./a/../../out", b"x")],
        [member("./a", link="/tmp"), member("./a/b", b"x")],
        [member("./a", b"x"), member("./a", b"y")],
        [member("./a", link="x"), member("./a", b"y")],
        [member("./device", None, kind=tarfile.CHRTYPE)],
        [member("./pipe", None, kind=tarfile.FIFOTYPE)],
        [member("./a", link="../../etc/passwd", kind=tarfile.LNKTYPE)],
    ],
)
def test_what_would_write_elsewhere_is_refused(
    tmp_path: Path, root: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    with pytest.raises(CorruptContent):
        debian.unpack(package(tmp_path / "bad.deb", *members), root)
    assert not (tmp_path / "out").exists()


def test_another_packages_file_is_not_written_over(tmp_path: Path, root: Path) -> None:
    debian.unpack(package(tmp_path / "a.deb", member("./usr/x", b"1")), root)
    with pytest.raises(CorruptContent, match="another package"):
        debian.unpack(package(tmp_path / "b.deb", member("./usr/x", b"2")), root)
    assert (root / "usr/x").read_bytes() == b"1"


@pytest.mark.parametrize("data", [b"", b"!<arch>\n", b"MZ", b"!<arch>\n" + b"x" * 60])
def test_no_package(tmp_path: Path, root: Path, data: bytes) -> None:
    (tmp_path / "no.deb").write_bytes(data)
    with pytest.raises(CorruptContent, match="not a Debian package"):
        debian.unpack(tmp_path / "no.deb", root)


@pytest.mark.parametrize("raw", [b"junk", lzma.compress(b"x" * 2000)[:-20], lzma.compress(b"no tar" * 200)])
def test_a_damaged_package(tmp_path: Path, root: Path, raw: bytes) -> None:
    with pytest.raises(CorruptContent):
        debian.unpack(package(tmp_path / "no.deb", raw=raw), root)


def test_another_compression_is_refused(tmp_path: Path, root: Path) -> None:
    with pytest.raises(CorruptContent, match=r"expected data\.tar\.xz"):
        debian.unpack(package(tmp_path / "no.deb", name="data.tar.zst"), root)
