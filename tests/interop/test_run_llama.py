"""llama.cpp in a runtime image, run by real podman and Docker, asked by OpenAI's own client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests import tiny_gguf
from tests.build.test_runtime import CACHE, ROOT, fetched, make_shop
from tests.containers import engine
from tests.workshop import Workshop, _workshop_of_the_session

from intaglio.build import toolchain, wheels
from intaglio.build.engines import Engine
from intaglio.content.layout import Store
from intaglio.progress import Silent

__all__ = ["_workshop_of_the_session", "engine", "fetched"]
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.containers]
NAME = "tests/shop:1.0.0"
CHAT = """
import json, sys
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1], api_key="none")
asked = {"model": sys.argv[2], "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
whole = client.chat.completions.create(**asked)
parts = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
print(json.dumps({"whole": whole.choices[0].message.content, "streamed": "".join(parts),
                  "tokens": whole.usage.completion_tokens, "models": [one.id for one in client.models.list()]}))
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, fetched: None) -> Workshop:
    """A workshop in which a tiny model and its image for llama.cpp were built."""
    store = Store.open(tmp_path_factory.mktemp("fetched") / "store")
    chain = toolchain.load(ROOT / "builder" / "toolchains" / "serve-llama-cpp")
    wheels.fetch(chain, store, offline=False, progress=Silent())
    made = make_shop(tmp_path_factory.mktemp("llama") / "shop", model=tiny_gguf.write(), toy=False)
    made.built(XDG_CACHE_HOME=CACHE)
    return made


def test_a_chat_with_llama_cpp_in_a_container(shop: Workshop, engine: Engine, openai: Path) -> None:
    process = shop.start("run", NAME, "--port", "0", "--json", "--engine-socket", str(engine.socket))
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        url = json.loads(line)["url"]
        argv = [str(openai), "-c", CHAT, url, NAME]
        plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        done = subprocess.run(argv, capture_output=True, text=True, env=plain, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    answer = json.loads(done.stdout)
    assert answer["models"] == [NAME]
    assert answer["tokens"] >= 1
    assert answer["whole"] == answer["streamed"]
