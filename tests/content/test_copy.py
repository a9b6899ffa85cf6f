from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.attacks.registries import cases, client
from tests.attacks.registries.fake import Asked, Registry, Reply
from tests.images import Draft, policy

from intaglio import strictjson
from intaglio.build import kits
from intaglio.content import attestations, copy, kit
from intaglio.content.bare import BareLayout
from intaglio.content.layout import ACTION, Store
from intaglio.content.reference import Reference
from intaglio.content.staging import Staging
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable, PolicyRefusal, RegistryError
from intaglio.progress import Task
from intaglio.verify import verify_image


class Counting:
    """A progress that adds up."""

    def __init__(self) -> None:
        self.work: dict[str, list[int]] = {}

    def task(self, what: str, total: int | None = None, unit: str = "B") -> Task:
        entry = self.work.setdefault(what, [total or 0, 0])

        class Counted:
            def advance(self, amount: int) -> None:
                entry[1] += amount

            def __enter__(self) -> Counted:
                return self

            def __exit__(self, *_: object) -> None:
                pass

        return Counted()  # type: ignore[return-value]

    def note(self, text: str) -> None:
        raise AssertionError(text)


@pytest.fixture
def draft() -> Draft:
    return Draft().sign()


@pytest.fixture
def store(draft: Draft, tmp_path: Path) -> Store:
    return draft.store(tmp_path / "store")


@pytest.mark.parametrize("api", [False, True])
def test_up_and_down_again(store: Store, draft: Draft, tmp_path: Path, api: bool) -> None:
    other = Store.open(tmp_path / "other")
    with Registry(referrers_api=api) as registry:
        up = client.push(store, draft.image.digest, registry.reference())
        down = client.pull(registry.reference(), other)
    assert up == down
    assert sorted(p.name for p in (other.root / "blobs" / "sha256").iterdir()) == sorted(
        p.name for p in (store.root / "blobs" / "sha256").iterdir()
    )
    assert verify_image(other, draft.image.digest, policy()).verdict == "verified"
    assert other.index.referrers(draft.image.digest) == store.index.referrers(draft.image.digest)


def test_progress_counts_every_byte_once(store: Store, draft: Draft, tmp_path: Path) -> None:
    shown = Counting()
    with Registry() as registry:
        failures = [500, 500]

        def fail(asked: Asked, reply: Reply) -> Reply:
            if asked.method in ("PUT", "GET") and asked.kind == "blobs" and failures:
                return Reply(failures.pop(), headers={"Retry-After": "0"})
            return reply

        registry.tamper = fail
        with client.repository(registry.reference(), writing=True) as there:
            copy.push(store, draft.image.digest, there, "1", shown)
        failures += [500, 500]
        with client.repository(registry.reference()) as there:
            place = Reference.parse(registry.reference())
            copy.pull(there, place, Store.open(tmp_path / "other"), "name", lambda staged, image: None, shown)
    assert len(shown.work) == 2
    assert all(total == done > 0 for total, done in shown.work.values()), shown.work


def test_the_tag_comes_last(store: Store, draft: Draft) -> None:
    with Registry() as registry:
        client.push(store, draft.image.digest, registry.reference())
        puts = [asked.what for asked in registry.asked("PUT", "manifests")]
        blobs = [
            number for number, asked in enumerate(registry.requests) if (asked.method, asked.kind) == ("PUT", "blobs")
        ]
        first = next(number for number, asked in enumerate(registry.requests) if asked.what == str(draft.image.digest))
    assert puts[0] == str(draft.image.digest)
    assert puts[-1] == "1"
    assert puts.count("1") == 1
    assert max(blobs) < first


def test_a_second_push_sends_no_byte_and_moves_no_tag(store: Store, draft: Draft) -> None:
    with Registry() as registry:
        client.push(store, draft.image.digest, registry.reference())
        before = dict(registry.manifests)
        registry.requests.clear()
        assert client.push(store, draft.image.digest, registry.reference()).bytes == 0
        assert registry.manifests == before
        assert not [asked for asked in registry.requests if asked.kind == "blobs" and asked.method != "HEAD"]


@pytest.mark.parametrize("api", [False, True])
def test_attestations_in_the_older_form_go_up_and_do_not_come_down(
    store: Store, draft: Draft, tmp_path: Path, api: bool
) -> None:
    tag = f"sha256-{draft.image.digest.hex}.att"
    attested = attestations.derive(store, draft.image.digest)
    assert attested is not None
    other = Store.open(tmp_path / "other")
    with Registry(referrers_api=api) as registry:
        client.push(store, draft.image.digest, registry.reference())
        assert registry.manifests[tag][1] == attested.manifest
        assert {str(Digest.of(blob)) for blob in attested.blobs} <= registry.blobs.keys()
        registry.requests.clear()
        client.pull(registry.reference(), other)
        asked = {asked.what for asked in registry.requests}
    derived = {Digest.of(blob) for blob in (attested.manifest, *attested.blobs[1:])}
    assert not asked & {tag, *map(str, derived)}
    assert not any(other.has(digest) for digest in derived)


@pytest.mark.parametrize("suffix", [".sig", ".att"])
def test_a_tag_that_cannot_be_joined_is_told_of(store: Store, draft: Draft, suffix: str) -> None:
    tag = f"sha256-{draft.image.digest.hex}{suffix}"
    with Registry() as registry, client.repository(registry.reference(), writing=True) as there:
        registry.put(draft.manifest, tag)
        with pytest.raises(AssertionError, match=tag):
            copy.push(store, draft.image.digest, there, "1", Counting())
        assert registry.manifests[tag][1] == draft.manifest


def test_no_tag_without_signatures(store: Store, draft: Draft) -> None:
    with Registry() as registry:
        registry.tamper = lambda asked, reply: (
            Reply(403) if asked.method == "PUT" and asked.what == f"sha256-{draft.image.digest.hex}" else reply
        )
        with pytest.raises(RegistryError, match="403") as caught:
            client.push(store, draft.image.digest, registry.reference())
        assert "permission" in (caught.value.hint or "")
        assert "1" not in registry.manifests


def test_an_image_that_is_not_whole_is_not_pushed(store: Store, draft: Draft) -> None:
    path = store.path(Digest.of(draft.files["model.gguf"]))
    path.unlink()
    with Registry() as registry:
        with pytest.raises(NotVerifiable, match="is not in the store"):
            client.push(store, draft.image.digest, registry.reference())
        assert not registry.asked("PUT", "manifests")
        assert not registry.asked("POST", "blobs")


def test_what_the_check_refuses_is_not_kept(draft: Draft, tmp_path: Path) -> None:
    other = Store.open(tmp_path / "other")
    seen = []

    def refuse(staged: Staging, image: Digest) -> None:
        seen.append((image, len(staged.referrers(image)), client.is_untouched_but_for_staging(other)))
        raise PolicyRefusal("no")

    with Registry() as registry:
        registry.load(draft)
        with pytest.raises(PolicyRefusal):
            client.pull(registry.reference(), other, admit=refuse)
    assert seen == [(draft.image.digest, len(draft.referrers), True)]
    assert client.is_untouched(other)
    assert list((other.root / "partial").iterdir()) == []


def test_the_check_may_trust_what_was_hashed(draft: Draft, tmp_path: Path) -> None:
    hashed: list[frozenset[Digest]] = []
    other = Store.open(tmp_path / "other")
    with Registry() as registry:
        registry.load(draft)
        client.pull(registry.reference(), other, admit=lambda staged, image: hashed.append(staged.hashed))
        client.pull(registry.reference(), other, admit=lambda staged, image: hashed.append(staged.hashed))
    files = {Digest.of(data) for data in draft.files.values()}
    assert all(found >= files for found in hashed)


def test_more_attachments_than_are_taken_are_refused(
    draft: Draft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may push there can bring an image to that bound: what ADR 21 says."""
    other = Store.open(tmp_path / "other")
    monkeypatch.setattr(copy, "MAX_REFERRERS", len(draft.referrers))
    with Registry() as registry:
        registry.load(draft)
        client.pull(registry.reference(), Store.open(tmp_path / "good"))
        cases.attach(registry, draft, {})
        with pytest.raises(CorruptContent, match="found more"):
            client.pull(registry.reference(), other)
    assert client.is_untouched(other)


def test_what_strangers_attached_goes_on_to_a_registry_and_into_kits(draft: Draft, tmp_path: Path) -> None:
    """What was taken can be listed everywhere: in the store's own index, in a registry's, in a kit's."""
    there = Store.open(tmp_path / "there")
    junk: tuple[strictjson.Object, ...] = (
        {"artifactType": 5},
        {"annotations": {"a": 1}},
        {"annotations": {ACTION: "junk"}},
        {},
    )
    with Registry() as registry:
        registry.load(draft)
        cases.attach(registry, draft, *junk)
        client.pull(registry.reference(), there)
    assert len(there.referrers(draft.image.digest)) == len(draft.referrers) + 2
    assert there.tags()
    with Registry() as registry:
        client.push(there, draft.image.digest, registry.reference())
        client.pull(registry.reference(), Store.open(tmp_path / "again"))
    sink = io.BytesIO()
    roots = kits.roots(there, draft.image.digest, set())
    kit.write(there, sink, kit.About(draft.image.digest, "demo:1"), roots, {})
    with (last := Store.open(tmp_path / "last")).scratch("kit") as folder:
        unpacked = kit.read(io.BytesIO(sink.getvalue()), folder)
        kit.take(unpacked, last, kits.brought(BareLayout(folder), draft.image.digest))
    assert verify_image(last, draft.image.digest, policy()).verdict == "verified"


def test_one_failure_ends_the_others(tmp_path: Path) -> None:
    files = {f"file-{number}.txt": b"%d" % number for number in range(40)} | {"largest.txt": b"x" * 9000}
    draft = Draft(files=files).sign()
    missing = str(Digest.of(files["largest.txt"]))
    with Registry() as registry:
        registry.load(draft)

        def slowly(asked: Asked, reply: Reply) -> Reply:
            reply.stall = 0.2 if asked.kind == "blobs" else 0
            return Reply(404) if asked.what == missing else reply

        registry.tamper = slowly
        with pytest.raises(RegistryError, match="404"):
            client.pull(registry.reference(), Store.open(tmp_path / "other"))
        assert len(registry.asked("GET", "blobs")) < 20


def test_two_pulls_at_once(draft: Draft, tmp_path: Path) -> None:
    other = Store.open(tmp_path / "other")
    errors: list[BaseException] = []
    with Registry() as registry:
        registry.load(draft)

        def pull() -> None:
            try:
                client.pull(registry.reference(), Store.open(other.root))
            except BaseException as error:  # noqa: BLE001 - told to the main thread
                errors.append(error)

        threads = [threading.Thread(target=pull) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert other.verify()[1] == ()
    assert verify_image(other, draft.image.digest, policy()).verdict == "verified"


_KILLED = """
import os, sys
from pathlib import Path
from intaglio.content.layout import Store
from tests.attacks.registries import client

left = int(sys.argv[3])

def counted(name):
    real = getattr(os, name)
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return real(*arguments, **options)
    setattr(os, name, call)

store = Store.open(Path(sys.argv[2]))
store.index
for name in ("rename", "link", "unlink", "fchmod", "fsync", "write"):
    counted(name)
client.pull(sys.argv[1], store)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_store_is_sound_and_the_next_pull_ends(tmp_path: Path) -> None:
    draft = Draft(files={"LICENSE": b"Apache-2.0\n"}).sign()
    root = Path(__file__).parents[2]
    with Registry() as registry:
        registry.load(draft)
        moment, killed = 0, 0
        while True:
            store = Store.open(tmp_path / str(moment))
            command = [sys.executable, "-c", _KILLED, registry.reference(), str(store.root), str(moment)]
            result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                break
            assert result.returncode == -9, result.stderr
            killed += 1
            assert store.verify()[1] == ()
            if store.tags():
                assert verify_image(store, draft.image.digest, policy()).verdict == "verified"
            client.pull(registry.reference(), store)
            assert verify_image(store, draft.image.digest, policy()).verdict == "verified"
            assert store.verify()[1] == ()
            moment += 12
    assert killed >= 5
