"""``intaglio verify``: every byte, signature and claim, against the verifier's own policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from intaglio.cli.setting import Setting, options, policy_option
from intaglio.errors import ExitCode

if TYPE_CHECKING:
    from intaglio.digest import Digest
    from intaglio.errors import VerificationError
    from intaglio.strictjson import Object
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
    source lists it. Nothing becomes trusted by being verified. A layout is named by its path, as in ./exported or
    /srv/exported: any other name is the store's.
    Exit status 0 means verified, and nothing else does.
    """
    from intaglio import verify
    from intaglio.errors import VerificationError

    stage, image = "policy", None
    try:
        rules = setting.policy(policy)
        stage = "source"
        listing = setting.listing()
        stage = "content"
        if files is None and _is_path(reference):
            report = verify.verify_layout(_layout(reference), rules, listing=listing, progress=setting.progress)
        else:
            image = _image(setting, reference)
            store = setting.existing_store
            report = (
                verify.verify_image(store, image, rules, listing=listing, progress=setting.progress)
                if files is None
                else verify.verify_folder(store, image, files, rules, listing=listing, progress=setting.progress)
            )
    except VerificationError as error:
        error.answer = refusal(error, stage, image)
        raise
    setting.emit(report.to_json(), describe(report, reference))
    return int(report.exit_code)


def _is_path(reference: str) -> bool:
    """Return whether ``reference`` is written as a path, which no name of an image can be."""
    return reference in (".", "..") or reference.startswith(("./", "../", "/"))


def _layout(reference: str) -> Path:
    from intaglio.errors import NotVerifiable

    if not (Path(reference) / "oci-layout").is_file():
        raise NotVerifiable(f"{reference}: expected an OCI image layout, found none")
    return Path(reference)


def _image(setting: Setting, reference: str) -> Digest:
    """Return the image of the store that ``reference`` means, whatever else has that name."""
    from intaglio.errors import NotVerifiable

    try:
        return setting.existing_store.resolve(reference)
    except NotVerifiable as error:
        if (Path(reference) / "oci-layout").is_file():
            error.hint = f"intaglio verify ./{reference}   (the layout in that folder)"
        raise


def refusal(error: VerificationError, rule: str, image: Digest | None) -> Object:
    """Return the answer under ``--json`` where no report could be made; ``rule`` is what ``error`` stopped."""
    failed: Object = {"rule": rule, "result": "fail", "detail": error.message}
    verdict = "stale" if error.exit_code == ExitCode.STALE else "refused"
    return {"verdict": verdict, "image": str(image) if image else None, "rules": [failed]}


def describe(report: Report, reference: str) -> str:
    """Return the verdict on ``reference`` for people, a line a rule."""
    width = max((len(rule.rule) for rule in report.rules), default=0)
    lines = [f"{rule.result:<5} {rule.rule:<{width}}  {rule.detail}" for rule in report.rules]
    return "\n".join([*lines, f"{report.verdict}: {reference} {report.image}"])
