"""The publisher's commands of ``intaglio trust``: make, fill, sign and publish a trusted source."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intaglio.cli.setting import Setting, options

if TYPE_CHECKING:
    from intaglio.trust.catalogue import Entry
    from intaglio.trust.key import PrivateKey, PublicKey
    from intaglio.trust.repository import Repository
    from intaglio.trust.review import Staged
    from intaglio.trust.target import Name

_FOLDER = click.argument("repository", metavar="DIR", type=click.Path(path_type=Path))
_KEYS = click.option(
    "--keys", type=click.Path(path_type=Path), help="Folder of the keys made by `init` (default: DIR-keys, beside DIR)."
)
_PASSPHRASE = click.option(
    "--passphrase-file", type=click.Path(path_type=Path), help="The keys' passphrase is this file's first line."
)
_ROLE = click.Choice(("root", "targets", "snapshot", "timestamp"))


@click.command(short_help="Make a trusted source's working folder, and keys.")
@_FOLDER
@_KEYS
@click.option("--root-keys", type=click.IntRange(1, 32), default=3, show_default=True, help="Root keys to make.")
@click.option("--threshold", type=click.IntRange(1, 32), default=2, show_default=True, help="Root keys that must sign.")
@click.option("--targets-keys", type=click.IntRange(1, 32), default=1, show_default=True, help="Targets keys to make.")
@click.option("--targets-threshold", type=click.IntRange(1, 32), default=1, show_default=True, help="That must sign.")
@click.option("--root-key", multiple=True, type=click.Path(path_type=Path), help="Public key of a person; makes none.")
@click.option("--targets-key", multiple=True, type=click.Path(path_type=Path), help="The same, for the targets.")
@_PASSPHRASE
@options
def init(
    setting: Setting,
    repository: Path,
    keys: Path | None,
    root_keys: int,
    threshold: int,
    targets_keys: int,
    targets_threshold: int,
    root_key: tuple[Path, ...],
    targets_key: tuple[Path, ...],
    passphrase_file: Path | None,
) -> None:
    """Make DIR, in which a trusted source is prepared, and the keys that are not given.

    \b
    Examples:
      intaglio trust init source
      intaglio trust init source --root-key ann.pub --root-key bob.pub --root-key cid.pub --threshold 2

    The keys go to DIR-keys: offline/ holds what people sign with and is to be carried away, online/ what `publish`
    signs with. They are encrypted when a passphrase is given.
    """
    from intaglio.trust.new_keys import NewKeys
    from intaglio.trust.repository import ONLINE, Repository, Signers, key_of

    folder = _keys_folder(repository, keys)
    setting.passphrase_file = passphrase_file
    passphrase = setting.passphrases().get("Passphrase for the new keys (empty: none)")
    maker = NewKeys(folder, passphrase)
    root = tuple(map(_public, root_key)) or tuple(maker.plan("offline", f"root-{n + 1}") for n in range(root_keys))
    top = tuple(map(_public, targets_key)) or tuple(
        maker.plan("offline", f"targets-{n + 1}") for n in range(targets_keys)
    )
    signers = {"root": Signers(root, threshold), "targets": Signers(top, targets_threshold)}
    signers.update({role: Signers((maker.plan("online", role),)) for role in ONLINE})
    maker.check()
    # The keys first: a source whose keys never came to be could not be signed by anyone.
    with maker.written() as made:
        Repository.create(repository, signers, _now())
    document = {
        "repository": str(repository),
        "keys": [str(path) for path in made],
        "encrypted": passphrase is not None,
        "roles": {
            role: {"threshold": one.threshold, "keys": [key_of(key).keyid for key in one.keys]}
            for role, one in signers.items()
        },
    }
    lines = [f"{repository}: root by {threshold} of {len(root)} keys, targets by {targets_threshold} of {len(top)}"]
    lines += [f"made {path}" for path in made]
    setting.emit(document, "\n".join([*lines, f"next: intaglio trust add {repository} NAME, sign, publish"]))


@click.command(short_help="Add catalogue entries.")
@_FOLDER
@click.argument("given", metavar="NAME[@VERSION]|FILE...", nargs=-1, required=True)
@click.option("--tree", help="The one entry's tree: must be what the entry says where it has one.")
@click.option("--catalogue", type=click.Path(path_type=Path), help="Folder of entries (default: the one shipped).")
@click.option("--file", type=click.Path(path_type=Path), help="A policy or public key, which becomes NAME@VERSION.")
@click.option("--publisher", help="Whose the --file is.")
@click.option("--licence", default="LicenseRef-own", show_default=True, help="The --file's, an SPDX expression.")
@options
def add(
    setting: Setting,
    repository: Path,
    given: tuple[str, ...],
    tree: str | None,
    catalogue: Path | None,
    file: Path | None,
    publisher: str | None,
    licence: str,
) -> None:
    """Stage catalogue entries: a name and version in the catalogue, or an entry's own FILE.

    \b
    Examples:
      intaglio trust add source models/huggingfacetb/smollm2-135m-instruct
      intaglio trust add source steps/intaglio/finetune@1.0.0            what ships with the engine
      intaglio trust add source ./our-base.toml --tree sha256:5a79…
      intaglio trust add source policies/acme/release@1 --file policy.toml --publisher Acme
      intaglio trust add source keys/acme/release@1 --file release.pub --publisher Acme

    Content that the store lacks is fetched from the entry's origins, against the digest that the entry promises. Where
    neither it nor --tree says one, what the origin has now is taken and its digest told: it is what will be signed.
    """
    from intaglio.cli import trust_content
    from intaglio.errors import UsageError
    from intaglio.trust.repository import Repository

    opened = Repository.open(repository)
    if (tree or file) and len(given) > 1:
        raise UsageError("--tree, --file: expected one entry with it, found several")
    if (file is None) != (publisher is None):
        raise UsageError("--file and --publisher belong together")
    if file is not None and publisher is not None:
        chosen = [_own(given[0], file, publisher, licence)]
    else:
        chosen = [_entry(text, catalogue) for text in given]
    contents = [trust_content.find(setting, entry, name, tree) for entry, name in chosen]
    added = []
    with opened.alone():
        for (entry, name), (content, data) in zip(chosen, contents, strict=True):
            opened.add(entry.target(name, content), content.manifest(), _now(), data)
            added.append({"name": str(name), "tree": str(content.digest), "bytes": content.total_size})
    lines = [f"staged {one['name']} {one['tree']}" for one in added]
    setting.emit({"added": added, "waiting": _waiting(opened)}, "\n".join(lines))


@click.command(short_help="Take a version back.")
@_FOLDER
@click.argument("name", metavar="NAME@VERSION")
@click.option("--reason", required=True, help="Why, in one line; shown to whoever would use it.")
@options
def yank(setting: Setting, repository: Path, name: str, reason: str) -> None:
    """Stage that NAME@VERSION must not be used any more.

    \b
    Examples:
      intaglio trust yank source models/acme/base@1.0.0 --reason "weights leaked a password"
    """
    from intaglio.trust.repository import Repository
    from intaglio.trust.target import Name

    opened = Repository.open(repository)
    with opened.alone():
        target = opened.yank(Name.parse(name), reason, _now())
    document = {"name": str(target.name), "status": target.status, "reason": reason, "waiting": _waiting(opened)}
    setting.emit(document, f"staged: {target.name} is yanked: {reason}")


@click.command(short_help="Sign what is staged.")
@_FOLDER
@click.option(
    "--key", "files", multiple=True, required=True, type=click.Path(path_type=Path), help="Private key (PEM)."
)
@_PASSPHRASE
@options
def sign(setting: Setting, repository: Path, files: tuple[Path, ...], passphrase_file: Path | None) -> None:
    """Sign what is staged in DIR, after saying what it changes; each person signs where their key is.

    \b
    Examples:
      intaglio trust sign source --key /media/stick/root-1.key
    """
    from intaglio.trust.repository import Repository

    setting.passphrase_file = passphrase_file
    opened = Repository.open(repository)
    for one in opened.waiting():
        setting.progress.note("\n".join([f"{one.role} {one.version}:", *(f"  {line}" for line in one.changes)]))
    keys = [_private(setting, file) for file in files]
    with opened.alone():
        signed = {str(file): list(opened.sign(key)) for file, key in zip(files, keys, strict=True)}
    lines = [f"signed {' and '.join(roles)} with {file}" for file, roles in signed.items()]
    lines += [_missing(one) for one in opened.waiting()]
    setting.emit({"signed": signed, "waiting": _waiting(opened)}, "\n".join(lines))


@click.command(short_help="Change who signs for a role.")
@_FOLDER
@click.argument("role", type=_ROLE)
@click.option("--add", "added", multiple=True, type=click.Path(path_type=Path), help="Public key (PEM) that signs now.")
@click.option("--remove", multiple=True, help="Key that no longer does: its public file, or the start of its id.")
@click.option("--threshold", type=click.IntRange(1, 32), help="How many keys must sign.")
@options
def rotate(
    setting: Setting,
    repository: Path,
    role: str,
    added: tuple[Path, ...],
    remove: tuple[str, ...],
    threshold: int | None,
) -> None:
    """Stage a root in which other keys, or another number of them, sign for a role.

    \b
    Examples:
      intaglio trust rotate source root --remove bob.pub --add dora.pub
      intaglio trust rotate source timestamp --remove 77c1 --add new-timestamp.pub
    """
    from intaglio.trust.repository import Repository

    opened = Repository.open(repository)
    public = [_public(path) for path in added]
    with opened.alone():
        opened.rotate(role, _now(), add=public, remove=[_key_id(one) for one in remove], threshold=threshold)
    _emit_waiting(setting, opened)


@click.command(short_help="Move an expiry.")
@_FOLDER
@click.argument("role", type=click.Choice(("root", "targets")))
@options
def renew(setting: Setting, repository: Path, role: str) -> None:
    """Stage the next version of the root or the targets, valid for longer and otherwise the same.

    \b
    Examples:
      intaglio trust renew source targets
    """
    from intaglio.trust.repository import Repository

    opened = Repository.open(repository)
    with opened.alone():
        opened.renew(role, _now())
    _emit_waiting(setting, opened)


@click.command(short_help="Publish what is signed.")
@_FOLDER
@click.argument("out", type=click.Path(path_type=Path))
@_KEYS
@_PASSPHRASE
@options
def publish(setting: Setting, repository: Path, out: Path, keys: Path | None, passphrase_file: Path | None) -> None:
    """Bring OUT, which any static web server can serve, to what DIR has; refuses below a threshold of signatures.

    \b
    Examples:
      intaglio trust publish source /srv/www/trust
      intaglio trust publish source /srv/www/trust --keys /run/secrets/trust

    Run it again, for instance daily, to renew the timestamp: clients refuse one that has expired.
    """
    from intaglio.digest import Digest
    from intaglio.trust.repository import ONLINE, Repository

    setting.passphrase_file = passphrase_file
    opened = Repository.open(repository)
    folder = _keys_folder(repository, keys) / "online"
    online = {role: _private(setting, folder / f"{role}.key") for role in ONLINE}
    with opened.alone():
        versions = opened.publish(out, online, _now())
    first = Digest.of((out / "metadata" / "1.root.json").read_bytes())
    count = len(opened.targets())
    document = {"out": str(out), "versions": versions, "targets": count, "anchor": str(first)}
    shown = ", ".join(f"{role} {number}" for role, number in versions.items())
    setting.emit(document, f"{out}: {count} targets; {shown}\nanchor metadata/1.root.json {first}")


@click.command(short_help="List the catalogue.")
@click.option("--catalogue", "folder", type=click.Path(path_type=Path), help="Folder of entries, for the shipped one.")
@options
def catalogue(setting: Setting, folder: Path | None) -> None:
    """List the catalogue's entries: what could be added to a trusted source.

    \b
    Examples:
      intaglio trust catalogue
    """
    from intaglio.trust.catalogue import read_all

    entries = read_all(folder or _shipped())
    documents = [
        {
            "name": entry.name,
            "version": entry.version,
            "tree": str(entry.tree) if entry.tree else None,
            "licence": entry.licence,
            "publisher": entry.publisher,
            "summary": entry.summary,
            "formats": list(entry.formats),
            "origins": list(entry.origins),
            "source": entry.source,
            "status": entry.status,
        }
        for entry in entries
    ]
    lines = [f"{entry.name}{'@' + entry.version if entry.version else ''}  {entry.summary}" for entry in entries]
    setting.emit({"entries": documents}, "\n".join(lines))


COMMANDS = (init, add, yank, sign, rotate, renew, publish, catalogue)
"""What ``intaglio trust`` gets from here."""


def show_repository(setting: Setting, folder: Path) -> None:
    """Answer with what a publisher's folder has, and what waits there."""
    from intaglio.cli.trust import target_document, target_line
    from intaglio.trust.repository import Repository

    opened = Repository.open(folder)
    targets = opened.targets()
    lines = [*map(target_line, targets)]
    for one in opened.waiting():
        lines += [_missing(one), *(f"  {line}" for line in one.changes)]
    document = {"targets": [target_document(target) for target in targets], "waiting": _waiting(opened)}
    setting.emit(document, "\n".join(lines) or "nothing yet")


def _keys_folder(repository: Path, keys: Path | None) -> Path:
    from intaglio.errors import UsageError

    folder = keys or repository.with_name(repository.name + "-keys")
    if folder.absolute().is_relative_to(repository.absolute()):
        raise UsageError(f"{folder}: keys do not belong inside {repository}", hint="name another folder with --keys")
    return folder


def _entry(text: str, catalogue: Path | None) -> tuple[Entry, Name]:
    """Return the entry that ``text`` names, or that stands in the file ``text``, and what it will be called."""
    from intaglio.trust import catalogue as entries

    if text.endswith(".toml"):
        entry = entries.read(Path(text))
        return entries.find([entry], f"{entry.name}@{entry.version}" if entry.version else entry.name)
    return entries.find(entries.read_all(catalogue or _shipped()), text)


def _own(text: str, file: Path, publisher: str, licence: str) -> tuple[Entry, Name]:
    """Return an entry for the policy or key in ``file``, which will be called ``text``.

    Raises:
        UsageError: the name is none of a policy's or key's, or what is said of it is no line.
    """
    from intaglio.errors import UsageError
    from intaglio.trust.catalogue import Entry
    from intaglio.trust.target import FILES, Name, is_line

    name = Name.parse(text)
    if name.kind not in FILES:
        raise UsageError(f"--file: expected the name of a policy or key, found {name}", hint="write an entry for it")
    if not is_line(publisher) or not is_line(licence):
        raise UsageError("--publisher, --licence: expected one line of text")
    return Entry(file, name.name, licence, publisher, "", name.version, origins=(f"file:{file.name}",)), name


def _shipped() -> Path:
    from intaglio.recipe.data import data_folder

    return data_folder("registry") / "catalogue"


def _public(path: Path) -> PublicKey:
    from intaglio.errors import MachineError
    from intaglio.trust.key import PublicKey

    try:
        return PublicKey.from_pem(path.read_bytes(), what=str(path))
    except OSError as error:
        raise MachineError(f"{path}: {error.strerror}") from None


def _key_id(text: str) -> str:
    """Return the id of the key in the file ``text``, or ``text`` itself."""
    from intaglio.trust.repository import key_of

    return key_of(_public(Path(text))).keyid if Path(text).is_file() else text


def _private(setting: Setting, path: Path) -> PrivateKey:
    from intaglio.errors import MachineError
    from intaglio.trust.key import PrivateKey, is_encrypted

    try:
        pem = path.read_bytes()
    except OSError as error:
        raise MachineError(f"{path}: {error.strerror}", hint="--keys or --key names where it is") from None
    return PrivateKey.load(pem, setting.passphrases().get(f"Passphrase for {path}") if is_encrypted(pem) else None)


def _emit_waiting(setting: Setting, opened: Repository) -> None:
    lines = [line for one in opened.waiting() for line in (_missing(one), *(f"  {line}" for line in one.changes))]
    setting.emit({"waiting": _waiting(opened)}, "\n".join(lines))


def _waiting(opened: Repository) -> list[Mapping[str, object]]:
    return [
        {
            "role": one.role,
            "version": one.version,
            "changes": list(one.changes),
            "signed": list(one.signed),
            "missing": one.missing,
            "keys": list(one.waiting),
        }
        for one in opened.waiting()
    ]


def _missing(one: Staged) -> str:
    if not one.missing:
        return f"{one.role} {one.version}: ready to be published"
    keys = ", ".join(f"{identifier[:12]}…" for identifier in one.waiting)
    return f"{one.role} {one.version}: {one.missing} more signature(s) needed, of {keys}"


def _now() -> datetime:
    return datetime.now(UTC)
