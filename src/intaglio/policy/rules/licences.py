"""The rule about licences, and SPDX expressions as far as it needs them.

- Closed-world: an expression passes only when it can be met with the licences that the policy allows.
- What says nothing about its licence has an unknown one, and is refused.
- The trusted source's word on an input's licence comes before a claim's: it is signed by more than the builder.

(SPDX specification 3.0, annex "SPDX license expressions": identifiers, AND, OR, parentheses. An exception after WITH
is part of the licence's name: ``GPL-2.0-only WITH Classpath-exception-2.0`` has to be allowed as such.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from intaglio.errors import PolicyRefusal
from intaglio.policy.document import Policy
from intaglio.policy.evidence import Evidence
from intaglio.policy.lineage import claimed_licence, narrowed, of_kind, sound, summary
from intaglio.policy.rules.signature import NotRequired
from intaglio.trust.statement import Dependency, Provenance

MAX_LENGTH = 1024
"""Longest expression that is read, in characters."""
_TOKEN = re.compile(r"\s*(\(|\)|[A-Za-z0-9.:+-]+)")


def licences(evidence: Evidence, policy: Policy) -> str:
    """The image's licence, and that of each pinned origin, is one that the policy allows."""
    allowed = policy.licences
    if allowed is None:
        raise NotRequired
    own = evidence.about.licences if evidence.about else ()
    if not own:
        raise PolicyRefusal("the image says nothing about its licence")
    if refused := [one for one in own if not permits(one, allowed)]:
        raise PolicyRefusal(f"the image: the policy does not allow {_quoted(refused)}")

    def licensed(claim: Provenance) -> bool:
        return not _refused(claim, evidence, allowed)

    found = sound(narrowed(evidence, policy), licensed)
    if found.rejected:
        raise PolicyRefusal(summary(text for claim in found.rejected for text in _refused(claim, evidence, allowed)))
    origins = {one.digest for claim in found.claims for one in of_kind(claim, "origin")}
    return f"{', '.join(own)}; {len(origins)} pinned origins"


def _refused(claim: Provenance, evidence: Evidence, allowed: frozenset[str]) -> list[str]:
    """Return what is wrong with the licences of a claim's origins."""
    faults = []
    for origin in of_kind(claim, "origin"):
        licence = _licence(claim, origin, evidence)
        if licence is None:
            faults.append(f"{origin.uri or origin.name}: its licence is unknown")
        elif not permits(licence, allowed):
            faults.append(f"{origin.uri or origin.name}: the policy does not allow {licence[:80]!r}")
    return faults


def _licence(claim: Provenance, origin: Dependency, evidence: Evidence) -> str | None:
    listed = evidence.source.listed.get(origin.digest) if evidence.source else None
    return listed.licence if listed else claimed_licence(claim, origin)


def _quoted(expressions: Iterable[str]) -> str:
    return ", ".join(repr(one[:80]) for one in expressions)


# --- SPDX expressions -------------------------------------------------------------------------------------------------


def permits(expression: str, allowed: frozenset[str]) -> bool:
    """Return whether ``expression`` can be met with the ``allowed`` licences; one that cannot be read cannot."""
    tokens = _tokens(expression)
    if tokens is None:
        return False
    parser = _Parser(tokens, frozenset(name.casefold() for name in allowed))
    try:
        met = parser.either()
    except (ValueError, RecursionError):
        return False
    return met and parser.at_end


def _tokens(expression: str) -> list[str] | None:
    tokens, place = [], 0
    text = expression.strip()
    if len(text) > MAX_LENGTH:
        return None
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            return None
        tokens.append(found[1])
        place = found.end()
    return tokens


class _Parser:
    """Evaluates an expression while it reads it: OR binds weaker than AND, and AND weaker than WITH."""

    def __init__(self, tokens: list[str], allowed: frozenset[str]) -> None:
        self._tokens = tokens
        self._place = 0
        self._allowed = allowed

    @property
    def at_end(self) -> bool:
        """Whether everything was read."""
        return self._place == len(self._tokens)

    def either(self) -> bool:
        """Return the value of what stands between ORs; every part is read, whatever the first one says."""
        met = self._both()
        while self._take("OR"):
            met |= self._both()
        return met

    def _both(self) -> bool:
        met = self._one()
        while self._take("AND"):
            met &= self._one()
        return met

    def _one(self) -> bool:
        if self._take("("):
            met = self.either()
            if not self._take(")"):
                raise ValueError("a parenthesis is not closed")
            return met
        name = self._name()
        if self._take("WITH"):
            name += f" WITH {self._name()}"
        return name.casefold() in self._allowed

    def _name(self) -> str:
        if self.at_end or self._tokens[self._place] in ("AND", "OR", "WITH", "(", ")"):
            raise ValueError("a licence is missing")
        self._place += 1
        return self._tokens[self._place - 1]

    def _take(self, token: str) -> bool:
        if self.at_end or self._tokens[self._place] != token:
            return False
        self._place += 1
        return True
