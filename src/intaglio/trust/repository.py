"""The publisher's side of the trusted source: a working folder in which changes are staged, signed and published.

::

    DIR/repository.toml        how long each role's metadata is valid
    DIR/staged/*.json          the next root or targets, with the signatures so far
    DIR/metadata/              what has been published
    DIR/manifests/             the targets' bytes, by their sha256
    DIR/files/                 the files of policies and keys, by theirs

- Nothing is published below a threshold: of the root, by its predecessor's keys and its own; of the targets, by the
  keys that the root names.
- A change of what is staged drops the signatures it has: what was signed is what is published.
- A name and version never means other bytes; it can be yanked, with a reason.
- No private key stands in the folder: signing gets keys from elsewhere, publishing the two online ones.
- What is published has consistent snapshots and hash-prefixed targets; the timestamp, written last, makes a state
  visible, so a reader sees the one before or the one after.
- The same changes, keys and times give the same bytes.

(TUF specification 1.0, sections 4 and 6; target bytes are OCI manifests.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from securesystemslib.signer import Key, Signature, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Snapshot, TargetFile, Targets, Timestamp

from intaglio.content.intake import replace_file
from intaglio.dataclass import dataclass, replace
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, MachineError, NotVerifiable, Untrusted, UsageError
from intaglio.trust import metadata, payload, review
from intaglio.trust.key import PrivateKey, PublicKey
from intaglio.trust.mirror import BLOBS, check, only_file, target_path
from intaglio.trust.parse import parse
from intaglio.trust.payload import MAX_KEYS, ROLES
from intaglio.trust.review import Staged
from intaglio.trust.target import FILES, Name, Target, is_line

SETTINGS = "repository.toml"
DAYS: Mapping[str, int] = {"root": 365, "targets": 180, "snapshot": 30, "timestamp": 7}
"""For how many days each role's metadata is valid, unless the settings say otherwise."""
SPECIFICATION = "1.0.31"
"""Version of the TUF specification that what is written follows: ours to change, not the library's."""
OFFLINE = ("root", "targets")
"""Roles that people sign."""
ONLINE = ("snapshot", "timestamp")
"""Roles that publishing signs."""
_SETTINGS_TEXT = """\
# For how many days each role's metadata is valid: renew root and targets before (`intaglio trust renew`), publish
# again before the timestamp's end.
version = 1

[days]
{days}
"""
_FORMS: Mapping[str, Any] = {
    "root": payload.Root,
    "targets": payload.Targets,
    "snapshot": payload.Snapshot,
    "timestamp": payload.Timestamp,
}
"""Role → the form in which readers read it."""
_S = TypeVar("_S", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, slots=True)
class Signers:
    """Whose signatures a role needs."""

    keys: tuple[PublicKey, ...]
    threshold: int = 1

    def check(self, role: str) -> Signers:
        """Return the signers themselves.

        Raises:
            UsageError: no threshold can be met, one key would count twice, or there are more than readers accept.
        """
        if len(set(self.keys)) != len(self.keys):
            raise UsageError(f"{role}: one key is named twice")
        if len(self.keys) > MAX_KEYS:
            raise UsageError(f"{role}: expected at most {MAX_KEYS} keys, found {len(self.keys)}")
        if not 1 <= self.threshold <= len(self.keys):
            raise UsageError(
                f"{role}: expected a threshold from 1 to its {len(self.keys)} keys, found {self.threshold}"
            )
        return self


def key_of(public: PublicKey) -> Key:
    """Return ``public`` as TUF metadata has it; its id is the hash of that form."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    return SSlibKey.from_crypto(load_pem_public_key(public.pem.encode("ascii")))


class Repository:
    """One working folder; make one with :meth:`create`, open it with :meth:`open`."""

    def __init__(self, folder: Path, days: Mapping[str, int]) -> None:
        self.folder = folder
        self._days = days

    # --- making and opening --------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: Path, signers: Mapping[str, Signers], now: datetime) -> Repository:
        """Make a working folder with a staged root and no targets yet; ``signers`` is for each of the four roles.

        Raises:
            UsageError: the folder is not empty, or a threshold cannot be met.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder}: expected no such folder, or an empty one, found other files")
        root = Root(spec_version=SPECIFICATION, consistent_snapshot=True, roles={role: Role([], 1) for role in ROLES})
        for role in ROLES:
            for public in signers[role].check(role).keys:
                root.add_key(key_of(public), role)
            root.roles[role].threshold = signers[role].threshold
        repository = cls(folder, DAYS)
        for name in ("staged", "metadata", "manifests"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        repository._stage(Metadata(root), now)
        repository._stage(Metadata(Targets(spec_version=SPECIFICATION)), now)
        days = "\n".join(f"{role} = {count}" for role, count in DAYS.items())
        repository._write(SETTINGS, _SETTINGS_TEXT.format(days=days).encode())
        return repository

    @classmethod
    def open(cls, folder: Path) -> Repository:
        """Return the working folder ``folder``.

        Raises:
            NotVerifiable: there is none.
            UsageError: its settings are wrong.
        """
        path = folder / SETTINGS
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotVerifiable(f"{folder}: no {SETTINGS} here", hint=f"intaglio trust init {folder}") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}") from None
        days = values.get("days")
        sound = isinstance(days, dict) and set(days) == set(DAYS) and set(values) == {"version", "days"}
        sound = sound and values["version"] == 1
        if not isinstance(days, dict) or not sound or not all(type(n) is int and 0 < n < 4000 for n in days.values()):
            raise UsageError(f"{path}: expected version = 1 and [days] with {', '.join(DAYS)}, each a number of days")
        return cls(folder, days)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder against every other process that changes it."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # --- what is there -------------------------------------------------------------------------------------------

    def published(self, kind: type[_S]) -> Metadata[_S] | None:
        """Return the newest published metadata of one role; nothing before the first publication."""
        role = kind.type
        if role == "timestamp":
            path = self.folder / "metadata" / "timestamp.json"
            return self._read(kind, path) if path.exists() else None
        found = [path.name.partition(".")[0] for path in (self.folder / "metadata").glob(f"*.{role}.json")]
        versions = [int(text) for text in found if text.isdigit()]
        return self._read(kind, self.folder / "metadata" / f"{max(versions)}.{role}.json") if versions else None

    def staged(self, kind: type[_S]) -> Metadata[_S] | None:
        """Return the staged metadata of one role, if any."""
        path = self.folder / "staged" / f"{kind.type}.json"
        if not path.exists():
            return None
        found = self._read(kind, path)
        # A crash while publishing can leave here what is published already.
        return None if self._place(kind.type, found.signed.version).exists() else found

    def root(self) -> Root:
        """Return the root as it will be: the staged one, else the published one."""
        return self._newest(Root)

    def targets(self) -> tuple[Target, ...]:
        """Return the targets as they will be, sorted by path."""
        top = self._newest(Targets)
        return tuple(review.target(path, top) for path in sorted(top.targets))

    def waiting(self) -> tuple[Staged, ...]:
        """Return what waits for signatures or publication."""
        found = []
        if (root := self.staged(Root)) is not None:
            found.append(review.root(self._signed(Root), root))
        if (top := self.staged(Targets)) is not None:
            found.append(review.targets(self._signed(Targets), top, self.root()))
        return tuple(found)

    # --- changes -------------------------------------------------------------------------------------------------

    def add(self, target: Target, manifest: bytes, now: datetime, file: bytes | None = None) -> None:
        """Stage ``target``, whose bytes are ``manifest``; ``file`` is what a policy or key consists of.

        Raises:
            CorruptContent: these are not its bytes, or not its file's.
            UsageError: its name and version stand for other bytes already.
        """
        if Digest.of(manifest) != target.digest or len(manifest) != target.size:
            raise CorruptContent(
                f"{target.name}: expected a manifest with {target.digest}, found {Digest.of(manifest)}"
            )
        top = self._newest(Targets)
        if target.path in top.targets:
            known = review.target(target.path, top)
            if known.digest != target.digest:
                raise UsageError(
                    f"{target.name} is {known.digest} already, and a version never becomes something else",
                    hint="add it under another version; `intaglio trust yank` takes one back",
                )
            if known.status == "yanked" and target.status != "yanked":
                raise UsageError(f"{target.name} was yanked: {known.reason}", hint="add it under another version")
        if target.kind in FILES:
            one = only_file(target, manifest)
            self._write(f"files/{one.digest.hex}", check(file or b"", one.digest, one.size, f"target {target.name}"))
        self._write(f"manifests/{target.digest.hex}", manifest)
        self._put(target, now)

    def yank(self, name: Name, reason: str, now: datetime) -> Target:
        """Stage that ``name`` is not to be used any more; return its entry.

        Raises:
            UsageError: it is not listed.
        """
        if not is_line(reason):
            raise UsageError("expected a reason of one line")
        top = self._newest(Targets)
        if name.path not in top.targets:
            raise UsageError(f"{name} is not listed in {self.folder}", hint=f"intaglio trust list {self.folder}")
        target = replace(review.target(name.path, top), status="yanked", reason=reason)
        self._put(target, now)
        return target

    def rotate(
        self, role: str, now: datetime, *, add: Iterable[PublicKey], remove: Iterable[str], threshold: int | None
    ) -> None:
        """Stage a root in which other keys, or another number of them, sign for ``role``.

        Args:
            role: one of the four.
            now: the time here.
            add: keys that sign from now on.
            remove: ids of keys that no longer do, or their first characters.
            threshold: how many must; ``None`` leaves it.

        Raises:
            UsageError: a key is not there or named twice; more keys than readers accept; no threshold can be met.
        """
        root = self._editable(Root)
        keys = root.roles[role].keyids
        for text in remove:
            matching = [identifier for identifier in keys if text and identifier.startswith(text)]
            if len(matching) != 1:
                raise UsageError(f"{role}: expected the id of one of its keys, found {text!r}: {', '.join(keys)}")
            root.revoke_key(matching[0], role)
        for public in add:
            key = key_of(public)
            if key.keyid in keys:
                raise UsageError(f"{role}: the key {key.keyid[:12]}… signs for it already")
            root.add_key(key, role)
        if len(keys) > MAX_KEYS:
            raise UsageError(f"{role}: expected at most {MAX_KEYS} keys, found {len(keys)}")
        if threshold is not None:
            root.roles[role].threshold = threshold
        if not 1 <= root.roles[role].threshold <= len(keys):
            raise UsageError(
                f"{role}: {root.roles[role].threshold} of {len(keys)} keys cannot sign", hint="--threshold"
            )
        self._stage(Metadata(root), now)

    def renew(self, role: str, now: datetime) -> None:
        """Stage the next version of the root or the targets, with a later expiry and nothing else changed."""
        if role == "root":
            self._stage(Metadata(self._editable(Root)), now)
        else:
            self._stage(Metadata(self._editable(Targets)), now)

    def sign(self, key: PrivateKey) -> tuple[str, ...]:
        """Sign with ``key`` whatever is staged and it may sign; return the roles.

        Raises:
            UsageError: nothing is staged.
            Untrusted: the key is none of those that may.
        """
        identifier = key_of(key.public).keyid
        root, top = self.staged(Root), self.staged(Targets)
        if root is None and top is None:
            raise UsageError(f"nothing in {self.folder} waits for a signature")
        done = []
        before = self._signed(Root)
        allowed = set(before.roles["root"].keyids) if before else set()
        if root is not None and identifier in allowed | set(root.signed.roles["root"].keyids):
            self._add_signature(root, identifier, key)
            done.append("root")
        if top is not None and identifier in self.root().roles["targets"].keyids:
            self._add_signature(top, identifier, key)
            done.append("targets")
        if not done:
            raise Untrusted(
                f"the key {identifier[:12]}… signs for nothing that is staged",
                hint=f"intaglio trust list {self.folder}   (shows whose signatures are missing)",
            )
        return tuple(done)

    # --- publishing ----------------------------------------------------------------------------------------------

    def publish(self, out: Path, online: Mapping[str, PrivateKey], now: datetime) -> dict[str, int]:
        """Make what is staged the published state, and bring ``out`` to it; return the versions of the four roles.

        Args:
            out: gets ``metadata/`` and ``targets/``, for any static server.
            online: the keys of the roles that publishing signs.
            now: the time here.

        Raises:
            Untrusted: signatures are missing, or an online key is not the one that the root names.
            Stale: the root or the targets have expired.
            UsageError: ``out`` holds another source.
        """
        self._check_thresholds()
        root, top = self._pick(Root), self._pick(Targets)
        for what, signed in (("root", root.signed), ("targets", top.signed)):
            metadata.require_current(signed, what, now)
        self._check_out(out)
        top_bytes = self._settle(top)
        shot = Snapshot(self._next(Snapshot), SPECIFICATION, self._expiry("snapshot", now))
        shot.meta = {"targets.json": _describe(top.signed.version, top_bytes)}
        shot_bytes = self._sign_online(Metadata(shot), root.signed, online["snapshot"])
        stamp = Timestamp(
            spec_version=SPECIFICATION, version=self._next(Timestamp), expires=self._expiry("timestamp", now)
        )
        stamp.snapshot_meta = _describe(shot.version, shot_bytes)
        stamp.unrecognized_fields = metadata.custom_of(now)
        stamp_bytes = self._sign_online(Metadata(stamp), root.signed, online["timestamp"])
        self._settle(root)
        self._write(f"metadata/{shot.version}.snapshot.json", shot_bytes)
        self._write("metadata/timestamp.json", stamp_bytes)
        for role in OFFLINE:
            (self.folder / "staged" / f"{role}.json").unlink(missing_ok=True)
        self._mirror(out)
        return {
            "root": root.signed.version,
            "timestamp": stamp.version,
            "snapshot": shot.version,
            "targets": top.signed.version,
        }

    def _check_thresholds(self) -> None:
        for one in self.waiting():
            if one.missing:
                raise Untrusted(
                    f"{one.role} {one.version}: {one.missing} more signature(s) needed, of "
                    + ", ".join(f"{identifier[:12]}…" for identifier in one.waiting),
                    hint=f"intaglio trust sign {self.folder} --key FILE",
                )
        top = self._pick(Targets)
        if not self.root().get_verification_result("targets", top.signed_bytes, top.signatures):
            raise Untrusted(
                f"targets {top.signed.version}: not signed by the keys that the new root names",
                hint=f"intaglio trust renew {self.folder} targets   (then sign them)",
            )

    def _sign_online(self, one: Metadata[_S], root: Root, key: PrivateKey) -> bytes:
        role, identifier = one.signed.type, key_of(key.public).keyid
        if identifier not in root.roles[role].keyids:
            raise Untrusted(f"{role}: the root does not name the key {identifier[:12]}…")
        one.signatures[identifier] = Signature(identifier, key.sign(one.signed_bytes).hex())
        if not root.get_verification_result(role, one.signed_bytes, one.signatures):
            raise Untrusted(f"{role}: the root asks for more keys than the one that publishing has")
        return one.to_bytes()

    def _check_out(self, out: Path) -> None:
        """Refuse to write into another source's folder."""
        other, ours = out / "metadata" / "1.root.json", self.folder / "metadata" / "1.root.json"
        first = ours if ours.exists() else self.folder / "staged" / "root.json"
        if other.exists() and other.read_bytes() != first.read_bytes():
            raise UsageError(f"{out}: holds another trusted source", hint="name an empty folder")

    def _mirror(self, out: Path) -> None:
        """Bring ``out`` to the published state: targets, metadata with versions, and the timestamp last."""
        for target in self.targets():
            place = self.folder / "manifests" / target.digest.hex
            data = check(place.read_bytes(), target.digest, target.size, str(place))
            if target.kind in FILES:
                file = only_file(target, data)
                place = self.folder / "files" / file.digest.hex
                _put_file(out / BLOBS / file.digest.hex, check(place.read_bytes(), file.digest, file.size, str(place)))
            _put_file(out / target_path(target), data)
        for path in sorted((self.folder / "metadata").glob("[0-9]*.json")):
            _put_file(out / "metadata" / path.name, path.read_bytes())
        _put_file(out / "metadata" / "timestamp.json", (self.folder / "metadata" / "timestamp.json").read_bytes())

    # --- files ---------------------------------------------------------------------------------------------------

    def _read(self, kind: type[_S], path: Path) -> Metadata[_S]:
        """Return metadata as what can be changed; readers' own form is asked of it first."""
        data = path.read_bytes()
        parse(_FORMS[kind.type], data, str(path))
        try:
            return Metadata[_S].from_bytes(data)
        except RepositoryError as error:
            raise CorruptContent(f"{path}: not sound metadata: {error}") from None

    def _signed(self, kind: type[_S]) -> _S | None:
        found = self.published(kind)
        return found.signed if found else None

    def _pick(self, kind: type[_S]) -> Metadata[_S]:
        found = self.staged(kind) or self.published(kind)
        if found is None:
            raise CorruptContent(f"{self.folder}: has no {kind.type}, neither staged nor published")
        return found

    def _newest(self, kind: type[_S]) -> _S:
        return self._pick(kind).signed

    def _editable(self, kind: type[_S]) -> _S:
        """Return a copy of what is staged, else of what is published, with the version that it will have."""
        signed = self._newest(kind)
        signed.version = self._next(kind)
        return signed

    def _next(self, kind: type[_S]) -> int:
        before = self._signed(kind)
        return before.version + 1 if before else 1

    def _put(self, target: Target, now: datetime) -> None:
        top = self._editable(Targets)
        top.targets[target.path] = TargetFile(
            target.size, {"sha256": target.digest.hex}, target.path, {"custom": target.custom()}
        )
        self._stage(Metadata(top), now)

    def _stage(self, one: Metadata[_S], now: datetime) -> None:
        role = one.signed.type
        one.signed.expires = self._expiry(role, now)
        self._write(f"staged/{role}.json", one.to_bytes())

    def _add_signature(self, one: Metadata[_S], identifier: str, key: PrivateKey) -> None:
        one.signatures[identifier] = Signature(identifier, key.sign(one.signed_bytes).hex())
        one.signatures = dict(sorted(one.signatures.items()))
        self._write(f"staged/{one.signed.type}.json", one.to_bytes())

    def _settle(self, one: Metadata[_S]) -> bytes:
        """Put metadata under its version, and return its bytes; published bytes stay as they are."""
        role, path = one.signed.type, self._place(one.signed.type, one.signed.version)
        data = (path if path.exists() else self.folder / "staged" / f"{role}.json").read_bytes()
        _put_file(path, data)
        return data

    def _place(self, role: str, version: int) -> Path:
        """Return where the published metadata of one version stands."""
        return self.folder / "metadata" / f"{version}.{role}.json"

    def _expiry(self, role: str, now: datetime) -> datetime:
        return now.replace(microsecond=0) + timedelta(days=self._days[role])

    def _write(self, name: str, data: bytes) -> None:
        _put_file(self.folder / name, data)


def _put_file(path: Path, data: bytes) -> None:
    """Write a file as a whole, unless it is there as it should be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (path.exists() and path.read_bytes() == data):
            replace_file(path, data, path.parent)
    except OSError as error:
        raise MachineError(f"{path}: cannot be written: {error.strerror}") from None


def _describe(version: int, data: bytes) -> MetaFile:
    return MetaFile(version, len(data), {"sha256": Digest.of(data).hex})
