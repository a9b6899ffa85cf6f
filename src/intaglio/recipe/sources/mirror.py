"""A published trusted source on the web, or in a folder: where metadata and manifests are fetched.

- Sizes are limited, stalls and trickles end the attempt, credentials are never sent: see :mod:`.http`.
- That a file is not there is an answer, and only the server's own: no answer is an error.
"""

from __future__ import annotations

from pathlib import Path

from intaglio.dataclass import dataclass, field
from intaglio.errors import SourceUnreachable
from intaglio.recipe.sources.http import Client, Network, check_url
from intaglio.trust.mirror import FolderMirror, Mirror

_NOT_THERE = (403, 404, 410)
"""What servers answer where there is no file: stores of objects say 403 where listing is forbidden."""


def mirror_at(address: str) -> Mirror:
    """Return the mirror at ``address``: an ``https:`` address, ``http:`` of this machine, or a folder.

    Raises:
        SourceUnreachable: another kind of address.
    """
    if "://" not in address:
        return FolderMirror(Path(address))
    check_url(address)
    return WebMirror(address.rstrip("/"))


@dataclass(frozen=True, slots=True)
class WebMirror:
    """A published source on a web server."""

    address: str
    network: Network = field(default_factory=Network.from_environment)

    def fetch(self, path: str, *, max_bytes: int) -> bytes | None:
        """Return the file at ``path``: see :meth:`intaglio.trust.mirror.Mirror.fetch`."""
        try:
            return _Client(self.network).read(f"{self.address}/{path}", max_bytes=max_bytes).body
        except _NotThere:
            return None


class _NotThere(SourceUnreachable):
    pass


class _Client(Client):
    def _refusal(self, url: str, status: int) -> SourceUnreachable:
        error = super()._refusal(url, status)
        return _NotThere(error.message) if status in _NOT_THERE else error
