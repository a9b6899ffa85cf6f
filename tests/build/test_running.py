"""Which runtime image a name means, and what is laid out for its container."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests import runnable
from tests.images import Draft

from intaglio import strictjson
from intaglio.build import running
from intaglio.content.descriptor import MANIFEST_TYPE, Descriptor
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, NotVerifiable, UsageError

NAME = "team/helpdesk:1"


class Shelf:
    """A store with a model and runtime images."""

    def __init__(self, place: Path) -> None:
        self.draft = Draft().sign()
        self.store: Store = self.draft.store(place / "store")
        self.model = self.draft.image.digest
        self.store.tag(NAME, self.draft.image)

    def runtime(self, word: str, *, tag: str | None = None, model: Digest | None = None, embed: bool = False) -> Digest:
        """Put a runtime image there, tagged as builds do."""
        labels = {"dev.intaglio.runtime": word, "dev.intaglio.server": word, "dev.intaglio.embed": str(embed).lower()}
        labels |= {"dev.intaglio.model": str(model)} if model else {}
        image = runnable.image(self.store, f"print({word!r})\n", python=False, labels=labels)
        manifest = json.loads(self.manifest(image.config))
        data = strictjson.canonical(manifest)
        made = Descriptor(MANIFEST_TYPE, Digest.of(data), len(data))
        self.store.tag(tag or f"{NAME}-{word}", made)
        return made.digest

    def manifest(self, config: Descriptor) -> bytes:
        for path in (self.store.root / "blobs" / "sha256").iterdir():
            data = path.read_bytes()
            if data.startswith(b"{") and json.loads(data).get("config", {}).get("digest") == str(config.digest):
                return data
        raise AssertionError("no manifest names that config")


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_the_runtime_image_beside_a_model(shelf: Shelf) -> None:
    runtime = shelf.runtime("llama.cpp")
    for words in (NAME, str(shelf.model), f"{NAME}-llama.cpp"):
        chosen = running.choose(shelf.store, words)
        assert (chosen.runtime, chosen.model, chosen.embedded) == (runtime, shelf.model, False)
    assert running.choose(shelf.store, f"{NAME}-llama.cpp").name == NAME


def test_of_several_one_has_to_be_named(shelf: Shelf) -> None:
    shelf.runtime("llama.cpp")
    another = shelf.runtime("another")
    with pytest.raises(UsageError, match=r"runtime images for another, llama\.cpp"):
        running.choose(shelf.store, NAME)
    assert running.choose(shelf.store, NAME, runtime="another").runtime == another


def test_a_server_that_cannot_serve_the_model_is_refused(shelf: Shelf) -> None:
    shelf.runtime("vllm")
    for words in (NAME, f"{NAME}-vllm"):
        with pytest.raises(UsageError, match="vllm does not serve gguf") as caught:
            running.choose(shelf.store, words)
        assert "llama-cpp" in str(caught.value.hint)


def test_none_beside_it(shelf: Shelf) -> None:
    with pytest.raises(UsageError, match="no runtime image stands beside"):
        running.choose(shelf.store, NAME)
    shelf.runtime("llama.cpp")
    with pytest.raises(UsageError, match="no vllm image stands beside"):
        running.choose(shelf.store, NAME, runtime="vllm")
    with pytest.raises(NotVerifiable):
        running.choose(shelf.store, "nobody:1")


def test_an_image_whose_tag_only_looks_like_one_is_none(shelf: Shelf) -> None:
    shelf.store.tag(f"{NAME}-vllm", shelf.draft.image)
    shelf.runtime("llama.cpp", tag=f"{NAME}-rc1")
    with pytest.raises(UsageError, match="no runtime image stands beside"):
        running.choose(shelf.store, NAME)


def test_one_runtime_image_serves_many_models(shelf: Shelf) -> None:
    runtime = shelf.runtime("llama.cpp", tag="team/other:1-llama.cpp")
    chosen = running.choose(shelf.store, NAME, image="team/other:1-llama.cpp")
    assert (chosen.runtime, chosen.model, chosen.name) == (runtime, shelf.model, NAME)
    with pytest.raises(UsageError, match="says of no model here that it serves it"):
        running.choose(shelf.store, "team/other:1-llama.cpp")


def test_an_image_that_holds_its_model(shelf: Shelf) -> None:
    runtime = shelf.runtime("llama.cpp", embed=True, model=shelf.model)
    for words in (NAME, f"{NAME}-llama.cpp"):
        chosen = running.choose(shelf.store, words)
        assert (chosen.runtime, chosen.model, chosen.embedded) == (runtime, shelf.model, True)


def test_an_image_that_holds_another_model(shelf: Shelf) -> None:
    shelf.runtime("llama.cpp", embed=True, model=Digest.of(b"another"))
    with pytest.raises(UsageError, match="holds the model"):
        running.choose(shelf.store, NAME)


def test_an_image_that_holds_a_model_and_does_not_say_which(shelf: Shelf) -> None:
    shelf.runtime("llama.cpp", embed=True)
    with pytest.raises(CorruptContent, match=r"expected the label dev\.intaglio\.model"):
        running.choose(shelf.store, f"{NAME}-llama.cpp")


def test_a_model_image_is_no_runtime_image(shelf: Shelf) -> None:
    with pytest.raises(CorruptContent):
        running.choose(shelf.store, NAME, image=NAME)


# --- laying out ------------------------------------------------------------------------------------------------------


def test_model_and_passport_are_laid_out_for_another_user(shelf: Shelf, tmp_path: Path) -> None:
    shelf.runtime("llama.cpp")
    chosen = running.choose(shelf.store, NAME)
    (tmp_path / "home").mkdir()
    with shelf.store.scratch("run") as scratch:
        order = running.lay_out(shelf.store, chosen, scratch, tmp_path / "home", datetime.now(UTC), context=512)
        model, passport = order.folders["/model"], order.folders["/passport"]
        found = {path.relative_to(model).as_posix(): path for path in model.rglob("*") if path.is_file()}
        assert {name: path.read_bytes() for name, path in found.items()} == shelf.draft.files
        assert {path.stat().st_mode & 0o777 for path in found.values()} == {0o444}
        assert {path.stat().st_mode & 0o777 for path in (model, model / "sub", passport)} == {0o755}
        assert scratch.stat().st_mode & 0o777 == 0o700
        assert (passport / "index.json").exists()
        assert not (passport / "blobs" / "sha256" / Digest.of(shelf.draft.files["model.gguf"]).hex).exists()
    assert order.environment == {"INTAGLIO_MODEL_NAME": NAME, "INTAGLIO_CONTEXT": "512"}
    assert order.image == chosen.image.config.digest


def test_what_an_image_cannot_hold_is_brought_along(shelf: Shelf, tmp_path: Path) -> None:
    shelf.runtime("llama.cpp", embed=True, model=shelf.model)
    chosen = running.choose(shelf.store, NAME)
    (tmp_path / "home").mkdir()
    with shelf.store.scratch("run") as scratch:
        order = running.lay_out(shelf.store, chosen, scratch, tmp_path / "home", datetime.now(UTC))
        assert dict(order.folders) == {}, "no trusted source here, so nothing ages"


def test_what_it_may_take_is_what_its_server_states(shelf: Shelf, tmp_path: Path) -> None:
    from intaglio.recipe.data import data_folder
    from intaglio.recipe.limits import Limits
    from intaglio.recipe.program import load_server

    (tmp_path / "home").mkdir()
    stated = load_server("llama-cpp", data_folder("builder")).limits
    for word, limits in (("llama-cpp", stated), ("unknown", Limits())):
        shelf.runtime(word)
        with shelf.store.scratch("run") as scratch:
            chosen = running.choose(shelf.store, NAME, runtime=word)
            order = running.lay_out(shelf.store, chosen, scratch, tmp_path / "home", datetime.now(UTC))
        assert (order.memory, order.processes) == (limits.memory, limits.processes)
