"""What a step leaves in ``/out``, made by a real step in the real sandbox, and what of it the store takes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from tests.box import Box

from intaglio.build.sandbox import Mount
from intaglio.content.layout import Store
from intaglio.errors import CorruptContent

pytestmark = pytest.mark.real

BAD = {
    "link to a file": "ln -s /etc/passwd /out/x",
    "link to a host file": "ln -s ../secret /out/x",
    "link to a folder": "ln -s / /out/x",
    "dangling link": "ln -s nowhere /out/x",
    "link beside good files": "echo a > /out/a; ln -s a /out/b",
    "link deep down": "mkdir -p /out/a/b; echo a > /out/a/a; ln -s ../a /out/a/b/x",
    "fifo": "mkfifo /out/x",
    "socket": "",  # by Python, see below
    "hard links": "echo a > /out/a; ln /out/a /out/b",
    "set-user-id": "echo a > /out/a; chmod 4755 /out/a",
    "set-group-id": "echo a > /out/a; chmod 2755 /out/a",
    "nothing": "true",
    "empty folders only": "mkdir -p /out/a/b",
    "backslash": "echo a > '/out/a\\b'",
    "control character": "echo a > /out/$(printf 'a\\001b')",
    "name not UTF-8": "echo a > /out/$(printf 'a\\377b')",
    "names that differ by case": "echo a > /out/a; echo b > /out/A",
    "trailing dot": "echo a > /out/a.",
}


@pytest.fixture
def box(tmp_path: Path) -> Box:
    (tmp_path / "secret").write_text("of the host")
    return Box(tmp_path)


@pytest.mark.parametrize("script", BAD.values(), ids=BAD)
def test_bad_output_is_refused_and_nothing_of_it_enters_the_store(box: Box, script: str) -> None:
    store = Store.open(box.place / "store")
    before = _blobs(store)
    outcome = box.sh(script) if script else box.python("import socket; socket.socket(socket.AF_UNIX).bind('/out/x')")
    assert outcome.status == 0, box.said()
    with pytest.raises(CorruptContent):
        store.ingest(box.place / "out", move=True)
    assert _blobs(store) == before


def test_a_device_is_refused(box: Box) -> None:
    """A step cannot make one (see the escapes); it is put there from outside."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a device")
    os.mknod(box.place / "out" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(CorruptContent):
        Store.open(box.place / "store").ingest(box.place / "out", move=True)


def test_an_input_cannot_be_linked_or_moved_into_the_output(box: Box) -> None:
    """Inputs are hard links to the store's blobs: a link in ``/out`` would let the next ingest take a blob away."""
    data = box.place / "data"
    data.mkdir()
    (data / "x").write_text("input")
    outcome = box.python(
        "import os\n"
        "for way in (os.link, os.rename):\n"
        "    try: way('/in/data/x', '/out/x')\n"
        "    except OSError: continue\n"
        "    raise SystemExit(1)\n",
        mounts=(Mount(data, "/in/data"),),
    )
    assert outcome.status == 0
    assert not list((box.place / "out").iterdir())


def test_good_output_is_taken(box: Box) -> None:
    """The same way, so that the refusals above mean something."""
    assert box.sh("echo a > /out/a; mkdir /out/b; echo c > /out/b/c; chmod +x /out/b/c").status == 0
    tree = Store.open(box.place / "store").ingest(box.place / "out", move=True)
    assert [(file.path, file.executable) for file in tree.files] == [("a", False), ("b/c", True)]


def test_nothing_is_written_after_the_end(box: Box) -> None:
    """A process that keeps the output open and goes on writing is dead before the output is read."""
    outcome = box.python(
        "import os, time\n"
        "stream = open('/out/a', 'w'); stream.write('a'); stream.flush()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    while True:\n"
        "        stream.write('b'); stream.flush()\n"
        "time.sleep(0.2)\n"
        "os._exit(0)\n"
    )
    assert outcome.status == 0
    size = (box.place / "out" / "a").stat().st_size
    assert size > 1
    tree = Store.open(box.place / "store").ingest(box.place / "out", move=True)
    assert tree.total_size == size


def _blobs(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / "blobs" / "sha256").iterdir())
