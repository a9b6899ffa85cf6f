"""The rule about reserved names: who may release under a name that is, or could be taken for, somebody's.

- A pattern with slashes is compared with every run of as many parts of a model name, and without ``*`` with the whole
  name too, its parts run together; a pattern without slashes is compared with each part by itself.
- Who an image says it is by (``vendor``) is compared with patterns without slashes, and with the first part of others.
- Both sides are folded (:mod:`intaglio.policy.folding`), so that a look-alike is refused as the name itself is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from intaglio.errors import PolicyRefusal, VerificationError
from intaglio.policy.document import Policy
from intaglio.policy.evidence import About, Evidence
from intaglio.policy.folding import folds
from intaglio.policy.rules.signature import NotRequired, find_statements
from intaglio.trust.key import PublicKey
from intaglio.trust.statement import COSIGN_SIGN, cosign_statement

MAX_LENGTH = 512
"""Longest name that is compared, in characters."""


def names(evidence: Evidence, policy: Policy) -> str:
    """No name of the image is reserved, or one of the keys that it is reserved for released the image."""
    if not policy.reserved:
        raise NotRequired
    if evidence.about is None or not evidence.about.names:
        raise PolicyRefusal("the image has no name")
    if any(len(text) > MAX_LENGTH for _, text in (*evidence.about.names, *evidence.about.publishers)):
        raise PolicyRefusal(f"a name of the image is longer than {MAX_LENGTH} characters")
    faults, allowed = [], []
    for where, text, pattern in _claimed(evidence.about, tuple(policy.reserved)):
        if _released_by(evidence, policy.reserved[pattern]):
            allowed.append(pattern)
        else:
            owner = "other keys" if policy.reserved[pattern] else "nobody here"
            faults.append(f"{where} {text[:80]!r} is, or looks like, {pattern!r}, which is reserved for {owner}")
    if faults:
        raise PolicyRefusal("; ".join(faults[:5]))
    what = f"reserved name {allowed[0]!r}, released by its key" if allowed else "not reserved"
    return f"{evidence.about.names[0][1][:80]}: {what}"


def looks_like(name: str, pattern: str) -> bool:
    """Return whether the model name ``name`` is one that the reserved ``pattern`` covers, or could be taken for one."""
    parts, wanted = name.split("/"), pattern.split("/")
    if "*" not in pattern and folds(name.replace("/", "-")) & folds(pattern.replace("/", "-")):
        return True
    runs = (parts[start : start + len(wanted)] for start in range(len(parts) - len(wanted) + 1))
    return any(all(map(_fits, run, wanted)) for run in runs)


def _claimed(about: About, patterns: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """Yield (where it stands, what it says, pattern) of everything that a reserved pattern covers."""
    for pattern in patterns:
        for where, text in about.names:
            if looks_like(text, pattern):
                yield where, text, pattern
        for where, text in about.publishers:
            if _fits(text, pattern.split("/")[0]):
                yield where, text, pattern


def _fits(part: str, pattern: str) -> bool:
    return any(_expression(pattern).fullmatch(fold) for fold in folds(part))


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    pieces = ("|".join(re.escape(fold) for fold in sorted(folds(piece))) for piece in pattern.split("*"))
    return re.compile(".*".join(f"(?:{piece})" for piece in pieces))


def _released_by(evidence: Evidence, keys: tuple[PublicKey, ...]) -> bool:
    try:
        found = find_statements(evidence.attachments(), COSIGN_SIGN, keys, "release signature")
    except VerificationError:
        return False
    return any(one.statement == cosign_statement(evidence.image) for one in found)
