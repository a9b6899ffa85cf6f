"""Debian packages, read without Debian: an ``ar`` archive whose ``data.tar`` holds the files.

- No script of a package is run, and none is kept.
- ``/bin``, ``/lib``, ``/lib64`` and ``/sbin`` are links into ``/usr``, as in an installed Debian 12.
- Only folders, regular files and links are taken; permissions lose set-uid, set-gid and sticky bits, owners are lost.

(deb(5), deb-split(5); ar is the common variant without extended names.)
"""

from __future__ import annotations

import io
import lzma
import os
import posixpath
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from intaglio.errors import CorruptContent

MERGED = ("bin", "lib", "lib64", "sbin")
"""Folders of the root that are links to those of the same name below ``usr``."""
_MAGIC = b"!<arch>\n"
_MAX_DATA = 1 << 30


def unpack(package: Path, root: Path, skip: tuple[str, ...] = ()) -> None:
    """Write the files of ``package`` below ``root``, but for paths that begin with one of ``skip``.

    Raises:
        CorruptContent: no package, or one that would write elsewhere or over another's files.
    """
    what = package.name
    try:
        with open(package, "rb") as stream, tarfile.open(fileobj=_data(stream, what), mode="r|") as archive:
            for member in archive:
                path = _place(member.name, what)
                if path and not f"{path}/".startswith(skip):
                    _member(archive, member, path, root, what)
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise CorruptContent(f"{what}: not a Debian package: {error}") from None


def _data(stream: IO[bytes], what: str) -> IO[bytes]:
    """Return the decompressed ``data.tar`` of the package in ``stream``."""
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise CorruptContent(f"{what}: not a Debian package")
    for name, size in _parts(stream):
        if name.startswith("data.tar"):
            if name != "data.tar.xz" or size > _MAX_DATA:
                raise CorruptContent(f"{what}: expected data.tar.xz, found {name!r} of {size} bytes")
            return lzma.open(io.BytesIO(stream.read(size)))
        stream.seek(size + size % 2, os.SEEK_CUR)
    raise CorruptContent(f"{what}: not a Debian package: it has no data.tar")


def _parts(stream: IO[bytes]) -> Iterator[tuple[str, int]]:
    while head := stream.read(60):
        try:
            yield head[:16].decode("ascii").rstrip().rstrip("/"), int(head[48:58])
        except ValueError:
            raise CorruptContent("not a Debian package: a damaged ar header") from None


def _place(name: str, what: str) -> str:
    """Return where a member goes, relative to the root; nothing for the root itself."""
    path = posixpath.normpath(name).lstrip("/")
    if path == ".":
        return ""
    if path.startswith("..") or "\0" in path:
        raise CorruptContent(f"{what}: a member named {name!r}")
    return f"usr/{path}" if path.split("/")[0] in MERGED else path


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, root: Path, what: str) -> None:
    target = root / path
    for above in target.relative_to(root).parents:
        if (root / above).is_symlink():
            raise CorruptContent(f"{what}: {path} would be written through a link")
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.exists():
        raise CorruptContent(f"{what}: {path} is another package's file already")
    if member.issym():
        target.symlink_to(_link(member))
    elif member.islnk():
        os.link(root / _place(member.linkname, what), target)
    elif member.isreg():
        source = archive.extractfile(member)
        assert source is not None  # noqa: S101 - a regular member
        with open(target, "xb") as sink:
            shutil.copyfileobj(source, sink)
        target.chmod(0o755 if member.mode & 0o111 else 0o644)
    else:
        raise CorruptContent(f"{what}: {path} is neither a file nor a link")


def _link(member: tarfile.TarInfo) -> str:
    """Return what a link points to; one that climbs is made absolute, since its folder may have moved below ``usr``."""
    if not member.linkname.startswith("../"):
        return member.linkname
    return posixpath.normpath(posixpath.join("/", posixpath.dirname(member.name), member.linkname))
