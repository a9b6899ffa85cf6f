"""``intaglio login``: keeps a credential for a registry."""

from __future__ import annotations

import click

from intaglio.cli.setting import Setting, options


@click.command(short_help="Keep a credential for a registry.")
@click.argument("host", metavar="HOST[:PORT]")
@click.option("--username", "-u", help="The user; asked for when not given.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--plain-http", is_flag=True, help="Speak with the registry without TLS.")
@options
def command(setting: Setting, host: str, username: str | None, password_stdin: bool, plain_http: bool) -> None:
    """Keep a credential for a registry in the home, once the registry has accepted it.

    \b
    Examples:
      intaglio login registry.example.com
      intaglio login registry.example.com -u ci --password-stdin < password

    It is written to auth.json in INTAGLIO_HOME, in docker's format, readable for you alone. What docker's own
    config.json holds, and its credential helpers, need no login.
    """
    import sys

    from intaglio.content import credentials
    from intaglio.content.credentials import Credential
    from intaglio.content.reference import Reference
    from intaglio.content.remote import Repository
    from intaglio.errors import UsageError

    try:
        place = Reference.parse(f"{host}/login")
    except UsageError:
        raise UsageError(f"{host!r} is not a registry's host", hint="as in registry.example.com:5000") from None
    if password_stdin:
        if not username:
            raise UsageError("expected --username with --password-stdin")
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        username = username or click.prompt("User", err=True)
        password = click.prompt("Password", hide_input=True, err=True)
    if not password or ":" in (username or ""):
        raise UsageError("expected a password, and a user without a colon")
    credential = Credential(username or "", password)
    with Repository(place, lambda _: credential, plain_http=plain_http) as repository:
        repository.check_access()
    path = credentials.keep(place.registry, credential, setting.home)
    setting.emit({"host": place.registry, "user": username, "file": str(path)}, f"{place.registry}: kept in {path}")
