"""``intaglio policy``: try, show and check policies, and fill in templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intaglio.cli.setting import Setting, options
from intaglio.errors import ExitCode, MachineError, UsageError

if TYPE_CHECKING:
    from intaglio.policy.cases import Outcome
    from intaglio.policy.document import Policy
    from intaglio.strictjson import Object
    from intaglio.trust.key import PublicKey


@click.group(short_help="Try policies against their cases.")
def command() -> None:
    """Try policies against their cases, say what they ask, and fill in templates.

    \b
    Examples:
      intaglio policy test
      intaglio policy show
      intaglio policy check policy.toml
      intaglio policy new strict --key evaluator=evaluator.pub -o policy.toml
    """


@command.command()
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--cases", type=click.Path(path_type=Path), help="Try these cases; without FILE, on the home's policy.")
@options
def test(setting: Setting, files: tuple[Path, ...], cases: Path | None) -> int:
    """Try policies, or templates of them, against cases that each must accept or refuse.

    \b
    Examples:
      intaglio policy test                            the shipped policies and their cases
      intaglio policy test policy.toml                with the cases in cases/policy.toml beside it
      intaglio policy test --cases mine.toml          the home's policy with cases of your own
      intaglio policy test --json

    A case describes an image by a few facts, its evidence is made up and signed by keys made for the occasion, and the
    very rules of `intaglio verify` judge it. Exit status 23 when a case does not come out as it states.
    """
    from intaglio.policy import cases as rehearsals
    from intaglio.policy.document import read_file

    chosen = files or ((setting.policy_path,) if cases else _shipped())
    tried = []
    for path in chosen:
        place = cases or path.parent / "cases" / path.name
        if not place.is_file():
            raise UsageError(
                f"{path}: expected its cases in {place}, found none", hint="--cases FILE names them; docs/policy.md"
            )
        found = rehearsals.load(place)
        tried.append((path, rehearsals.run(read_file(path), found, what=f"policy {path}")))
    problems = [one for _, outcomes in tried for one in outcomes if one.problem]
    count = sum(len(outcomes) for _, outcomes in tried)
    document = {
        "policies": [{"policy": str(path), "cases": [_case_json(one) for one in outcomes]} for path, outcomes in tried],
        "passed": count - len(problems),
        "failed": len(problems),
    }
    last = f"{count} cases of {len(tried)} policies: {len(problems)} came out otherwise than stated"
    setting.emit(document, "\n".join([*(_case_table(path, outcomes) for path, outcomes in tried), last]))
    return int(ExitCode.POLICY if problems else ExitCode.OK)


@command.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@options
def show(setting: Setting, file: Path | None) -> None:
    """Say what a policy asks, rule by rule; the home's where no FILE is named.

    \b
    Examples:
      intaglio policy show
      intaglio policy show policy.toml --json
    """
    rules = setting.policy(file)
    asked = _asked(rules)
    document = {
        "policy": str(file or setting.policy_path),
        "name": rules.name,
        "roles": {role: [str(key.id) for key in keys] for role, keys in rules.roles.items() if keys},
        "rules": [{"rule": rule, "asks": text} for rule, text in asked],
    }
    width = max(len(rule) for rule, _ in asked)
    setting.emit(document, "\n".join([f"{rules.name}", *(f"  {rule:<{width}}  {text}" for rule, text in asked)]))


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@options
def check(setting: Setting, file: Path) -> None:
    """Say whether FILE is a policy, or name every mistake in it (exit status 25).

    \b
    Examples:
      intaglio policy check policy.toml
      intaglio policy check policy.toml --json
    """
    from intaglio.digest import Digest
    from intaglio.policy import document

    data = document.read_file(file)
    rules = setting.policy(f"./{file}" if not file.is_absolute() else file)
    digest = Digest.of(data)
    setting.emit(
        {"policy": str(file), "name": rules.name, "digest": str(digest), "valid": True},
        f"{rules.name}: valid, {digest}",
    )


@command.command()
@click.argument("name")
@click.option(
    "--key", "named", metavar="NAME=FILE", multiple=True, help="Take this public key (PEM) from a file, not the home."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write it here; a file that is there stays.")
@options
def new(setting: Setting, name: str, named: tuple[str, ...], output: Path | None) -> None:
    """Fill in the shipped template NAME with the home's keys, or the ones that are named.

    \b
    Examples:
      intaglio policy new air-gap -o policy.toml
      intaglio policy new strict --key evaluator=evaluator.pub

    The result is a policy of your own: read it, change it, keep it where only you can write.
    """
    from intaglio.content.intake import replace_file

    text, keys = filled(setting, name, dict(one.partition("=")[::2] for one in named))
    answer = {"name": name, "policy": text, "keys": {key: str(public.id) for key, public in keys.items()}}
    if output is None:
        setting.emit(answer, text.rstrip("\n"))
        return
    if output.exists():
        raise UsageError(f"{output}: is there already", hint="remove it first, or name another file")
    replace_file(output, text.encode(), output.parent)
    setting.emit({**answer, "output": str(output)}, f"wrote {output}: read it before you rely on it")


# --- pieces -----------------------------------------------------------------------------------------------------------


def template(name: str) -> str:
    """Return the text of the shipped template ``name``.

    Raises:
        UsageError: there is none of that name.
    """
    from intaglio.policy.reader import nearest

    templates = {path.stem: path for path in _shipped()}
    if name not in templates:
        listed = ", ".join(templates)
        raise UsageError(f"expected one of {listed}, found {name!r}{nearest(name, templates)}")
    return templates[name].read_text(encoding="utf-8")


def filled(setting: Setting, name: str, files: Mapping[str, str]) -> tuple[str, dict[str, PublicKey]]:
    """Return the template ``name`` with the keys that it speaks of, and these: from ``files``, else the home's.

    Raises:
        UsageError: no such template, or a file for a key that it does not speak of.
        MachineError: the home lacks a key.
    """
    from intaglio.policy import document
    from intaglio.policy.reader import nearest

    text = template(name)
    wanted = document.key_names(text.encode(), what=f"template {name}")
    if strange := sorted(files.keys() - set(wanted)):
        raise UsageError(f"--key {strange[0]}: expected one of {', '.join(wanted)}{nearest(strange[0], wanted)}")
    keys = {key: _public(setting, key, Path(files[key]) if key in files else None) for key in wanted}
    text = document.fill(text, keys)
    document.parse(text.encode(), what=f"template {name}")
    return text, keys


def _shipped() -> tuple[Path, ...]:
    from intaglio.recipe.data import data_folder

    folder = data_folder("policies")
    found = sorted(folder.glob("*.toml"), key=lambda path: (path.stem != "default", path.stem))
    if not found:
        raise MachineError(f"expected policies in {folder}, found none")
    return tuple(found)


def _public(setting: Setting, name: str, path: Path | None) -> PublicKey:
    from intaglio.trust import key, keyring

    if path is not None:
        return key.PublicKey.from_pem(path.read_bytes(), what=str(path))
    if not keyring.exists(setting.home, name):
        raise MachineError(
            f"no key {name!r} in {setting.home / 'keys'}",
            hint=f"intaglio key new {name}   (or --key {name}=FILE for one that is kept elsewhere)",
        )
    return keyring.load_public(setting.home, name)


def _case_json(one: Outcome) -> Object:
    return {
        "title": one.case.title,
        "expected": {"verdict": one.case.expect, "rules": sorted(one.case.rules)},
        "verdict": one.verdict.verdict,
        "exit_code": int(one.verdict.exit_code),
        "rules": [{"rule": rule.rule, "result": rule.result, "detail": rule.detail} for rule in one.verdict.rules],
        "as_stated": one.problem is None,
        "problem": one.problem,
    }


def _case_table(path: Path, outcomes: tuple[Outcome, ...]) -> str:
    width = max(len(one.case.title) for one in outcomes)
    lines = [str(path)]
    for one in outcomes:
        mark = "ok" if one.problem is None else "NO"
        failed = f"  {int(one.verdict.exit_code)} {', '.join(one.failed)}" if one.failed else ""
        lines.append(f"  {mark}  {one.case.title:<{width}}  {one.verdict.verdict:<8}{failed}".rstrip())
        if one.problem:
            lines.append(f"      {one.problem}")
            lines += [f"      {rule.rule}: {rule.detail}" for rule in one.verdict.rules if rule.result == "fail"]
    return "\n".join(lines)


def _asked(rules: Policy) -> list[tuple[str, str]]:
    """Return what each rule asks under this policy, in the order of a report."""
    from intaglio.trust.freshness import words

    def signers(role: str) -> str:
        return ", ".join(key.id.short for key in rules.roles.get(role, ()))

    release, builder, nothing = f"by {signers('release')}", f"by {signers('builder')}", "nothing"
    bounds = [f"{metric} {bound}" for metric, bound in sorted(rules.thresholds.items())]
    reserved = [f"{pattern} for {len(keys) or 'none'}" for pattern, keys in rules.reserved.items()]
    demanded = [f"{kind} by {role} ({signers(role)})" for kind, role in sorted(rules.attestations.items())]
    return [
        ("content", "every byte has its digest"),
        ("manifest", "a CNCF ModelPack image of raw layers"),
        ("formats", ", ".join(sorted(rules.formats))),
        ("signature", release),
        ("cosign", release if "cosign" in rules.require else nothing),
        ("model-signing", release if "model-signing" in rules.require else nothing),
        ("provenance", builder),
        ("lineage", builder),
        ("sandbox", nothing if rules.allow_unsandboxed else "every step"),
        ("attestations", "; ".join(demanded) or nothing),
        ("evaluation", f"{', '.join(bounds)} by {signers('evaluator')}" if bounds else nothing),
        ("licences", ", ".join(sorted(rules.licences)) if rules.licences is not None else nothing),
        ("names", f"reserved: {', '.join(reserved)}" if reserved else nothing),
        ("source", _listed(rules) if rules.source_required else nothing),
        ("freshness", f"at most {words(rules.max_age)} old" if rules.max_age is not None else nothing),
    ]


def _listed(rules: Policy) -> str:
    what = "origin, toolchain and program" if rules.source_programs else "origin and toolchain"
    return f"every {what} is listed and active"
