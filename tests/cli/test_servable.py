"""Recipes whose runtime cannot serve what they make: refused before there is an image, with what can serve it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests import images
from tests.workshop import Workshop

from intaglio.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
NF4 = """\
write(json.dumps({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True,
                                          "bnb_4bit_quant_type": "nf4"}}), "config.json")
write(b"weights", "model.safetensors")
"""


@pytest.fixture
def servers(shop: Workshop) -> Workshop:
    """A workshop with the shipped servers' own word on what they serve, all of them in its one toolchain."""
    shutil.copytree(ROOT / "builder" / "rootfs", shop.builder / "rootfs")
    shutil.copytree(ROOT / "builder" / "toolchains" / "guard", shop.builder / "toolchains" / "guard")
    shutil.copytree(ROOT / "builder" / "lib", shop.builder / "lib", dirs_exist_ok=True)
    for path in (ROOT / "builder" / "servers").iterdir():
        if path.is_file():
            text = path.read_text().replace(f'toolchain = "serve-{path.stem}"', 'toolchain = "tiny"')
            (shop.builder / "servers" / path.name).write_text(text)
    shop.recipe.joinpath("data.txt").write_bytes(images.Gguf().write())
    return shop


def make(shop: Workshop, code: str, outputs: tuple[str, ...], runtime: str) -> None:
    shop.step("make", code, outputs=outputs)
    steps = '[steps.make]\nuses = "./make"\ninputs = { source = "data" }\n'
    shop.write(steps, source="make", more=f'runtime = "{runtime}"\n')


def test_nf4_for_vllm_makes_no_image(servers: Workshop) -> None:
    make(servers, NF4, ("config.json", "model.safetensors"), "vllm")
    servers.lock()
    for _ in range(2):  # the second time the step is cached
        error = servers.build().failed(ExitCode.RECIPE).json["error"]
        assert "vllm does not serve safetensors quantised as nf4" in error["message"]
        assert error["hint"] == 'it is served by runtime = "transformers"'
    assert servers.run("store", "list", "--json").ok().json == {"images": []}


def test_gguf_for_vllm_makes_no_image(servers: Workshop) -> None:
    make(servers, 'write(read("source"), "model.gguf")', ("model.*",), "vllm")
    servers.lock()
    error = servers.build().failed(ExitCode.RECIPE).json["error"]
    assert "vllm does not serve gguf" in error["message"]
    assert error["hint"] == 'it is served by runtime = "llama.cpp"'
    assert servers.run("store", "list", "--json").ok().json == {"images": []}


@pytest.mark.parametrize(
    ("outputs", "runtime", "able"),
    [
        (("*.gguf",), "vllm", '"llama.cpp"'),
        (("config.json", "model.safetensors"), "llama.cpp", '"transformers" or "vllm"'),
    ],
)
def test_a_format_that_shows_is_refused_before_anything_runs(
    servers: Workshop, outputs: tuple[str, ...], runtime: str, able: str
) -> None:
    other = {"vllm": "llama.cpp", "llama.cpp": "vllm"}[runtime]
    make(servers, 'write(read("source"), "model.gguf")', outputs, other)
    servers.lock()
    servers.edit("Modelfile.toml", f'runtime = "{other}"', f'runtime = "{runtime}"')
    for command in ("lock", "plan", "build"):
        done = servers.run(command).failed(ExitCode.RECIPE)
        assert f"image.runtime: {runtime} does not serve" in done.err
        assert f"it is served by runtime = {able}" in done.err
