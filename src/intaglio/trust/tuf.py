"""The trusted source as a client keeps it: fetched from a mirror, kept below the home, judged anew on each load.

- The anchor is ``<home>/root.json``, put there from this side alone; no mirror, kit or image can change it.
- What is kept below ``<home>/tuf`` is not trusted for standing there: every load verifies it from the anchor upwards.
- Metadata is kept under names that hold its version; one small file, replaced as a whole, says which belong together.
  Readers see the state before a refresh or the one after it.
- A new root counts as soon as it is verified, whatever becomes of the rest: revoked keys stay revoked.
- Online, expired metadata is refused. Offline, it must have been valid when it was last known to be current, and its
  age is what a policy judges: see :mod:`intaglio.trust.freshness`.

(TUF specification 1.0, section 5, "Detailed client workflow"; the judging is in :mod:`intaglio.trust.metadata`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from intaglio.dataclass import dataclass, field
from intaglio.digest import Digest
from intaglio.errors import (
    CorruptContent,
    NotVerifiable,
    PolicyRefusal,
    SourceUnreachable,
    UsageError,
    VerificationError,
)
from intaglio.trust import freshness, metadata
from intaglio.trust.freshness import Freshness
from intaglio.trust.kept import ANCHOR, STATE, Kept, State
from intaglio.trust.mirror import BLOBS, Mirror, check, fetch_file, only_file
from intaglio.trust.payload import MAX_BYTES, ROLES, Dated, Root, Snapshot, Targets, Timestamp
from intaglio.trust.target import FILES, Name, Target

MAX_ROTATIONS = 256
"""Most roots that one refresh goes through."""
_S = TypeVar("_S", Snapshot, Targets)


@dataclass(frozen=True)
class TrustedSource:
    """What the trusted source says, verified from the anchor upwards; make one with :meth:`load`."""

    freshness: Freshness
    """As of when it is known to be current."""
    address: str
    """Where it was fetched."""
    _root: Root = field(repr=False)
    _timestamp: Timestamp = field(repr=False)
    _snapshot: Snapshot = field(repr=False)
    _targets: Targets = field(repr=False)
    _read: Callable[[str], bytes] = field(repr=False)
    """Reads a kept file by its name."""
    _roles: dict[tuple[str, str], Targets] = field(default_factory=dict, repr=False)
    """Delegated roles that have been verified, by their own and their delegator's names."""

    @classmethod
    def load(cls, home: Path, reference_time: datetime) -> TrustedSource:
        """Return what is kept below ``home``; no network is asked.

        Args:
            home: holds the anchor, ``root.json``, and the kept metadata, ``tuf/``.
            reference_time: the time here, with its zone.

        Raises:
            NotVerifiable: there is no anchor, or nothing was fetched yet.
            CorruptContent, Untrusted: what is kept is damaged, or not what the anchor's keys signed.
            Stale: it was past its date already when it was last known to be current.
        """
        return cls.of(Kept(home), reference_time)

    @classmethod
    def of(cls, kept: Kept, reference_time: datetime) -> TrustedSource:
        """Return what ``kept`` holds: see :meth:`load`."""
        root = kept.root()
        state = kept.state()
        if state is None:
            raise NotVerifiable(
                f"no trusted source has been fetched: expected {kept.folder / STATE}, found none",
                hint="intaglio trust refresh --url URL",
            )
        stamp = metadata.timestamp(kept.read(f"{state.timestamp}.timestamp.json"), root)
        fresh = freshness.judge(clock=reference_time, signed=stamp.signed, seen=state.seen, expires=stamp.expires)
        shot = metadata.snapshot(kept.read(f"{stamp.snapshot_meta.version}.snapshot.json"), root, stamp)
        name = f"{metadata.listed(shot, 'targets').version}.targets.json"
        top = metadata.targets(kept.read(name), "targets", root, shot)
        for what, signed in (("root", root), ("timestamp", stamp), ("snapshot", shot), ("targets", top)):
            metadata.require_current(signed, what, fresh.as_of)
        return cls(fresh, state.address, root, stamp, shot, top, kept.read)

    @property
    def age(self) -> timedelta:
        """How long ago the source is known to have been current."""
        return self.freshness.age

    def metadata(self) -> dict[str, bytes]:
        """Return every metadata file but the roots, by the name under which it is published."""
        stamp, shot = self._timestamp, self._snapshot
        names = [f"{shot.version}.snapshot.json", f"{metadata.listed(shot, 'targets').version}.targets.json"]
        for role in self._every_role():
            names += [f"{metadata.listed(shot, name).version}.{name}.json" for name in role.delegated()]
        return {"timestamp.json": self._read(f"{stamp.version}.timestamp.json"), **{n: self._read(n) for n in names}}

    def versions(self) -> dict[str, int]:
        """Return the versions of the four top-level roles: what locks and provenance record."""
        return {
            "root": self._root.version,
            "timestamp": self._timestamp.version,
            "snapshot": self._snapshot.version,
            "targets": self._targets.version,
        }

    def expiries(self) -> dict[str, datetime]:
        """Return when each of the four top-level roles expires."""
        signed: tuple[Dated, ...] = (self._root, self._timestamp, self._snapshot, self._targets)
        return {role: one.expires for role, one in zip(ROLES, signed, strict=True)}

    def signers(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """Return for each top-level role the threshold and the ids of its keys."""
        return {role: (one.threshold, tuple(one.keys)) for role, one in self._root.roles.items()}

    def find(self, path: str) -> Target | None:
        """Return the target at ``path``, as in ``models/org/name/1.0.0``, by the most trusted role that lists it.

        Raises:
            CorruptContent, Untrusted, Stale: a delegated role on the way does not verify.
        """
        return metadata.search(path, self._targets, self._delegated)

    def target(self, path: str) -> Target:
        """Return the target at ``path``; it may have been yanked (:meth:`Target.require_active`).

        Raises:
            PolicyRefusal: the source does not list it.
        """
        found = self.find(path)
        if found is None:
            from difflib import get_close_matches

            known = {one.path: one for one in self.targets()}
            near = get_close_matches(path, known, 1)
            hint = f"did you mean {known[near[0]].name}?" if near else "`intaglio trust list` shows what is listed"
            raise PolicyRefusal(f"{path}: the trusted source does not list it", hint=hint)
        return found

    def file(self, name: Name) -> bytes:
        """Return the policy or key that ``name`` stands for: its file as it was fetched with the metadata, re-hashed.

        Raises:
            PolicyRefusal: the source does not list it, or has yanked it.
            UsageError: it is neither a policy nor a key.
            NotVerifiable: the mirror did not have the file.
            CorruptContent: what is kept does not have its digest.
        """
        if name.kind not in FILES:
            raise UsageError(f"{name}: expected the name of a policy or key, found that of a {name.kind}")
        target, what = self.target(name.path).require_active(), f"target {name}"
        manifest = check(self._blob(target.digest, what), target.digest, target.size, what)
        file = only_file(target, manifest)
        return check(self._blob(file.digest, what), file.digest, file.size, f"{what}: {file.path}")

    def _blob(self, digest: Digest, what: str) -> bytes:
        try:
            return self._read(f"{BLOBS}/{digest.hex}")
        except CorruptContent:
            raise NotVerifiable(f"{what}: {digest} is listed, and is not here", hint="intaglio trust refresh") from None

    def targets(self) -> tuple[Target, ...]:
        """Return every target, sorted by path; what a delegated role lists outside its paths is not there."""
        paths = {path for role in self._every_role() for path in role.targets}
        found = (self.find(path) for path in sorted(paths))
        return tuple(target for target in found if target is not None)

    def by_digest(self, digest: Digest) -> tuple[Target, ...]:
        """Return every target that is this content, yanked ones too."""
        return tuple(target for target in self.targets() if target.digest == digest)

    def _every_role(self) -> Iterator[Targets]:
        return metadata.roles(self._targets, self._delegated)

    def _delegated(self, name: str, by: str, delegator: Targets) -> Targets:
        if (name, by) not in self._roles:
            file = f"{metadata.listed(self._snapshot, name).version}.{name}.json"
            role = metadata.targets(self._read(file), name, delegator, self._snapshot)
            metadata.require_current(role, name, self.freshness.as_of)
            self._roles[name, by] = role
        return self._roles[name, by]


def set_anchor(home: Path, data: bytes, *, replace: bool = False) -> Root:
    """Make ``data`` the anchor of ``home`` and return it; what was fetched under another anchor is forgotten.

    Raises:
        CorruptContent, Untrusted: it is no root, or does not sign itself.
        UsageError: there is another anchor, and it is not to be replaced.
    """
    from intaglio.content.intake import replace_file

    root = metadata.anchor(data)
    path = home / ANCHOR
    if path.exists() and path.read_bytes() != data:
        if not replace:
            raise UsageError(
                f"{path}: there is another anchor already",
                hint="intaglio trust anchor FILE --replace   (trusts another publisher from now on)",
            )
        kept = Kept(home)
        with kept.alone():
            kept.clear()
    home.mkdir(parents=True, exist_ok=True)
    replace_file(path, data, home)
    return root


def last_address(home: Path) -> str | None:
    """Return where the source was fetched last; nothing if it never was."""
    state = Kept(home).readable_state()
    return (state.address or None) if state else None


def refresh(home: Path, mirror: Mirror, clock: datetime) -> TrustedSource:
    """Bring what is kept below ``home`` to what ``mirror`` has now, and return it.

    Raises:
        NotVerifiable: there is no anchor.
        SourceUnreachable: the mirror does not answer, or lacks a file that it must have.
        CorruptContent, Untrusted: the mirror's files are damaged, rolled back, or not signed as they must be.
        Stale: the mirror's metadata has expired.
    """
    kept = Kept(home)
    with kept.alone():
        _Refresh(kept, mirror, clock).run()
    return TrustedSource.load(home, clock)


def follow(kept: Kept, mirror: Mirror, clock: datetime) -> TrustedSource:
    """Bring ``kept`` to what ``mirror`` carries, which is no evidence that nothing newer exists; return it.

    What is not current is not refused for that: it must have been when it was last known to be, as for what is kept.

    Raises:
        VerificationError: as :func:`refresh` does, but that the mirror's metadata may have expired since.
    """
    _Refresh(kept, mirror, clock, carried=True).run()
    return TrustedSource.of(kept, clock)


class _Refresh:
    """One run of the client workflow (section 5 of the specification)."""

    def __init__(self, kept: Kept, mirror: Mirror, clock: datetime, *, carried: bool = False) -> None:
        self._kept = kept
        self._mirror = mirror
        self._carried = carried
        self._state = kept.readable_state()
        # A clock behind what was seen before is wrong: time does not go back (5.1).
        seen = self._state.seen if self._state else None
        self._now = max(clock, seen) if seen else clock
        self._used: set[str] = set()

    def run(self) -> None:
        """Fetch, verify and keep the four top-level roles and all delegated ones."""
        root = self._roots()
        if not self._carried:
            metadata.require_current(root, "root", self._now)
        known, listed = self._known(root)
        stamp, data = self._timestamp(root, known)
        shot = self._role(
            "snapshot",
            stamp.snapshot_meta.version,
            lambda data: metadata.snapshot(data, root, stamp, listed),
        )
        top = self._targets("targets", root, shot)
        for role in metadata.roles(top, lambda name, _, delegator: self._targets(name, delegator, shot)):
            self._files(role)
        self._keep(f"{stamp.version}.timestamp.json", data)
        self._kept.commit(self._new_state(stamp.version, root.version))
        self._kept.sweep(self._used)

    def _new_state(self, stamp: int, root: int) -> State:
        """Return what is to be remembered: what was carried here was not seen online, nor is it known where."""
        if not self._carried:
            return State(stamp, root, self._now, self._mirror.address)
        before = self._state
        return State(stamp, root, before.seen if before else None, before.address if before else "")

    def _roots(self) -> Root:
        """Return the newest root, each version verified by the one before it and kept at once (5.3)."""
        root = self._kept.root(until_damaged=True)
        for _ in range(MAX_ROTATIONS):
            name = f"{root.version + 1}.root.json"
            data = self._mirror.fetch(f"metadata/{name}", max_bytes=MAX_BYTES["root"])
            if data is None:
                return root
            root = metadata.next_root(data, root)
            self._keep(name, data)
        raise CorruptContent(f"expected at most {MAX_ROTATIONS} new roots, found more")

    def _known(self, root: Root) -> tuple[Timestamp | None, Snapshot | None]:
        """Return what versions may not fall behind; nothing where the keys have been rotated since (5.3.11).

        Nothing, too, of what was damaged on disk: no protection is left then but the signatures and their dates.
        """
        stamp = None
        if self._state is None:
            return None, None
        try:
            if metadata.rotated(self._kept.root(version=self._state.root), root):
                return None, None
            stamp = metadata.timestamp(self._kept.read(f"{self._state.timestamp}.timestamp.json"), root)
            name = f"{stamp.snapshot_meta.version}.snapshot.json"
            return stamp, metadata.snapshot(self._kept.read(name), root, stamp)
        except VerificationError:
            return stamp, None

    def _timestamp(self, root: Root, previous: Timestamp | None) -> tuple[Timestamp, bytes]:
        data = self._fetch("timestamp.json", MAX_BYTES["timestamp"])
        stamp = metadata.timestamp(data, root, previous)
        if stamp is previous:
            data = self._kept.read(f"{stamp.version}.timestamp.json")
        if self._carried:
            seen = self._state.seen if self._state else None
            self._now = freshness.judge(clock=self._now, signed=stamp.signed, seen=seen, expires=stamp.expires).as_of
            metadata.require_current(root, "root", self._now)
        metadata.require_current(stamp, "timestamp", self._now)
        return stamp, data

    def _targets(self, name: str, delegator: Root | Targets, shot: Snapshot) -> Targets:
        meta = metadata.listed(shot, name)
        return self._role(name, meta.version, lambda data: metadata.targets(data, name, delegator, shot))

    def _files(self, role: Targets) -> None:
        """Keep the policies and keys that ``role`` lists, as far as the mirror has them: a kit has a selection."""
        for _, target in sorted(role.targets.items()):
            if target.kind not in FILES:
                continue
            if target.status != "active":
                continue
            name = f"{BLOBS}/{target.digest.hex}"
            try:
                manifest = check(self._kept.read(name), target.digest, target.size, name)
                file = only_file(target, manifest)
                data = check(self._kept.read(f"{BLOBS}/{file.digest.hex}"), file.digest, file.size, name)
            except VerificationError:
                found = fetch_file(target, self._mirror)
                if found is None:
                    continue
                manifest, data = found
            self._keep(name, manifest)
            self._keep(f"{BLOBS}/{Digest.of(data).hex}", data)

    def _role(self, role: str, version: int, judge: Callable[[bytes], _S]) -> _S:
        """Return a role as it is kept, else as the mirror has it."""
        name = f"{version}.{role}.json"
        try:
            data = self._kept.read(name)
            signed = judge(data)
        except VerificationError:
            # Not only up to the promised length: a file that is longer is refused as another file, not as unreachable.
            data = self._fetch(name, MAX_BYTES["snapshot" if role == "snapshot" else "targets"])
            signed = judge(data)
        metadata.require_current(signed, role, self._now)
        self._keep(name, data)
        return signed

    def _fetch(self, name: str, max_bytes: int) -> bytes:
        data = self._mirror.fetch(f"metadata/{name}", max_bytes=max_bytes)
        if data is None:
            raise SourceUnreachable(
                f"{self._mirror.address}: has no metadata/{name}",
                hint="the address is that of the folder with metadata/ and targets/",
            )
        return data

    def _keep(self, name: str, data: bytes) -> None:
        self._used.add(name)
        self._kept.write(name, data)
