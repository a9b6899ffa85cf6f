"""``intaglio push``: an image, its signatures and attestations, to a registry."""

from __future__ import annotations

import click

from intaglio.cli.setting import Setting, options


@click.command(short_help="Copy an image to a registry.")
@click.argument("reference", metavar="REF|sha256:…")
@click.argument("target", metavar="HOST/REPO:TAG")
@click.option("--plain-http", is_flag=True, help="Speak with the registry without TLS.")
@options
def command(setting: Setting, reference: str, target: str, plain_http: bool) -> None:
    """Copy an image to a registry, with its signatures and attestations in the forms that other tools read.

    \b
    Examples:
      intaglio push examples/helpdesk:1.0.0 registry.example.com/models/helpdesk:1.0.0
      intaglio push sha256:5a79… localhost:5000/models/helpdesk:1.0.0 --json
      cosign verify --key release.pub --insecure-ignore-tlog registry.example.com/models/helpdesk:1.0.0

    No key is needed: what was signed when it was built travels along. Blobs that the registry has are not sent again.
    Credentials: `intaglio login HOST`, or docker's config.json. INTAGLIO_CA_FILE names a private authority.
    """
    from functools import partial

    from intaglio.content import copy, credentials
    from intaglio.content.reference import Reference
    from intaglio.content.remote import Repository
    from intaglio.errors import UsageError

    place = Reference.parse(target)
    if place.tag is None or place.digest is not None:
        raise UsageError(
            f"{target}: expected a tag, and no digest", hint="as in registry.example.com/models/helpdesk:1.0.0"
        )
    store = setting.existing_store
    image = store.resolve(reference)
    repository = Repository(place, partial(credentials.find, home=setting.home), writing=True, plain_http=plain_http)
    with repository:
        done = copy.push(store, image, repository, place.tag, setting.progress)
    setting.emit(done.to_json(), f"pushed {done.reference} {done.image}: {done.summary()}")
