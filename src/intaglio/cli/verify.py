"""``intaglio verify``: every byte, signature and claim, against the verifier's own policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from intaglio.cli.setting import Setting, options, policy_option

if TYPE_CHECKING:
    from intaglio.verify import Report


@click.command(short_help="Check an image against your policy.")
@click.argument("reference", metavar="REF|sha256:…|LAYOUT")
@policy_option
@click.option(
    "--files", type=click.Path(path_type=Path), help="Check that this folder holds exactly the image's files."
)
@options
def command(setting: Setting, reference: str, policy: str | None, files: Path | None) -> int:
    """Check every byte, signature and claim of an image, and answer rule by rule.

    \b
    Examples:
      intaglio verify examples/smollm2-helpdesk:1.0.0
      intaglio verify sha256:5a79… --policy policy.toml --json
      intaglio verify sha256:5a79… --policy policies/acme/release@1.0.0
      intaglio verify ./exported                            an OCI layout, as `export` writes it
      intaglio verify examples/helpdesk:1.0.0 --files ./folder

    The policy comes from this side alone: INTAGLIO_HOME, or --policy, as a file or by the name under which your trusted
    source lists it. Nothing becomes trusted by being verified.
    Exit status 0 means verified, and nothing else does.
    """
    from intaglio import verify

    rules, listing = setting.policy(policy), setting.listing()
    place = Path(reference)
    if files is not None:
        store = setting.existing_store
        report = verify.verify_folder(
            store, store.resolve(reference), files, rules, listing=listing, progress=setting.progress
        )
    elif (place / "oci-layout").is_file():
        report = verify.verify_layout(place, rules, listing=listing, progress=setting.progress)
    else:
        store = setting.existing_store
        report = verify.verify_image(store, store.resolve(reference), rules, listing=listing, progress=setting.progress)
    setting.emit(report.to_json(), describe(report, reference))
    return int(report.exit_code)


def describe(report: Report, reference: str) -> str:
    """Return the verdict on ``reference`` for people, a line a rule."""
    width = max((len(rule.rule) for rule in report.rules), default=0)
    lines = [f"{rule.result:<5} {rule.rule:<{width}}  {rule.detail}" for rule in report.rules]
    return "\n".join([*lines, f"{report.verdict}: {reference} {report.image}"])
