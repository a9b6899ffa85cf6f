"""``intaglio key``: signing keys."""

from __future__ import annotations

from pathlib import Path

import click

from intaglio.cli.setting import Setting, options


@click.group(short_help="Make and show signing keys.")
def command() -> None:
    """Make and show signing keys: ECDSA P-256, encrypted when a passphrase is given.

    \b
    Examples:
      intaglio key new evaluator
      intaglio key show release --public > release.pub
    """


@command.command()
@click.argument("name")
@click.option("--passphrase-file", type=click.Path(path_type=Path), help="Encrypt the key with this file's first line.")
@options
def new(setting: Setting, name: str, passphrase_file: Path | None) -> None:
    """Make the key NAME; one that is there is never overwritten.

    \b
    Examples:
      intaglio key new evaluator
      intaglio key new evaluator --passphrase-file FILE
    """
    from intaglio.trust import keyring

    setting.passphrase_file = passphrase_file
    passphrase = setting.passphrases().get(f"Passphrase for key {name} (empty: none)")
    key = keyring.create(setting.home, name, passphrase)
    document = {"name": name, "id": str(key.id), "public": key.pem, "encrypted": passphrase is not None}
    setting.emit(document, f"{name}: {key.id}")


@command.command()
@click.argument("name")
@click.option("--public", is_flag=True, help="Print the public key as PEM.")
@options
def show(setting: Setting, name: str, public: bool) -> None:
    """Show the key NAME; its private half is never shown.

    \b
    Examples:
      intaglio key show release
      intaglio key show release --public > release.pub
    """
    from intaglio.trust import keyring

    key = keyring.load_public(setting.home, name)
    setting.emit({"name": name, "id": str(key.id), "public": key.pem}, key.pem.rstrip("\n") if public else str(key.id))
