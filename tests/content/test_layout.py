"""The store: an OCI layout that other tools read, safe against crashes, other processes and its own decay."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tests import images

from intaglio.content.descriptor import EMPTY, MANIFEST_TYPE, Descriptor
from intaglio.content.layout import ABANDONED, ACTION, REF_NAME, Store, check_name
from intaglio.content.modelpack import MODEL_TYPE
from intaglio.content.tree import File, Tree
from intaglio.digest import ActionKey, Digest
from intaglio.errors import CorruptContent, MachineError, NotVerifiable, UsageError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def blobs(store: Store) -> set[str]:
    return {path.name for path in (store.root / "blobs" / "sha256").iterdir()}


def spoil(store: Store, digest: Digest, data: bytes) -> None:
    store.path(digest).chmod(0o644)
    store.path(digest).write_bytes(data)


# --- the layout ------------------------------------------------------------------------------------------------------


def test_a_new_store_is_an_empty_layout(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a" / "b" / "store")
    assert json.loads((store.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((store.root / "index.json").read_bytes()) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [],
    }
    assert (store.root / "blobs" / "sha256").is_dir()
    assert store.tags() == {}


def test_opening_again_changes_nothing(store: Store) -> None:
    digest = store.put(b"x")
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    assert Store.open(store.root).read(digest, what="x") == b"x"
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before


def test_a_relative_place_stays_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.open(Path("store"))
    monkeypatch.chdir("/")
    assert store.read(store.put(b"x"), what="x") == b"x"
    assert store.root == tmp_path / "store"


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(MachineError, match="expected a store or an empty folder"):
        Store.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]


def test_another_version_of_the_layout_is_refused(store: Store) -> None:
    (store.root / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    with pytest.raises(MachineError, match=r"version 1\.0\.0"):
        Store.open(store.root)


# --- blobs -----------------------------------------------------------------------------------------------------------


def test_a_blob_is_read_only_and_comes_back(store: Store) -> None:
    digest = store.put(b"data")
    assert digest == Digest.of(b"data")
    assert stat.S_IMODE(store.path(digest).stat().st_mode) == 0o444
    assert store.read(digest, what="x") == b"data"
    assert store.has(digest)
    assert store.has(digest, 4)
    assert not store.has(digest, 5)
    assert not store.has(Digest.of(b"other"))
    inode = store.path(digest).stat().st_ino
    assert store.put(b"data") == digest
    assert store.path(digest).stat().st_ino == inode, "an intact blob is kept"


def test_reading_re_hashes_and_is_bounded(store: Store) -> None:
    digest = store.put(b"data")
    with pytest.raises(CorruptContent, match="at most 3 bytes"):
        store.read(digest, what="x", max_bytes=3)
    spoil(store, digest, b"DATA")
    with pytest.raises(CorruptContent, match="does not have its digest"):
        store.read(digest, what="x")
    with pytest.raises(NotVerifiable, match="is not in the store"):
        store.read(Digest.of(b"other"), what="x")


@pytest.mark.parametrize("damaged", [b"DATA", b"", b"data and more"])
def test_putting_again_heals_a_damaged_blob(store: Store, tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "file").write_bytes(b"data")
    for heal in (
        lambda: store.put(b"data"),
        lambda: store.adopt(tmp_path / "file", move=False),
        lambda: store.ingest(tmp_path / "file", move=False),
    ):
        digest = store.put(b"data")
        spoil(store, digest, damaged)
        heal()
        assert store.read(digest, what="x") == b"data"
        assert stat.S_IMODE(store.path(digest).stat().st_mode) == 0o444


def test_verifying_the_store_finds_damage(store: Store) -> None:
    good, bad = store.put(b"good"), store.put(b"bad")
    assert store.verify() == (2, ())
    spoil(store, bad, b"BAD")
    count, faults = store.verify()
    assert count == 2
    assert [fault.path for fault in faults] == [store.path(bad)]
    assert store.read(good, what="x") == b"good"


# --- trees -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(store: Store, tmp_path: Path) -> Tree:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(b"a" * 1000)
    (folder / "sub" / "run").write_bytes(b"#!/bin/sh\n")
    (folder / "sub" / "run").chmod(0o755)
    return store.ingest(folder, move=False)


def test_a_tree_needs_its_blobs(store: Store) -> None:
    with pytest.raises(NotVerifiable, match="is not in the store"):
        store.put_tree([File("a", Digest.of(b"a"), 1)])
    digest = store.put(b"a")
    with pytest.raises(NotVerifiable, match="with 2 bytes"):
        store.put_tree([File("a", digest, 2)])
    assert store.put_tree([File("a", digest, 1)]).files[0].path == "a"


def test_a_whole_tree_is_told_from_one_that_lacks_something(store: Store, tree: Tree) -> None:
    assert store.has_tree(tree.digest)
    file = store.path(tree.files[0].digest)
    file.rename(file.with_name("aside"))
    assert not store.has_tree(tree.digest)
    file.write_bytes(b"a" * 999)
    assert not store.has_tree(tree.digest)
    file.unlink()
    file.with_name("aside").rename(file)
    assert store.has_tree(tree.digest)
    store.path(tree.digest).unlink()
    assert not store.has_tree(tree.digest)


def test_a_damaged_manifest_is_no_tree(store: Store, tree: Tree) -> None:
    spoil(store, tree.digest, tree.manifest().replace(b"sub/run", b"sub/fun"))
    with pytest.raises(CorruptContent):
        store.tree(tree.digest)


def test_checking_a_tree_reads_its_bytes(store: Store, tree: Tree) -> None:
    store.check_tree(tree)
    spoil(store, tree.files[0].digest, b"A" + b"a" * 999)
    assert store.has_tree(tree.digest), "sizes do not tell"
    with pytest.raises(CorruptContent, match=r"^a: a blob of the store is damaged") as found:
        store.check_tree(tree)
    assert "--repair" in (found.value.hint or "")
    store.path(tree.files[0].digest).unlink()
    with pytest.raises(CorruptContent, match="gone"):
        store.check_tree(tree)


def test_links_are_read_only_and_share_the_blobs(store: Store, tree: Tree, tmp_path: Path) -> None:
    store.link_tree(tree, tmp_path / "in")
    plain, program = tmp_path / "in" / "a", tmp_path / "in" / "sub" / "run"
    assert plain.samefile(store.path(tree.files[0].digest))
    assert stat.S_IMODE(plain.stat().st_mode) == 0o444
    assert stat.S_IMODE(program.stat().st_mode) == 0o555
    assert stat.S_IMODE(store.path(tree.files[1].digest).stat().st_mode) == 0o444, "a blob is never executable"


def test_copies_are_the_users_own(store: Store, tree: Tree, tmp_path: Path) -> None:
    store.copy_tree(tree, tmp_path / "out")
    plain, program = tmp_path / "out" / "a", tmp_path / "out" / "sub" / "run"
    assert not plain.samefile(store.path(tree.files[0].digest))
    assert (stat.S_IMODE(plain.stat().st_mode), stat.S_IMODE(program.stat().st_mode)) == (0o644, 0o755)
    plain.write_bytes(b"changed")
    store.check_tree(tree)
    spoil(store, tree.files[0].digest, b"A" + b"a" * 999)
    with pytest.raises(CorruptContent, match=r"^a: expected"):
        store.copy_tree(tree, tmp_path / "again")


# --- referrers and claims --------------------------------------------------------------------------------------------


def referrer(store: Store, subject: Digest, text: str, action: ActionKey | None = None) -> tuple[bytes, bytes]:
    blob = text.encode()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": "application/x.test",
        "config": Descriptor("application/vnd.oci.empty.v1+json", Digest.of(EMPTY), 2).to_json(),
        "layers": [Descriptor("text/plain", Digest.of(blob), len(blob)).to_json()],
        "subject": Descriptor(MANIFEST_TYPE, subject, 1).to_json(),
        "annotations": {"text": text, **({ACTION: str(action)} if action else {})},
    }
    return json.dumps(document).encode(), blob


def add(store: Store, subject: Digest, text: str, action: ActionKey | None = None) -> Digest:
    manifest, blob = referrer(store, subject, text, action)
    return store.put_referrer(manifest, [blob])


SUBJECT = Digest.of(b"subject")
KEY = ActionKey(str(Digest.of(b"action")))


def test_referrers_are_found_by_subject_and_claims_by_action(store: Store) -> None:
    one, two = add(store, SUBJECT, "one"), add(store, SUBJECT, "two", KEY)
    add(store, Digest.of(b"other"), "three")
    assert {found.digest for found in store.referrers(SUBJECT)} == {one, two}
    assert store.claims(KEY) == (two,)
    described = next(found for found in store.referrers(SUBJECT) if found.digest == one)
    assert (described.artifact_type, described.annotations) == ("application/x.test", {"text": "one"})
    assert described.size == store.path(one).stat().st_size


def test_a_manifest_without_a_subject_refers_to_nothing(store: Store) -> None:
    with pytest.raises(CorruptContent, match="has no subject"):
        store.put_referrer(b'{"schemaVersion":2}', [])
    assert blobs(store) == set()


@pytest.mark.parametrize(
    "change",
    [{"artifactType": 5}, {"annotations": {"a": 1}}, {"annotations": {"a": "x" * 5000}}, {"subject": {"digest": "x"}}],
)
def test_a_referrer_that_no_index_could_list_is_none(store: Store, change: dict[str, Any]) -> None:
    data = json.dumps({**json.loads(referrer(store, SUBJECT, "one")[0]), **change}).encode()
    with pytest.raises(CorruptContent):
        store.put_referrer(data, [])
    assert not store.has(Digest.of(data))
    store.index.add_referrer(SUBJECT, store.put(data), None)  # as another tool, or an older engine, left it
    assert store.referrers(SUBJECT) == ()
    assert store.rebuild_index() == 0


def test_an_action_that_is_none_leads_nowhere(store: Store) -> None:
    data = json.dumps({**json.loads(referrer(store, SUBJECT, "one")[0]), "annotations": {ACTION: "junk"}}).encode()
    assert [one.digest for one in store.referrers(SUBJECT)] == []
    store.put_referrer(data, [])
    assert [one.digest for one in store.referrers(SUBJECT)] == [Digest.of(data)]


def test_unfinished_downloads_are_kept_for_two_weeks(store: Store) -> None:
    digests = [Digest.of(text) for text in (b"young", b"old", b"held")]
    young, old, held = (store.partial(digest) for digest in digests)
    for path in (young, old, held):
        path.write_bytes(b"x")
    old.chmod(0o444)
    for path in (old, held):
        os.utime(path, (time.time() - ABANDONED - 1,) * 2)
    with open(held, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        store.sweep()
        assert (young.exists(), old.exists(), held.exists()) == (True, False, True)
    store.sweep()
    assert [path.name for path in (store.root / "partial").iterdir()] == [young.name]


def test_the_index_is_not_taken_at_its_word(store: Store) -> None:
    one = add(store, SUBJECT, "one", KEY)
    lie = store.put(referrer(store, Digest.of(b"other"), "lie")[0])
    store.index.add_referrer(SUBJECT, lie, KEY)
    store.index.add_referrer(SUBJECT, Digest.of(b"gone"), KEY)
    assert [found.digest for found in store.referrers(SUBJECT)] == [one]
    assert Digest.of(b"gone") not in store.claims(KEY)


@pytest.mark.parametrize("loss", ["deleted", "empty", "garbage", "old"])
def test_the_index_is_made_anew_from_the_blobs(store: Store, loss: str) -> None:
    kept = {add(store, SUBJECT, str(n), KEY) for n in range(5)}
    store.put(b"{not json")
    store.put(b'{"subject": 7}')
    store.put(b"\0binary")
    store.index.close()
    path = store.root / "index.sqlite"
    for other in store.root.glob("index.sqlite*"):
        other.unlink()
    if loss != "deleted":
        path.write_bytes({"empty": b"", "garbage": b"garbage" * 999, "old": b"SQLite format 3\0"}[loss])
    again = Store.open(store.root)
    assert {found.digest for found in again.referrers(SUBJECT)} == kept
    assert set(again.claims(KEY)) == kept
    assert again.rebuild_index() == 5


def test_a_crash_between_row_and_blob_leaves_no_claim(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is written before its blob is visible: the other way round would lose a claim."""
    manifest, blob = referrer(store, SUBJECT, "one", KEY)
    real = store.put

    def crash(data: bytes) -> Digest:
        if data == manifest:
            raise KeyboardInterrupt
        return real(data)

    monkeypatch.setattr(store, "put", crash)
    with pytest.raises(KeyboardInterrupt):
        store.put_referrer(manifest, [blob])
    monkeypatch.undo()
    assert store.index.claims(KEY) == (Digest.of(manifest),)
    assert store.claims(KEY) == ()
    assert store.referrers(SUBJECT) == ()
    store.put_referrer(manifest, [blob])
    assert store.claims(KEY) == (Digest.of(manifest),)


# --- tags ------------------------------------------------------------------------------------------------------------


def image(store: Store, text: str) -> Descriptor:
    data = json.dumps({"schemaVersion": 2, "text": text}).encode()
    return Descriptor(MANIFEST_TYPE, store.put(data), len(data))


def test_a_tag_means_its_last_image(store: Store) -> None:
    first, second = image(store, "1"), image(store, "2")
    store.tag("a:1", first)
    store.tag("b:1", first)
    store.tag("a:1", second)
    assert {name: found.digest for name, found in store.tags().items()} == {"a:1": second.digest, "b:1": first.digest}
    assert store.resolve("a:1") == second.digest
    assert store.resolve(str(first.digest)) == first.digest
    entries = json.loads((store.root / "index.json").read_bytes())["manifests"]
    assert [entry["annotations"][REF_NAME] for entry in entries] == ["b:1", "a:1"]


def test_what_stands_beside_an_image_is_listed_once(store: Store) -> None:
    signature = image(store, "signature")
    store.tag("a:1", image(store, "1"), [signature])
    store.tag("a:2", image(store, "1"), [signature])
    entries = json.loads((store.root / "index.json").read_bytes())["manifests"]
    assert [entry["digest"] for entry in entries].count(str(signature.digest)) == 1
    assert set(store.tags()) == {"a:1", "a:2"}


def test_what_has_no_name_is_not_found_and_a_near_one_is_proposed(store: Store) -> None:
    store.tag("team/model:1.0", image(store, "1"))
    with pytest.raises(NotVerifiable) as found:
        store.resolve("team/model:1.1")
    assert found.value.hint == "did you mean team/model:1.0?"
    for reference in ("", "nothing", "sha256:", "sha256:" + "0" * 64, "sha256:" + "F" * 64):
        with pytest.raises(NotVerifiable):
            store.resolve(reference)


@pytest.mark.parametrize("name", ["a", "team/model:1.0.0", "registry.example.org:5000/team/model:rc1", "a" * 512])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", " ", "a b", "/a", "-a", ":1", "a\n", "a\0", "é", "a" * 513, "sha256:" + "0" * 64])
def test_no_names(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


# --- many processes --------------------------------------------------------------------------------------------------

WORKER = """
import json, sys
from pathlib import Path
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
from intaglio.content.modelpack import MODEL_TYPE
from intaglio.content.layout import Store
store = Store.open(Path(sys.argv[1]))
number = int(sys.argv[2])
for n in range(30):
    store.put(f"shared {n}".encode() * 1000)
    own = store.put(json.dumps({"schemaVersion": 2, "own": number}).encode())
    data = json.dumps({"schemaVersion": 2, "of": number, "n": n, "subject":
        Descriptor(MANIFEST_TYPE, own, 1).to_json(), "annotations": {}}).encode()
    store.put_referrer(data, [b"blob"])
    if n % 10 == 0:
        store.tag(f"worker-{number}-{n}:1", Descriptor(MANIFEST_TYPE, own, 1))
        store.sweep()
"""


def test_processes_put_and_tag_the_same_at_once(tmp_path: Path) -> None:
    root = tmp_path / "store"
    started = [subprocess.Popen([sys.executable, "-c", WORKER, str(root), str(n)]) for n in range(4)]
    assert [process.wait(timeout=120) for process in started] == [0] * 4
    store = Store.open(root)
    assert store.verify()[1] == ()
    assert set(store.tags()) == {f"worker-{n}-{m}:1" for n in range(4) for m in (0, 10, 20)}
    for n in range(4):
        own = Digest.of(json.dumps({"schemaVersion": 2, "own": n}).encode())
        assert len(store.referrers(own)) == 30
    assert list((root / "tmp").iterdir()) == []


def test_killed_at_any_moment_every_visible_blob_is_whole(tmp_path: Path) -> None:
    root = tmp_path / "store"
    for number in range(8):
        process = subprocess.Popen([sys.executable, "-c", WORKER, str(root), str(number)], start_new_session=True)
        time.sleep(0.05 + 0.04 * number)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        store = Store.open(root)
        assert store.verify()[1] == ()
        store.tags()
        store.rebuild_index()
    assert subprocess.run([sys.executable, "-c", WORKER, str(root), "9"], check=False).returncode == 0
    assert len(Store.open(root).tags()) >= 3


HOLDER = """
import sys, time
from pathlib import Path
from intaglio.content.modelpack import MODEL_TYPE
from intaglio.content.layout import Store
with Store.open(Path(sys.argv[1])).lock("action"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_against_others_and_released_by_a_crash(store: Store) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(store.root)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    notes: list[str] = []

    class Notes:
        def task(self, *rest: object) -> NoReturn:
            raise AssertionError

        def note(self, text: str) -> None:
            notes.append(text)
            process.kill()  # only now, so that it is the crash that lets go

    with store.lock("action", Notes()):
        assert notes == ["waiting for another build of the same action"]
    process.communicate()
    with store.lock("action", Notes()):
        assert len(notes) == 1


def test_scratch_is_private_and_gone_afterwards(store: Store) -> None:
    with store.scratch("step") as one, store.scratch("step") as two:
        assert one != two
        assert one.is_relative_to(store.root)
        assert stat.S_IMODE(one.parent.stat().st_mode) == 0o700
        (one / "sub").mkdir()
        (one / "sub").chmod(0)
    assert list((store.root / "tmp").iterdir()) == []
    with pytest.raises(RuntimeError), store.scratch("step"):
        raise RuntimeError
    assert list((store.root / "tmp").iterdir()) == []


# --- a small disk ----------------------------------------------------------------------------------------------------

FILLER = """
import os, sys
from pathlib import Path
from intaglio.content.modelpack import MODEL_TYPE
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import MachineError
root = Path(sys.argv[1])
store = Store.open(root)
(root / "in").write_bytes(os.urandom(600_000))
kept = store.put(b"kept")
full = 0
for attempt in (
    lambda: store.put(os.urandom(900_000)),
    lambda: store.adopt(root / "in", move=False),
    lambda: store.ingest(root / "in", move=False),
):
    try:
        attempt()
    except OSError as error:
        assert error.errno == 28, error
        full += 1
assert full == 3, full
assert {path.name for path in (root / "blobs/sha256").iterdir()} == {kept.hex}
assert list((root / "tmp").iterdir()) == []
digest, _ = store.adopt(root / "in", move=True)
assert store.has(digest, 600_000)
assert store.verify()[1] == ()
"""


def test_a_full_disk_keeps_nothing_half_written(tmp_path: Path) -> None:
    """On a file system of 1 MB that only the test's own mount namespace sees."""
    own = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    script = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    done = subprocess.run(
        [*own, "sh", "-c", script, str(tmp_path), sys.executable, "-c", FILLER, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- other tools -----------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> tuple[Store, Digest]:
    """A store with a signed model image under the name demo."""
    draft = images.Draft().sign()
    store = draft.store(tmp_path / "store")
    described = Descriptor(MANIFEST_TYPE, draft.image.digest, draft.image.size, MODEL_TYPE)
    store.tag("demo", described, store.referrers(draft.image.digest))
    return store, draft.image.digest


def out(*argv: object) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.real
def test_oras_reads_the_store(published: tuple[Store, Digest], oras: Path, tmp_path: Path) -> None:
    store, digest = published
    assert out(oras, "repo", "tags", "--oci-layout", store.root).split() == ["demo"]
    described = json.loads(out(oras, "manifest", "fetch", "--descriptor", "--oci-layout", f"{store.root}:demo"))
    assert described["digest"] == str(digest)
    manifest = json.loads(out(oras, "manifest", "fetch", "--oci-layout", f"{store.root}@{digest}"))
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    found = json.loads(out(oras, "discover", "--format", "json", "--oci-layout", f"{store.root}:demo"))
    listed = found.get("referrers") or found.get("manifests")
    assert {one["digest"] for one in listed} == {str(one.digest) for one in store.referrers(digest)}
    out(oras, "pull", "--oci-layout", f"{store.root}:demo", "--output", tmp_path / "pulled")
    expected = images.model_files()
    found = [path for path in (tmp_path / "pulled").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "pulled").as_posix() for path in found} == set(expected)
    assert all((tmp_path / "pulled" / path).read_bytes() == data for path, data in expected.items())
    out(oras, "copy", "--from-oci-layout", f"{store.root}:demo", "--to-oci-layout", f"{tmp_path}/copy:demo")
    assert Store.open(tmp_path / "copy").resolve("demo") == digest


@pytest.mark.real
def test_skopeo_reads_the_store(published: tuple[Store, Digest], skopeo: Path, tmp_path: Path) -> None:
    store, digest = published
    raw = out(skopeo, "inspect", "--raw", f"oci:{store.root}:demo")
    assert Digest.of(raw.encode()) == digest
    out(skopeo, "copy", "--preserve-digests", f"oci:{store.root}:demo", f"oci:{tmp_path}/copy:demo")
    copied = Store.open(tmp_path / "copy")
    assert copied.resolve("demo") == digest
    assert copied.put(b"more") == Digest.of(b"more"), "and it can be written to"
    for layer in json.loads(raw)["layers"]:
        assert copied.read(Digest(layer["digest"]), what="layer")


@pytest.mark.real
def test_what_other_tools_copy_in_is_read_by_us(published: tuple[Store, Digest], oras: Path, tmp_path: Path) -> None:
    """A layout that oras wrote is one that a store opens, finds its names in, and reads its blobs from."""
    store, digest = published
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    out(oras, "copy", "-r", "--from-oci-layout", f"{store.root}:demo", "--to-oci-layout", f"{tmp_path}/other:v1")
    other = Store.open(tmp_path / "other")
    assert other.resolve("v1") == digest
    assert {one.digest for one in other.referrers(digest)} == {one.digest for one in store.referrers(digest)}
    assert other.verify()[1] == ()
