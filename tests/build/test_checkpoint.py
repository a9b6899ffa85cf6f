"""Checkpoints: a killed build goes on from where its step says it was, and nothing of them outlives their use."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
from tests.workshop import Workshop, kill

from intaglio.build import checkpoint
from intaglio.content.layout import Store
from intaglio.digest import ActionKey

KEEPS = """
place = Path(request["checkpoint"])
kept = place / "done"
done = int(kept.read_text()) if kept.exists() else 0
if done:
    event(event="resumed", done=done, total=3)
for step in range(done, 3):
    (place / "new").write_text(str(step + 1))
    (place / "new").rename(kept)
    event(event="progress", done=step + 1, total=3, unit="steps")
    if step == 1 and not done:
        __import__("time").sleep(120)
write("the same bytes")
"""
KEY = ActionKey("sha256:" + "5" * 64)


def folders(shop: Workshop) -> list[Path]:
    return list((shop.home / "store" / checkpoint.FOLDER).glob("*"))


def test_a_killed_build_goes_on(shop: Workshop) -> None:
    shop.one(KEEPS, more="checkpoint = true")
    process = shop.start("build", ".", "--json")
    deadline = time.monotonic() + 60
    while not any((folder / "done").exists() and (folder / "done").read_text() == "2" for folder in folders(shop)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill(process)
    (left,) = folders(shop)
    assert stat.S_IMODE(left.stat().st_mode) == 0o700
    again = shop.build().ok()
    assert "resuming at step 2 of 3, from its last checkpoint" in again.err
    assert folders(shop) == [], "it ended well"
    (step, _) = again.json["steps"]
    assert left.name == step["key"].removeprefix("sha256:")
    assert {"event": "resumed", "done": 2, "total": 3}.items() <= shop.events(step["key"])[1].items()
    assert shop.model(again.json["image"]) == b"the same bytes"
    assert shop.statuses() == {"make": "cached", "image": "cached"}


def test_a_step_that_fails_leaves_its_checkpoint_to_the_next_try(shop: Workshop) -> None:
    shop.one(KEEPS.replace("__import__", "os._exit(3); __import__"), more="checkpoint = true")
    shop.build().failed(30)
    assert [path.name for path in folders(shop)[0].iterdir()] == ["done"]
    assert "resuming at step 2" in shop.build().ok().err


def test_a_step_that_does_not_ask_has_none(shop: Workshop) -> None:
    shop.one('assert "checkpoint" not in request and not Path("/checkpoint").exists()\nwrite("x")')
    shop.built()
    assert folders(shop) == []


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def aged(place: Path, seconds: float) -> None:
    for path in (*place.iterdir(), place):
        os.utime(path, (time.time() - seconds,) * 2)


def test_what_nobody_comes_back_for_is_removed(store: Store) -> None:
    old, young = (ActionKey("sha256:" + letter * 64) for letter in "ab")
    for key in (old, young):
        (checkpoint.folder(store, key) / "x").write_text("x")
    aged(store.root / checkpoint.FOLDER / old.hex, checkpoint.AGE + 60)
    aged(store.root / checkpoint.FOLDER / young.hex, checkpoint.AGE - 60)
    checkpoint.folder(store, KEY)
    assert {path.name for path in (store.root / checkpoint.FOLDER).iterdir()} == {young.hex, KEY.hex}


def test_one_that_is_worked_on_is_not_removed_however_old(store: Store) -> None:
    place = checkpoint.folder(store, KEY)
    aged(place, checkpoint.AGE + 60)
    with store.lock(KEY.hex):
        checkpoint.sweep(store)
        assert place.is_dir()
        assert checkpoint.folder(store, KEY) == place, "its own is taken up again, not waited for"
    aged(place, checkpoint.AGE + 60)
    checkpoint.sweep(store)
    assert not place.exists()
