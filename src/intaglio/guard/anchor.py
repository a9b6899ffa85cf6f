"""The guard's anchor: what it trusts, from its own side alone, and what the trusted source says under it.

- The anchor is a folder (``policy.toml`` or ``policy.name``, ``root.json``) or one file: a policy, or a TUF root.
- It is never looked for in the passport or beside the model: those are what is judged.
- TUF metadata is read from the passport and counts only as far as it verifies under the anchor's root.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.dataclass import dataclass
from intaglio.errors import NotVerifiable
from intaglio.policy import document
from intaglio.policy.document import Lookup, Policy
from intaglio.policy.listing import Listing, SourceListing

if TYPE_CHECKING:
    from intaglio.trust.tuf import TrustedSource

DEFAULT = Path("/etc/intaglio")
"""Where a runtime image has its anchor."""
POLICY = "policy.toml"
ROOT = "root.json"


@dataclass(frozen=True, slots=True)
class Anchor:
    """What is trusted, and what follows from it."""

    policy: Policy
    listing: Listing | None
    """What the trusted source lists; ``None`` where the anchor has no root, or the passport no metadata."""


def read(place: Path, passport: Path, clock: datetime, name: str | None = None) -> Anchor:
    """Return the anchor at ``place``, and the trusted source that ``passport`` carries, as far as it holds under it.

    Args:
        place: a folder, a policy (``.toml``), or a TUF root; beside a root its folder's policy counts.
        passport: folder that may hold ``metadata/`` and ``targets/``.
        clock: the time here.
        name: the policy to judge by instead: ``policies/NAME.toml`` of the anchor's folder, or a target of the source.

    Raises:
        VerificationError: there is no anchor, or no policy; or the metadata does not verify, or nothing says as of when
            it was current.
    """
    if place.is_dir():
        home, root, policy = place, place / ROOT, place / POLICY
    elif place.suffix == ".toml":
        home, root, policy = place.parent, None, place
    else:
        home, root, policy = place.parent, place, place.parent / POLICY
        if not place.is_file():
            raise NotVerifiable(f"there is no anchor at {place}, and nothing is trusted without one")
    source = _source(passport, home, root, clock)
    return Anchor(_policy(home, policy, name, source), None if source is None else SourceListing(source))


def _source(passport: Path, home: Path, root: Path | None, clock: datetime) -> TrustedSource | None:
    if root is None or not root.exists():
        return None
    from intaglio.trust import carried
    from intaglio.trust.payload import MAX_BYTES

    if not carried.present(passport):
        return None
    with open(root, "rb") as stream:
        anchor = stream.read(MAX_BYTES["root"] + 1)
    return carried.judge(passport, home, clock, anchor=anchor)


def _policy(home: Path, policy: Path, name: str | None, source: TrustedSource | None) -> Policy:
    if name is None and policy.exists():
        return document.load(policy, _lookup(source))
    from intaglio.policy import named

    wanted = name or named.configured(home)
    if wanted is None:
        return document.load(policy)  # which says that there is none
    beside = home / "policies" / f"{wanted}.toml"
    if "/" not in wanted and beside.is_file():
        return document.load(beside, _lookup(source))
    if not named.is_name(wanted) or source is None:
        raise NotVerifiable(
            f"policy {wanted}: neither {beside} nor, in a trusted source under the anchor's root, a target",
            hint="mount the TUF metadata with the passport, or name a policy of the anchor's folder",
        )
    return named.load(wanted, source)


def _lookup(source: TrustedSource | None) -> Lookup | None:
    if source is None:
        return None
    from intaglio.policy import named

    return named.keys_of(source)
