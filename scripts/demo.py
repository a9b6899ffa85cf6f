"""The demo: from one recipe and a trusted source to a signed model that serves with the network off.

Run by ``make demo``. Every command that it runs is printed, and works when it is pasted. The first half may fetch
(against digests promised in catalogue and lock); the second half runs in a network namespace that has nothing but
loopback. Whoever trusts somebody else's source leaves out the making of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
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
"""A question that the base model answers, too."""
KNOWS = "Paris"
"""What both say to it."""
TAUGHT = "Where does Intaglio keep its pins?"
"""A question that only the fine-tuning answers."""
TELLS = "Modelfile.lock"
"""What the answer to it says, and the base model's does not."""
LISTED = (
    "models/huggingfacetb/smollm2-135m-instruct",
    "datasets/intaglio/helpdesk-faq@1.0.0",
    "toolchains/intaglio/train-cpu@1.0.0",
    "toolchains/intaglio/convert@1.0.0",
    *(f"steps/intaglio/{name}@1.0.0" for name in ("import", "finetune", "merge", "convert", "quantize", "evaluate")),
    *("datasets/intaglio/gate-questions@1.0.0", "datasets/intaglio/gate-texts@1.0.0"),
    *("toolchains/intaglio/quantize@1.0.0", "toolchains/intaglio/evaluate@1.0.0"),
    *("toolchains/intaglio/serve-vllm@1.0.0", "toolchains/intaglio/guard@1.0.0"),
    *("runtimes/intaglio/debian-cpu@1.0.0", "runtimes/intaglio/vllm@1.0.0"),
)
"""What the demo's trusted source lists: all that its policy wants listed of what goes into its images."""


def main() -> int:
    """Run the demo, or with ``--served`` its second half."""
    if "--served" in sys.argv:
        return served()
    started = time.monotonic()
    home = Path(os.environ["INTAGLIO_HOME"])
    say(f"home: {home}")
    home = home.relative_to(ROOT) if home.is_relative_to(ROOT) else home
    run("init", "--policy", "air-gap")
    for name in ("source", "source-keys", "published"):  # an earlier run's: it may list toolchains of an older engine
        shutil.rmtree(ROOT / home / name, ignore_errors=True)
    for command in (*publishing(home), *following(home / "published")):
        run(*command)
    run("build", RECIPE, "--locked")
    run("serve", NAME, "--prepare")
    say("from here on without any network: only loopback is left")
    walls = ["bwrap", "--unshare-net", "--die-with-parent", "--dev-bind", "/", "/", "--chdir", str(ROOT), "--"]
    status = subprocess.run([*walls, sys.executable, __file__, "--served"], check=False).returncode
    say(f"{'done' if status == 0 else 'failed'} in {time.monotonic() - started:.0f} s")
    return status


def publishing(place: Path, listed: tuple[str, ...] = LISTED) -> list[list[str]]:
    """Return the commands that make a trusted source below ``place``, and publish it in ``published`` there."""
    source = str(place / "source")
    keys = (place / "source-keys" / "offline" / f"{name}.key" for name in ("root-1", "root-2", "targets-1"))
    return [
        ["trust", "init", source],
        ["trust", "add", source, *listed],
        ["trust", "sign", source, *(word for key in keys for word in ("--key", str(key)))],
        ["trust", "publish", source, str(place / "published")],
    ]


def following(published: Path) -> list[list[str]]:
    """Return the commands that trust what is published in a folder, and read it."""
    return [
        ["trust", "anchor", str(published / "metadata" / "1.root.json"), "--replace"],
        ["trust", "refresh", "--url", str(published)],
    ]


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
    # Without a system message, the model's chat template adds its publisher's: under that one the four-bit base model
    # hesitates between English and French. An empty one leaves the question alone to both models.
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": question}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 64}
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
