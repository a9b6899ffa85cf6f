"""Names in registries: ``HOST/REPO:TAG``, ``HOST/REPO@sha256:…``, or both at once.

The host is always written out: no registry is the one that is meant when none is named.

Source: OCI distribution specification 1.1, "Pulling manifests".
"""

from __future__ import annotations

import re

from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import UsageError

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<host>{_HOST})/(?P<name>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>[a-z0-9]+:.+))?\Z"
)
_REFERENCE_HINT = "expected HOST/REPO:TAG or HOST/REPO@sha256:…, as in registry.example.com/models/helpdesk:1.0.0"
_HUB = "registry-1.docker.io"
"""Where Docker's hub answers, whose name is that of a web site."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A name in a registry: host, repository, and a tag or a digest or both."""

    host: str
    name: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return the reference written as ``text``.

        Raises:
            UsageError: it is none; the host is never guessed.
            CorruptContent: its digest is none.
        """
        found = _REFERENCE.match(text)
        if found is None or not (set(found["host"]) & set(".:") or found["host"] == "localhost"):
            raise UsageError(f"{text!r} is not a reference to a registry", hint=_REFERENCE_HINT)
        digest = Digest.parse(found["digest"]) if found["digest"] else None
        return cls(found["host"].lower(), found["name"], found["tag"], digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def registry(self) -> str:
        """The host, with its port if it has one, that answers for :attr:`host`."""
        return _HUB if self.host in ("docker.io", "index.docker.io") else self.host

    @property
    def hostname(self) -> str:
        """The host without its port."""
        end = self.host.index("]") + 1 if self.host.startswith("[") else len(self.host.partition(":")[0])
        return self.host[:end]
