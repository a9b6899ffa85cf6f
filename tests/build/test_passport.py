"""Passports: enough to verify a model that is mounted beside them, and no byte of the model."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests import images
from tests.guard import site as sites
from tests.images import Draft
from tests.trust import sources

from intaglio.build import passport
from intaglio.content.bare import BareLayout
from intaglio.digest import Digest
from intaglio.errors import NotVerifiable, UsageError
from intaglio.trust import tuf
from intaglio.trust.mirror import FolderMirror
from intaglio.verify import verify_folder


def model(draft: Draft, folder: Path) -> Path:
    for path, data in draft.files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return folder


def test_it_proves_a_model_that_it_does_not_hold(tmp_path: Path) -> None:
    draft = Draft().sign()
    store = draft.store(tmp_path / "store")
    passport.write(store, draft.image.digest, tmp_path / "passport", tmp_path / "home", datetime.now(UTC))
    layout = BareLayout(tmp_path / "passport")
    assert [one.digest for one in layout.images()] == [draft.image.digest]
    for data in draft.files.values():
        assert not layout.path(Digest.of(data)).exists()
    report = verify_folder(layout, draft.image.digest, model(draft, tmp_path / "model"), images.policy())
    assert report.verdict == "verified"
    assert not (tmp_path / "passport" / "metadata").exists()


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    draft = Draft().sign()
    first = passport.contents(draft.store(tmp_path / "one"), draft.image.digest)
    draft.referrers.reverse()
    assert passport.contents(draft.store(tmp_path / "two"), draft.image.digest) == first


def test_what_the_home_knows_of_the_trusted_source_travels(tmp_path: Path) -> None:
    draft, home, now = Draft().sign(), tmp_path / "home", sites.now()
    source = sites.source()
    mirror = FolderMirror(sources.write(source.publish(), tmp_path / "mirror"))
    tuf.set_anchor(home, source.anchor)
    tuf.refresh(home, mirror, now)
    passport.write(draft.store(tmp_path / "store"), draft.image.digest, tmp_path / "passport", home, now)
    found = {path.name for path in (tmp_path / "passport" / "metadata").iterdir()}
    assert found == {"1.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"}


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    draft = Draft().sign()
    store = draft.store(tmp_path / "store")
    (tmp_path / "passport").mkdir()
    (tmp_path / "passport" / "x").touch()
    with pytest.raises(UsageError):
        passport.write(store, draft.image.digest, tmp_path / "passport", tmp_path / "home", datetime.now(UTC))


def test_an_image_that_is_not_here(tmp_path: Path) -> None:
    store = Draft().sign().store(tmp_path / "store")
    with pytest.raises(NotVerifiable):
        passport.write(store, Digest.of(b"x"), tmp_path / "passport", tmp_path / "home", datetime.now(UTC))
    assert not (tmp_path / "passport").exists()
