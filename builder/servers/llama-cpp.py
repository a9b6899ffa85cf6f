"""Serve a GGUF model with llama.cpp's own server on a Unix socket.

The request names the model's files by the paths to open, the name under which the model is listed, the socket, and
how many tokens of context to keep (null: what the model says).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading


def main(path: str) -> int:
    """Serve until SIGTERM."""
    with open(path, encoding="utf-8") as stream:
        request = json.load(stream)
    weights = [place for name, place in sorted(request["model"]["files"].items()) if name.endswith(".gguf")]
    if len(weights) != 1:
        print(f"expected one GGUF file in the image, found {len(weights)}", file=sys.stderr)
        return 1
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())

    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = weights[0]
    settings.model_alias = {request["name"]}
    settings.hostnames = [request["socket"]]
    settings.offline = True
    settings.use_jinja = True
    settings.ui = False
    settings.n_parallel = 1
    settings.n_ctx = request["context"] or 0
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    stopped.wait()
    del server
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1] if len(sys.argv) > 1 else "/step/request.json"))
