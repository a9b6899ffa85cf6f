"""``intaglio kit``: images carried into networks without the internet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intaglio.cli.setting import Setting, options

if TYPE_CHECKING:
    from intaglio.content.kit import Unpacked
    from intaglio.content.layout import Store
    from intaglio.verify import Report


@click.group(short_help="Carry images into networks without the internet.")
def command() -> None:
    """Carry images into networks without the internet: one file with the image and all its proofs.

    \b
    Examples:
      intaglio kit export examples/helpdesk:1.0.0 -o helpdesk.kit
      intaglio kit verify helpdesk.kit
      intaglio kit import helpdesk.kit

    A kit brings no trust of its own: it is verified against the policy of the side that takes it.
    """


@command.command()
@click.argument("reference", metavar="REF|sha256:…")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--inputs", is_flag=True, help="Take the inputs along, so that the other side can build it again.")
@click.option("--toolchains", is_flag=True, help="Take the toolchains' wheels along, for the same.")
@options
def export(setting: Setting, reference: str, output: Path, inputs: bool, toolchains: bool) -> None:
    """Write REF with its signatures, claims and lineage into one file.

    \b
    Examples:
      intaglio kit export examples/helpdesk:1.0.0 -o helpdesk.kit
      intaglio kit export examples/helpdesk:1.0.0 -o helpdesk.kit --inputs --toolchains
    """
    from intaglio.build import kits
    from intaglio.content import kit

    store = setting.existing_store
    image = store.resolve(reference)
    name = reference if not reference.startswith("sha256:") else str(image)
    kinds = {kind for kind, wanted in (("origin", inputs), ("toolchain", toolchains)) if wanted}
    roots = kits.roots(store, image, kinds | ({"program"} if kinds else set()))
    partial = output.with_name(f".{output.name}.partial")
    try:
        with open(partial, "wb") as sink:
            size = kit.write(store, sink, kit.About(image, name), roots, {}, progress=setting.progress)
            sink.flush()
            os.fsync(sink.fileno())
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    document = {"image": str(image), "name": name, "kit": str(output), "bytes": size}
    setting.emit(document, f"{output}: {size} bytes, {name} {image}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--policy", type=click.Path(path_type=Path), help="Verify against this policy instead of the home's.")
@options
def verify(setting: Setting, file: Path, policy: Path | None) -> int:
    """Verify the kit FILE against the policy of this side; nothing is kept.

    \b
    Examples:
      intaglio kit verify helpdesk.kit
      intaglio kit verify helpdesk.kit --policy policy.toml --json
    """
    from intaglio.cli.verify import describe

    with setting.store.scratch("kit") as scratch:
        unpacked, report = _checked(setting, file, scratch / "kit", policy)
    setting.emit(report.to_json(), describe(report, unpacked.about.name))
    return int(report.exit_code)


@command.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--policy", type=click.Path(path_type=Path), help="Verify against this policy instead of the home's.")
@click.option("--tag", help="Name of the image here; default: the name and version that it was signed with.")
@options
def import_(setting: Setting, file: Path, policy: Path | None, tag: str | None) -> None:
    """Verify the kit FILE, then take it into the store; what does not verify leaves nothing behind.

    \b
    Examples:
      intaglio kit import helpdesk.kit
      intaglio kit import helpdesk.kit --tag team/helpdesk:1.0.0
    """
    from intaglio.content import kit
    from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
    from intaglio.content.layout import check_name
    from intaglio.content.modelpack import MODEL_TYPE

    store = setting.store
    with store.scratch("kit") as scratch:
        unpacked, report = _checked(setting, file, scratch / "kit", policy)
        report.require()
        kit.take(unpacked, store)
    manifest = store.read(report.image, what="image")
    name = check_name(tag) if tag else _own_name(store, manifest)
    image = Descriptor(MANIFEST_TYPE, report.image, len(manifest), MODEL_TYPE)
    store.tag(name, image, store.referrers(report.image))
    document = {"image": str(report.image), "tag": name, "blobs": unpacked.blobs, "bytes": unpacked.size}
    setting.emit(document, f"{name} {report.image}: verified, {unpacked.blobs} blobs, {unpacked.size} bytes")


def _own_name(store: Store, manifest: bytes) -> str:
    """Return the name and version in the image's own config: what a kit calls it, nobody has signed."""
    from intaglio.content.layout import check_name
    from intaglio.content.modelpack import ModelImage

    model = ModelImage.parse(manifest, "image")
    about = model.check_config(store.read(model.config.digest, what="config"), "config")["descriptor"]
    return check_name(f"{about.get('name')}:{about.get('version', 'latest')}")


def _checked(setting: Setting, file: Path, folder: Path, policy: Path | None) -> tuple[Unpacked, Report]:
    """Unpack ``file`` into ``folder`` and return it with the verdict on its image."""
    from intaglio import verify as verifier
    from intaglio.content import kit
    from intaglio.errors import NotVerifiable

    rules = setting.policy(policy)
    folder.mkdir()
    try:
        with open(file, "rb") as source:
            unpacked = kit.read(source, folder, progress=setting.progress, total=os.fstat(source.fileno()).st_size)
    except FileNotFoundError:
        raise NotVerifiable(f"{file}: expected a kit, found none") from None
    report = verifier.verify_layout(
        folder, rules, image=unpacked.about.image, listing=setting.listing(), progress=setting.progress
    )
    return unpacked, report
