"""Serve safetensors with vLLM's own server: an OpenAI-compatible API on a Unix socket.

* vLLM runs as it does everywhere: this program becomes it, with arguments made of the request.
* Weights are read from safetensors alone, and no code that a model brings is run.
* Its processes talk over sockets below /tmp and on the sandbox's own loopback. SIGTERM and SIGINT end it.

Source: vLLM 0.32, ``vllm/entrypoints/launchers/cli_args.py``, ``vllm/envs.py``, ``vllm/platforms/cpu.py``.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))  # in a checkout

import serving
import vllm_cpu
from serving import Fault, Request

CACHE_GIB = 2
"""Least memory for the keys and values of the tokens being worked on, in GiB: vLLM takes it at start."""
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # what binds reads /sys, which is not there; OMP_NUM_THREADS counts
    "VLLM_CONFIGURE_LOGGING": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_PLUGINS": vllm_cpu.NAME,
    "GLOO_SOCKET_IFNAME": "lo",
}


def cache_size(config: dict[str, object], context: int | None) -> int:
    """The GiB that one sequence of ``context`` tokens needs for its keys and values, and no less than the least.

    Two of them a layer, in two bytes a number; a model that shares them among heads in other ways needs less.
    """
    if context is None:
        return CACHE_GIB
    inner = config.get("text_config")
    about = inner if isinstance(inner, dict) else config

    def number(name: str, default: int) -> int:
        value = about.get(name)
        return value if isinstance(value, int) and value > 0 else default

    heads = number("num_attention_heads", 1)
    width = number("head_dim", number("hidden_size", 1) // heads)
    size = 2 * 2 * number("num_hidden_layers", 1) * number("num_key_value_heads", heads) * width * context
    return max(CACHE_GIB, math.ceil(1.1 * size / 2**30))


def arguments(request: Request) -> list[str]:
    """The arguments of vLLM's server. Without a context it takes what fits, up to what the model was made for."""
    return [
        *("--model", str(request.folder), "--served-model-name", request.name, "--uds", request.socket),
        *("--load-format", "safetensors", "--no-trust-remote-code", "--enforce-eager", "--seed", "0"),
        *("--max-model-len", str(request.context or -1), "--max-num-seqs", "16"),
        *("--disable-log-stats", "--disable-uvicorn-access-log"),
    ]


def serve(request: Request) -> None:
    """Become vLLM's server."""
    path = request.folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise Fault(f"model: config.json: {problem}") from None
    space = {"VLLM_CPU_KVCACHE_SPACE": str(cache_size(config, request.context))}
    place = Path(tempfile.mkdtemp(prefix="vllm-"))
    vllm_cpu.announce(place)
    paths = f"{place}:{Path(vllm_cpu.__file__).parent}"
    private = {"VLLM_CACHE_ROOT": f"{place}/cache", "VLLM_CONFIG_ROOT": f"{place}/config", "PYTHONPATH": paths}
    argv = [sys.executable, "-B", "-s", "-P", "-m", "vllm.entrypoints.openai.api_server", *arguments(request)]
    os.execve(sys.executable, argv, {**os.environ, **ENVIRONMENT, **space, **private})  # noqa: S606 - no shell


if __name__ == "__main__":
    sys.exit(serving.run(serve))
