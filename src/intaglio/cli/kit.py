"""``intaglio kit``: images carried into networks without the internet."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intaglio.cli.setting import Setting, options, policy_option
from intaglio.dataclass import dataclass

if TYPE_CHECKING:
    from intaglio.content.bare import BareLayout
    from intaglio.content.kit import Unpacked
    from intaglio.content.layout import Store
    from intaglio.digest import Digest
    from intaglio.policy.listing import Listing
    from intaglio.trust.tuf import TrustedSource
    from intaglio.verify import Report

_TITLE = "org.opencontainers.image.title"
_VERSION = "org.opencontainers.image.version"
_ROOT = click.option(
    "--root", type=click.Path(path_type=Path), help="Trust this root (a TUF root.json), where there is no anchor yet."
)


@click.group(short_help="Carry images into networks without the internet.")
def command() -> None:
    """Carry images into networks without the internet: one file with the image and all its proofs.

    \b
    Examples:
      intaglio kit export examples/helpdesk:1.0.0 -o helpdesk.kit
      intaglio kit verify helpdesk.kit
      intaglio kit import helpdesk.kit

    A kit brings no trust of its own: it is verified against the anchor and the policy of the side that takes it. No
    command here asks the network.
    """


@command.command()
@click.argument("reference", metavar="REF|sha256:…")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--inputs", is_flag=True, help="Take the inputs along, so that the other side can build it again.")
@click.option("--toolchains", is_flag=True, help="Take the toolchains' wheels along, for the same.")
@click.option("--server", is_flag=True, help="Take the server's wheels along, so that the other side can serve it.")
@options
def export(setting: Setting, reference: str, output: Path, inputs: bool, toolchains: bool, server: bool) -> None:
    """Write REF with its signatures, claims and lineage into one file, and what the trusted source says about it.

    \b
    Examples:
      intaglio kit export examples/helpdesk:1.0.0 -o helpdesk.kit
      intaglio kit export examples/helpdesk:1.0.0 -o helpdesk.kit --server
      intaglio kit export examples/helpdesk:1.0.0 -o helpdesk.kit --inputs --toolchains

    Where this side has a trusted source, its metadata goes along as it was last fetched, with every policy and key that
    it lists: `intaglio trust refresh` first, and the kit is as fresh as it can be.
    """
    from intaglio.build import kits
    from intaglio.content import kit
    from intaglio.content.intake import sync_folder
    from intaglio.trust import carried

    store = setting.existing_store
    image = store.resolve(reference)
    about = kit.About.of(image, reference)
    kinds = {kind for kind, wanted in (("origin", inputs), ("toolchain", toolchains)) if wanted}
    roots = kits.roots(store, image, kinds | ({"program"} if kinds else set()))
    roots = tuple(dict.fromkeys((*roots, *(kits.server(store, image) if server else ()))))
    listed, clock = kits.listed(store, image), datetime.now(UTC)
    small = carried.files(setting.home, clock, listed, lambda digest: _manifest(store, digest))
    # A name of its own, made anew: two exports do not meet in it, and no link that waits there is followed.
    partial = output.with_name(f".{output.name[:200]}.{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "xb") as sink:
            size = kit.write(store, sink, about, roots, small, progress=setting.progress)
            sink.flush()
            os.fsync(sink.fileno())
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(output.absolute().parent)
    document = {"image": str(image), "name": about.name, "kit": str(output), "bytes": size, "source": bool(small)}
    setting.emit(document, f"{output}: {size} bytes, {about.name} {image}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@policy_option
@_ROOT
@options
def verify(setting: Setting, file: Path, policy: str | None, root: Path | None) -> int:
    """Verify the kit FILE against the anchor and the policy of this side; nothing is kept.

    \b
    Examples:
      intaglio kit verify helpdesk.kit
      intaglio kit verify helpdesk.kit --policy policy.toml --json
      intaglio kit verify helpdesk.kit --root root.json --policy policies/acme/release@1.0.0

    Metadata that the kit brings is judged under this side's own root, and may be no older than what this side knows. A
    policy can be named that only the kit carries, if the trusted source lists it.
    """
    from intaglio.cli.verify import describe, refusal
    from intaglio.errors import VerificationError

    try:
        with _opened(setting, file, policy, root) as checked:
            report, name = checked.report, checked.unpacked.about.name
    except VerificationError as error:
        error.answer = refusal(error, "kit", None)
        raise
    document = {**report.to_json(), "source": checked.standing()}
    setting.emit(document, "\n".join([describe(report, name), *checked.lines()]))
    return int(report.exit_code)


@command.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@policy_option
@_ROOT
@click.option("--tag", help="Name of the image here; default: the name and version that it was signed with.")
@options
def import_(setting: Setting, file: Path, policy: str | None, root: Path | None, tag: str | None) -> None:
    """Verify the kit FILE, then take it into the store; what does not verify leaves nothing behind.

    \b
    Examples:
      intaglio kit import helpdesk.kit
      intaglio kit import helpdesk.kit --tag team/helpdesk:1.0.0
      intaglio kit import helpdesk.kit --root root.json --policy policies/acme/release@1.0.0

    What this side knows of the trusted source advances to what the kit brings, once all of the kit has verified.
    """
    from intaglio.build import kits
    from intaglio.content import kit
    from intaglio.content.bare import BareLayout
    from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
    from intaglio.content.layout import check_name
    from intaglio.trust import carried
    from intaglio.trust.tuf import set_anchor

    if tag is not None:
        check_name(tag)
    store = setting.store
    with _opened(setting, file, policy, root) as checked:
        image = checked.report.require().image
        layout = BareLayout(checked.unpacked.layout)
        manifest = layout.read(image, what="image")
        name = tag or _own_name(layout, manifest)
        roots = kits.brought(layout, image)
        kit.graph(layout, roots)  # all that is to be taken is there, before anything is
        if checked.anchor is not None:
            set_anchor(setting.home, checked.anchor)
        if checked.source is not None:
            carried.take(checked.unpacked.layout, setting.home, datetime.now(UTC))
        blobs = kit.take(checked.unpacked, store, roots)
    described = Descriptor(MANIFEST_TYPE, image, len(manifest), _artifact_type(manifest))
    store.tag(name, described, store.referrers(image))
    document = {
        "image": str(image),
        "tag": name,
        "blobs": blobs,
        "bytes": checked.unpacked.size,
        "source": checked.standing(),
    }
    said = f"{name} {image}: verified, {blobs} blobs, {checked.unpacked.size} bytes"
    setting.emit(document, "\n".join([said, *checked.lines()]))


@dataclass(frozen=True, slots=True)
class _Checked:
    """A kit that was unpacked, and the verdict on it."""

    unpacked: Unpacked
    report: Report
    source: TrustedSource | None
    """What the kit brings of the trusted source, verified; nothing where this side has no anchor."""
    anchor: bytes | None
    """The root that was named on the command line."""

    def standing(self) -> dict[str, object] | None:
        """Return what ``--json`` says of the metadata that the kit brought."""
        if self.source is None:
            return None
        from intaglio.trust.freshness import write

        fresh = self.source.freshness
        age = int(fresh.age.total_seconds())
        return {"versions": self.source.versions(), "as_of": write(fresh.as_of), "age_seconds": age}

    def lines(self) -> list[str]:
        """Return the same for people."""
        if self.source is None:
            return []
        from intaglio.trust.freshness import words, write

        fresh = self.source.freshness
        return [f"trusted source as of {write(fresh.as_of)}, {words(fresh.age)} ago"]


@contextmanager
def _opened(setting: Setting, file: Path, policy: str | None, root: Path | None) -> Iterator[_Checked]:
    """Unpack ``file`` beside the store, and yield it with the verdict on its image; it is gone afterwards."""
    from intaglio import verify as verifier
    from intaglio.content.bare import BareLayout
    from intaglio.policy import document

    anchor = _anchor(setting, root)
    # Without a policy no kit is opened; one that is a name of the trusted source may come in the kit, and so may keys.
    if setting.policy_name(policy) is None:
        document.load(Path(policy) if policy else setting.policy_path, lambda _: None)
    setting.store.sweep()
    with setting.store.scratch("kit") as scratch:
        unpacked = _unpacked(setting, file, scratch / "kit")
        source, listing = _source(setting, unpacked.layout, anchor)
        report = verifier.verify_image(
            BareLayout(unpacked.layout),
            unpacked.about.image,
            setting.policy(policy, source),
            listing=listing,
            progress=setting.progress,
            hashed=unpacked.blobs,
        )
        yield _Checked(unpacked, report, source, anchor)


def _anchor(setting: Setting, root: Path | None) -> bytes | None:
    """Return the root that the command line names; it replaces none that is there."""
    if root is None:
        return None
    from intaglio.errors import UsageError
    from intaglio.trust import metadata
    from intaglio.trust.kept import ANCHOR
    from intaglio.trust.payload import MAX_BYTES

    try:
        with open(root, "rb") as stream:
            data = stream.read(MAX_BYTES["root"] + 1)
    except OSError as error:
        raise UsageError(f"{root}: {error.strerror}") from None
    metadata.anchor(data)
    place = setting.home / ANCHOR
    if place.exists() and place.read_bytes() != data:
        raise UsageError(
            f"{place}: there is another anchor already",
            hint="intaglio trust anchor FILE --replace   (trusts another publisher from now on)",
        )
    return data


def _unpacked(setting: Setting, file: Path, folder: Path) -> Unpacked:
    """Unpack ``file`` into ``folder``, if it fits there."""
    from intaglio.content import kit
    from intaglio.errors import MachineError, NotVerifiable

    folder.mkdir()
    try:
        with open(file, "rb") as source:
            size, free = os.fstat(source.fileno()).st_size, shutil.disk_usage(folder).free
            if size > free:
                raise MachineError(f"{file}: {size} bytes to unpack, {free} are free in {setting.store_path}")
            return kit.read(source, folder, progress=setting.progress, total=size)
    except OSError as error:
        if error.filename is not None and Path(error.filename) == file:
            raise NotVerifiable(f"{file}: expected a kit: {error.strerror}") from None
        raise


def _source(setting: Setting, folder: Path, anchor: bytes | None) -> tuple[TrustedSource | None, Listing | None]:
    """Return what the kit brings of the trusted source, and the listing that the verdict rests on.

    Where this side has no anchor, metadata is only data; where the kit brings none, what this side knows counts.
    """
    from intaglio.errors import NotVerifiable
    from intaglio.policy.listing import SourceListing
    from intaglio.trust import carried
    from intaglio.trust.kept import ANCHOR

    if carried.present(folder) and (anchor is not None or (setting.home / ANCHOR).exists()):
        source = carried.judge(folder, setting.home, datetime.now(UTC), anchor=anchor)
        return source, SourceListing(source)
    if anchor is not None:
        raise NotVerifiable(
            "the kit brings no metadata of a trusted source: there is nothing that --root could vouch for",
            hint="export it where there is a trusted source: intaglio trust refresh",
        )
    return None, setting.listing()


def _manifest(store: Store, digest: Digest) -> bytes | None:
    return store.read(digest, what="manifest") if store.has(digest) else None


def _own_name(layout: BareLayout, manifest: bytes) -> str:
    """Return the name and version in the image's own config: what a kit calls it, nobody has signed."""
    from intaglio.content.layout import check_name
    from intaglio.content.runtime_image import RuntimeImage, open_image

    image = open_image(manifest, "image")
    config = image.check_config(layout.read(image.config.digest, what="config"), "config")
    if isinstance(image, RuntimeImage):
        labels = config["config"]["Labels"]
        return check_name(f"{labels.get(_TITLE)}:{labels.get(_VERSION, 'latest')}")
    about = config["descriptor"]
    return check_name(f"{about.get('name')}:{about.get('version', 'latest')}")


def _artifact_type(manifest: bytes) -> str | None:
    """Return what kind of artifact an image is, as its manifest says."""
    from intaglio.strictjson import parse_object

    found = parse_object(manifest, what="image").get("artifactType")
    return found if isinstance(found, str) else None
