"""``intaglio export``: an image for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from intaglio.cli.setting import Setting, options


@click.command(short_help="Write an image for other tools.")
@click.argument("reference", metavar="REF|sha256:…")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--files", type=click.Path(path_type=Path), help="Write the plain files and model.sig into this folder.")
@options
def command(setting: Setting, reference: str, folder: Path | None, files: Path | None) -> None:
    """Write an image as an OCI layout that holds it alone, or as plain files with their signature.

    \b
    Examples:
      intaglio export examples/helpdesk:1.0.0 ./layout
      cosign verify --key release.pub --insecure-ignore-tlog --local-image ./layout
      intaglio export examples/helpdesk:1.0.0 --files ./folder
      model_signing verify key ./folder --signature ./folder/model.sig --public_key release.pub

    What is written is a copy, hashed on the way; it appears whole, or not at all.
    """
    from intaglio.content import export
    from intaglio.errors import UsageError

    if (folder is None) == (files is None):
        raise UsageError("expected one of DIR and --files DIR", hint="intaglio export --help shows both")
    image = setting.existing_store.resolve(reference)
    if folder is not None:
        name = reference if not reference.startswith("sha256:") else None
        export.export_layout(setting.existing_store, image, folder, name=name)
    else:
        from intaglio.build.release import folder_signature

        bundle = folder_signature(setting.existing_store, image, setting.policy().releasers)
        export.export_files(setting.existing_store, image, files or Path(), bundle)
    target = str(folder or files)
    setting.emit({"image": str(image), "target": target}, f"{reference} {image} → {target}")
