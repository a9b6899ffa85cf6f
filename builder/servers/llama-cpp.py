"""Serve a GGUF model with llama.cpp's own server: an OpenAI-compatible API on a Unix socket.

* llama.cpp listens on the socket itself: there is no other listener, on no other address.
* The model is opened by the path that the request names, and read by mapping it.
* SIGTERM and SIGINT end the server.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))  # in a checkout

import serving
from serving import Fault, Request

THREADS = 2


def find_model(files: dict[str, str]) -> str:
    """The path of the one GGUF file, or of the first part of one that is split.

    Raises:
        Fault: there is not exactly one.
    """
    names = sorted(name for name in files if name.endswith(".gguf"))
    first = [name for name in names if "-00001-of-" in name] or names
    if len(first) != 1:
        raise Fault(f"model: expected one GGUF file, found {', '.join(sorted(files)) or 'nothing'}")
    return files[first[0]]


def start(model: str, name: str, socket: str, context: int | None) -> object:
    """Load the model and listen; the server runs in threads of its own."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.model_alias = {name}
    parameters.hostnames = [socket]
    parameters.offline = True
    parameters.use_jinja = True
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.fit_params = False
    parameters.n_parallel = 1
    parameters.n_ctx = context or 0  # 0: as many tokens as the model was made for
    threads = int(os.environ.get("OMP_NUM_THREADS", THREADS))
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(parameters)


def serve(request: Request) -> None:
    """Serve until told to end."""
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # inherited by the server's threads: only this one waits for them
    try:
        server = start(find_model(request.files), request.name, request.socket, request.context)
    except (RuntimeError, ValueError) as problem:
        raise Fault(str(problem)) from None
    print(f"serving {request.name}", file=sys.stderr, flush=True)
    signal.sigwait(ends)
    del server
    Path(request.socket).unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(serving.run(serve))
