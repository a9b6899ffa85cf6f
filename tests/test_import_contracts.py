"""The contract that names what a module may reach."""

from __future__ import annotations

import pytest

grimp = pytest.importorskip("grimp", reason="the lint tools are not installed: make lint")


def check(*, sources: list[str], allowed: list[str], never: list[str]) -> list[str]:
    from scripts.import_contracts import ClosureContract

    graph = grimp.ImportGraph()
    for module in ("house", "house.top", "house.middle", "house.middle.inner", "house.secret"):
        graph.add_module(module)
    for module in ("good", "bad", "hashlib"):
        graph.add_module(module, is_squashed=True)
    graph.add_import(importer="house.top", imported="house.middle.inner")
    graph.add_import(importer="house.middle.inner", imported="good")
    graph.add_import(importer="house.middle.inner", imported="hashlib")
    graph.add_import(importer="house.middle.inner", imported="house.secret")
    graph.add_import(importer="house.secret", imported="bad")
    options = {"sources": sources, "allowed": allowed, "never": never}
    contract = ClosureContract(name="test", session_options={"root_packages": ["house"]}, contract_options=options)
    result = contract.check(graph, verbose=False)
    assert result.kept == (not result.metadata["chains"])
    chains: list[str] = result.metadata["chains"]
    return chains


def test_what_is_allowed_and_the_standard_library_pass() -> None:
    assert check(sources=["house.top"], allowed=["good", "bad"], never=["house.not_there_yet"]) == []


def test_other_peoples_code_is_found_through_any_number_of_modules() -> None:
    found = check(sources=["house.top"], allowed=["good"], never=[])
    assert found == ["house.top → house.middle.inner → house.secret → bad"]


def test_a_module_that_must_not_be_reached_is_found() -> None:
    found = check(sources=["house.middle"], allowed=["good", "bad"], never=["house.secret"])
    assert found == ["house.middle.inner → house.secret"]


def test_a_source_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"no module house\.gone"):
        check(sources=["house.gone"], allowed=[], never=[])
