"""Cases: what a policy must accept and refuse, written down beside it, and tried.

- A case file describes one image that passes, and cases that each change something about it; what must come of it is
  stated with the rules that fail, all of them and no others.
- A file is read as strictly as a policy: a case that asks nothing would always pass.

(``docs/policy.md``, "Trying a policy".)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from intaglio import strictjson
from intaglio.dataclass import dataclass, replace
from intaglio.errors import ExitCode, NotVerifiable
from intaglio.policy.decide import RULES, Verdict, decide
from intaglio.policy.document import EVIDENCE, key_names, parse
from intaglio.policy.reader import MAX_BYTES, Reader, Table, nearest, show, toml
from intaglio.policy.rehearsal import Attestation, Facts, Input, rehearse
from intaglio.trust.key import PrivateKey

VERSION = 1
VERDICTS = ("verified", "stale", "refused")
_IMAGE = (
    *("name", "title", "vendor", "licences", "formats", "damaged", "sandboxed"),
    *("origins", "toolchains", "programs", "signers", "without", "attestations", "source_age"),
)
_INPUT = ("name", "licence", "claimed", "status", "reason")
_SIGNER_ROLES = {name: "builder" if name in ("provenance", "lineage") else "release" for name in EVIDENCE}
"""Evidence → the role whose first key signs it unless a case names another key."""
_FORMAT = re.compile(r"[a-z0-9]{1,20}")
_STATUS = ("active", "yanked", "unlisted")
_HINT = "docs/policy.md, “Trying a policy”, describes every key"


@dataclass(frozen=True, slots=True)
class Case:
    """One image, and what a policy must say about it."""

    title: str
    expect: str
    """One of :data:`VERDICTS`."""
    rules: frozenset[str]
    """The rules that must fail, and no others."""
    exit_code: ExitCode | None
    """``None`` where the case does not state it."""
    facts: Facts


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy said about a case."""

    case: Case
    verdict: Verdict

    @property
    def failed(self) -> tuple[str, ...]:
        """The rules that failed."""
        return tuple(rule.rule for rule in self.verdict.rules if rule.result == "fail")

    @property
    def problem(self) -> str | None:
        """How it differs from what the case states; nothing where it does not."""
        case, verdict = self.case, self.verdict
        if verdict.verdict != case.expect:
            return f"expected {case.expect}, found {verdict.verdict}"
        if set(self.failed) != case.rules:
            expected = ", ".join(sorted(case.rules)) or "none"
            return f"expected to fail: {expected}; failed: {', '.join(self.failed) or 'none'}"
        if case.exit_code is not None and case.exit_code != verdict.exit_code:
            return f"expected exit code {case.exit_code:d}, found {verdict.exit_code:d}"
        return None


def load(path: Path) -> tuple[Case, ...]:
    """Return the cases in the file at ``path``.

    Raises:
        NotVerifiable: there is none, or it is wrong; the message lists every mistake.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotVerifiable(f"cases {path}: {error.strerror}") from None
    return read(data, what=f"cases {path}")


def read(data: bytes, *, what: str = "cases") -> tuple[Case, ...]:
    """Return the cases in ``data``.

    Raises:
        NotVerifiable: it is no such file; the message lists every mistake.
    """
    reader = Reader()
    document = reader.table(dict(toml(data, what)), "", ("version", "image", "case"))
    if type(document.get("version")) is not int or document["version"] != VERSION:
        reader.fault("version", f"expected {VERSION}, found {show(document.get('version'))}")
    good = reader.table(document.get("image"), "image", _IMAGE)
    _facts(reader, good, "image")
    entries = document.get("case")
    if not isinstance(entries, list) or not entries:
        reader.fault("case", "expected at least one [[case]]")
        entries = []
    cases = [_case(reader, entry, f"case {number}", good) for number, entry in enumerate(entries, 1)]
    reader.close(what, _HINT)
    return tuple(cases)


def run(policy: bytes, cases: Iterable[Case], *, what: str = "policy") -> tuple[Outcome, ...]:
    """Return what the policy, or template of one, in ``policy`` says about each case; keys are made for the occasion.

    Raises:
        NotVerifiable: it is no policy.
    """
    keys = {name: PrivateKey.generate() for name in key_names(policy, what=what)}
    rules = parse(policy, what=what, keys={name: key.public for name, key in keys.items()})
    names = {key.public: name for name, key in keys.items()}
    default = {evidence: names[rules.roles[role][0]] for evidence, role in _SIGNER_ROLES.items()}

    def signer(name: str) -> PrivateKey:
        if name not in keys:
            keys[name] = PrivateKey.generate()  # a stranger's
        return keys[name]

    def outcome(case: Case) -> Outcome:
        facts = replace(case.facts, signers={**default, **case.facts.signers})
        return Outcome(case, decide(rehearse(facts, signer), rules))

    return tuple(outcome(case) for case in cases)


# --- reading ----------------------------------------------------------------------------------------------------------


def _case(reader: Reader, value: object, where: str, good: Table) -> Case:
    table = reader.table(value, where, ("title", "expect", "rules", "exit", "image"))
    title = reader.text(table, "title", where)
    where = f"{where} {title[:60]!r}"
    expect = table.get("expect")
    if expect not in VERDICTS:
        reader.fault(where, f"expect: expected one of {', '.join(VERDICTS)}, found {show(expect)}")
    rules: frozenset[str] = frozenset()
    if expect != "verified":
        rules = reader.choices(table.get("rules"), f"{where} rules", [name for name, _ in RULES])
    elif "rules" in table:
        reader.fault(where, "rules: none fails where an image is verified")
    code = table.get("exit")
    if code is not None and (type(code) is not int or code not in list(ExitCode)):
        reader.fault(where, f"exit: expected an exit code, found {show(code)}")
        code = None
    changes = reader.table(table.get("image"), f"{where} image", _IMAGE)
    merged = {**good, **changes}
    if isinstance(good.get("signers"), dict) and isinstance(changes.get("signers"), dict):
        merged["signers"] = {**good["signers"], **changes["signers"]}
    scratch = Reader()
    facts = _facts(scratch, merged, f"{where} image")
    if not reader.faults:  # else the image that all start from may be what is wrong
        reader.faults += scratch.faults
    return Case(title, str(expect), rules, None if code is None else ExitCode(code), facts)


def _facts(reader: Reader, table: Mapping[str, Any], where: str) -> Facts:
    source_age = None
    if "source_age" in table:
        source_age = reader.span(table, "source_age", where)
    missing = frozenset[str]()
    if table.get("without", []) != []:
        missing = reader.choices(table["without"], f"{where}.without", (*EVIDENCE, "source"))
    signers = reader.table(table.get("signers"), f"{where}.signers", EVIDENCE)
    formats = reader.words(table.get("formats", ["gguf", "json", "text"]), f"{where}.formats", "formats")
    if not all(_FORMAT.fullmatch(one) for one in formats):
        reader.fault(f"{where}.formats", f"expected words such as gguf, found {show(list(formats))}")
    return Facts(
        name=reader.text(table, "name", where),
        title=reader.text(table, "title", where) if "title" in table else None,
        vendor=reader.text(table, "vendor", where) if "vendor" in table else None,
        licences=reader.words(table.get("licences", ["Apache-2.0"]), f"{where}.licences", "licences", empty=True),
        formats=formats,
        damaged=reader.flag(table, "damaged", where),
        sandboxed=reader.flag(table, "sandboxed", where, default=True),
        origins=_inputs(reader, table.get("origins", []), f"{where}.origins"),
        toolchains=_inputs(reader, table.get("toolchains", []), f"{where}.toolchains"),
        programs=_inputs(reader, table.get("programs", []), f"{where}.programs"),
        signers={name: reader.text(signers, name, f"{where}.signers") for name in signers},
        without=missing - {"source"},
        attestations=_attestations(reader, table.get("attestations", []), f"{where}.attestations"),
        source_age=None if "source" in missing else source_age,
    )


def _inputs(reader: Reader, value: object, where: str) -> tuple[Input, ...]:
    found = []
    for place, table in _tables(reader, value, where, _INPUT):
        status = table.get("status", "active")
        if status not in _STATUS:
            reader.fault(place, f"status: expected one of {', '.join(_STATUS)}, found {show(status)}")
        texts = {key: reader.text(table, key, place) for key in ("licence", "claimed", "reason") if key in table}
        found.append(Input(reader.text(table, "name", place), status=str(status), **texts))
    return tuple(found)


def _attestations(reader: Reader, value: object, where: str) -> tuple[Attestation, ...]:
    found = []
    for place, table in _tables(reader, value, where, ("type", "by", "predicate", "about")):
        about = table.get("about", "image")
        if about not in ("image", "another"):
            reader.fault(
                place, f"about: expected image or another, found {show(about)}{nearest(str(about), ['image'])}"
            )
        predicate = dict(reader.table(table.get("predicate"), f"{place}.predicate"))
        try:
            strictjson.canonical(predicate)
        except ValueError:
            reader.fault(f"{place}.predicate", "expected what JSON can hold")
            predicate = {}
        found.append(
            Attestation(reader.text(table, "type", place), reader.text(table, "by", place), predicate, str(about))
        )
    return tuple(found)


def _tables(reader: Reader, value: object, where: str, known: tuple[str, ...]) -> list[tuple[str, Table]]:
    if not isinstance(value, list):
        reader.fault(where, f"expected an array of tables, found {show(value)}")
        return []
    return [
        (f"{where}[{number}]", reader.table(item, f"{where}[{number}]", known)) for number, item in enumerate(value)
    ]
