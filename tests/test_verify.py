"""Verification end to end: stores, layouts and folders; and whatever the input, a report or a verification error."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.images import Draft, key, origin, part, policy, policy_text, safetensors

from intaglio.content.export import export_files, export_layout
from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, ExitCode, NotVerifiable, PolicyRefusal, Stale, Untrusted, VerificationError
from intaglio.policy.decide import RULES
from intaglio.policy.document import Policy, parse
from intaglio.policy.listing import Listed
from intaglio.progress import Silent, Task
from intaglio.trust.cosign import bundle_referrer
from intaglio.verify import Report, VerifiedFile, verify_folder, verify_image, verify_layout


@pytest.fixture
def draft() -> Draft:
    return Draft().sign()


@pytest.fixture
def layout(draft: Draft, tmp_path: Path) -> Path:
    draft.write(tmp_path / "layout")
    return tmp_path / "layout"


def outcome(check: Callable[[], Report]) -> Report | VerificationError:
    """Return what came of a check; both kinds have an exit code."""
    try:
        return check()
    except VerificationError as error:
        return error


def failing(report: Report) -> set[str]:
    return {rule.rule for rule in report.rules if rule.result == "fail"}


# --- what passes ------------------------------------------------------------------------------------------------------


def test_a_store(draft: Draft, tmp_path: Path) -> None:
    report = verify_image(draft.store(tmp_path), draft.image.digest, policy())
    assert report.verdict == "verified"
    assert report.exit_code == 0
    expected = tuple(VerifiedFile(file.path, file.digest, file.size) for file in draft.entries)
    assert report.files == expected
    assert report.require() is report


def test_the_json_form_is_an_interface(draft: Draft, layout: Path) -> None:
    document = verify_layout(layout, policy()).to_json()
    assert set(document) == {"verdict", "image", "rules"}
    assert document["image"] == str(draft.image.digest)
    assert [rule["rule"] for rule in document["rules"]] == [
        "content",
        "manifest",
        "formats",
        "signature",
        "cosign",
        "model-signing",
        "provenance",
        "lineage",
        "sandbox",
        "attestations",
        "evaluation",
        "licences",
        "names",
        "source",
        "freshness",
    ]
    assert all(set(rule) == {"rule", "result", "detail"} for rule in document["rules"])


def test_verify_writes_nothing_and_trusts_nothing_new(draft: Draft, layout: Path) -> None:
    before = {path: path.read_bytes() for path in layout.rglob("*") if path.is_file()}
    for path in [*layout.rglob("*"), layout]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    stranger = Draft(release=key("stranger")).sign()
    stranger.write(layout.parent / "other")
    for _ in range(2):
        assert verify_layout(layout, policy()).verdict == "verified"
        assert verify_layout(layout.parent / "other", policy()).exit_code == ExitCode.UNTRUSTED
    assert {path: path.read_bytes() for path in layout.rglob("*") if path.is_file()} == before
    for path in [*layout.rglob("*"), layout]:
        path.chmod(0o755)


class Counting(Silent):
    """A progress that adds up, and lets two threads wait for each other."""

    def __init__(self) -> None:
        self.total, self.done, self.threads, self.lock = 0, 0, set[int](), threading.Lock()
        self.meeting = threading.Barrier(2, timeout=60)

    def task(self, what: str, total: int | None = None, unit: str = "B") -> Task:
        self.total = total or 0
        counting = self

        class Counted:
            def advance(self, amount: int) -> None:
                with counting.lock:
                    counting.done += amount
                    fresh = threading.get_ident() not in counting.threads
                    counting.threads.add(threading.get_ident())
                if fresh:
                    counting.meeting.wait()  # nobody goes on alone: two files are hashed at a time

            def say(self, text: str) -> None:
                pass

            def total(self, amount: int, unit: str) -> None:
                pass

            def __enter__(self) -> Counted:
                return self

            def __exit__(self, *error: object) -> None:
                pass

        return Counted()


def test_every_byte_is_read_and_reported(tmp_path: Path) -> None:
    body = random.Random(1).randbytes(3 << 20)
    big = {f"model-{n}.safetensors": safetensors({"a": ("U8", [3 << 20], body)}) for n in range(3)}
    draft = Draft(files=big).sign()
    draft.write(tmp_path)
    counting = Counting()
    assert verify_layout(tmp_path, policy(), progress=counting, workers=2).verdict == "verified"
    assert counting.done == counting.total == sum(map(len, big.values()))
    assert len(counting.threads) == 2


def test_one_layout_of_several_images_needs_a_digest(draft: Draft, layout: Path) -> None:
    other = Draft(files=draft.files | {"LICENSE": b"other\n"}).sign()
    for digest, blob in other.blobs().items():
        (layout / "blobs" / "sha256" / digest.hex).write_bytes(blob)
    text = (layout / "index.json").read_text()
    (layout.parent / "alone").mkdir()
    other.write(layout.parent / "alone" / "layout")
    more = (layout.parent / "alone" / "layout" / "index.json").read_text()
    joined = text.replace("]", "," + more.partition("[")[2].rpartition("]")[0] + "]", 1) if "]" in text else text
    (layout / "index.json").write_text(joined)
    with pytest.raises(NotVerifiable, match="found 2"):
        verify_layout(layout, policy())
    for one in (draft, other):
        assert verify_layout(layout, policy(), image=one.image.digest).verdict == "verified"


# --- what is not there ------------------------------------------------------------------------------------------------


def test_an_image_that_is_not_there(draft: Draft, tmp_path: Path) -> None:
    with pytest.raises(NotVerifiable) as caught:
        verify_image(Store.open(tmp_path), draft.image.digest, policy())
    assert caught.value.exit_code == 25


def test_no_layout(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(VerificationError):
            verify_layout(folder, policy())


def test_a_fault_of_the_verifiers_own_is_a_refusal(draft: Draft, layout: Path) -> None:
    class Broken:
        def read(self, digest: Digest, *, what: str, max_bytes: int = 0) -> bytes:
            raise RuntimeError("a bug")

        def path(self, digest: Digest) -> Path:
            raise RuntimeError("a bug")

        def referrers(self, subject: Digest) -> tuple[()]:
            return ()

    with pytest.raises(NotVerifiable, match="a bug"):
        verify_image(Broken(), draft.image.digest, policy())


# --- every flipped bit, renamed, added and missing file ---------------------------------------------------------------


def test_every_flipped_bit_of_every_blob_is_refused(draft: Draft, layout: Path) -> None:
    dice = random.Random(0)
    blobs = sorted((layout / "blobs" / "sha256").iterdir())
    assert len(blobs) == len(draft.blobs())
    for blob in blobs:
        good = blob.read_bytes()
        for _ in range(12):
            bad = bytearray(good)
            bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
            blob.write_bytes(bad)
            found = outcome(lambda: verify_layout(layout, policy(), image=draft.image.digest))
            assert found.exit_code == ExitCode.CORRUPT, blob.name
        blob.write_bytes(good)
    assert verify_layout(layout, policy()).verdict == "verified"


def exported(draft: Draft, tmp_path: Path) -> tuple[Store, Path]:
    store = draft.store(tmp_path / "store")
    export_files(store, draft.image.digest, tmp_path / "model", draft.referrers[2].blobs[1])
    return store, tmp_path / "model"


def test_a_folder(draft: Draft, tmp_path: Path) -> None:
    store, folder = exported(draft, tmp_path)
    assert verify_folder(store, draft.image.digest, folder, policy()).verdict == "verified"
    (folder / "model.sig").unlink()
    assert verify_folder(store, draft.image.digest, folder, policy()).verdict == "verified"
    # The store's copy of the files is not what is asked about.
    for file in draft.entries:
        store.path(file.digest).unlink()
    assert verify_folder(store, draft.image.digest, folder, policy()).verdict == "verified"


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.gguf").read_bytes())
    data[-1] ^= 1
    (folder / "model.gguf").write_bytes(data)


def add(name: str, data: bytes = b"") -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return change


def replace(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "LICENSE").unlink()
        make(folder / "LICENSE")

    return change


def link_signature(folder: Path) -> None:
    (folder / "model.sig").unlink()
    (folder / "model.sig").symlink_to("LICENSE")


def link_file(folder: Path) -> None:
    (folder / "LICENSE").rename(folder.parent / "LICENSE")
    (folder / "LICENSE").symlink_to(folder.parent / "LICENSE")


def link_folder(folder: Path) -> None:
    (folder / "sub").rename(folder.parent / "sub")
    (folder / "sub").symlink_to(folder.parent / "sub")


def swap(folder: Path) -> None:
    (folder / "LICENSE").rename(folder / "x")
    (folder / "config.json").rename(folder / "LICENSE")
    (folder / "x").rename(folder / "config.json")


CHANGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip,
    "cut short": lambda folder: os.truncate(folder / "model.gguf", 100),
    "emptied": lambda folder: os.truncate(folder / "model.gguf", 0),
    "renamed": lambda folder: (folder / "LICENSE").rename(folder / "LICENCE"),
    "renamed weights": lambda folder: (folder / "model.gguf").rename(folder / "other.gguf"),
    "moved": lambda folder: (folder / "sub" / "tokenizer_config.json").rename(folder / "tokenizer_config.json"),
    "swapped": swap,
    "missing": lambda folder: (folder / "config.json").unlink(),
    "added": add("extra.txt", b"x"),
    "added, empty": add("extra.txt"),
    "added module": add("__init__.py"),
    "added module below": add("sub/__init__.py"),
    "added hook": add(".git/hooks/post-checkout", b"#!/bin/sh\n"),
    "added workflow": add(".github/workflows/x.yml"),
    "added attributes": add(".gitattributes"),
    "empty folder": lambda folder: (folder / ".git").mkdir(),
    "linked file": link_file,
    "linked folder": link_folder,
    "dangling link": lambda folder: (folder / "x").symlink_to("nowhere"),
    "pipe": lambda folder: os.mkfifo(folder / "x"),
    "pipe in place": replace(os.mkfifo),
    "folder in place": replace(Path.mkdir),
    "made executable": lambda folder: (folder / "LICENSE").chmod(0o755),
    "set-uid": lambda folder: (folder / "LICENSE").chmod(0o4644),
    "signature altered": add("model.sig", b"{}"),
    "signature emptied": add("model.sig"),
    "signature a link": link_signature,
    "bytes that are no name": lambda folder: open(os.fsencode(folder) + b"/\xff", "wb").close(),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_folder_is_refused(name: str, draft: Draft, tmp_path: Path) -> None:
    store, folder = exported(draft, tmp_path)
    CHANGES[name](folder)
    try:
        report = verify_folder(store, draft.image.digest, folder, policy())
    except NotVerifiable:
        assert name == "gone"
        return
    assert report.exit_code == ExitCode.CORRUPT
    assert "content" in failing(report)


def test_a_strangers_signature_in_the_folder(draft: Draft, tmp_path: Path) -> None:
    store, folder = exported(draft, tmp_path)
    (folder / "model.sig").write_bytes(Draft(release=key("stranger")).sign().referrers[2].blobs[1])
    report = verify_folder(store, draft.image.digest, folder, policy())
    assert (report.exit_code, failing(report)) == (ExitCode.UNTRUSTED, {"content"})


def test_a_signature_of_other_files_in_the_folder(draft: Draft, tmp_path: Path) -> None:
    store, folder = exported(draft, tmp_path)
    other = Draft(files=draft.files | {"LICENSE": b"other\n"}).sign()
    (folder / "model.sig").write_bytes(other.referrers[2].blobs[1])
    assert failing(verify_folder(store, draft.image.digest, folder, policy())) == {"content"}


# --- the trusted source -----------------------------------------------------------------------------------------------

INPUTS = {
    origin("pypi:base==1.0").digest: "models/example/base@1.0",
    origin("file:data.jsonl").digest: "datasets/example/data@1",
    part("toolchain").digest: "toolchains/example/train@1",
    part("program").digest: "steps/example/make@1",
}


class Source:
    """A trusted source in memory; remembers what it was asked."""

    def __init__(self, age: timedelta = timedelta(hours=1), **changes: str) -> None:
        self.age = age
        self.asked: list[Digest] = []
        self._changes = changes

    def lookup(self, digest: Digest) -> Listed | None:
        self.asked.append(digest)
        if digest not in INPUTS:
            return None
        name = INPUTS[digest]
        kind = name.partition("/")[0]
        if self._changes.get(kind) == "unlisted":
            return None
        licence = self._changes.get("licence", "MIT")
        if self._changes.get(kind) == "yanked":
            return Listed(name, licence, "example", "yanked", "poisoned")
        return Listed(name, licence, "example")


def asking(*tables: str) -> Policy:
    return parse("\n".join([policy_text(), *tables]).encode())


SOURCED = asking(
    "[source]\nrequired = true", '[freshness]\nmax_age = "1d"', '[licences]\nallow = ["MIT", "Apache-2.0"]'
)


def test_a_trusted_source_is_asked_about_origins_toolchains_and_programs(
    draft: Draft, layout: Path, tmp_path: Path
) -> None:
    source = Source()
    report = verify_layout(layout, SOURCED, listing=source)
    assert (report.verdict, report.exit_code) == ("verified", 0)
    assert sorted(source.asked) == sorted(INPUTS)
    details = {rule.rule: rule.detail for rule in report.rules}
    assert "models/example/base@1.0" in details["source"]
    assert details["freshness"].startswith("known to be current 1 h")
    store, folder = exported(draft, tmp_path)
    for listing, verdict in ((source, "verified"), (Source(toolchains="yanked"), "refused"), (None, "refused")):
        assert verify_image(store, draft.image.digest, SOURCED, listing=listing).verdict == verdict
        assert verify_folder(store, draft.image.digest, folder, SOURCED, listing=listing).verdict == verdict


@pytest.mark.parametrize(
    ("source", "verdict", "code", "rules"),
    [
        (Source(models="yanked"), "refused", 23, {"source"}),
        (Source(models="unlisted"), "refused", 23, {"source", "licences"}),
        (Source(toolchains="unlisted"), "refused", 23, {"source"}),
        (Source(steps="yanked"), "refused", 23, {"source"}),
        (Source(licence="GPL-3.0-only"), "refused", 23, {"licences"}),
        (Source(timedelta(days=2)), "stale", 24, {"freshness"}),
        (Source(timedelta(days=2), models="yanked"), "refused", 23, {"source", "freshness"}),
        (None, "refused", 25, {"source", "freshness", "licences"}),
    ],
)
def test_what_a_trusted_source_says_counts(
    layout: Path, source: Source | None, verdict: str, code: int, rules: set[str]
) -> None:
    report = verify_layout(layout, SOURCED, listing=source)
    assert (report.verdict, report.exit_code, failing(report)) == (verdict, code, rules)
    assert report.files == ()
    with pytest.raises(VerificationError) as caught:
        report.require()
    assert caught.value.exit_code == code


def test_a_program_that_is_not_listed_counts_where_the_policy_says_so(layout: Path) -> None:
    closed = asking("[source]\nrequired = true\nprograms = true")
    for source in (Source(), Source(steps="unlisted")):
        assert verify_layout(layout, SOURCED, listing=source).verdict == "verified"
    assert verify_layout(layout, closed, listing=Source()).verdict == "verified"
    report = verify_layout(layout, closed, listing=Source(steps="unlisted"))
    assert (report.verdict, report.exit_code, failing(report)) == ("refused", 23, {"source"})


def test_a_source_that_does_not_verify_is_no_verdict(layout: Path) -> None:
    class Damaged(Source):
        def lookup(self, digest: Digest) -> Listed | None:
            raise Untrusted("a delegated role is not signed")

    with pytest.raises(Untrusted, match="a delegated role"):
        verify_layout(layout, SOURCED, listing=Damaged())


def test_the_name_and_licence_are_those_of_the_config(draft: Draft, tmp_path: Path) -> None:
    strict = asking('[licences]\nallow = ["MIT"]', '[names.reserved]\n"examples/*" = []')
    report = verify_image(draft.store(tmp_path), draft.image.digest, strict, listing=Source())
    details = {rule.rule: rule.detail for rule in report.rules if rule.result == "fail"}
    assert set(details) == {"licences", "names"}
    assert "'Apache-2.0'" in details["licences"]
    assert "'examples/demo'" in details["names"]


# --- indexes and strangers --------------------------------------------------------------------------------------------


def test_false_entries_in_the_index_change_nothing(draft: Draft, layout: Path) -> None:
    text = (layout / "index.json").read_text()
    lying = text.replace(
        '"mediaType":"application/vnd.oci.image.manifest.v1+json"',
        '"annotations":{"dev.sigstore.bundle.predicateType":"x"},"artifactType":"x",'
        '"mediaType":"application/vnd.oci.image.manifest.v1+json"',
    )
    assert lying != text
    (layout / "index.json").write_text(lying)
    assert verify_layout(layout, policy()).verdict == "verified"


def test_a_false_artifact_type_hides_nothing(draft: Draft, tmp_path: Path) -> None:
    for place in range(len(draft.referrers)):
        draft.replace_referrer(place, lambda manifest: manifest.update(artifactType="application/x", annotations={}))
    draft.write(tmp_path)
    assert verify_layout(tmp_path, policy()).verdict == "verified"


def test_strangers_referrers_are_no_obstacle(draft: Draft, tmp_path: Path) -> None:
    stranger = Draft(release=key("stranger"), builder=key("stranger")).sign()
    draft.referrers += stranger.referrers
    draft.referrers.append(bundle_referrer(draft.image, b"garbage", "x"))
    draft.write(tmp_path)
    assert verify_layout(tmp_path, policy()).verdict == "verified"


@pytest.mark.parametrize(
    ("error", "code"), [(CorruptContent, 21), (Untrusted, 22), (PolicyRefusal, 23), (Stale, 24), (NotVerifiable, 25)]
)
def test_a_refusal_can_be_raised(error: type[VerificationError], code: int) -> None:
    report = Report("refused", Digest.of(b""), (), (), ExitCode(code))
    with pytest.raises(error):
        report.require()


# --- whatever the input -----------------------------------------------------------------------------------------------


def mutate(data: bytes, kind: int, place: int, junk: bytes) -> bytes:
    place %= len(data) + 1
    if kind == 0:
        return junk
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + junk + data[place:]
    return data[:place] + junk + data[place + len(junk) :]


JSON_JUNK = [b"null", b"[]", b"{}", b'""', b"-1", b"1e999", b"true", b'{"a":1}', b"\\ud800", b"9" * 400, b"[" * 200]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.integers(min_value=0),
    st.integers(0, 3),
    st.integers(min_value=0, max_value=4000),
    st.one_of(st.binary(max_size=40), st.sampled_from(JSON_JUNK)),
)
def test_any_mutation_of_any_part_gives_a_report_or_a_verification_error(
    tmp_path: Path, which: int, kind: int, place: int, junk: bytes
) -> None:
    """Parts are changed *before* they are named and signed around, so that the change gets past the digests."""
    draft = Draft().seal()
    targets: list[Callable[[], None]] = []

    def change_manifest() -> None:
        draft.manifest = mutate(draft.manifest, kind, place, junk)
        draft.sign()

    def change_file(name: str) -> Callable[[], None]:
        def change() -> None:
            draft.files[name] = mutate(draft.files[name], kind, place, junk)
            draft.lay_out().seal().sign()

        return change

    def change_referrer(number: int, blob: int | None) -> Callable[[], None]:
        def change() -> None:
            draft.sign()
            referrer = draft.referrers[number]
            if blob is None:
                manifest = mutate(referrer.manifest, kind, place, junk)
                draft.referrers[number] = type(referrer)(manifest, referrer.blobs)
                return
            old = referrer.blobs[blob]
            new = mutate(old, kind, place, junk)
            blobs = (*referrer.blobs[:blob], new, *referrer.blobs[blob + 1 :])
            manifest = referrer.manifest.replace(Digest.of(old).hex.encode(), Digest.of(new).hex.encode())
            manifest = manifest.replace(b'"size":%d' % len(old), b'"size":%d' % len(new))
            draft.referrers[number] = type(referrer)(manifest, blobs)

        return change

    targets.append(change_manifest)
    targets += [change_file(name) for name in draft.files]
    targets += [change_referrer(number, blob) for number in range(5) for blob in (None, 1)]
    targets[which % len(targets)]()
    folder = tmp_path / "layout"
    shutil.rmtree(folder, ignore_errors=True)
    digest = draft.write(folder)
    found = outcome(lambda: verify_layout(folder, policy(), image=digest))
    if isinstance(found, Report):
        assert (found.verdict == "verified") == (found.exit_code == 0)
        assert len(found.rules) == len(RULES)
    else:
        assert "itself failed" not in found.message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_garbage_as_index_and_manifest(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "layout"
    shutil.rmtree(folder, ignore_errors=True)
    digest = Draft().sign().write(folder)
    (folder / "index.json").write_bytes(data)
    with pytest.raises(VerificationError):
        verify_layout(folder, policy())
    (folder / "blobs" / "sha256" / Digest.of(data).hex).write_bytes(data)
    for image in (Digest.of(data), digest):
        found = outcome(lambda wanted=image: verify_layout(folder, policy(), image=wanted))  # type: ignore[misc]
        assert found.exit_code != 0
        assert isinstance(found, Report) or "itself failed" not in found.message


def test_exported_layouts_verify(draft: Draft, tmp_path: Path) -> None:
    store = draft.store(tmp_path / "store")
    export_layout(store, draft.image.digest, tmp_path / "out", name="examples/demo:1.0.0")
    assert verify_layout(tmp_path / "out", policy()).verdict == "verified"
