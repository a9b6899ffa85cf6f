"""Ready times: what counts as met, and a server that ends before it answers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from benchmarks import serve_ready

from intaglio.recipe.limits import Limits
from intaglio.recipe.program import ServerProgram


@pytest.mark.parametrize(
    ("name", "bare", "engine", "hashing", "met"),
    [
        ("vllm", 20.0, 22.9, 0.1, True),
        ("vllm", 20.0, 23.1, 0.1, False),
        ("llama-cpp", 0.4, 0.74, 0.0, True),
        ("llama-cpp", 0.4, 1.1, 0.0, False),
        ("llama-cpp", 0.4, 1.1, 0.2, True),
    ],
)
def test_the_target_is_the_servers(name: str, bare: float, engine: float, hashing: float, met: bool) -> None:
    seconds = {"bare": [bare] * 3, "engine": [engine] * 3, "hashing": [hashing] * 3}
    found, cells = serve_ready.row(name, "examples/toy:1.0.0", seconds, 1000)
    assert found == met
    assert cells[:3] == (name, "examples/toy:1.0.0", "1000")


def test_a_server_that_ends_is_explained_by_its_error(tmp_path: Path) -> None:
    code = b"import sys; sys.exit('error: no such model\\nlast words')"
    program = ServerProgram(
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
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x")
    served = serve_ready.bare(program, Path(sys.executable), {"model.gguf": model}, "examples/toy:1.0.0")
    with pytest.raises(serve_ready.NotServed, match="error: no such model"), served:
        pass
