"""``intaglio store``: look after the store."""

from __future__ import annotations

import click

from intaglio.cli.setting import Setting, options


@click.group(short_help="Look after the store.")
def command() -> None:
    """Look after the store.

    \b
    Examples:
      intaglio store verify
      intaglio store du
      intaglio store list
    """


@command.command()
@click.option("--repair", is_flag=True, help="Remove damaged blobs, so that the next build makes them again.")
@options
def verify(setting: Setting, repair: bool) -> int:
    """Re-hash every blob, rebuild the index from the blobs, and remove what crashes left.

    \b
    Examples:
      intaglio store verify
      intaglio store verify --repair
    """
    from intaglio.errors import ExitCode, MachineError

    setting.store.sweep()
    count, faults = setting.store.verify(setting.progress)
    if repair:
        for fault in faults:
            fault.path.unlink()
    referrers = None
    try:
        referrers = setting.store.rebuild_index()
    except MachineError as error:  # a full or read-only disk is no reason to be silent about the blobs
        setting.progress.note(f"the index is as it was: {error.message}")
    document = {"blobs": count, "referrers": referrers, "damaged": [str(fault) for fault in faults], "repaired": repair}
    known = "" if referrers is None else f"{referrers} claims and signatures, "
    lines = [f"{count} blobs, {known}{len(faults)} damaged", *map(str, faults)]
    setting.emit(document, "\n".join(lines))
    if faults and not repair:
        setting.progress.note("hint: intaglio store verify --repair   (removes what is damaged)")
        return int(ExitCode.CORRUPT)
    return int(ExitCode.OK)


@command.command()
@options
def du(setting: Setting) -> None:
    """Say how much room the parts of the store take.

    \b
    Examples:
      intaglio store du
      intaglio store du --json
    """
    from intaglio.report.terminal import amount

    sizes = setting.store.usage()
    setting.emit({"bytes": sizes}, "\n".join(f"{name:<14} {amount(size, 'B')}" for name, size in sizes.items()))


@command.command(name="list")
@options
def list_(setting: Setting) -> None:
    """List the images by name.

    \b
    Examples:
      intaglio store list
      intaglio store list --json
    """
    tags = setting.store.tags()
    entries = [{"tag": name, "image": str(image.digest)} for name, image in sorted(tags.items())]
    setting.emit({"images": entries}, "\n".join(f"{entry['tag']}  {entry['image']}" for entry in entries))
