"""Release signatures: looked for in every form, and believed about this image alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from tests import images

from intaglio.build.release import folder_signature, is_released
from intaglio.content.descriptor import Descriptor
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import Untrusted, VerificationError
from intaglio.trust.cosign import Referrer, bundle_referrer, signature_referrers
from intaglio.trust.key import PrivateKey
from intaglio.trust.signature import Hint, sign_bundle
from intaglio.trust.statement import model_signing_statement

RELEASE, STRANGER = images.key("release"), images.key("stranger")


@pytest.fixture
def draft() -> images.Draft:
    return images.Draft().seal()


@pytest.fixture
def store(draft: images.Draft, tmp_path: Path) -> Store:
    return draft.store(tmp_path / "store")


def files(draft: images.Draft) -> list[tuple[str, Digest]]:
    return [(file.path, file.digest) for file in draft.entries]


def sign(
    draft: images.Draft, key: PrivateKey, subject: Descriptor | None = None, about: images.Draft | None = None
) -> Sequence[Referrer]:
    """Return the three forms, about ``about`` (an image like the draft), with ``subject`` as what they refer to."""
    about = about or draft
    made = signature_referrers(about.image, images.NAME, files(about), key)
    if subject is None:
        return made
    return [
        bundle_referrer(subject, next(blob for blob in one.blobs if blob != b"{}"), kind)
        for one, kind in ((made[0], "x"), (made[2], "y"))
    ]


def put(store: Store, referrers: Iterable[Referrer]) -> None:
    for one in referrers:
        store.put_referrer(one.manifest, one.blobs)


def test_all_three_forms_make_a_release(store: Store, draft: images.Draft) -> None:
    forms = sign(draft, RELEASE)
    for number, one in enumerate(forms):
        assert not is_released(store, draft.image, files(draft), RELEASE.public), f"{number} of three"
        put(store, [one])
    assert is_released(store, draft.image, files(draft), RELEASE.public)
    assert not is_released(store, draft.image, files(draft), STRANGER.public)


def test_a_strangers_signatures_are_none(store: Store, draft: images.Draft) -> None:
    put(store, sign(draft, STRANGER))
    assert not is_released(store, draft.image, files(draft), RELEASE.public)
    with pytest.raises(Untrusted, match="no model signature"):
        folder_signature(store, draft.image.digest, [RELEASE.public])


def test_signatures_of_another_image_hung_onto_this_one_are_none(store: Store, draft: images.Draft) -> None:
    other = images.Draft(files={**images.model_files(), "LICENSE": b"MIT\n"}).seal()
    put(store, sign(draft, RELEASE)[1:2])
    put(store, sign(draft, RELEASE, subject=draft.image, about=other))
    assert not is_released(store, draft.image, files(draft), RELEASE.public)
    with pytest.raises(Untrusted):
        folder_signature(store, draft.image.digest, [RELEASE.public])
    put(store, sign(draft, RELEASE))
    assert is_released(store, draft.image, files(draft), RELEASE.public)


@pytest.mark.parametrize("how", ["gone", "garbage"])
def test_a_damaged_signature_is_none(store: Store, draft: images.Draft, how: str) -> None:
    forms = sign(draft, RELEASE)
    put(store, forms)
    blob = store.path(Digest.of(next(blob for blob in forms[0].blobs if blob != b"{}")))
    blob.unlink()
    if how == "garbage":
        blob.write_bytes(b"garbage")
    assert not is_released(store, draft.image, files(draft), RELEASE.public)
    put(store, forms)
    assert is_released(store, draft.image, files(draft), RELEASE.public)


def test_the_folders_signature_is_the_model_signing_bundle(store: Store, draft: images.Draft) -> None:
    put(store, sign(draft, RELEASE))
    bundle = folder_signature(store, draft.image.digest, [STRANGER.public, RELEASE.public])
    expected = sign_bundle(model_signing_statement(images.NAME, files(draft)).payload(), RELEASE, Hint.OMS)
    assert bundle == expected
    with pytest.raises(VerificationError):
        folder_signature(store, Digest.of(b"nothing"), [RELEASE.public])
