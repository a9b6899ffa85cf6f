"""What a registry can do to whoever pulls: a function a case, each of which spoils one registry.

Any client can be run over them: load the good image, spoil the registry, pull, and compare the answer. ``due`` is the
exit code that is owed; 0 where the fault passes and the pull must succeed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.attacks.registries.fake import Asked, Registry, Reply, Tamper
from tests.images import Draft, key

from intaglio import strictjson
from intaglio.content.cosign_tag import ENVELOPE_TYPE
from intaglio.content.descriptor import EMPTY, EMPTY_TYPE, INDEX_TYPE, MANIFEST_TYPE, Descriptor
from intaglio.content.layout import ACTION
from intaglio.digest import Digest
from intaglio.errors import ExitCode

C, U, G = ExitCode.CORRUPT, ExitCode.UNTRUSTED, ExitCode.REGISTRY
BIG = "model.gguf"
"""The file whose blob is spoiled."""
REPORT = b'{"found":"nothing"}'
"""What a scanner hangs on an image."""


@dataclass(frozen=True)
class Case:
    """One attack."""

    name: str
    spoil: Callable[[Registry, Draft], object]
    due: ExitCode


CASES: list[Case] = []


def case(due: ExitCode) -> Callable[[Callable[[Registry, Draft], object]], Callable[[Registry, Draft], object]]:
    def register(spoil: Callable[[Registry, Draft], object]) -> Callable[[Registry, Draft], object]:
        CASES.append(Case(spoil.__name__, spoil, due))
        return spoil

    return register


def answers(
    registry: Registry, kind: str, change: Callable[[Asked, Reply], Reply], *, times: int = 10**6, what: str = ""
) -> None:
    """Change the next ``times`` good answers to GET of that kind (and digest or tag)."""
    left = [times]

    def tamper(asked: Asked, reply: Reply) -> Reply:
        if asked.method == "GET" and asked.kind == kind and what in ("", asked.what) and reply.status < 400 and left[0]:
            left[0] -= 1
            return change(asked, reply)
        return reply

    registry.tamper = tamper


def the_blob(registry: Registry, draft: Draft, change: Callable[[Asked, Reply], Reply], times: int = 10**6) -> None:
    answers(registry, "blobs", change, times=times, what=str(Digest.of(draft.files[BIG])))


def the_tag(registry: Registry, change: Callable[[Asked, Reply], Reply], times: int = 10**6) -> None:
    answers(registry, "manifests", change, times=times, what="1")


def set_header(name: str, value: str) -> Tamper:
    def change(_: Asked, reply: Reply) -> Reply:
        reply.headers[name] = value
        return reply

    return change


def flipped(_: Asked, reply: Reply) -> Reply:
    reply.body = reply.body[:-1] + bytes([reply.body[-1] ^ 1])
    return reply


def cut(_: Asked, reply: Reply) -> Reply:
    reply.cut = len(reply.body) // 2
    return reply


def stalled(_: Asked, reply: Reply) -> Reply:
    reply.stall = 1.2
    return reply


def says(status: int, body: bytes = b"") -> Tamper:
    return lambda asked, reply: Reply(status, body, {"Retry-After": "0"})


def replace_manifest(registry: Registry, draft: Draft, change: Callable[[strictjson.Object], object]) -> None:
    """Let the tag mean a manifest that was changed, with everything signed over what came out."""
    draft.manifest = b""
    draft.seal()
    change(draft.document)
    draft.manifest = strictjson.canonical(draft.document)
    draft.referrers, draft.assembly = [], b""
    registry.load(draft.sign())


def relist(registry: Registry, draft: Draft, change: Callable[[list[strictjson.Object]], object]) -> None:
    """Change what the registry lists as referrers, and take away the tags of their own."""
    listed = [entry.to_json() for entry in registry.listing(draft.image.digest)]
    change(listed)
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": listed}
    registry.put(json.dumps(index).encode(), f"sha256-{draft.image.digest.hex}", INDEX_TYPE)


def attach(registry: Registry, draft: Draft, *changes: Mapping[str, strictjson.Json]) -> None:
    """Hang manifests on the image, as anyone may who can push there, listed before its other referrers."""
    registry.blobs |= {str(Digest.of(data)): data for data in (EMPTY, REPORT)}
    entries = []
    for change in changes:
        document: strictjson.Object = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": "application/x.scan",
            "config": Descriptor(EMPTY_TYPE, Digest.of(EMPTY), len(EMPTY)).to_json(),
            "layers": [Descriptor("application/json", Digest.of(REPORT), len(REPORT)).to_json()],
            "subject": draft.image.to_json(),
            **change,
        }
        manifest = strictjson.canonical(document)
        entries.append((Descriptor(MANIFEST_TYPE, Digest.of(manifest), len(manifest)), manifest))
    relist(registry, draft, lambda listed: listed.__setitem__(slice(0, 0), [entry.to_json() for entry, _ in entries]))
    for _, manifest in entries:
        registry.put(manifest)


# --- the manifest -----------------------------------------------------------------------------------------------------


@case(C)
def a_lying_content_digest(registry: Registry, draft: Draft) -> None:
    the_tag(registry, set_header("Docker-Content-Digest", str(Digest.of(b"another"))))


@case(C)
def a_content_digest_of_another_algorithm(registry: Registry, draft: Draft) -> None:
    the_tag(registry, set_header("Docker-Content-Digest", "sha512:" + "a" * 128))


@case(C)
def a_media_type_that_is_not_the_content_type(registry: Registry, draft: Draft) -> None:
    the_tag(registry, set_header("Content-Type", INDEX_TYPE))


@case(C)
def manifests_and_layers_at_once(registry: Registry, draft: Draft) -> None:
    replace_manifest(registry, draft, lambda document: document.update(manifests=[]))


@case(C)
def a_digest_in_upper_case(registry: Registry, draft: Draft) -> None:
    replace_manifest(registry, draft, lambda d: d["layers"][0].update(digest=d["layers"][0]["digest"].upper()))


@case(C)
def a_digest_of_another_algorithm(registry: Registry, draft: Draft) -> None:
    replace_manifest(registry, draft, lambda d: d["layers"][0].update(digest="sha512:" + "a" * 128))


@case(C)
def an_index_where_an_image_is_due(registry: Registry, draft: Draft) -> None:
    child = Descriptor(MANIFEST_TYPE, draft.image.digest, len(draft.manifest)).to_json()
    index: strictjson.Object = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [child]}
    registry.put(strictjson.canonical(index), "1", INDEX_TYPE)


@case(C)
def a_manifest_without_end(registry: Registry, draft: Draft) -> None:
    def endless(_: Asked, reply: Reply) -> Reply:
        reply.body, reply.chunked = reply.body + b" " * (5 << 20), True
        return reply

    the_tag(registry, endless)


@case(C)
def duplicate_keys(registry: Registry, draft: Draft) -> None:
    registry.put(draft.manifest[:-1] + b',"layers":[]}', "1")


@case(C)
def diff_ids_that_are_not_the_layers(registry: Registry, draft: Draft) -> None:
    draft.config["modelfs"]["diffIds"].reverse()
    replace_manifest(registry, draft, lambda document: None)


@case(C)
def an_empty_config(registry: Registry, draft: Draft) -> None:
    draft.config.clear()
    replace_manifest(registry, draft, lambda document: None)


# --- blobs ------------------------------------------------------------------------------------------------------------


@case(C)
def other_bytes_of_the_same_size(registry: Registry, draft: Draft) -> None:
    the_blob(registry, draft, flipped)


@case(ExitCode.OK)
def other_bytes_of_the_same_size_once(registry: Registry, draft: Draft) -> None:
    the_blob(registry, draft, flipped, times=1)


@case(C)
def a_blob_that_is_too_long(registry: Registry, draft: Draft) -> None:
    def longer(_: Asked, reply: Reply) -> Reply:
        reply.body += b"more"
        return reply

    the_blob(registry, draft, longer)


@case(C)
def a_blob_that_is_too_long_and_does_not_say_so(registry: Registry, draft: Draft) -> None:
    def longer(_: Asked, reply: Reply) -> Reply:
        reply.body, reply.chunked = reply.body + b"more", True
        return reply

    the_blob(registry, draft, longer)


@case(C)
def a_blob_that_is_too_short(registry: Registry, draft: Draft) -> None:
    def shorter(_: Asked, reply: Reply) -> Reply:
        reply.body = reply.body[:-1]
        return reply

    the_blob(registry, draft, shorter)


@case(G)
def a_content_length_that_never_comes(registry: Registry, draft: Draft) -> None:
    def shorter(_: Asked, reply: Reply) -> Reply:
        reply.cut = 0
        return reply

    the_blob(registry, draft, shorter)


@case(ExitCode.OK)
def truncation_then_success(registry: Registry, draft: Draft) -> None:
    the_blob(registry, draft, cut, times=1)


@case(ExitCode.OK)
def a_lying_content_range_after_a_truncation(registry: Registry, draft: Draft) -> None:
    def lie(asked: Asked, reply: Reply) -> Reply:
        if reply.status == 206:
            reply.headers["Content-Range"] = "bytes 0-9/10"
            return reply
        return cut(asked, reply)

    the_blob(registry, draft, lie, times=2)


@case(ExitCode.OK)
def ranges_ignored_after_a_truncation(registry: Registry, draft: Draft) -> None:
    whole = draft.files[BIG]

    def ignore(asked: Asked, reply: Reply) -> Reply:
        return Reply(200, whole) if reply.status == 206 else cut(asked, reply)

    the_blob(registry, draft, ignore, times=2)


@case(C)
def wrong_bytes_in_the_resumed_part(registry: Registry, draft: Draft) -> None:
    the_blob(registry, draft, lambda asked, reply: (flipped if reply.status == 206 else cut)(asked, reply))


@case(ExitCode.OK)
def a_stall_once(registry: Registry, draft: Draft) -> None:
    the_blob(registry, draft, stalled, times=1)


@case(G)
def a_stall_each_time(registry: Registry, draft: Draft) -> None:
    the_blob(registry, draft, stalled)


@case(G)
def a_missing_blob(registry: Registry, draft: Draft) -> None:
    del registry.blobs[str(Digest.of(draft.files[BIG]))]


@case(ExitCode.OK)
def busy_three_times(registry: Registry, draft: Draft) -> None:
    replies = [says(429), says(500), says(503)]
    the_blob(registry, draft, lambda asked, reply: replies.pop(0)(asked, reply), times=3)


@case(G)
def busy_for_ever(registry: Registry, draft: Draft) -> None:
    the_tag(registry, says(503))


@case(G)
def encoded_bytes(registry: Registry, draft: Draft) -> None:
    the_blob(registry, draft, set_header("Content-Encoding", "gzip"))


@case(G)
def a_redirect_to_another_scheme(registry: Registry, draft: Draft) -> None:
    the_blob(registry, draft, lambda asked, reply: Reply(307, headers={"Location": "file:///etc/passwd"}))


@case(G)
def a_redirect_in_clear_to_a_host_that_nobody_named(registry: Registry, draft: Draft) -> None:
    the_blob(registry, draft, lambda asked, reply: Reply(307, headers={"Location": "http://192.0.2.1/blob"}))


@case(G)
def a_redirect_in_a_circle(registry: Registry, draft: Draft) -> None:
    the_blob(registry, draft, lambda asked, reply: Reply(307, headers={"Location": asked.path}))


# --- referrers --------------------------------------------------------------------------------------------------------


@case(U)
def every_referrer_hidden(registry: Registry, draft: Draft) -> None:
    relist(registry, draft, lambda listed: listed.clear())


@case(U)
def the_lineage_hidden(registry: Registry, draft: Draft) -> None:
    lineage = draft.referrers[-1].digest
    relist(registry, draft, lambda listed: listed.remove(next(e for e in listed if e["digest"] == str(lineage))))


@case(U)
def referrers_replaced_by_a_strangers(registry: Registry, draft: Draft) -> None:
    stranger = Draft(builder=key("stranger"), release=key("stranger")).sign()
    assert stranger.image.digest == draft.image.digest
    registry.load(stranger)
    ours = {str(one.digest) for one in draft.referrers}
    relist(
        registry, draft, lambda listed: listed.__setitem__(slice(None), [e for e in listed if e["digest"] not in ours])
    )


@case(ExitCode.OK)
def a_strangers_referrers_added(registry: Registry, draft: Draft) -> None:
    registry.load(Draft(builder=key("stranger"), release=key("stranger")).sign())
    relist(registry, draft, lambda listed: None)


@case(ExitCode.OK)
def a_scanners_report_attached(registry: Registry, draft: Draft) -> None:
    attach(registry, draft, {})


@case(ExitCode.OK)
def an_attachment_about_no_action(registry: Registry, draft: Draft) -> None:
    attach(registry, draft, {"annotations": {ACTION: "junk"}})


@case(ExitCode.OK)
def an_attachment_whose_annotations_are_numbers(registry: Registry, draft: Draft) -> None:
    attach(registry, draft, {"annotations": {"count": 1}})


@case(ExitCode.OK)
def an_attachment_whose_type_is_a_number(registry: Registry, draft: Draft) -> None:
    attach(registry, draft, {"artifactType": 5})


@case(ExitCode.OK)
def an_attachment_that_would_fill_every_index(registry: Registry, draft: Draft) -> None:
    attach(registry, draft, {"annotations": {"text": "x" * (1 << 20)}})


@case(ExitCode.OK)
def an_attachment_that_lies_about_a_size(registry: Registry, draft: Draft) -> None:
    attach(registry, draft, {"layers": [Descriptor("application/json", Digest.of(REPORT), 5).to_json()]})


@case(ExitCode.OK)
def an_attachment_that_lies_about_the_empty_blob(registry: Registry, draft: Draft) -> None:
    attach(registry, draft, {"config": Descriptor(EMPTY_TYPE, Digest.of(EMPTY), 5).to_json()})


@case(ExitCode.OK)
def an_attachment_that_lies_about_a_blob_of_the_image(registry: Registry, draft: Draft) -> None:
    attach(registry, draft, {"config": Descriptor(EMPTY_TYPE, Digest(draft.document["config"]["digest"]), 5).to_json()})


@case(ExitCode.OK)
def false_artifact_types(registry: Registry, draft: Draft) -> None:
    relist(
        registry, draft, lambda listed: [entry.update(artifactType="text/plain", annotations={}) for entry in listed]
    )


@case(C)
def a_referrer_that_is_not_what_its_digest_says(registry: Registry, draft: Draft) -> None:
    one, other = draft.referrers[0], draft.referrers[1]
    registry.manifests[str(one.digest)] = (MANIFEST_TYPE, other.manifest)


@case(C)
def a_list_that_is_no_index(registry: Registry, draft: Draft) -> None:
    registry.put(draft.manifest, f"sha256-{draft.image.digest.hex}")


@case(C)
def a_list_with_a_malformed_digest(registry: Registry, draft: Draft) -> None:
    relist(registry, draft, lambda listed: listed[0].update(digest="sha256:../../../etc/passwd"))


@case(C)
def more_referrers_than_anyone_opens(registry: Registry, draft: Draft) -> None:
    """The bound that remains: whoever may push there can take the image out of service there."""

    def many(listed: list[strictjson.Object]) -> None:
        listed += [dict(listed[0], digest=str(Digest.of(b"%d" % number))) for number in range(3000)]

    relist(registry, draft, many)


@case(C)
def a_signatures_blob_altered(registry: Registry, draft: Draft) -> None:
    answers(registry, "blobs", flipped, what=str(Digest.of(draft.referrers[0].blobs[1])))


# --- cosign's tag of attestations: never asked for, whatever stands there ---------------------------------------------


def the_attestations(registry: Registry, draft: Draft, data: bytes, media_type: str = MANIFEST_TYPE) -> None:
    registry.put(data, f"sha256-{draft.image.digest.hex}.att", media_type)


@case(ExitCode.OK)
def attestations_that_are_no_manifest(registry: Registry, draft: Draft) -> None:
    the_attestations(registry, draft, b'{"schemaVersion":2,"layers":[{"digest":"sha256:x"}]}')


@case(ExitCode.OK)
def attestations_that_are_an_index(registry: Registry, draft: Draft) -> None:
    the_attestations(registry, draft, b'{"schemaVersion":2,"manifests":[]}', INDEX_TYPE)


@case(ExitCode.OK)
def attestations_that_are_the_image(registry: Registry, draft: Draft) -> None:
    the_attestations(registry, draft, draft.manifest)


@case(ExitCode.OK)
def attestations_without_their_blobs(registry: Registry, draft: Draft) -> None:
    document = json.loads(draft.referrers[1].manifest)
    gone = Descriptor(ENVELOPE_TYPE, Digest.of(b"gone"), 4, annotations={"predicateType": "x"})
    document["layers"] = [gone.to_json()]
    del document["subject"]
    the_attestations(registry, draft, strictjson.canonical(document))
