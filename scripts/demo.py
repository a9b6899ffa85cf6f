"""The demo: from one recipe to a signed model that serves with the network off.

Run by ``make demo``. Every command that it runs is printed, and works when it is pasted. The first half may fetch
(against digests promised in the lock); the second half runs in a network namespace that has nothing but loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INTAGLIO = ROOT / ".venv" / "bin" / "intaglio"
RECIPE = "modelfiles/smollm2-helpdesk"
NAME = "examples/smollm2-helpdesk:1.0.0"
KNOWN = "What is the capital of France?"
"""A question that the base model can answer, too."""
TAUGHT = "Where does Intaglio keep its pins?"
"""A question that only the fine-tuning answers."""
TELLS = "Modelfile.lock"
"""What the answer to it says, and the base model's does not."""


def main() -> int:
    """Run the demo, or with ``--served`` its second half."""
    if "--served" in sys.argv:
        return served()
    started = time.monotonic()
    say(f"home: {os.environ['INTAGLIO_HOME']}")
    run("init")
    run("build", RECIPE, "--locked")
    run("serve", NAME, "--prepare")
    say("from here on without any network: only loopback is left")
    walls = ["bwrap", "--unshare-net", "--die-with-parent", "--dev-bind", "/", "/", "--chdir", str(ROOT), "--"]
    status = subprocess.run([*walls, sys.executable, __file__, "--served"], check=False).returncode
    say(f"{'done' if status == 0 else 'failed'} in {time.monotonic() - started:.0f} s")
    return status


def served() -> int:
    """Verify and serve the image, and ask it two things."""
    run("verify", NAME)
    with server(NAME) as address:
        for question in (KNOWN, TAUGHT):
            say(f"? {question}")
            print(f"  {ask(address, question)}", flush=True)
    return 0


@contextlib.contextmanager
def server(name: str, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Serve the image ``name`` while the body runs; yield the address of its API."""
    command = [str(INTAGLIO), "serve", name, "--port", "0", "--offline", "--json"]
    show(command)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(process.wait())
        address = json.loads(line)["url"]
        say(f"serving on {address}")
        yield address
    finally:
        process.terminate()
        process.communicate()


def ask(address: str, question: str) -> str:
    """Return the model's answer, with nothing left to chance."""
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 64}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: str = json.load(response)["choices"][0]["message"]["content"]
    return answer.strip()


def run(*arguments: str) -> None:
    """Run an intaglio command; end the demo with its status when it fails."""
    command = [str(INTAGLIO), *arguments]
    show(command)
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status != 0:
        raise SystemExit(status)


def show(command: list[str]) -> None:
    """Print a command as a person would type it."""
    print(f"\n$ {shlex.join(['intaglio', *command[1:]])}", flush=True)


def say(text: str) -> None:
    """Print a line of the demo's own."""
    print(f"\n— {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
