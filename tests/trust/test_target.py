"""Targets: names that look like no other, and custom parts that are read strictly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.trust.sources import target

from intaglio.errors import CorruptContent, ExitCode, PolicyRefusal, UsageError
from intaglio.trust.target import KINDS, Name, Target


@pytest.mark.parametrize("kind", KINDS)
def test_names(kind: str) -> None:
    name = Name.parse(f"{kind}/acme-labs/base.7b_it@1.0.0-rc.1")
    assert name.path == f"{kind}/acme-labs/base.7b_it/1.0.0-rc.1"
    assert Name.of_path(name.path) == name
    assert str(name) == f"{kind}/acme-labs/base.7b_it@1.0.0-rc.1"
    assert name.kind == KINDS[kind]


@pytest.mark.parametrize(
    "text",
    [
        "models/acme/base",
        "models/acme/base@",
        "models/acme/base@1/2",
        "models/acme/base@.",
        "models/acme/base@..",
        "models/acme/base@1.0.0\n",
        "models/Acme/base@1",
        "models/acme/base/deep@1",
        "models/acme@1",
        "models//base@1",
        "models/acme/../base@1",
        "models/acme/-base@1",
        "models/acme/base-@1",
        "models/acme/a--b@1",
        "models/\u0430cme/base@1",
        "weights/acme/base@1",
        "/models/acme/base@1",
        "models/acme/" + "a" * 300 + "@1",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(UsageError):
        Name.parse(text)


def test_custom_is_read_as_it_was_written() -> None:
    one = target(status="yanked", reason="leaked a password", repository="registry.example.org/acme/base")
    assert Target.parse(one.path, one.size, {"sha256": one.digest.hex}, one.custom()) == one
    assert target().custom() == {
        "oci": {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.intaglio.tree.v1",
            "totalSize": 7,
        },
        "intaglio": {
            "kind": "model",
            "licence": "Apache-2.0",
            "publisher": "Acme",
            "status": "active",
            "origins": ["pypi:acme-base==1.0.0"],
        },
    }


def _ours(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda custom: custom["intaglio"].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda custom: custom.pop("oci"),
        lambda custom: custom.pop("intaglio"),
        lambda custom: custom["oci"].pop("totalSize"),
        lambda custom: custom["oci"].update(totalSize=True),
        lambda custom: custom["oci"].update(totalSize=-1),
        lambda custom: custom["oci"].update(mediaType=None),
        lambda custom: custom["oci"].update(more=1),
        _ours(kind="dataset"),
        _ours(licence=None),
        _ours(licence="a\nb"),
        _ours(publisher=["Acme"]),
        _ours(status="Active"),
        _ours(reason=""),
        _ours(origins="pypi:x"),
        _ours(origins=["x"] * 17),
        _ours(origins=[1]),
        _ours(repository="a\x00b"),
        _ours(expires="2030"),
    ],
)
def test_bad_custom(change: Callable[[dict[str, Any]], None]) -> None:
    one = target()
    custom = one.custom()
    change(custom)
    with pytest.raises(CorruptContent):
        Target.parse(one.path, one.size, {"sha256": one.digest.hex}, custom)


@pytest.mark.parametrize("custom", [None, [], "x", {"oci": [], "intaglio": {}}])
def test_no_custom(custom: object) -> None:
    with pytest.raises(CorruptContent):
        Target.parse("models/acme/base/1", 1, {"sha256": "0" * 64}, custom)


@pytest.mark.parametrize("hashes", [{}, {"sha512": "0"}, {"sha256": "0" * 63}, {"sha256": "A" * 64}])
def test_bad_hashes(hashes: dict[str, str]) -> None:
    with pytest.raises(CorruptContent):
        Target.parse("models/acme/base/1", 1, hashes, target().custom())


def test_a_yanked_target_is_refused_by_policy() -> None:
    assert target().require_active() == target()
    with pytest.raises(PolicyRefusal, match=r"base@1\.0\.0 was yanked by the trusted source: it leaked") as caught:
        target(status="yanked", reason="it leaked").require_active()
    assert caught.value.exit_code == ExitCode.POLICY
