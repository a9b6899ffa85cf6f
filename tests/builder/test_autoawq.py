"""What AutoAWQ cannot do is said before anything heavy is loaded: from parameters and the header of the weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tests.builder.bare import Result, run_step


def model(folder: Path, rows: int = 64) -> Path:
    """A model of which there is nothing but what the checks read."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    entry = {"dtype": "F32", "shape": [rows, 128], "data_offsets": [0, rows * 128 * 4]}
    header = json.dumps({"model.layers.0.mlp.up_proj.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


def run(place: Path, rows: int = 64, **given: object) -> Result:
    inputs = {"model": model(place / "model", rows), "calibration": place}
    return run_step("quantize", inputs, place / "out", {"method": "autoawq", **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": 8}, "method autoawq: expected bits = 4, found 8"),
        ({"symmetric": True}, "method autoawq: expected symmetric = false, found true"),
        ({"ignore": []}, 'method autoawq: expected ignore = ["lm_head"], found []'),
        ({"ignore": ["lm_head", "re:.*k_proj"]}, 'expected ignore = ["lm_head"], found ["lm_head", "re:.*k_proj"]'),
        ({"group_size": 96}, "up_proj.weight: expected rows of a multiple of group_size = 96, found 128"),
        ({"rows": 96}, "up_proj.weight: method autoawq expects rows in multiples of 64, found 96"),
    ],
)
def test_what_autoawq_cannot_do(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    error = run(tmp_path, **given).error
    assert message in str(error["message"])
    assert error["hint"]


def test_calibration_is_missed(tmp_path: Path) -> None:
    error = run_step("quantize", {"model": model(tmp_path / "model")}, tmp_path / "out", {"method": "autoawq"}).error
    assert "method autoawq: expected the input calibration, found none" in str(error["message"])


def test_too_little_data_for_one_piece() -> None:
    import autoawq
    from request import Fault

    with pytest.raises(Fault, match=r"expected at least max_length = 512 tokens, found 74"):
        autoawq.check_length(74, 512)
