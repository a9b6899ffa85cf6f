"""``intaglio serve``: verify, then serve on loopback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from intaglio.cli.setting import Setting, options, policy_option

if TYPE_CHECKING:
    from intaglio.content.layout import Store
    from intaglio.digest import Digest


@click.command(short_help="Verify an image, then serve it on loopback.")
@click.argument("reference", metavar="REF|sha256:…")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@policy_option
@click.option("--runtime", help="llama.cpp, transformers or vllm; default: the recipe's, else the first able.")
@click.option("--context", type=click.IntRange(1), help="Tokens of context; default: what the model says.")
@click.option("--prepare", is_flag=True, help="Verify, fetch what serving needs, and stop: then --offline works.")
@click.option("--sandbox", is_flag=True, default=True, help="Serve inside the sandbox: there is no other way.")
@click.option("--offline", is_flag=True, help="Ask no network, not even for the server's toolchain.")
@options
def command(
    setting: Setting,
    reference: str,
    port: int,
    policy: str | None,
    runtime: str | None,
    context: int | None,
    prepare: bool,
    sandbox: bool,  # noqa: ARG001 - said for clarity; nothing is served outside
    offline: bool,
) -> int:
    """Verify an image, then serve it: an OpenAI-compatible API on 127.0.0.1.

    \b
    Examples:
      intaglio serve examples/smollm2-helpdesk:1.0.0 --port 8080
      intaglio serve examples/smollm2-helpdesk:1.0.0 --prepare     then --offline needs no network
      intaglio serve examples/smollm2-helpdesk-vllm:1.0.0 --runtime vllm
      curl http://127.0.0.1:8080/v1/models

    The server runs in the sandbox without network but the socket that requests come through, with hubs offline. The
    bytes that it loads are those that were verified, whatever happens to the store meanwhile.
    """
    from intaglio import verify
    from intaglio.build import relay, serving
    from intaglio.build.serve import serve

    store = setting.existing_store
    store.sweep()
    image = store.resolve(reference)
    with contextlib.ExitStack() as stack:
        # The port first: who has to choose another one is told so before gigabytes are read.
        listener = None if prepare else stack.enter_context(relay.listen(port))
        held = () if prepare else stack.enter_context(serving.holding(store, image, setting.progress))
        report = verify.verify_image(
            store, image, setting.policy(policy), listing=setting.listing(), progress=setting.progress,
            held={file.path: file.descriptor for file in held},
        ).require()  # fmt: skip
        passed = sum(rule.result == "pass" for rule in report.rules)
        setting.progress.note(f"verified {reference} {image}: {passed} rules")
        service = serving.prepare(
            store,
            stack.enter_context(store.scratch("serve")),
            report.files,
            runtime or serving.recorded(store, image),
            context=context,
            offline=offline,
            progress=setting.progress,
        )
        about = {"image": str(image), "name": reference, "runtime": service.program.name}
        if listener is None:
            setting.emit({**about, "prepared": True}, f"{reference}: ready to serve offline")
            return 0
        return serve(
            held=held,
            service=service.service,
            name=reference,
            listener=listener,
            log=_log(store, image),
            ready=_announce(setting, about),
        )


def _log(store: Store, image: Digest) -> Path:
    """Return where the server's output is kept."""
    log = store.root / "logs" / f"serve-{image.hex}.log"
    log.parent.mkdir(exist_ok=True)
    return log


def _announce(setting: Setting, about: dict[str, str]) -> Callable[[str], None]:
    """Return what is called with the address once the server answers: it tells whoever waits for that."""

    def ready(address: str) -> None:
        setting.emit({**about, "url": address}, f"serving {about['name']} on {address} (Ctrl-C ends it)")
        sys.stdout.flush()

    return ready
