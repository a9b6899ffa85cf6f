"""What travels with an image: its referrers and, on request, what its claims say it was built from.

- Whoever packs asks the claims, signed or not, what to take along: the other side decides what they are worth.
- Whoever unpacks takes what refers to the image, and trees, which are content and nothing else. What refers to anything
  else in the kit is left behind: nobody asked for claims about other things.
"""

from __future__ import annotations

from collections.abc import Iterator

from intaglio.build import servers, serving, toolchain
from intaglio.build.plan import toolchain_folder
from intaglio.build.toolchain import LOCK_NAME
from intaglio.content.bare import BareLayout
from intaglio.content.layout import ListedReferrer, Store
from intaglio.content.runtime_image import open_image
from intaglio.content.tree import TREE_TYPE, File, Tree
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable, VerificationError
from intaglio.trust.cosign import Link
from intaglio.trust.signature import BUNDLE_TYPE, read_bundle
from intaglio.trust.statement import PROVENANCE, Dependency, Provenance, read


def roots(store: Store, image: Digest, kinds: set[str]) -> tuple[Digest, ...]:
    """Return the manifests beside ``image`` that travel: its referrers, and the trees of those ``kinds``.

    Kinds are those of dependencies: ``origin``, ``toolchain``, ``program``. A toolchain brings the wheels that were
    built for it, too. A program that no build here ran has no tree to take along.

    Raises:
        NotVerifiable: an input or toolchain that was asked for is not whole in the store.
    """
    wanted = {one.digest: one for one in dependencies(store, image) if one.kind in kinds}
    trees: dict[Digest, None] = {}
    for digest, dependency in sorted(wanted.items()):
        if store.has_tree(digest):
            trees[digest] = None
            if dependency.kind == "toolchain":
                trees |= dict.fromkeys(_built_wheels(store, dependency))
        elif dependency.kind != "program":
            raise _not_whole(store, f"{dependency.name} {digest}")
    return (*(referrer.digest for referrer in store.referrers(image)), *trees)


def server(store: Store, image: Digest) -> tuple[Digest, ...]:
    """Return the trees that serving ``image`` on the other side needs: the toolchain of the server that serves it.

    Raises:
        UsageError: no server here serves it.
        NotVerifiable: its toolchain is not whole in the store.
    """
    form = serving.form(store, open_image(store.read(image, what="image"), "image").files)
    name = servers.choose(form, serving.recorded(store, image)).toolchain
    digest = toolchain.load(toolchain_folder(name)).tree().digest
    if not store.has_tree(digest):
        raise NotVerifiable(
            f"toolchain {name} {digest}: not whole in the store {store.root}",
            hint="intaglio serve REF --prepare   (fetches it)",
        )
    return (digest, *_built_wheels(store, Dependency(f"toolchain:{name}", digest, "toolchain")))


def brought(layout: BareLayout, image: Digest) -> tuple[Digest, ...]:
    """Return what of an unpacked kit may go into a store: ``image``, trees, and what refers to the image, last.

    A referrer that no index could list is a stranger's, and left behind.

    Raises:
        VerificationError: a manifest of the kit is damaged.
    """
    trees = [one.digest for one in layout.manifests() if one.artifact_type == TREE_TYPE and one.digest != image]
    for digest in trees:
        Tree.parse(layout.read(digest, what="tree"), f"tree {digest.short}")
    return (*trees, image, *(one.digest for one in layout.referrers(image) if _listable(layout, one.digest)))


def _listable(layout: BareLayout, referrer: Digest) -> bool:
    try:
        ListedReferrer.parse(layout.read(referrer, what="referrer"))
    except CorruptContent:
        return False
    return True


def listed(source: Store | BareLayout, image: Digest) -> set[Digest]:
    """Return what a trusted source may list of all that the claims about ``image`` name."""
    return {one.digest for one in dependencies(source, image)}


def dependencies(source: Store | BareLayout, image: Digest) -> Iterator[Dependency]:
    """Yield what the claims about ``image`` say went in; nobody has checked who signed them."""
    for referrer in source.referrers(image):
        what = f"referrer {referrer.digest.short}"
        try:
            link = Link.parse(source.read(referrer.digest, what=what), what)
        except VerificationError:
            continue  # a stranger's
        for layer in link.layers:
            if layer.media_type != BUNDLE_TYPE:
                continue
            try:
                statement = read(read_bundle(source.read(layer.digest, what=what), what=what).payload, what=what)
                if statement.predicate_type == PROVENANCE:
                    yield from Provenance.of(statement, what).dependencies
            except VerificationError:
                continue


def _built_wheels(store: Store, dependency: Dependency) -> Iterator[Digest]:
    """Yield the trees of the wheels that were built for a toolchain; its lock says which they are."""
    lock = next((file for file in store.tree(dependency.digest).files if file.path == LOCK_NAME), None)
    if lock is None:
        return
    what = f"{dependency.name} {dependency.digest}"
    name = dependency.name.removeprefix("toolchain:")
    for sdist in toolchain.parse(name, store.read(lock.digest, what=what), what=what).sdists:
        wheel = sdist.wheel
        if not store.has(wheel.digest, wheel.size):
            raise _not_whole(store, f"{what}: {wheel.name}")
        yield store.put_tree([File(wheel.name, wheel.digest, wheel.size)]).digest


def _not_whole(store: Store, what: str) -> NotVerifiable:
    return NotVerifiable(
        f"{what}: not whole in the store {store.root}",
        hint="build it here once, or leave out --inputs and --toolchains",
    )
