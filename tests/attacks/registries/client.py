"""Push and pull as the tests do them: impatient, and with the fixed keys' policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.images import policy

from intaglio.content import copy
from intaglio.content.copy import Transfer
from intaglio.content.credentials import Credential
from intaglio.content.layout import Store
from intaglio.content.reference import Reference
from intaglio.content.remote import Repository
from intaglio.content.remote_http import Network
from intaglio.content.staging import Staging
from intaglio.dataclass import replace
from intaglio.digest import Digest
from intaglio.progress import Silent
from intaglio.verify import verify_image

QUICK = Network(timeout=10, backoff=0.01, longest_wait=0.02, attempts=4)
STALLING = replace(QUICK, timeout=0.5)
"""For registries that stall for longer than that."""
Find = Callable[[str], Credential | None]


def repository(
    reference: str,
    *,
    find: Find = lambda _: None,
    writing: bool = False,
    ca: Path | None = None,
    network: Network = QUICK,
) -> Repository:
    network = replace(network, ca_file=ca)
    return Repository(Reference.parse(reference), find, network=network, writing=writing, plain_http=ca is None)


def push(store: Store, image: Digest, reference: str, *, find: Find = lambda _: None) -> Transfer:
    with repository(reference, find=find, writing=True) as there:
        return copy.push(store, image, there, Reference.parse(reference).tag or "", Silent())


def pull(
    reference: str,
    store: Store,
    *,
    find: Find = lambda _: None,
    ca: Path | None = None,
    admit: Callable[[Staging, Digest], None] | None = None,
    network: Network = QUICK,
) -> Transfer:
    """Pull and verify by the fixed keys' policy."""

    def verified(staged: Staging, image: Digest) -> None:
        verify_image(staged, image, policy()).require()

    with repository(reference, find=find, ca=ca, network=network) as there:
        return copy.pull(there, Reference.parse(reference), store, reference, admit or verified, Silent())


def is_untouched(store: Store) -> bool:
    """Return whether nothing at all is to be seen in the store: no blob, no name, no referrer."""
    return is_untouched_but_for_staging(store) and not list((store.root / "tmp").iterdir())


def is_untouched_but_for_staging(store: Store) -> bool:
    """Return the same while a pull is under way, which has a folder of its own."""
    names = list((store.root / "blobs" / "sha256").iterdir())
    return not names and not store.tags() and store.rebuild_index() == 0
