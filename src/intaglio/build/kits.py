"""What a kit of an image holds: its referrers and, on request, what its claims say it was built from."""

from __future__ import annotations

from intaglio.content.descriptor import Descriptor
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import NotVerifiable, VerificationError
from intaglio.trust.cosign import Link
from intaglio.trust.signature import BUNDLE_TYPE, read_bundle
from intaglio.trust.statement import PROVENANCE, Dependency, Provenance, read


def roots(store: Store, image: Digest, kinds: set[str]) -> tuple[Digest, ...]:
    """Return the manifests beside ``image`` that travel: its referrers, and the trees of those ``kinds``.

    Kinds are those of dependencies: ``origin``, ``toolchain``, ``program``. A program that no build here stored has no
    tree to take along; it comes with Intaglio itself.

    Raises:
        NotVerifiable: an input or toolchain that was asked for is not whole in the store.
    """
    referrers = store.referrers(image)
    wanted: dict[Digest, Dependency] = {}
    for referrer in referrers:
        for dependency in _dependencies(store, referrer):
            if dependency.kind in kinds:
                wanted.setdefault(dependency.digest, dependency)
    trees = []
    for digest, dependency in sorted(wanted.items()):
        if store.has_tree(digest):
            trees.append(digest)
        elif dependency.kind != "program":
            raise NotVerifiable(
                f"{dependency.name} {digest}: not whole in the store {store.root}",
                hint="build it here once, or leave out --inputs and --toolchains",
            )
    return (*(referrer.digest for referrer in referrers), *trees)


def _dependencies(store: Store, referrer: Descriptor) -> list[Dependency]:
    """Return what the claims in a referrer say went in."""
    found: list[Dependency] = []
    what = f"referrer {referrer.digest.short}"
    link = Link.parse(store.read(referrer.digest, what=what), what)
    for layer in link.layers:
        if layer.media_type != BUNDLE_TYPE:
            continue
        try:
            statement = read(read_bundle(store.read(layer.digest, what=what), what=what).payload, what=what)
            if statement.predicate_type == PROVENANCE:
                found.extend(Provenance.of(statement, what).dependencies)
        except VerificationError:
            continue
    return found
