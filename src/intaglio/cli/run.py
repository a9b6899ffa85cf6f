"""``intaglio run``: a verified runtime image in a container, and the model in it behind a relay on loopback."""

from __future__ import annotations

import sys

import click

from intaglio.cli.setting import Setting, options, policy_option


@click.command(short_help="Serve an image in a container that verifies it first.")
@click.argument("reference", metavar="REF|sha256:…")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--runtime", metavar="NAME", help="Which runtime, where the model has images of several.")
@click.option("--image", metavar="REF", help="The runtime image; default: the one that was built with the model.")
@click.option("--name", metavar="NAME", help="The container's name; default: intaglio-…")
@click.option("--context", type=click.IntRange(1), help="Tokens of context; default: what the model says.")
@click.option("--startup", type=click.IntRange(1), default=600, show_default=True, help="Seconds until it must answer.")
@click.option("--engine-socket", metavar="PATH", help="Docker's or podman's socket; default: DOCKER_HOST, or found.")
@policy_option
@options
def command(
    setting: Setting,
    reference: str,
    port: int,
    runtime: str | None,
    image: str | None,
    name: str | None,
    context: int | None,
    startup: int,
    engine_socket: str | None,
    policy: str | None,
) -> int:
    """Serve an image in a container: an OpenAI-compatible API on 127.0.0.1.

    \b
    Examples:
      intaglio run examples/smollm2-helpdesk:1.0.0 --port 8080
      intaglio run examples/smollm2-helpdesk:1.0.0 --runtime vllm --json
      intaglio run examples/smollm2-helpdesk:1.0.0 --engine-socket /run/podman/podman.sock

    The runtime image is verified against your policy before the engine gets it; the guard inside verifies the model
    before the server starts. The container has no network, a read-only root and no capabilities. It runs until Ctrl-C
    or SIGTERM, and is removed then. Needs the docker package: pip install 'intaglio[run]'.
    """
    import os
    from datetime import UTC, datetime

    from intaglio import verify
    from intaglio.build import containers, engines, relay, running
    from intaglio.content import archive
    from intaglio.dataclass import replace

    store = setting.existing_store
    store.sweep()
    chosen = running.choose(store, reference, runtime=runtime, image=image)
    listing = setting.listing()
    verify.verify_image(
        store, chosen.runtime, setting.policy(policy), listing=listing, progress=setting.progress
    ).require()
    setting.progress.note(f"verified the runtime image {chosen.runtime}")
    engine = engines.find(os.environ, engine_socket)
    host = containers.DockerHost(engine)
    host.sweep(store.root)
    with relay.listen(port) as listener, store.scratch("run") as scratch:
        order = running.lay_out(store, chosen, scratch, setting.home, datetime.now(UTC), context=context)
        order = replace(order, name=name) if name else order
        tag = f"localhost/intaglio/runtime:{chosen.runtime.hex[:16]}"
        known = containers.install(host, archive.ids(chosen.image), archive.stream(chosen.image, store, tag))
        order = replace(order, image=known)

        def ready(url: str, container: str) -> None:
            told = running.about(chosen, url, container, f"{engine.name} {engine.version}")
            setting.emit(told, f"serving {chosen.name} on {url} in {order.name} (Ctrl-C ends it)")
            sys.stdout.flush()

        return containers.serve(host, order, listener, startup=startup, ready=ready)
