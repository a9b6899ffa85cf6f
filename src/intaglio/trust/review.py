"""What a signer looks at before signing: what a staged root or targets changes, and who has signed."""

from __future__ import annotations

from collections.abc import Mapping

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, Targets

from intaglio.dataclass import dataclass
from intaglio.trust.payload import ROLES
from intaglio.trust.target import Target


@dataclass(frozen=True, slots=True)
class Staged:
    """A change that waits for signatures."""

    role: str
    version: int
    changes: tuple[str, ...]
    """What it changes, a line each."""
    signed: tuple[str, ...]
    """Ids of the keys that have signed."""
    missing: int
    """How many signatures are still needed."""
    waiting: tuple[str, ...]
    """Ids of the keys of which they can come."""


def root(before: Root | None, after: Metadata[Root]) -> Staged:
    """Return what the root ``after`` changes and lacks: signatures by its own keys and by those of ``before``."""
    result = after.signed.get_root_verification_result(before, after.signed_bytes, after.signatures)
    missing = max(result.first.missing, result.second.missing)
    lines = _root_changes(before, after.signed)
    return Staged("root", after.signed.version, lines, *_ids(result.signed, missing, result.unsigned))


def targets(before: Targets | None, after: Metadata[Targets], by: Root) -> Staged:
    """Return what the targets ``after`` change and lack: signatures by the keys that the root ``by`` names."""
    result = by.get_verification_result("targets", after.signed_bytes, after.signatures)
    lines = _target_changes(before, after.signed)
    return Staged("targets", after.signed.version, lines, *_ids(result.signed, result.missing, result.unsigned))


def target(path: str, role: Targets) -> Target:
    """Return the target that ``role`` lists at ``path``.

    Raises:
        CorruptContent: the entry is no target of ours.
    """
    entry = role.targets[path]
    return Target.parse(path, entry.length, entry.hashes, entry.custom)


def _ids(
    signed: Mapping[str, Key], missing: int, unsigned: Mapping[str, Key]
) -> tuple[tuple[str, ...], int, tuple[str, ...]]:
    return tuple(sorted(signed)), missing, tuple(sorted(unsigned.keys() - signed.keys()))


def _root_changes(before: Root | None, after: Root) -> tuple[str, ...]:
    lines = [f"valid until {after.expires:%Y-%m-%d}"]
    for role in ROLES:
        new, old = after.roles[role], before.roles[role] if before else None
        known = set(old.keyids) if old else set()
        lines += [f"{role}: + key {identifier[:12]}…" for identifier in new.keyids if identifier not in known]
        lines += [f"{role}: - key {identifier[:12]}…" for identifier in sorted(known - set(new.keyids))]
        if old is None or old.threshold != new.threshold:
            lines.append(f"{role}: {new.threshold} of {len(new.keyids)} keys must sign")
    return tuple(lines)


def _target_changes(before: Targets | None, after: Targets) -> tuple[str, ...]:
    lines = [f"valid until {after.expires:%Y-%m-%d}"]
    for path in sorted(after.targets):
        new = target(path, after)
        old = target(path, before) if before and path in before.targets else None
        if old is None:
            lines.append(f"+ {new.name} {new.digest} ({new.licence}, {new.publisher}, {new.status})")
        elif old != new:
            lines.append(f"~ {new.name} {new.digest} ({new.status}{f': {new.reason}' if new.reason else ''})")
    lines += [f"- {path}" for path in sorted((before.targets if before else {}).keys() - after.targets.keys())]
    return tuple(lines)
