from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.content.reference import Reference
from intaglio.digest import Digest
from intaglio.errors import CorruptContent, UsageError

DIGEST = Digest.of(b"image")


@pytest.mark.parametrize(
    ("text", "host", "name", "tag"),
    [
        ("registry.example.com/models/helpdesk:1.0.0", "registry.example.com", "models/helpdesk", "1.0.0"),
        ("localhost/a:1", "localhost", "a", "1"),
        ("localhost:5000/a/b/c:v_1.0-x", "localhost:5000", "a/b/c", "v_1.0-x"),
        ("[::1]:5000/a", "[::1]:5000", "a", None),
        ("HOST.example/a__b/c-d", "host.example", "a__b/c-d", None),
    ],
)
def test_parts(text: str, host: str, name: str, tag: str | None) -> None:
    assert Reference.parse(text) == Reference(host, name, tag)
    assert Reference.parse(f"{text}@{DIGEST}") == Reference(host, name, tag, DIGEST)


@pytest.mark.parametrize(
    "text",
    [
        "models/helpdesk:1.0.0",  # no host is guessed
        "registry.example.com",
        "registry.example.com/",
        "registry.example.com/Models/helpdesk:1",
        "registry.example.com/a//b:1",
        "registry.example.com/../b:1",
        "registry.example.com/a:",
        "registry.example.com/a:-1",
        "registry.example.com/a:" + "x" * 129,
        "https://registry.example.com/a:1",
        "user:password@registry.example.com/a:1",
        "registry.example.com/a:1\n",
        "registry.example.com/a:1 ",
        "registry.example.com:port/a:1",
        "",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    assert "HOST/REPO:TAG" in (caught.value.hint or "")


@pytest.mark.parametrize("digest", ["sha512:" + "a" * 128, "sha256:abc", str(DIGEST).upper().replace("SHA", "sha")])
def test_a_digest_that_is_none(digest: str) -> None:
    with pytest.raises(CorruptContent):
        Reference.parse(f"registry.example.com/a@{digest}")


def test_docker_hub_answers_under_another_name() -> None:
    assert Reference.parse("docker.io/org/model:1").registry == "registry-1.docker.io"
    assert Reference.parse("registry.example.com:5000/org/model:1").registry == "registry.example.com:5000"


@given(st.text(max_size=60))
def test_whatever_the_text_it_is_a_reference_or_refused(text: str) -> None:
    try:
        found = Reference.parse(text)
    except (UsageError, CorruptContent):
        return
    assert Reference.parse(str(found)) == found
