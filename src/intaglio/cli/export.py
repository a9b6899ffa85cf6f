"""``intaglio export``: an image for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from intaglio.cli.setting import Setting, options


@click.command(short_help="Write an image for other tools.")
@click.argument("reference", metavar="REF|sha256:…")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--files", type=click.Path(path_type=Path), help="Write the plain files and model.sig into this folder.")
@click.option("--passport", type=click.Path(path_type=Path), help="Write the model's passport into this folder.")
@options
def command(setting: Setting, reference: str, folder: Path | None, files: Path | None, passport: Path | None) -> None:
    """Write an image as an OCI layout that holds it alone, or as plain files with their signature, or its passport.

    \b
    Examples:
      intaglio export examples/helpdesk:1.0.0 ./layout
      cosign verify --key release.pub --insecure-ignore-tlog --local-image ./layout
      intaglio export examples/helpdesk:1.0.0 --files ./folder
      intaglio export examples/helpdesk:1.0.0 --files ./model --passport ./passport
      model_signing verify key ./folder --signature ./folder/model.sig --public_key release.pub

    For a runtime image to mount: `--files` is the model, `--passport` all that proves it, the trusted source's metadata
    among it; both may be given. What is written is a copy, hashed on the way; it appears whole, or not at all.
    """
    from intaglio.content import export
    from intaglio.errors import UsageError

    if (folder is None) == (files is None and passport is None):
        raise UsageError(
            "expected DIR, or one or both of --files DIR and --passport DIR", hint="intaglio export --help shows all"
        )
    image = setting.existing_store.resolve(reference)
    if folder is not None:
        name = reference if not reference.startswith("sha256:") else None
        export.export_layout(setting.existing_store, image, folder, name=name)
    if files is not None:
        from intaglio.build.release import folder_signature

        bundle = folder_signature(setting.existing_store, image, setting.policy().releasers)
        export.export_files(setting.existing_store, image, files, bundle)
    if passport is not None:
        from datetime import UTC, datetime

        from intaglio.build import passport as passports

        passports.write(setting.existing_store, image, passport, setting.home, datetime.now(UTC))
    written = {"target": folder or files, "passport": passport}
    document = {name: str(place) for name, place in written.items() if place is not None}
    setting.emit({"image": str(image), **document}, f"{reference} {image} → {' '.join(document.values())}")
