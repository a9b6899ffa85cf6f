"""What ``intaglio trust add`` adds: the content of a catalogue entry, computed, found in the store, or fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intaglio.cli.setting import Setting
    from intaglio.content.tree import Tree
    from intaglio.digest import Digest
    from intaglio.trust.catalogue import Entry
    from intaglio.trust.target import Name


def find(setting: Setting, entry: Entry, name: Name, tree: str | None) -> tuple[Tree, bytes | None]:
    """Return the tree of ``entry``, which becomes ``name``, and for a policy or key the bytes of its file.

    Args:
        setting: has the store, where what is fetched is kept.
        entry: the catalogue's.
        name: what it will be called.
        tree: digest that it must have, where a person named one.

    Raises:
        CorruptContent: it is not the tree that the entry or ``tree`` promises.
        SourceUnreachable: no origin gives it.
        UsageError: the digests that were named contradict each other; a policy or key that is none.
    """
    from intaglio.errors import CorruptContent
    from intaglio.trust.target import FILES

    wanted = _promised(entry, name, tree)
    if name.kind in FILES:
        data = _file(setting, entry, name)
        found, file = _of_one(FILES[name.kind], data), data
    elif entry.source is not None:
        found, file = shipped(entry.source), None
    else:
        return _fetched(setting, entry, wanted), None
    if wanted is not None and found.digest != wanted:
        raise CorruptContent(f"{entry.source or entry.name}: expected {wanted}, found {found.digest}")
    return found, file


def shipped(source: str) -> Tree:
    """Return the tree of what ships beside the engine at ``source``, as in ``builder/steps/finetune``.

    Raises:
        UsageError: nothing does.
    """
    from intaglio.build import rootfs, toolchain
    from intaglio.errors import UsageError
    from intaglio.recipe import program
    from intaglio.recipe.data import data_folder
    from intaglio.recipe.sources.file import FileSource

    place, _, name = source.rpartition("/")
    builder = data_folder("builder")
    if place == "builder/steps":
        return program.load(name, builder).tree()
    if place == "builder/servers":
        return program.load_server(name, builder).tree()
    if place == "builder/toolchains":
        return toolchain.load(builder / "toolchains" / name).tree()
    if place == "builder/rootfs":
        return rootfs.load(builder / "rootfs" / name).tree()
    if place == "policies":
        return _of_one("policy.toml", _shipped(source).read_bytes())
    if place.startswith("modelfiles/"):
        return FileSource(source, _shipped(source)).tree()
    raise UsageError(f"nothing ships with the engine at {source!r}")


def _promised(entry: Entry, name: Name, tree: str | None) -> Digest | None:
    """Return the digest that the content must have; nothing where nobody said one."""
    from intaglio.digest import Digest
    from intaglio.errors import CorruptContent, UsageError

    try:
        said = Digest.parse(tree) if tree else None
    except CorruptContent as error:
        raise UsageError(f"--tree: {error.message}") from None
    if said is not None and entry.tree is not None and said != entry.tree:
        raise UsageError(f"{name}: {entry.file} says {entry.tree}, --tree says {said}")
    return said or entry.tree


def _fetched(setting: Setting, entry: Entry, wanted: Digest | None) -> Tree:
    """Return the tree of an entry with origins: in the store, or from the first origin that has it."""
    from intaglio.errors import SourceUnreachable
    from intaglio.recipe.sources.interface import resolve

    if wanted is not None and setting.store.has(wanted):
        return setting.store.tree(wanted)
    failures = []
    for origin in entry.origins:
        digest = entry.digest if origin.startswith(("https:", "http:")) else None
        source = resolve(origin, entry.file.parent, name=entry.name, digest=digest)
        try:
            return source.fetch(setting.store, expected=wanted, progress=setting.progress, offline=False)
        except SourceUnreachable as error:
            failures.append(error.message)
    raise SourceUnreachable("; ".join(failures))


def _file(setting: Setting, entry: Entry, name: Name) -> bytes:
    """Return the bytes of a policy or key, which must be one.

    Raises:
        UsageError: it is none.
    """
    from intaglio.errors import Error, UsageError
    from intaglio.trust.key import PublicKey

    if entry.source is not None:
        data = _shipped(entry.source).read_bytes()
    else:
        files = _fetched(setting, entry, None).files
        if len(files) != 1:
            raise UsageError(f"{name}: expected one file, found {len(files)}")
        data = setting.store.read(files[0].digest, what=files[0].path)
    try:
        if name.kind == "key":
            PublicKey.from_pem(data, what=str(name))
        else:
            _check_policy(data, str(name))
    except Error as error:
        raise UsageError(f"{name}: {error.message}", hint=error.hint) from None
    return data


def _check_policy(data: bytes, what: str) -> None:
    """Check that ``data`` is a policy, or a template of one that lacks nothing but the keys."""
    from intaglio.policy import document, reader
    from intaglio.trust.key import PrivateKey

    template = "keys" not in reader.toml(data, what)
    names = document.key_names(data, what=what) if template else ()
    keys = {name: PrivateKey.generate().public for name in names}
    document.parse(data, what=what, keys=keys if template else None, lookup=lambda _: None)


def _shipped(source: str) -> Path:
    """Return where a policy, or data of a recipe, stands that ships with the engine."""
    from intaglio.errors import UsageError
    from intaglio.recipe.data import data_folder

    room, _, rest = source.partition("/")
    path = data_folder("policies" if room == "policies" else "modelfiles") / rest
    if ".." in Path(rest).parts or not path.exists():
        raise UsageError(f"nothing ships with the engine at {source!r}")
    return path


def _of_one(name: str, data: bytes) -> Tree:
    from intaglio.content.tree import File, Tree
    from intaglio.digest import Digest

    return Tree.of([File(name, Digest.of(data), len(data))])
