"""Stamps: an unchanged file is recognised, a changed one never taken for it."""

from __future__ import annotations

from pathlib import Path

from intaglio.build.stamps import Stamps
from intaglio.content.index import Index
from intaglio.dataclass import replace
from intaglio.digest import Digest
from intaglio.recipe.sources.interface import Stat

STAT = Stat(size=1, mtime_ns=2, ctime_ns=3, inode=4, device=5)
DIGEST = Digest.of(b"x")


def test_only_the_very_same_file_is_recognised(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.sqlite")
    stamps = Stamps(index)
    assert stamps.get("/a", STAT) is None
    stamps.put("/a", STAT, DIGEST)
    assert stamps.get("/a", STAT) == DIGEST
    assert stamps.get("/b", STAT) is None
    for name in Stat.__match_args__:
        assert stamps.get("/a", replace(STAT, **{name: 99})) is None
    index.close()
    again = Index(tmp_path / "index.sqlite")
    assert Stamps(again).get("/a", STAT) == DIGEST
    again.close()
