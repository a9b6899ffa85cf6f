"""``intaglio doctor``: what this machine has and lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from intaglio.cli.setting import Setting, options

if TYPE_CHECKING:
    from intaglio.report import doctor


@click.command(short_help="Say what this machine has and lacks.")
@click.option("--registry", metavar="HOST[/REPO]", help="Ask this registry, too.")
@click.option("--plain-http", is_flag=True, help="Speak with the registry without TLS.")
@options
def command(setting: Setting, registry: str | None, plain_http: bool) -> int:
    """Say what this machine has and lacks, and what to do about it; nothing is changed.

    \b
    Examples:
      intaglio doctor
      intaglio doctor --json
      intaglio doctor --registry registry.example.com/models/helpdesk

    Wheels of toolchains that are not here yet are looked for where pip's configuration says; none is downloaded.

    Exit status 0: builds are possible, perhaps with warnings. 50: something that every build needs is missing.
    """
    from datetime import UTC, datetime

    from intaglio.build import machine
    from intaglio.errors import ExitCode
    from intaglio.report import doctor

    asked = machine.ask_registry(registry, setting.home, plain_http=plain_http) if registry else None
    facts = machine.gather(setting.home, setting.store_path, datetime.now(UTC), setting.policy, asked)
    found = doctor.findings(facts)
    possible = doctor.ready(found)
    setting.emit({"ready": possible, "findings": [one.to_json() for one in found]}, _describe(found, possible))
    return int(ExitCode.OK if possible else ExitCode.MACHINE)


def _describe(found: tuple[doctor.Finding, ...], possible: bool) -> str:
    width = max(len(one.name) for one in found)
    lines = []
    for one in found:
        lines.append(f"{one.status:<7}  {one.name:<{width}}  {one.detail}")
        if one.hint and one.status != "ok":
            lines.append(f"{'':<{width + 11}}hint: {one.hint}")
    lines.append("builds are possible" if possible else "builds are not possible: see what is missing")
    return "\n".join(lines)
