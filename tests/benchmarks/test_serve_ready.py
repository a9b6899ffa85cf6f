"""Ready times: what counts as met, and a server that ends before it answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import serve_ready
from benchmarks.serve_ready import Papers, Ready
from tests import images
from tests.guard.site import Site
from tests.images import Draft

from intaglio.recipe.limits import Limits
from intaglio.recipe.program import ServerProgram


@pytest.mark.parametrize(
    ("name", "bare", "ready", "hashing", "met"),
    [
        ("vllm", 20.0, 22.9, 0.1, True),
        ("vllm", 20.0, 23.1, 0.1, False),
        ("llama-cpp", 0.4, 0.74, 0.0, True),
        ("llama-cpp", 0.4, 0.94, 0.2, True),
        ("llama-cpp", 0.4, 0.96, 0.2, False),
    ],
)
def test_the_target_is_the_servers_behind_the_guard(
    name: str, bare: float, ready: float, hashing: float, met: bool
) -> None:
    seconds = {"bare": [bare] * 3, "guard": [ready] * 3, "engine": [99.0] * 3, "hashing": [hashing] * 3}
    found = Ready(name, "examples/toy:1.0.0", 1000, seconds)
    assert found.met == met
    assert [row[3] for row in found.rows()] == ["bare", "`intaglio-guard`", "`intaglio serve`"]
    assert all(len(row) == len(serve_ready.COLUMNS) for row in found.rows())
    page = serve_ready.report([found], "serving", "x", {})
    assert page.passed == met


SERVER = b"""
import http.server, json, os, socketserver, sys
request = json.load(open(sys.argv[1]))
assert open(request["model"]["files"]["model.gguf"], "rb").read(4) == b"GGUF"
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(request["name"].encode())
    def address_string(self): return "x"
class Server(socketserver.UnixStreamServer): pass
Server(request["socket"], Answer).serve_forever()
"""


def test_a_server_answers_bare_and_behind_the_guard(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    server = program(SERVER)
    papers = Papers(site.anchor, site.passport, site.model)
    model = {path: site.model / path for path in site.draft.files}
    python = Path(sys.executable)
    for served in (
        serve_ready.bare(server, python, model, "toy"),
        serve_ready.guarded(server, python, papers, "toy"),
    ):
        with served as running:
            assert running.ask("GET", "/v1/models") == (200, "toy")
    place = site.model / "model.gguf"
    place.write_bytes(b"x" + place.read_bytes()[1:])
    refused = serve_ready.guarded(server, python, papers, "toy")
    with pytest.raises(serve_ready.NotServed, match="found sha256:"), refused:
        pass


def test_the_papers_of_an_image_let_the_guard_pass(tmp_path: Path) -> None:
    draft = Draft().sign()
    home = tmp_path / "home"
    store = draft.store(home / "store")
    (home / "policy.toml").write_text(images.policy_text())
    papers = Papers.of(home, store, draft.image.digest, tmp_path / "papers")
    argv = [sys.executable, "-m", "intaglio.guard.main", "--root", str(papers.anchor)]
    argv += ["--passport", str(papers.passport), "--model", str(papers.model), "--", "/bin/true"]
    subprocess.run(argv, check=True)


def test_a_server_that_ends_is_explained_by_its_error(tmp_path: Path) -> None:
    code = b"import sys; sys.exit('error: no such model\\nlast words')"
    server = program(code)
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x")
    served = serve_ready.bare(server, Path(sys.executable), {"model.gguf": model}, "examples/toy:1.0.0")
    with pytest.raises(serve_ready.NotServed, match="error: no such model"), served:
        pass


def program(code: bytes) -> ServerProgram:
    return ServerProgram(
        name="toy",
        summary="Ends.",
        toolchain="none",
        rootfs="none",
        lib=(),
        limits=Limits(),
        interfaces=False,
        files={"server.py": code},
        formats=("gguf",),
    )
