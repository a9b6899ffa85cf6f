"""The corpus of bad images: a function a case, each of which writes a real OCI layout with one thing wrong.

Any verifier can be run over it: build the case into a folder, and ask about the digest that comes back. The good
image that all are made from is ``tests.images.Draft``; its keys stand in ``tests/vectors/trust``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from intaglio.digest import Digest
from intaglio.errors import ExitCode


@dataclass(frozen=True, slots=True)
class Case:
    """One attack."""

    name: str
    build: Callable[[Path], Digest]
    """Writes the layout and returns the digest to ask about."""
    exit_code: ExitCode
    """The answer that is due."""
    rules: frozenset[str]
    """The rules that must fail; none where the image cannot even be found."""


class Corpus(list[Case]):
    """The cases of one module."""

    def case(self, exit_code: ExitCode, *rules: str) -> Callable[[Callable[[Path], Digest]], Callable[[Path], Digest]]:
        def register(build: Callable[[Path], Digest]) -> Callable[[Path], Digest]:
            self.append(Case(build.__name__, build, exit_code, frozenset(rules)))
            return build

        return register
