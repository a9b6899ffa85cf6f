"""Every case of the corpus of bad images gets the answer that is due, and the image it was made from passes."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
from tests.attacks.bundles.cases import CASES as BUNDLES
from tests.attacks.corpus import Case
from tests.attacks.manifests.cases import CASES as MANIFESTS
from tests.images import Draft, policy

from intaglio.errors import VerificationError
from intaglio.verify import verify_image, verify_layout

CASES = [*BUNDLES, *MANIFESTS]


@pytest.fixture(autouse=True)
def nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a check runs code from a model."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("code from a model was run")

    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr(builtins, "eval", refuse)


def test_the_good_image_passes(tmp_path: Path) -> None:
    digest = Draft().sign().write(tmp_path)
    assert verify_layout(tmp_path, policy(), image=digest).verdict == "verified"


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attack(case: Case, tmp_path: Path) -> None:
    digest = case.build(tmp_path)
    if not case.rules:
        with pytest.raises(VerificationError) as missing:
            verify_layout(tmp_path, policy(), image=digest).require()
        assert missing.value.exit_code == case.exit_code
        return
    report = verify_layout(tmp_path, policy(), image=digest)
    failed = {rule.rule for rule in report.rules if rule.result == "fail"}
    assert report.verdict == "refused"
    assert report.files == ()
    assert (report.exit_code, failed >= case.rules) == (case.exit_code, True), failed
    with pytest.raises(VerificationError) as caught:
        report.require()
    assert caught.value.exit_code == case.exit_code


def test_many_referrers_are_refused(tmp_path: Path) -> None:
    draft = Draft().sign()
    store = draft.store(tmp_path / "store")

    class Many:
        read, path = store.read, store.path

        @staticmethod
        def referrers(subject: object) -> tuple[object, ...]:
            return (draft.image,) * 2000

    with pytest.raises(VerificationError, match="referrers"):
        verify_image(Many(), draft.image.digest, policy())  # type: ignore[arg-type]
