"""The release signatures that an image carries: looked for before a key is opened to make them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from intaglio.content.descriptor import Descriptor
from intaglio.content.layout import Store
from intaglio.content.modelpack import SIMPLE_SIGNING_TYPE, ModelImage
from intaglio.digest import Digest
from intaglio.errors import Untrusted, VerificationError
from intaglio.trust.cosign import Link, open_cosign
from intaglio.trust.key import PublicKey
from intaglio.trust.signature import BUNDLE_TYPE
from intaglio.trust.statement import (
    COSIGN_SIGN,
    MODEL_SIGNING,
    Statement,
    cosign_statement,
    model_signing_statement,
    open_statement,
)

_FORMS = {COSIGN_SIGN, MODEL_SIGNING, SIMPLE_SIGNING_TYPE}


def is_released(store: Store, image: Descriptor, files: Iterable[tuple[str, Digest]] | None, key: PublicKey) -> bool:
    """Return whether ``key`` signed ``image``, and its ``files``, in every form: cosign's two, and Model Signing.

    A runtime image has no files (``None``): cosign's forms are all.
    """
    signed = [cosign_statement(image.digest)]
    if files is not None:
        signed.append(model_signing_statement("", files))
    found = set()
    try:
        referrers = store.referrers(image.digest)
    except VerificationError:  # signing again makes it anew
        return False
    for referrer in referrers:
        try:
            found.add(_form(store, referrer, image, signed, key))
        except VerificationError:
            continue
    return found >= (_FORMS if files is not None else _FORMS - {MODEL_SIGNING})


def _form(
    store: Store, referrer: Descriptor, image: Descriptor, signed: Iterable[Statement], key: PublicKey
) -> str | None:
    what = f"referrer {referrer.digest.short}"
    link = Link.parse(store.read(referrer.digest, what=what), what)
    layer = link.layers[0]
    data = store.read(layer.digest, what=what)
    store.read(link.config.digest, what=what)  # other tools want it, too
    if layer.media_type == SIMPLE_SIGNING_TYPE:
        open_cosign(layer, data, image.digest, [key], what=what)
        return SIMPLE_SIGNING_TYPE
    if layer.media_type == BUNDLE_TYPE and referrer.artifact_type == BUNDLE_TYPE:
        statement = open_statement(data, [key], what=what).statement
        if any(_same(statement, expected) for expected in signed):
            return statement.predicate_type
    return None


def _same(found: Statement, expected: Statement) -> bool:
    """Return whether two statements say the same of the same digests; the name is the model's, and may differ."""
    about = [subject.digest for subject in found.subjects] == [subject.digest for subject in expected.subjects]
    return about and (found.predicate_type, found.predicate) == (expected.predicate_type, expected.predicate)


def folder_signature(store: Store, image: Digest, keys: Sequence[PublicKey]) -> bytes:
    """Return the OpenSSF Model Signing bundle of the files of ``image`` that one of ``keys`` signed.

    Raises:
        Untrusted: it has none.
        VerificationError: there is no such image.
    """
    model = ModelImage.parse(store.read(image, what=f"image {image.short}"), f"image {image.short}")
    expected = model_signing_statement("", [(file.path, file.digest) for file in model.files])
    for referrer in store.referrers(image):
        what = f"referrer {referrer.digest.short}"
        try:
            layer = Link.parse(store.read(referrer.digest, what=what), what).layers[0]
            bundle = store.read(layer.digest, what=what)
            if _same(open_statement(bundle, keys, what=what).statement, expected):
                return bundle
        except VerificationError:
            continue
    raise Untrusted(
        f"{image}: no model signature by a release key of the policy",
        hint="build it again with the release key, or name the right policy",
    )
