"""Where the four data folders stand: in a checkout, in a wheel, or where ``INTAGLIO_DATA`` says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import intaglio
from intaglio.errors import MachineError

DataFolder = Literal["modelfiles", "builder", "registry", "policies"]
VARIABLE = "INTAGLIO_DATA"
"""Environment variable that names a folder holding the four; it wins over both others."""


def data_folder(name: DataFolder) -> Path:
    """Return one of the four folders of data: what the variable says, else the wheel's, else the checkout's.

    Raises:
        MachineError: it is not there.
    """
    folder = _root() / name
    if not folder.is_dir():
        raise MachineError(
            f"expected the folder {folder}, found none",
            hint=f"reinstall intaglio, or let {VARIABLE} name the folder that holds {name}/",
        )
    return folder


def _root() -> Path:
    override = os.environ.get(VARIABLE)
    if override:
        return Path(override)
    package = Path(intaglio.__file__).resolve().parent
    packaged = package / "_data"
    return packaged if packaged.is_dir() else package.parent.parent
