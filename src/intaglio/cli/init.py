"""``intaglio init``: keys and a policy that names them."""

from __future__ import annotations

from pathlib import Path

import click

from intaglio.cli.setting import Setting, options


@click.command(short_help="Make the keys, and a policy.")
@click.option(
    "--passphrase-file", type=click.Path(path_type=Path), help="Encrypt the keys with this file's first line."
)
@click.option(
    "--policy", "template", default="default", show_default=True, help="Template of the policy that is written."
)
@options
def command(setting: Setting, passphrase_file: Path | None, template: str) -> None:
    """Make the builder, release and evaluator keys, and a policy that names them.

    \b
    Examples:
      intaglio init
      INTAGLIO_PASSPHRASE=… intaglio init          encrypt the keys
      intaglio init --passphrase-file FILE
      intaglio init --policy air-gap               every input from a trusted source
      INTAGLIO_HOME=/srv/intaglio intaglio init

    What is there already is kept. The private keys stay in the home; the policy is what `verify` and `serve` believe.
    """
    from intaglio.cli import policy
    from intaglio.content.intake import replace_file
    from intaglio.policy.document import default_policy
    from intaglio.trust import keyring

    if template != "default":
        policy.template(template)  # a wrong name is said before keys are made
    setting.passphrase_file = passphrase_file
    made = []
    passphrase: bytes | None = None
    names = (keyring.BUILDER, keyring.RELEASE, keyring.EVALUATOR)
    missing = [name for name in names if not keyring.exists(setting.home, name)]
    if missing:
        passphrase = setting.passphrases().get("Passphrase for the new keys (empty: none)")
    for name in missing:
        keyring.create(setting.home, name, passphrase)
        made.append(name)
    public = {name: keyring.load_public(setting.home, name) for name in names}
    if not setting.policy_path.exists():
        if template == "default":
            text = default_policy(*(public[name].pem for name in names))
        else:
            text, _ = policy.filled(setting, template, {})
        replace_file(setting.policy_path, text.encode(), setting.home)
        made.append("policy")
    document = {
        "home": str(setting.home),
        "policy": str(setting.policy_path),
        "keys": {name: str(key.id) for name, key in public.items()},
        "made": made,
        "encrypted": passphrase is not None,
    }
    lines = [f"{name}: {key.id}" for name, key in public.items()]
    what = f"made {', '.join(made)}" if made else "nothing to make: keys and policy are there"
    setting.emit(document, "\n".join([f"{what} in {setting.home}", *lines, f"policy: {setting.policy_path}"]))
