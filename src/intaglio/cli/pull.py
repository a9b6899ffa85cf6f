"""``intaglio pull``: an image from a registry, visible only once it is verified."""

from __future__ import annotations

import click

from intaglio.cli.setting import Setting, options, policy_option


@click.command(short_help="Copy an image from a registry, and verify it.")
@click.argument("source", metavar="HOST/REPO:TAG|HOST/REPO@sha256:…")
@click.option("--plain-http", is_flag=True, help="Speak with the registry without TLS.")
@click.option("--tag", metavar="REF", help="The image's name here; as in the registry, when not given.")
@policy_option
@options
def command(setting: Setting, source: str, plain_http: bool, tag: str | None, policy: str | None) -> None:
    """Copy an image from a registry, verify all of it against your policy, and only then let it be seen.

    \b
    Examples:
      intaglio pull registry.example.com/models/helpdesk:1.0.0
      intaglio pull registry.example.com/models/helpdesk@sha256:5a79… --tag helpdesk:1.0.0
      intaglio pull localhost:5000/models/helpdesk:1.0.0 --policy policy.toml --json

    The policy comes from this side alone: INTAGLIO_HOME, or --policy; without one nothing is fetched. What breaks off
    goes on where it was; what is refused is removed again. Both a tag and a digest must agree.
    Credentials: `intaglio login HOST`, or docker's config.json. INTAGLIO_CA_FILE names a private authority.
    """
    from functools import partial
    from typing import TYPE_CHECKING

    from intaglio import verify
    from intaglio.content import copy, credentials
    from intaglio.content.layout import check_name
    from intaglio.content.reference import Reference
    from intaglio.content.remote import Repository
    from intaglio.errors import UsageError

    if TYPE_CHECKING:
        from intaglio.content.staging import Staging
        from intaglio.digest import Digest

    place = Reference.parse(source)
    if place.tag is None and place.digest is None:
        raise UsageError(f"{source}: expected a tag or a digest", hint=f"as in {source}:1.0.0")
    name = str(place) if tag is None else check_name(tag)
    rules = setting.policy(policy)
    setting.store.sweep()

    def admit(staged: Staging, image: Digest) -> None:
        verify.verify_image(
            staged, image, rules, listing=setting.listing(), progress=setting.progress, hashed=staged.hashed
        ).require()

    with Repository(place, partial(credentials.find, home=setting.home), plain_http=plain_http) as repository:
        done = copy.pull(repository, place, setting.store, name, admit, setting.progress)
    setting.emit(done.to_json(), f"verified {done.reference} {done.image}: {done.summary()}")
