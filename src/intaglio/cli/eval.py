"""``intaglio eval``: what images measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from intaglio.cli.setting import Setting, options, policy_option

if TYPE_CHECKING:
    from intaglio.build.comparison import Pair
    from intaglio.digest import Digest
    from intaglio.verify import EvidenceSource


@click.group(short_help="Compare what two images measured.")
def command() -> None:
    """Compare what two images measured, as their evaluators attest it.

    \b
    Examples:
      intaglio eval compare examples/helpdesk:1.0.0 examples/helpdesk:1.1.0

    Recipes measure with the step program `evaluate`, and gate images on its metrics: docs/evaluation.md.
    """


@command.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@policy_option
@options
def compare(setting: Setting, first: str, second: str, policy: str | None) -> None:
    """Show the metrics of the images A and B side by side, each a REF, sha256:… or an OCI LAYOUT.

    \b
    Examples:
      intaglio eval compare examples/helpdesk:1.0.0 examples/helpdesk:1.1.0
      intaglio eval compare sha256:5a79… ./exported --json

    Only test results that an evaluator of your policy signed count; an image without any is an error. The files of
    the images are not read: `intaglio verify` does that.
    """
    from intaglio.build import comparison

    rules = setting.policy(policy)
    found = []
    for reference in (first, second):
        source, image = _image(setting, reference)
        found.append((reference, image, comparison.metrics(source, image, rules)))
    pairs = comparison.compare(found[0][2], found[1][2])
    document = {
        **{side: {"reference": one[0], "image": str(one[1])} for side, one in zip("ab", found, strict=True)},
        "metrics": {name: pair.to_json() for name, pair in pairs.items()},
    }
    setting.emit(document, _table(pairs))


def _image(setting: Setting, reference: str) -> tuple[EvidenceSource, Digest]:
    """Return where the image is, and its digest.

    Raises:
        NotVerifiable: there is no such image.
    """
    place = Path(reference)
    if (place / "oci-layout").is_file():
        from intaglio.content.bare import BareLayout
        from intaglio.errors import NotVerifiable

        layout = BareLayout(place)
        images = layout.images()
        if len(images) != 1:
            raise NotVerifiable(f"{place}: expected one model image, found {len(images)}")
        return layout, images[0].digest
    store = setting.existing_store
    return store, store.resolve(reference)


def _table(pairs: dict[str, Pair]) -> str:
    width = max(len(name) for name in pairs)
    lines = [f"{'':<{width}}  {'A':>10}  {'B':>10}  {'B - A':>10}"]
    for name, pair in pairs.items():
        cells = (_shown(pair.first), _shown(pair.second), _shown(pair.difference, sign="+"))
        lines.append(f"{name:<{width}}  " + "  ".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _shown(value: float | None, *, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.6g}"
