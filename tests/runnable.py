"""A runnable image made by hand: this machine's Python, its libraries, and one program; nothing of the guard in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from intaglio import strictjson
from intaglio.content import layer
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
from intaglio.content.layer import Entry
from intaglio.content.layout import Store
from intaglio.content.runtime_image import IMAGE_CONFIG_TYPE, LAYER_TYPE, RuntimeImage

PYTHON = Path(sys.executable).resolve()
_LEFT_OUT = re.compile(
    r"__pycache__|site-packages|dist-packages|test|idlelib|lib2to3|tkinter|ensurepip|turtledemo|config-.*|_pyrepl"
)


def image(store: Store, program: str, *, python: bool = True, labels: Mapping[str, str] | None = None) -> RuntimeImage:
    """Put an image that runs the Python ``program`` into ``store``, and return it; ``python`` may be left out."""
    code = Entry("program.py", program.encode(), mode=0o444)
    folders = [Entry(name) for name in ("model", "passport", "run/intaglio", "proc", "dev", "sys", "etc")]
    # A file system in memory takes the permissions of the folder that it is mounted on, whatever it is told.
    layers = [_layer(store, [code, Entry("tmp", mode=0o1777), *folders])]
    if python:
        layers.insert(0, _layer(store, list(_python())))
    config = strictjson.canonical(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": [str(PYTHON), "-I", "-B", "/program.py"],
                "Env": ["PATH=/usr/bin:/bin"],
                "Labels": dict(labels or {}),
                "User": "65532:65532",
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [str(one.digest) for one in layers]},
        }
    )
    about = Descriptor(IMAGE_CONFIG_TYPE, store.put(config), len(config))
    manifest = strictjson.canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": about.to_json(),
            "layers": [one.to_json() for one in layers],
        }
    )
    store.put(manifest)
    return RuntimeImage.parse(manifest, "the image made by hand")


def _layer(store: Store, entries: Sequence[Entry]) -> Descriptor:
    with store.writer() as writer:
        layer.write(entries, writer)
        digest, size = writer.commit()
    return Descriptor(LAYER_TYPE, digest, size)


def _python() -> Iterator[Entry]:
    """Yield the interpreter, its standard library and the libraries that these need, where they stand here."""
    prefix = Path(sys.base_prefix).resolve()
    library = prefix / "lib" / "python{}.{}".format(*sys.version_info)
    yield _file(PYTHON)
    linked = {PYTHON}
    for above, folders, names in os.walk(library):
        folders[:] = [name for name in folders if not _LEFT_OUT.fullmatch(name)]
        for name in names:
            path = Path(above, name)
            if not path.is_symlink() and path.suffix != ".a":
                yield _file(path)
                if path.suffix == ".so":
                    linked.add(path)
    needed: set[Path] = set()
    for path in linked:
        told = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
        needed |= {Path(found) for found in re.findall(r"(?:=> )?(/\S+) \(0x", told)}
    for path in sorted(needed):
        yield Entry(str(path).lstrip("/"), path.resolve(), mode=0o555)


def _file(path: Path) -> Entry:
    return Entry(str(path).lstrip("/"), path, mode=0o555)
