"""What one file of a model is, by its name and by its bytes; both must agree.

- A file has the format that its name promises, in full: weights by their structure, JSON as JSON, text as text.
  Pickles, archives and programs have no format here, whatever they are called.
- Nothing is executed, unpickled or imported to find out.
- A configuration that asks a loader to run or fetch code (``auto_map``, ``trust_remote_code``, a kernel from a
  hub) is refused where it stands, not where it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from intaglio.content.formats import gguf, safetensors
from intaglio.content.tree import check_path
from intaglio.dataclass import dataclass
from intaglio.errors import CorruptContent, PolicyRefusal

SAFETENSORS = "safetensors"
GGUF = "gguf"
JSON = "json"
TEXT = "text"
FORMATS = frozenset({SAFETENSORS, GGUF, JSON, TEXT})
"""Every format that can be checked; a policy allows some of them."""
MAX_TEXT = 64 << 20
"""Largest JSON or text file, in bytes."""
_EXTENSIONS = {
    "safetensors": SAFETENSORS,
    "gguf": GGUF,
    "json": JSON,
    "txt": TEXT,
    "md": TEXT,
    "jinja": TEXT,
    "jsonl": TEXT,
}
_PLAIN_NAMES = {"license", "licence", "notice", "readme", "copying", "authors"}
"""Files of text that go without an extension."""
_MAGICS = (
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"PK\x03\x04", "a zip archive, such as PyTorch and NumPy write around pickles"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"#!", "a script"),
    (b"\x1f\x8b", "a gzip archive"),
)
_RISKY = {"GLOBAL", "STACK_GLOBAL", "INST", "REDUCE", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
OPERATIONS = frozenset(bytes([code]) for code in (*b"().012BCFGIJKLMNPQRSTUVX]abcdeghijlopqrstu}", *range(0x80, 0x99)))
"""What a pickle can begin with: its operations, one byte each (:data:`pickletools.opcodes`)."""
_MAX_OPERATIONS = 1_000_000
"""Text that disassembles for so long is one."""
_REMOTE = ("auto_map", "trust_remote_code", "custom_pipelines")


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a file turned out to be."""

    path: str
    format: str
    references: tuple[str, ...] = ()
    """Other files that it names and that must be in the model: the shards of an index."""


def format_of(path: str) -> str | None:
    """Return the format that the name promises, or nothing where no format has such names."""
    name = path.rpartition("/")[2].lower()
    if name.startswith("."):
        return None
    stem, dot, extension = name.rpartition(".")
    if not dot:
        return TEXT if name in _PLAIN_NAMES else None
    if not stem:
        return None
    return _EXTENSIONS.get(extension)


def inspect(stream: BinaryIO, size: int, path: str) -> Inspected:
    """Return what the file at ``path`` of ``size`` bytes is; ``stream`` is seekable.

    Raises:
        CorruptContent: the bytes do not have the structure of the format that the name promises.
        PolicyRefusal: it is nothing that a model may hold: a pickle, a program, a configuration that runs code.
    """
    promised = format_of(path)
    stream.seek(0)
    start = stream.read(16)
    if promised is None:
        found = next(
            (kind for magic, kind in _MAGICS if start.startswith(magic)), "a file of no format that can be checked"
        )
        raise PolicyRefusal(f"{path}: {found}", hint="models hold safetensors, GGUF, JSON and text; `import` converts")
    if promised == SAFETENSORS:
        _refuse_disguise(start, path)
        safetensors.read(stream, size, path)
        return Inspected(path, promised)
    if promised == GGUF:
        _refuse_disguise(start, path)
        gguf.read(stream, size, path)
        return Inspected(path, promised)
    _refuse_disguise(start, path)
    if size > MAX_TEXT:
        raise CorruptContent(f"{path}: {size} bytes of {promised}, expected at most {MAX_TEXT}")
    stream.seek(0)
    data = stream.read(size)
    text = _decode(data, path)
    if promised == JSON:
        return Inspected(path, promised, tuple(_read_json(text, path)))
    if _is_pickle(data):
        raise PolicyRefusal(f"{path}: a Python pickle that looks like text")
    return Inspected(path, promised)


def _refuse_disguise(start: bytes, path: str) -> None:
    # A safetensors header length can begin with any byte: only what cannot be one counts there.
    for magic, kind in _MAGICS:
        if start.startswith(magic) and start[8:9] != b"{":
            raise PolicyRefusal(f"{path}: {kind}, named as something else")


def _decode(data: bytes, path: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptContent(f"{path}: expected UTF-8 text, found other bytes at {error.start}") from None
    if "\0" in text:
        raise CorruptContent(f"{path}: expected text, found a NUL at {text.index(chr(0))}")
    return text


def _is_pickle(data: bytes) -> bool:
    """Return whether ``data`` is a pickle (protocol 0 is plain ASCII) that would call or build something."""
    if data[:1] not in OPERATIONS:
        return False  # what the disassembler would say, too; it takes long to import
    import pickletools

    risky = False
    try:
        for count, (operation, _, _) in enumerate(pickletools.genops(data)):
            risky = risky or operation.name in _RISKY
            if count == _MAX_OPERATIONS:
                return True
    except Exception:  # noqa: BLE001 - whatever stops the disassembler would stop the unpickler
        return False
    return risky


# --- JSON of a model: read as its loaders read it, except that a name may not come twice ------------------------------


def _read_json(text: str, path: str) -> Iterator[str]:
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
    except (ValueError, RecursionError) as error:
        raise CorruptContent(f"{path}: not JSON: {error}") from None
    name = path.rpartition("/")[2]
    if isinstance(value, dict):
        if name.endswith("config.json"):
            _refuse_code(value, path)
        elif any(value.get(key) for key in _REMOTE):
            _refuse(path, next(key for key in _REMOTE if value.get(key)))
        if name.endswith(".index.json"):
            yield from _shards(value, path)


def _unique(pairs: list[tuple[str, Any]], path: str) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise CorruptContent(f"{path}: not JSON: a key comes twice in one object")
    return value


def _refuse_code(value: object, path: str) -> None:
    """Refuse what makes a loader run or fetch code, at any depth of a configuration."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            for key, inner in item.items():
                hub = "_implementation" in key and isinstance(inner, str) and "/" in inner
                if hub or (key in _REMOTE and inner):
                    _refuse(path, key)
                pending.append(inner)


def _refuse(path: str, key: str) -> NoReturn:
    raise PolicyRefusal(f"{path}: {key!r} asks the loader to run code that is not part of the model's format")


def _shards(value: dict[str, Any], path: str) -> Iterator[str]:
    weights = value.get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(item, str) for item in weights.values()):
        raise CorruptContent(f"{path}: expected weight_map, an object of file names")
    folder = path.rpartition("/")[0]
    for shard in sorted(set(weights.values())):
        check_path(shard)
        yield f"{folder}/{shard}" if folder else shard
