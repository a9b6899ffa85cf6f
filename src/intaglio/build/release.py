"""The release signatures that an image carries: looked for before a key is opened to make them."""

from __future__ import annotations

from collections.abc import Sequence

from intaglio.content.descriptor import Descriptor
from intaglio.content.layout import Store
from intaglio.content.modelpack import SIMPLE_SIGNING_TYPE
from intaglio.digest import Digest
from intaglio.errors import Untrusted, VerificationError
from intaglio.trust.cosign import Link, open_cosign
from intaglio.trust.key import PublicKey
from intaglio.trust.signature import BUNDLE_TYPE
from intaglio.trust.statement import COSIGN_SIGN, MODEL_SIGNING, open_statement

_FORMS = {COSIGN_SIGN, MODEL_SIGNING, SIMPLE_SIGNING_TYPE}


def is_released(store: Store, image: Descriptor, key: PublicKey) -> bool:
    """Return whether ``key`` signed ``image`` in every form: cosign's two, and OpenSSF Model Signing."""
    found = set()
    for referrer in store.referrers(image.digest):
        try:
            found.add(_form(store, referrer, image, key))
        except VerificationError:
            continue
    return found >= _FORMS


def _form(store: Store, referrer: Descriptor, image: Descriptor, key: PublicKey) -> str | None:
    what = f"referrer {referrer.digest.short}"
    layer = Link.parse(store.read(referrer.digest, what=what), what).layers[0]
    if layer.media_type == SIMPLE_SIGNING_TYPE:
        open_cosign(layer, store.read(layer.digest, what=what), image.digest, [key], what=what)
        return SIMPLE_SIGNING_TYPE
    if layer.media_type == BUNDLE_TYPE and referrer.artifact_type == BUNDLE_TYPE:
        return open_statement(store.read(layer.digest, what=what), [key], what=what).statement.predicate_type
    return None


def folder_signature(store: Store, image: Digest, keys: Sequence[PublicKey]) -> bytes:
    """Return the OpenSSF Model Signing bundle of ``image`` that one of ``keys`` signed.

    Raises:
        Untrusted: it has none.
    """
    for referrer in store.referrers(image):
        what = f"referrer {referrer.digest.short}"
        try:
            layer = Link.parse(store.read(referrer.digest, what=what), what).layers[0]
            bundle = store.read(layer.digest, what=what)
            if open_statement(bundle, keys, what=what).statement.predicate_type == MODEL_SIGNING:
                return bundle
        except VerificationError:
            continue
    raise Untrusted(
        f"{image}: no model signature by a release key of the policy",
        hint="build it again with the release key, or name the right policy",
    )
