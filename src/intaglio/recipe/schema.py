"""The JSON Schemas of what people write, for their editors; made from the tables that check the files.

``python -m intaglio.recipe.schema FOLDER`` writes them; ``docs/schema/`` holds the published ones.
"""

from __future__ import annotations

import json
from pathlib import Path

from intaglio.recipe.modelfile import MODELFILE
from intaglio.recipe.program import SERVER_DESCRIPTION, STEP_DESCRIPTION
from intaglio.strictjson import Object

_BASE = "https://intaglio.dev/schema/"
_SCHEMAS = {
    "modelfile.schema.json": ("Modelfile.toml of Intaglio", MODELFILE),
    "step.schema.json": ("Description of an Intaglio step program", STEP_DESCRIPTION),
    "server.schema.json": ("Description of an Intaglio server program", SERVER_DESCRIPTION),
}


def schemas() -> dict[str, Object]:
    """Return every published schema by its file name (JSON Schema draft 2020-12)."""
    return {
        file: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": _BASE + file,
            "title": title,
            **shape.schema(),
        }
        for file, (title, shape) in _SCHEMAS.items()
    }


def texts() -> dict[str, str]:
    """Return every published schema's text by its file name."""
    return {
        file: json.dumps(schema, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        for file, schema in schemas().items()
    }


def write(folder: Path) -> None:
    """Write the schemas into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts().items():
        (folder / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    import sys

    write(Path(sys.argv[1]))
