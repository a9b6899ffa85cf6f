"""The corpus of attacks by kit: a function a case, each of which writes a real kit with one thing wrong.

Each gets a site: a good image, the trusted source that lists what it was made of, and a host that has that source's
root as its anchor, a policy, and what it has seen of the source before. The host must refuse the kit with the stated
exit code, and be what it was.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from tests.trust import sources
from tests.trust.sources import DAY, Files, MemoryMirror, Source, target
from tests.workshop import Workshop, furnish
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from intaglio.build import kits, toolchain
from intaglio.content import kit
from intaglio.content.descriptor import EMPTY, EMPTY_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.content.tree import File, Tree
from intaglio.digest import Digest
from intaglio.errors import ExitCode
from intaglio.strictjson import canonical
from intaglio.trust.repository import key_of
from intaglio.trust.tuf import refresh, set_anchor

NAME = "tests/shop:1.0.0"
POLICY = "policies/acme/release@1"
RULES = '\n[source]\nrequired = true\n\n[freshness]\nmax_age = "30d"\n'


def current() -> Source:
    """A trusted source of today: its metadata has not expired."""
    now = datetime.now(UTC).replace(microsecond=0)
    return Source(
        root=Root(expires=now + 365 * DAY),
        targets=Targets(expires=now + 180 * DAY),
        snapshot=Snapshot(expires=now + 30 * DAY),
        timestamp=Timestamp(expires=now + 7 * DAY),
        signed_at=now,
    )


@dataclass
class Site:
    """A workshop whose image is good, and the source that lists what went in."""

    shop: Workshop
    image: Digest
    data: Tree
    tools: Tree

    @classmethod
    def make(cls, root: Path, *, own_keys: bool = False) -> Site:
        """Build the image; with keys that every workshop has, or with ``own_keys``, which nobody else knows."""
        shop = furnish(root)
        if own_keys:
            shutil.rmtree(shop.home / "keys")
            (shop.home / "policy.toml").unlink()
            shop.run("init").ok()
        shop.chain("first", "second")
        image = Digest(shop.built()["image"])
        (data,) = {one.digest for one in kits.dependencies(shop.store, image) if one.kind == "origin"}
        return cls(shop, image, shop.store.tree(data), toolchain.load(shop.builder / "toolchains" / "tiny").tree())

    @cached_property
    def theirs(self) -> Site:
        """The same image, built and signed by somebody else."""
        return Site.make(self.shop.root.with_name("theirs"), own_keys=True)

    def source(self, source: Source, *, policy: bytes | None = None, **changes: object) -> Source:
        """Let ``source`` list what the image was made of; ``changes`` are about the data."""
        source.add(target("datasets/acme/words@1", self.data, **changes), self.data)
        source.add(target("toolchains/acme/tiny@1", self.tools), self.tools)
        if policy is not None:
            content = Tree.of([File("policy.toml", Digest.of(policy), len(policy))])
            source.add(target(POLICY, content), content)
            source.files[f"blobs/sha256/{Digest.of(policy).hex}"] = policy
        return source

    @property
    def policy(self) -> str:
        """What the host asks: this workshop's keys, listed inputs, fresh metadata."""
        return (self.shop.home / "policy.toml").read_text() + RULES

    def host(self, home: Path, source: Source | None, seen: Files | None = None, *, policy: str | None = None) -> Path:
        """Make a host with an anchor, a policy, and what it has seen of the source."""
        home.mkdir(exist_ok=True)
        if source is not None:
            set_anchor(home, source.anchor)
        if policy != "":
            (home / "policy.toml").write_text(policy or self.policy)
        if seen is not None:
            refresh(home, MemoryMirror(seen), datetime.now(UTC))
        return home

    def kit(
        self, path: Path, files: Files, *, without: Iterable[Digest] = (), name: str = NAME, more: Iterable[Digest] = ()
    ) -> Path:
        """Write a kit with the image and those files of a source."""
        left = set(without)
        roots = [one for one in kits.roots(self.shop.store, self.image, set()) if one not in left]
        with open(path, "wb") as sink:
            kit.write(self.shop.store, sink, kit.About(self.image, name), (*roots, *more), files)
        return path


@dataclass(frozen=True, slots=True)
class Attack:
    """What the attacker hands over, and the host it is meant for."""

    kit: Path
    home: Path


@dataclass(frozen=True, slots=True)
class Case:
    """One attack."""

    name: str
    build: Callable[[Site, Path], Attack]
    exit_code: ExitCode
    says: str


CASES: list[Case] = []
_Build = Callable[[Site, Path], Attack]


def case(exit_code: ExitCode, says: str) -> Callable[[_Build], _Build]:
    def register(build: _Build) -> _Build:
        CASES.append(Case(build.__name__, build, exit_code, says))
        return build

    return register


def members(path: Path) -> list[tuple[str, bytes]]:
    """What a kit holds, in its order."""
    with tarfile.open(path) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def pack(path: Path, held: Iterable[tuple[str, bytes]]) -> Path:
    """Write an archive with those members."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in held:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


# --- whose word it is ------------------------------------------------------------------------------------------------


def stranger() -> Source:
    """A trusted source like ours, by keys of somebody else."""
    source = current()
    theirs = {role: (sources.key(900 + number),) for number, role in enumerate(source.signers)}
    source.root.keys.clear()
    for role, keys in theirs.items():
        source.root.roles[role].keyids.clear()
        source.root.roles[role].threshold = 1
        source.root.add_key(key_of(keys[0].public), role)
    source.signers.update(theirs)
    source.files = {"metadata/1.root.json": sources.sign(source.root, theirs["root"])}
    return source


@case(ExitCode.UNTRUSTED, "timestamp: expected 1 good signatures, found 0")
def signed_whole_by_somebody_else(site: Site, folder: Path) -> Attack:
    """Own root, own targets, own policy, own builder and release keys: good in every way, and nobody's we know."""
    policy = (site.theirs.shop.home / "policy.toml").read_bytes()
    files = site.theirs.source(stranger(), policy=policy).publish()
    ours = site.source(current())
    return Attack(site.theirs.kit(folder / "kit", files), site.host(folder / "host", ours, ours.publish()))


@case(ExitCode.UNTRUSTED, "not signed by a key that the policy names")
def their_image_under_our_source(site: Site, folder: Path) -> Attack:
    """The publisher's true metadata, carried along by somebody whose keys the policy does not name."""
    ours = site.source(current())
    files = ours.publish()
    return Attack(site.theirs.kit(folder / "kit", files), site.host(folder / "host", ours, files))


@case(ExitCode.UNTRUSTED, "not signed by a key that the policy names")
def their_image_without_metadata(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    return Attack(site.theirs.kit(folder / "kit", {}), site.host(folder / "host", ours, ours.publish()))


@case(ExitCode.UNTRUSTED, "timestamp: expected 1 good signatures, found 0")
def our_image_under_their_source(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    files = site.source(stranger()).publish()
    return Attack(site.kit(folder / "kit", files), site.host(folder / "host", ours, ours.publish()))


@case(ExitCode.UNTRUSTED, "root 2: by the keys of root 1")
def their_root_as_our_second(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    seen = ours.publish()
    theirs = stranger()
    theirs.root.version = 1
    files = {**site.source(theirs).publish(), **theirs.next_root().now()}
    return Attack(site.kit(folder / "kit", files), site.host(folder / "host", ours, seen))


@case(ExitCode.POLICY, "the trusted source does not list it")
def their_policy_by_its_name(site: Site, folder: Path) -> Attack:
    """The host takes its policy by name; the kit has one of that name, which no signed metadata lists."""
    policy = (site.theirs.shop.home / "policy.toml").read_bytes()
    extra = site.theirs.source(stranger(), policy=policy).files
    ours = site.source(current())
    files = {**{path: data for path, data in extra.items() if not path.startswith("metadata/")}, **ours.publish()}
    home = site.host(folder / "host", ours, policy="")
    (home / "policy.name").write_text(POLICY)
    return Attack(site.theirs.kit(folder / "kit", files), home)


@case(ExitCode.NOT_VERIFIABLE, "there is no anchor")
def a_policy_by_name_and_no_anchor(site: Site, folder: Path) -> Attack:
    files = site.source(current(), policy=site.policy.encode()).publish()
    home = site.host(folder / "host", None, policy="")
    (home / "policy.name").write_text(POLICY)
    return Attack(site.kit(folder / "kit", files), home)


@case(ExitCode.NOT_VERIFIABLE, "there is no policy")
def no_policy_on_this_side(site: Site, folder: Path) -> Attack:
    """The kit brings one, even listed; nobody here has named it."""
    ours = site.source(current(), policy=site.policy.encode())
    return Attack(site.kit(folder / "kit", ours.publish()), site.host(folder / "host", ours, policy=""))


# --- when it was said ------------------------------------------------------------------------------------------------


@case(ExitCode.UNTRUSTED, "rolled back")
def rolled_back(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    old = ours.publish()
    return Attack(site.kit(folder / "kit", old), site.host(folder / "host", ours, ours.publish()))


@case(ExitCode.UNTRUSTED, "rolled back")
def rolled_back_to_before_the_yank(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    old = ours.publish()
    site.source(ours, status="yanked", reason="it leaked")
    return Attack(site.kit(folder / "kit", old), site.host(folder / "host", ours, ours.publish()))


@case(ExitCode.STALE, "the policy allows 30 d")
def expired_beyond_the_bound(site: Site, folder: Path) -> Attack:
    """Signed in January 2026, and said by nobody since."""
    old = site.source(Source())
    return Attack(site.kit(folder / "kit", old.publish()), site.host(folder / "host", old))


@case(ExitCode.STALE, "nothing says when")
def expired_and_without_a_date(site: Site, folder: Path) -> Attack:
    old = site.source(Source(signed_at=None))
    return Attack(site.kit(folder / "kit", old.publish()), site.host(folder / "host", old))


@case(ExitCode.UNTRUSTED, "after its expiry")
def signed_after_its_own_end(site: Site, folder: Path) -> Attack:
    old = site.source(Source(signed_at=datetime.now(UTC).replace(microsecond=0)))
    return Attack(site.kit(folder / "kit", old.publish()), site.host(folder / "host", old))


# --- what does not fit together --------------------------------------------------------------------------------------


@case(ExitCode.CORRUPT, "not the file that was promised")
def targets_of_another_state(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    old = ours.publish()
    site.source(ours, status="yanked", reason="it leaked")
    mixed = {**ours.publish(), "metadata/2.targets.json": old["metadata/1.targets.json"]}
    return Attack(site.kit(folder / "kit", mixed), site.host(folder / "host", ours, old))


@case(ExitCode.CORRUPT, "missing")
def metadata_with_a_hole(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    files = ours.publish()
    del files["metadata/1.snapshot.json"]
    return Attack(site.kit(folder / "kit", files), site.host(folder / "host", ours))


@case(ExitCode.CORRUPT, "targets/datasets")
def a_target_that_is_not_what_its_name_says(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    files = ours.publish()
    path = next(path for path in files if path.startswith("targets/datasets/"))
    files[path] = files[path].replace(b"data.txt", b"date.txt")
    return Attack(site.kit(folder / "kit", files), site.host(folder / "host", ours))


@case(ExitCode.CORRUPT, "expected sha256:")
def a_flipped_bit_in_a_blob(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    held = members(site.kit(folder / "plain", ours.publish()))
    flipped = [(name, data[:-1] + bytes([data[-1] ^ 1]) if name.startswith("blobs/") else data) for name, data in held]
    return Attack(pack(folder / "kit", flipped), site.host(folder / "host", ours))


@case(ExitCode.CORRUPT, "missing")
def a_blob_is_not_there(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    model = next(file for file in site.shop.store.tree(site.data.digest).files)
    weights = json.loads(site.shop.store.read(site.image, what="image"))["layers"][0]["digest"]
    assert weights != str(model.digest)
    held = members(site.kit(folder / "plain", ours.publish()))
    gone = "blobs/" + weights.replace(":", "/")
    return Attack(pack(folder / "kit", [one for one in held if one[0] != gone]), site.host(folder / "host", ours))


# --- what is not there -----------------------------------------------------------------------------------------------


@case(ExitCode.POLICY, "the trusted source does not list it")
def an_input_that_is_not_listed(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    del ours.targets.targets["datasets/acme/words/1"]
    return Attack(site.kit(folder / "kit", ours.publish()), site.host(folder / "host", ours))


@case(ExitCode.POLICY, "was yanked by the trusted source: it leaked")
def an_input_yanked_since(site: Site, folder: Path) -> Attack:
    """The kit itself brings the news."""
    ours = site.source(current())
    seen = ours.publish()
    site.source(ours, status="yanked", reason="it leaked")
    return Attack(site.kit(folder / "kit", ours.publish()), site.host(folder / "host", ours, seen))


@case(ExitCode.NOT_VERIFIABLE, "there is none to ask")
def a_source_is_asked_for_and_none_is_there(site: Site, folder: Path) -> Attack:
    return Attack(site.kit(folder / "kit", {}), site.host(folder / "host", current()))


@case(ExitCode.UNTRUSTED, "no ")
def without_its_signatures(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    kinds = {one.digest: one.artifact_type or "" for one in site.shop.store.referrers(site.image)}
    signatures = [digest for digest, kind in kinds.items() if "lineage" not in kind]
    return Attack(site.kit(folder / "kit", ours.publish(), without=signatures), site.host(folder / "host", ours))


@case(ExitCode.UNTRUSTED, "no builder's claim says how")
def without_its_lineage(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    kinds = {one.digest: one.artifact_type or "" for one in site.shop.store.referrers(site.image)}
    lineage = [digest for digest, kind in kinds.items() if "lineage" in kind]
    assert len(lineage) == 1
    return Attack(site.kit(folder / "kit", ours.publish(), without=lineage), site.host(folder / "host", ours))


@case(ExitCode.UNTRUSTED, "test-result")
def without_an_attestation_that_the_policy_asks_for(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    policy = site.policy + '\n[attestations]\n"https://in-toto.io/attestation/test-result/v0.1" = "release"\n'
    return Attack(site.kit(folder / "kit", ours.publish()), site.host(folder / "host", ours, policy=policy))


# --- the archive -----------------------------------------------------------------------------------------------------


@case(ExitCode.CORRUPT, "unexpected member")
def a_private_key_beside_the_metadata(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    held = members(site.kit(folder / "plain", ours.publish()))
    return Attack(pack(folder / "kit", [*held, ("keys/release.pub", b"x")]), site.host(folder / "host", ours))


@case(ExitCode.CORRUPT, "unexpected member")
def a_policy_for_the_home(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    held = members(site.kit(folder / "plain", ours.publish()))
    return Attack(pack(folder / "kit", [("policy.toml", b"x"), *held]), site.host(folder / "host", ours))


@case(ExitCode.CORRUPT, "unexpected member")
def a_target_outside_its_folder(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    held = members(site.kit(folder / "plain", ours.publish()))
    name = f"targets/policies/../../{Digest.of(b'x').hex}.1"
    return Attack(pack(folder / "kit", [*held, (name, b"x")]), site.host(folder / "host", ours))


@case(ExitCode.CORRUPT, "expected a name such as team/model:1.0")
def a_name_that_moves_the_cursor(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    return Attack(site.kit(folder / "kit", ours.publish(), name="\x1b[2J../x"), site.host(folder / "host", ours))


@case(ExitCode.CORRUPT, "expected a name such as team/model:1.0")
def a_name_that_is_a_path(site: Site, folder: Path) -> Attack:
    ours = site.source(current())
    return Attack(site.kit(folder / "kit", ours.publish(), name="../../etc/passwd"), site.host(folder / "host", ours))


def claim_about(site: Site, subject: Digest) -> Digest:
    """Store a manifest that refers to ``subject`` as a claim about some action, and return its digest."""
    store = site.shop.store
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": Descriptor(EMPTY_TYPE, Digest.of(EMPTY), len(EMPTY)).to_json(),
            "layers": [Descriptor(EMPTY_TYPE, Digest.of(EMPTY), len(EMPTY)).to_json()],
            "subject": Descriptor(MANIFEST_TYPE, subject, 2).to_json(),
            "annotations": {"dev.intaglio.action": f"sha256:{'0' * 64}"},
        }
    )
    return store.put(manifest)
