"""Policies by name: a target of the trusted source, where no file on this side is named.

- The name comes from the verifier's own side: an option, or the file ``policy.name`` beside the anchor. What it means,
  the trusted source says, verified from that anchor; without an anchor a name means nothing.
- A name without a version means the one version that is active: whoever signs the targets can replace a policy by
  yanking it, and two at once are refused.
"""

from __future__ import annotations

from pathlib import Path

from intaglio.errors import NotVerifiable, PolicyRefusal, UsageError
from intaglio.policy.document import Lookup, Policy, parse
from intaglio.trust.target import Name
from intaglio.trust.tuf import TrustedSource

FILE = "policy.name"
"""Name of the file beside the anchor that holds the policy's name, in one line."""
_FIRST = "policies/"
_ANY = "0"
_MAX_BYTES = 1024


def is_name(text: str) -> bool:
    """Return whether ``text`` is a policy's name and no file's: ``policies/org/name``, perhaps with ``@version``.

    A file of such a path is named by ``./policies/org/name``; one that ends in ``.toml`` is always a file.
    """
    if not text.startswith(_FIRST) or text.endswith(".toml"):
        return False
    try:
        _name(text)
    except UsageError:
        return False
    return True


def configured(home: Path) -> str | None:
    """Return the policy's name that stands beside the anchor in ``home``, or nothing.

    Raises:
        NotVerifiable: the file holds something else.
    """
    path = home / FILE
    try:
        with open(path, "rb") as stream:
            text = stream.read(_MAX_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NotVerifiable(f"{path}: {error.strerror}") from None
    if not is_name(text):
        raise NotVerifiable(f"{path}: expected a policy's name such as policies/org/name@1.0.0, found {text[:80]!r}")
    return text


def load(text: str, source: TrustedSource) -> Policy:
    """Return the policy that ``source`` has under the name ``text``.

    Raises:
        PolicyRefusal: the source does not list it, has yanked it, or lists several versions where none was named.
        NotVerifiable: it is listed and was not fetched or carried along, or it is no policy.
        VerificationError: what is kept of it is damaged.
    """
    name = _name(text)
    if "@" not in text:
        versions = [
            target.name for target in source.targets() if target.name.name == name.name and target.status == "active"
        ]
        if len(versions) != 1:
            found = ", ".join(one.version for one in versions) or "none"
            raise PolicyRefusal(
                f"{text}: expected one active version in the trusted source, found {found}",
                hint="name one, as in policies/org/name@1.0.0",
            )
        name = versions[0]
    return parse(source.file(name), what=f"policy {name}", lookup=keys_of(source))


def keys_of(source: TrustedSource) -> Lookup:
    """Return what finds the keys that a policy names as targets of ``source``: one that was yanked counts no more."""

    def lookup(name: Name) -> bytes | None:
        return None if source.target(name.path).status == "yanked" else source.file(name)

    return lookup


def _name(text: str) -> Name:
    return Name.parse(text if "@" in text else f"{text}@{_ANY}")
