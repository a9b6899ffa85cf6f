"""Tiny wheels made by hand, and locks for them: what toolchain tests install."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def wheel(
    folder: Path, name: str, version: str, files: Mapping[str, bytes], *, scripts: Mapping[str, str] | None = None
) -> Path:
    """Write a pure wheel with ``files`` into ``folder``; ``scripts`` are console entry points."""
    info = f"{name}-{version}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if scripts:
        lines = "".join(f"{script} = {entry}\n" for script, entry in scripts.items())
        content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}".encode()
    record = "".join(f"{path},sha256={_record_hash(data)},{len(data)}\n" for path, data in content.items())
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in content.items():
            archive.writestr(zipfile.ZipInfo(member), data)
    return path


def sdist(folder: Path, name: str, version: str, setup: str) -> Path:
    """Write an sdist whose ``setup.py`` is ``setup``."""
    path = folder / f"{name}-{version}.tar.gz"
    folder.mkdir(parents=True, exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with tarfile.open(path, "w:gz") as archive:
        for member, text in {"setup.py": setup, "PKG-INFO": metadata}.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{member}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def lock_text(wheels: Iterable[Path], *, python: str = "3.11", extra: str = "") -> str:
    """Return the text of a ``pylock.toml`` that pins ``wheels``."""
    lines = ['lock-version = "1.0"', 'created-by = "intaglio"', f'requires-python = "=={python}.*"']
    for path in sorted(wheels):
        name, version = path.name.split("-")[:2]
        lines += ["", "[[packages]]", f'name = "{name.replace("_", "-").lower()}"', f'version = "{version}"']
        lines += ["", "[[packages.wheels]]", f'name = "{path.name}"', f'path = "wheels/{path.name}"']
        lines += [f"size = {path.stat().st_size}", f'hashes = {{sha256 = "{sha256(path)}"}}']
    return "\n".join(lines) + "\n" + extra


def lock(folder: Path, wheels: Iterable[Path], *, python: str = "3.11", extra: str = "") -> Path:
    """Write a toolchain folder that pins ``wheels``, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pylock.toml").write_text(lock_text(wheels, python=python, extra=extra), encoding="utf-8")
    return folder


def sha256(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
