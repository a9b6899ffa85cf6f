from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from tests.attacks.registries.client import is_untouched
from tests.images import Draft

from intaglio.content.descriptor import Descriptor
from intaglio.content.layout import Store
from intaglio.content.staging import Incoming, Staging
from intaglio.digest import Digest
from intaglio.errors import CorruptContent

DATA = bytes(range(256)) * 1000
BLOB = Descriptor("", Digest.of(DATA), len(DATA))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def give(sink: Incoming, data: bytes) -> None:
    """Let ``sink`` take ``data``, a piece after the other."""
    while data:
        space = sink.space()
        count = min(len(space), len(data), 100_000)
        space[:count] = data[:count]
        sink.filled(count)
        data = data[count:]


def take(staging: Staging, data: bytes = DATA, blob: Descriptor = BLOB) -> None:
    with staging.incoming(blob) as sink:
        give(sink, data[sink.size :])
        sink.finish()


def test_nothing_is_visible_before_it_is_published(store: Store) -> None:
    with Staging.open(store) as staging:
        take(staging)
        small = staging.put(b"small")
        assert not list((store.root / "blobs" / "sha256").iterdir())
        assert staging.path(BLOB.digest).read_bytes() == DATA
        assert staging.read(small, what="small") == b"small"
        assert staging.hashed == {BLOB.digest, small}
        staging.publish()
    assert store.path(BLOB.digest).read_bytes() == DATA
    assert store.path(BLOB.digest).stat().st_mode & 0o777 == 0o444
    assert store.path(BLOB.digest).stat().st_nlink == 1
    assert store.has(small)
    assert list((store.root / "partial").iterdir()) == []
    assert list((store.root / "tmp").iterdir()) == []


def test_what_is_not_published_leaves_only_what_can_be_gone_on_with(store: Store) -> None:
    with Staging.open(store) as staging:
        take(staging)
        staging.put(b"small")
    assert [path.name for path in (store.root / "partial").iterdir()] == [BLOB.digest.hex]
    assert list((store.root / "tmp").iterdir()) == []
    with Staging.open(store) as staging:
        with staging.incoming(BLOB) as sink:
            assert sink.size == len(DATA)
            sink.finish()
        staging.publish()
    assert store.path(BLOB.digest).read_bytes() == DATA


def test_what_is_refused_leaves_nothing(store: Store) -> None:
    with Staging.open(store) as staging:
        take(staging)
        staging.put(b"small")
        staging.discard()
    assert is_untouched(store)
    assert list((store.root / "partial").iterdir()) == []


def test_referrers_are_known_here_and_only_then_in_the_store(store: Store) -> None:
    draft = Draft().sign()
    with Staging.open(store) as staging:
        for one in draft.referrers:
            for blob in one.blobs:
                staging.put(blob)
            staging.put(one.manifest)
            staging.refer(draft.image.digest, Descriptor("t", one.digest, len(one.manifest)))
        assert len(staging.referrers(draft.image.digest)) == len(draft.referrers)
        assert staging.referrers(BLOB.digest) == ()
        assert store.referrers(draft.image.digest) == ()
        staging.publish()
    assert len(store.referrers(draft.image.digest)) == len(draft.referrers)


def test_bytes_that_are_not_the_blob_are_thrown_away(store: Store) -> None:
    with Staging.open(store) as staging:
        with staging.incoming(BLOB) as sink:
            give(sink, DATA[:-1] + b"?")
            with pytest.raises(CorruptContent, match=str(BLOB.digest)):
                sink.finish()
            assert sink.size == 0
            give(sink, DATA)
            sink.finish()
        assert staging.path(BLOB.digest).read_bytes() == DATA


def test_a_blob_broken_off_is_gone_on_with(store: Store) -> None:
    with Staging.open(store) as staging, staging.incoming(BLOB) as sink:
        give(sink, DATA[:1000])
    with Staging.open(store) as staging:
        with staging.incoming(BLOB) as sink:
            assert sink.size == 1000
            give(sink, DATA[1000:])
            sink.finish()
        assert staging.path(BLOB.digest).read_bytes() == DATA


def test_a_file_that_is_a_blob_of_the_store_by_another_name_is_never_written(store: Store) -> None:
    # As a crash between the two halves of publishing leaves it.
    digest = store.put(DATA[:500])
    os.link(store.path(digest), store.partial(BLOB.digest))
    with Staging.open(store) as staging:
        take(staging)
        staging.publish()
    assert store.path(digest).read_bytes() == DATA[:500]
    assert store.verify() == (2, ())


def test_a_link_in_place_of_the_file_is_not_followed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    store.partial(BLOB.digest).symlink_to(tmp_path / "precious")
    with Staging.open(store) as staging, pytest.raises(OSError, match="symbolic"):
        take(staging)
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_one_writer_at_a_time(store: Store) -> None:
    order = []

    def second() -> None:
        with Staging.open(store) as staging:
            with staging.incoming(BLOB) as sink:
                order.append(("second", sink.size))
                give(sink, DATA[sink.size :])
                sink.finish()
            staging.publish()

    other = threading.Thread(target=second)
    with Staging.open(store) as staging:
        with staging.incoming(BLOB) as sink:
            other.start()
            time.sleep(0.1)
            give(sink, DATA)
            order.append(("first", sink.size))
            sink.finish()
        other.join()
        assert order == [("first", len(DATA)), ("second", len(DATA))]
        staging.publish()
    assert store.verify() == (1, ())
    assert list((store.root / "partial").iterdir()) == []


def test_the_file_that_was_waited_for_may_be_gone(store: Store) -> None:
    sizes = []

    def second() -> None:
        with Staging.open(store) as staging, staging.incoming(BLOB) as sink:
            sizes.append(sink.size)

    other = threading.Thread(target=second)
    with Staging.open(store) as staging, staging.incoming(BLOB) as sink:
        other.start()
        time.sleep(0.1)
        give(sink, DATA)
        sink.restart()  # takes the file away that the other waits for
        give(sink, DATA[:7])
    other.join()
    assert sizes in ([0], [7])


def test_a_damaged_blob_of_the_store_does_not_count(store: Store) -> None:
    store.put(DATA)
    with Staging.open(store) as staging:
        assert staging.has(BLOB)
        assert staging.hashed == {BLOB.digest}
    path = store.path(BLOB.digest)
    path.chmod(0o600)
    path.write_bytes(DATA[:-1] + b"?")
    with Staging.open(store) as staging:
        assert not staging.has(BLOB)
        take(staging)
        staging.publish()
    assert path.read_bytes() == DATA
