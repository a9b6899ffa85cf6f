"""Actions: what names a computation, and what tells two apart."""

from __future__ import annotations

import io
import json
import platform
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio import strictjson
from intaglio.build.action import ACTION_TYPE, Action, Difference, determinism, differences, platform_class
from intaglio.dataclass import replace
from intaglio.digest import ActionKey, Digest
from intaglio.errors import MachineError

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "build" / "action.json").read_text(encoding="utf-8"))


def action(**change: object) -> Action:
    made = Action(
        program=str(Digest.of(b"program")),
        toolchain=Digest.of(b"toolchain"),
        parameters={
            "learning_rate": 2e-4,
            "steps": 100,
            "method": "lora",
            "targets": ["q", "v"],
            "epochs": None,
            "x": True,
        },
        inputs={"base": Digest.of(b"base"), "data": Digest.of(b"data")},
        outputs=("*.json", "model.safetensors"),
        platform="linux/amd64/v3",
        host={"python": "sha256:1", "libc": "sha256:2"},
        environment=determinism(2),
    )
    return replace(made, **change)  # type: ignore[arg-type]


def test_golden() -> None:
    """A change of this document rebuilds everybody's everything: it needs a new version in ``type``."""
    assert action().preimage.decode() == VECTOR["preimage"]
    assert str(action().key) == VECTOR["key"]
    document = json.loads(VECTOR["preimage"])
    assert json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False) == VECTOR["preimage"]
    assert document["type"] == ACTION_TYPE == "https://intaglio.dev/action/v1"


def test_the_key_is_the_digest_of_the_preimage() -> None:
    assert action().key == ActionKey(Digest.of(action().preimage).value)


def test_orders_that_mean_nothing_change_nothing() -> None:
    backwards = action(
        parameters=dict(reversed(action().parameters.items())),
        inputs=dict(reversed(list(action().inputs.items()))),
        environment=dict(reversed(list(action().environment.items()))),
    )
    assert backwards.key == action().key


@pytest.mark.parametrize(
    "change",
    [
        {"program": str(Digest.of(b"other"))},
        {"toolchain": Digest.of(b"other")},
        {"toolchain": None},
        {"parameters": {**action().parameters, "steps": 101}},
        {"parameters": {**action().parameters, "x": 1.5}},
        {"parameters": {**action().parameters, "new": None}},
        {"inputs": {"base": Digest.of(b"data"), "data": Digest.of(b"base")}},
        {"inputs": {"base": Digest.of(b"base")}},
        {"outputs": ("*.json",)},
        {"outputs": ("model.safetensors", "*.json")},
        {"platform": "linux/arm64/v8"},
        {"host": {"python": "sha256:1", "libc": "sha256:3"}},
        {"environment": determinism(1)},
    ],
)
def test_everything_in_it_tells(change: dict[str, Any]) -> None:
    assert action(**change).key != action().key


def test_threads_are_the_only_knob_of_the_environment() -> None:
    one, two = determinism(1), determinism(2)
    assert {name for name in two if one[name] != two[name]} == {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
    assert two["PYTHONHASHSEED"] == "0"
    assert two["SOURCE_DATE_EPOCH"] == "0"
    assert not {"HOME", "USER", "HOSTNAME", "PATH"} & set(two), "no place and no person enters a key"


# --- the platform ----------------------------------------------------------------------------------------------------


def test_the_platform_class_is_hardware_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert platform_class() in ("linux/amd64/v3", "linux/arm64/v8")
    monkeypatch.setattr(platform, "machine", lambda: "AArch64")
    assert platform_class() == platform_class("platform") == "linux/arm64/v8"
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(MachineError, match="found riscv64"):
        platform_class()


@pytest.mark.parametrize(
    ("vendor", "suffix"), [("GenuineIntel", "intel"), ("AuthenticAMD", "amd"), ("HygonGenuine", "hygongenuine")]
)
def test_what_is_not_the_same_everywhere_is_of_the_processors_vendor(
    vendor: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu avx avx2\n\nprocessor\t: 1\nvendor_id\t: Other\n"
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO(said))
    assert platform_class() == platform_class("bit") == "linux/amd64/v3"
    assert platform_class("platform") == platform_class("statistical") == f"linux/amd64/v3+{suffix}"
    said = said.replace("avx2", "")
    with pytest.raises(MachineError, match="AVX2"):
        platform_class("platform")


# --- differences -----------------------------------------------------------------------------------------------------


def test_the_first_differing_leaf_is_the_reason() -> None:
    old = json.loads(action().preimage)
    new = json.loads(action(parameters={**action().parameters, "learning_rate": 1e-4}).preimage)
    assert list(differences(old, new)) == [Difference("parameters.learning_rate", 2e-4, 1e-4)]
    assert list(differences(old, old)) == []


def test_what_is_not_there_is_none_and_lists_are_leaves() -> None:
    found = list(differences({"a": 1, "b": {"c": [1, 2]}, "d": {}}, {"b": {"c": [1, 3], "e": "x"}, "d": 5}))
    assert found == [
        Difference("a", 1, None),
        Difference("b.c", [1, 2], [1, 3]),
        Difference("b.e", None, "x"),
        Difference("d", {}, 5),
    ]


def test_a_type_that_changes_is_a_difference() -> None:
    assert list(differences({"a": {"b": 1}}, {"a": [1]})) == [Difference("a", {"b": 1}, [1])]
    assert list(differences({"a": True}, {"a": 1})) == [Difference("a", True, 1)]


LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2) | st.lists(st.integers(0, 2), max_size=2)
)
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.dictionaries(st.text("xyz", min_size=1, max_size=2), inner, max_size=3)
)


@settings(deadline=None)
@given(DOCUMENTS, DOCUMENTS)
def test_there_is_a_difference_exactly_when_documents_differ(old: Any, new: Any) -> None:
    found = list(differences(old, new))
    assert bool(found) == (strictjson.canonical(old) != strictjson.canonical(new))
    assert [one.path for one in found] == [one.path for one in differences(new, old)]
