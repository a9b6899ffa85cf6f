"""What looks like a secret in a recipe: recipes are committed, hashed and published, so none may hold one.

No message of this module repeats what it found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from intaglio.recipe.positions import Path
from intaglio.recipe.shape import Mistake

_KEY = re.compile(
    r"(?:^|[_-])(?:password|passwd|passphrase|pwd|secrets?|api[_-]?key|apikey|access[_-]?key|private[_-]?key|credentials?)(?:[_-]|$)"
    r"|^(?:(?:hf|hub|api|auth|access|bearer|client|git|github|gitlab|oauth|refresh|session|user|private|secret|wandb)[_-]?)?tokens?$",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    r"|\bglpat-[\w-]{16,}|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}|\bpypi-[A-Za-z0-9_-]{50,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_USERINFO = re.compile(r"^[a-z][a-z0-9+.-]*:(?://)?[^/?#@]*:[^/?#@]*@|^[a-z][a-z0-9+.-]*://[^/?#]*@", re.IGNORECASE)
_QUERY = re.compile(r"[?&]([^=&#]+)=")
_SIGNED_QUERY = re.compile(r"(?:^|[_-])(?:sig|signature|token|key|auth|password|secret|credential)$", re.IGNORECASE)


def in_uri(uri: str) -> str | None:
    """Say what in ``uri`` is a secret: a user or password, or a signed or authorised query."""
    if _USERINFO.match(uri):
        return "the address holds a user name or password"
    for name in _QUERY.findall(uri):
        if _SIGNED_QUERY.search(name):
            return f"the address holds a credential in its query ({name})"
    return "the address holds what looks like a token" if _VALUE.search(uri) else None


def mistakes(value: object, path: Path = ()) -> Iterator[Mistake]:
    """Yield every key below ``value`` that names a secret, and every string that looks like one."""
    hint = "give it to the environment of the command, never to a recipe"
    if isinstance(value, dict):
        for name, item in value.items():
            # The writer's own names (of inputs, steps, labels) stand for tables or are looked at by their value.
            if _KEY.search(name) and not isinstance(item, dict):
                yield Mistake((*path, name), f"looks like a secret; {hint}")
            else:
                yield from mistakes(item, (*path, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from mistakes(item, (*path, number))
    elif isinstance(value, str) and _VALUE.search(value):
        yield Mistake(path, f"the value looks like a secret; {hint}")
