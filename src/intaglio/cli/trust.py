"""``intaglio trust``: the trusted source, as its users see it; its publisher's side is in ``trust_repository``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intaglio.cli import trust_repository
from intaglio.cli.setting import Setting, options

if TYPE_CHECKING:
    from intaglio.strictjson import Object
    from intaglio.trust.payload import Root
    from intaglio.trust.target import Target
    from intaglio.trust.tuf import TrustedSource


@click.group(short_help="Use and publish the trusted source of models, data and tools.")
def command() -> None:
    """Use and publish the trusted source: a TUF repository that says which content is what it is called.

    \b
    Examples:
      intaglio trust anchor root.json                         whom to trust: from your own side alone
      intaglio trust refresh --url https://trust.example.org
      intaglio trust list
      intaglio trust show models/acme/base@1.0.0 --json

    \b
    Publishing:
      intaglio trust init source
      intaglio trust add source models/huggingfacetb/smollm2-135m-instruct
      intaglio trust sign source --key root-1.key --key root-2.key --key targets-1.key
      intaglio trust publish source /srv/www/trust
    """


for _publishing in trust_repository.COMMANDS:
    command.add_command(_publishing)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Trust this root instead of the one that is trusted now.")
@click.option("--policy", metavar="NAME", help="Verify by this policy of that publisher; a policy.toml goes before.")
@options
def anchor(setting: Setting, file: Path, replace: bool, policy: str | None) -> None:
    """Trust the publisher whose root is FILE.

    \b
    Examples:
      intaglio trust anchor 1.root.json
      intaglio trust anchor 1.root.json --policy policies/acme/release@1

    FILE has to reach you by a way that you trust: not from the source itself, nor with a kit or an image. Compare the
    digest that is printed with one that the publisher told you. A machine that only verifies needs no more than this.
    """
    from intaglio.content.intake import replace_file
    from intaglio.digest import Digest
    from intaglio.errors import UsageError
    from intaglio.policy import named
    from intaglio.trust.tuf import set_anchor

    if policy is not None and not named.is_name(policy):
        raise UsageError(f"--policy: expected a name such as policies/acme/release@1, found {policy[:80]!r}")
    data = _read(file)
    root = set_anchor(setting.home, data, replace=replace)
    if policy is not None:
        replace_file(setting.home / named.FILE, f"{policy}\n".encode(), setting.home)
    document = {
        "anchor": str(setting.home / "root.json"),
        "digest": str(Digest.of(data)),
        "version": root.version,
        "roles": _roles(root),
        "policy": policy,
    }
    lines = [f"trusting root {root.version}, {document['digest']}"]
    lines += [f"  {role}: {one.threshold} of {len(one.keys)} keys" for role, one in root.roles.items()]
    lines += [f"verifying by {policy}"] if policy else []
    setting.emit(document, "\n".join(lines))


@command.command()
@click.option("--url", help="Where the source is published: https:, http: on this machine, or a folder.")
@click.option("--root", type=click.Path(path_type=Path), help="Make this root the anchor, where there is none yet.")
@options
def refresh(setting: Setting, url: str | None, root: Path | None) -> None:
    """Bring what is known of the trusted source up to date.

    \b
    Examples:
      intaglio trust refresh                                            from where it was fetched before
      intaglio trust refresh --url https://trust.example.org
      intaglio trust refresh --url /media/stick/trust --root root.json

    Metadata that is expired, rolled back or not signed as the anchor says is refused; what was known stays.
    """
    from intaglio.errors import UsageError
    from intaglio.recipe.sources.mirror import mirror_at
    from intaglio.trust.tuf import last_address, set_anchor
    from intaglio.trust.tuf import refresh as bring

    if root is not None:
        set_anchor(setting.home, _read(root))
    address = url or last_address(setting.home)
    if address is None:
        raise UsageError("nothing was fetched before: where is the source?", hint="intaglio trust refresh --url URL")
    with setting.progress.task(f"refreshing from {address}"):
        source = bring(setting.home, mirror_at(address), _now())
    document = {**_standing(source), "address": address, "targets": len(source.targets())}
    versions = ", ".join(f"{role} {number}" for role, number in source.versions().items())
    setting.emit(document, f"{len(source.targets())} targets; {versions}")


@command.command(name="list")
@click.argument("repository", required=False, type=click.Path(path_type=Path))
@options
def list_(setting: Setting, repository: Path | None) -> None:
    """List what the trusted source has; with REPOSITORY, what a publisher's folder has, and what waits there.

    \b
    Examples:
      intaglio trust list
      intaglio trust list source
    """
    if repository is not None:
        trust_repository.show_repository(setting, repository)
        return
    source = _load(setting)
    targets = source.targets()
    document = {**_standing(source), "targets": [target_document(target) for target in targets]}
    setting.emit(document, "\n".join([*map(target_line, targets), _age(source)]))


@command.command()
@click.argument("name", required=False)
@options
def show(setting: Setting, name: str | None) -> None:
    """Show the trusted source: its versions, keys and age; or the one target NAME, a policy or key with its text.

    \b
    Examples:
      intaglio trust show
      intaglio trust show models/acme/base@1.0.0 --json
      intaglio trust show policies/acme/release@1
    """
    from intaglio.trust.target import FILES, Name

    source = _load(setting)
    if name is not None:
        target = source.target(Name.parse(name).path)
        document = target_document(target)
        width = max(map(len, document))
        lines = [f"{key:<{width}}  {_plain(value)}" for key, value in document.items() if value]
        if target.kind in FILES and target.status == "active":
            text = _text(source, target)
            document = {**document, "text": text}
            lines += ["", text.rstrip("\n") if text is not None else "its file was not fetched: intaglio trust refresh"]
        setting.emit(document, "\n".join(lines))
        return
    lines = [
        f"{role:<9}  version {one['version']}, expires {one['expires']}, {one['threshold']} of {len(one['keys'])} keys"
        for role, one in _standing(source)["roles"].items()
    ]
    setting.emit({**_standing(source), "address": source.address}, "\n".join([*lines, source.address, _age(source)]))


def _text(source: TrustedSource, target: Target) -> str | None:
    """Return the text of a policy or key; nothing where its file is not here."""
    from intaglio.errors import NotVerifiable

    try:
        return source.file(target.name).decode("utf-8", "replace")
    except NotVerifiable:
        return None


def _load(setting: Setting) -> TrustedSource:
    from intaglio.trust.tuf import TrustedSource

    return TrustedSource.load(setting.home, _now())


def _now() -> datetime:
    return datetime.now(UTC)


def _read(file: Path) -> bytes:
    from intaglio.errors import UsageError

    try:
        with open(file, "rb") as stream:
            return stream.read(1 << 20)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def _roles(root: Root) -> Object:
    return {role: {"threshold": one.threshold, "keys": list(one.keys)} for role, one in root.roles.items()}


def _standing(source: TrustedSource) -> Object:
    from intaglio.trust.freshness import write

    versions, expiries, signers = source.versions(), source.expiries(), source.signers()
    return {
        "versions": versions,
        "as_of": write(source.freshness.as_of),
        "age_seconds": int(source.age.total_seconds()),
        "expired": source.freshness.expired,
        "roles": {
            role: {
                "version": versions[role],
                "expires": write(expiries[role]),
                "threshold": signers[role][0],
                "keys": list(signers[role][1]),
            }
            for role in versions
        },
    }


def _age(source: TrustedSource) -> str:
    from intaglio.trust.freshness import words, write

    expired = "; expired since" if source.freshness.expired else ""
    return f"as of {write(source.freshness.as_of)}, {words(source.age)} ago{expired}"


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def target_document(target: Target) -> Object:
    """Return ``target`` as ``--json`` shows it."""
    return {
        "name": str(target.name),
        "kind": target.kind,
        "tree": str(target.digest),
        "bytes": target.total_size,
        "licence": target.licence,
        "publisher": target.publisher,
        "status": target.status,
        "reason": target.reason,
        "origins": list(target.origins),
        "repository": target.repository,
    }


def target_line(target: Target) -> str:
    """Return ``target`` in one line."""
    yanked = f"  YANKED: {target.reason}" if target.status == "yanked" else ""
    return f"{target.name}  {target.digest.short}  {target.licence}  {target.publisher}{yanked}"
