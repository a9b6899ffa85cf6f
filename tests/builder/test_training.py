"""Fine-tuning in every way, on the tiny model: adapters, several processes, checkpoints; the same bytes each time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tests.builder.test_steps import RECIPE, TINY, Bench, digests, tensors

TOOLCHAINS = ("train-cpu", "train-deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.long, pytest.mark.toolchains(*TOOLCHAINS)]

GIVEN = {"steps": 4, "batch_size": 2, "max_length": 64, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, environment: Callable[[str], str]) -> Bench:
    return Bench(tmp_path_factory.mktemp("training"), environment)


@pytest.fixture(scope="module")
def base(bench: Bench) -> Path:
    return bench.made("scratch", RECIPE["seed"]["with"], corpus=TINY / "data")


def ways(parallel: str) -> dict[str, object]:
    return {} if parallel == "none" else {"parallel": parallel, "processes": 2}


def losses(events: list[dict[str, object]]) -> list[float]:
    return [float(str(event["value"])) for event in events if event.get("name") == "loss"]


@pytest.mark.parametrize("method", ["dora", "qlora"])
def test_an_adapter_of_another_kind_is_the_same_twice_and_merges(bench: Bench, base: Path, method: str) -> None:
    given = {**GIVEN, "method": method, "lora_dropout": 0.1}
    made = bench.made("finetune", given, base=base, data=TINY / "data")
    assert digests(bench.made("finetune", given, "7", base=base, data=TINY / "data")) == digests(made)
    names = tensors(made / "adapter_model.safetensors")
    assert any("lora_magnitude_vector" in name for name in names) == (method == "dora")
    merged = bench.made("merge", {}, base=base, adapter=made)
    before, after = tensors(base / "model.safetensors"), tensors(merged / "model.safetensors")
    assert {name: kind for name, (kind, _) in after.items()} == {name: kind for name, (kind, _) in before.items()}
    assert {name for name in before if before[name] != after[name]} == {name for name in before if "_proj" in name}


@pytest.fixture(scope="module")
def alone(bench: Bench, base: Path) -> list[float]:
    """The losses of one process with twice the batches."""
    given = {**GIVEN, "method": "full", "gradient_accumulation": 4, "steps": 3}
    _, result = bench.run("finetune", given, base=base, data=TINY / "data")
    assert result.status == 0, result.log
    return losses(result.events)


@pytest.mark.parametrize(
    ("method", "parallel"),
    [("full", "ddp"), ("full", "fsdp"), ("full", "zero2"), ("full", "zero3"), ("qlora", "ddp"), ("dora", "zero3")],
)
def test_two_processes_give_the_same_twice(
    bench: Bench, base: Path, alone: list[float], method: str, parallel: str
) -> None:
    """And, up to rounding, what one gives with twice the batches: the same examples, the same mean over tokens."""
    given = {**GIVEN, **ways(parallel), "method": method, "gradient_accumulation": 2, "steps": 3}
    made = bench.made("finetune", given, base=base, data=TINY / "data")
    out, again = bench.run("finetune", given, "7", base=base, data=TINY / "data")
    assert again.status == 0, again.log
    assert digests(out) == digests(made)
    assert [event["done"] for event in again.events if event["event"] == "progress"] == [1, 2, 3]
    assert losses(again.events)[-1] < losses(again.events)[0]
    if method == "full":
        assert losses(again.events) == pytest.approx(alone, rel=2e-3)
        assert set(tensors(made / "model.safetensors")) == set(tensors(base / "model.safetensors"))


def test_what_is_added_to_deepspeeds_configuration_is_read(bench: Bench, base: Path) -> None:
    """Gradients that are exchanged in 16 bits are rounded: other weights come out, the same ones each time."""
    given = {**GIVEN, **ways("zero2"), "method": "full", "steps": 1}
    plain = bench.made("finetune", given, base=base, data=TINY / "data")
    more = {**given, "deepspeed": '{"communication_data_type": "bf16", "zero_optimization": {"overlap_comm": false}}'}
    rounded = bench.made("finetune", more, base=base, data=TINY / "data")
    name = "model.safetensors"
    assert digests(rounded)[name] != digests(plain)[name]
    assert digests(bench.made("finetune", more, "7", base=base, data=TINY / "data")) == digests(rounded)


def test_what_the_parameters_say_cannot_be_said_to_deepspeed_again(bench: Bench, base: Path) -> None:
    given = {**GIVEN, **ways("zero2"), "method": "full", "steps": 1, "deepspeed": '{"optimizer": {}}'}
    _, refused = bench.run("finetune", given, base=base, data=TINY / "data")
    assert refused.status == 1
    assert "optimizer: decided by the step's own parameters" in str(refused.error["message"])


# --- going on --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def kept(bench: Bench, folder: Path) -> Iterator[Path]:
    """Let steps keep checkpoints in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    bench.checkpoint = folder
    try:
        yield folder
    finally:
        bench.checkpoint = None


def copies(folder: Path, name: str, target: Path) -> threading.Thread:
    """Copy the checkpoint ``name`` as soon as it is there: what a kill at that moment would leave."""

    def watch() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(folder / name, target / name)
                return
            shutil.rmtree(target, ignore_errors=True)
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("method", "parallel"),
    [("lora", "none"), ("lora", "ddp"), ("full", "fsdp"), ("full", "zero2"), ("full", "zero3")],
)
def test_going_on_gives_what_a_straight_run_gives(
    bench: Bench, base: Path, tmp_path: Path, method: str, parallel: str
) -> None:
    given = {**GIVEN, **ways(parallel), "method": method, "lora_dropout": 0.1, "checkpoint_every": 3}
    with kept(bench, tmp_path / "kept") as folder:
        thread = copies(folder, "step-3", tmp_path / "killed")
        whole = bench.made("finetune", given, base=base, data=TINY / "data")
        thread.join(timeout=10)
    with kept(bench, tmp_path / "killed"):
        out, went_on = bench.run("finetune", given, base=base, data=TINY / "data")
    assert went_on.status == 0, went_on.log
    assert [event for event in went_on.events if event["event"] == "resumed"] == [
        {"event": "resumed", "done": 3, "total": 4}
    ]
    assert [event["done"] for event in went_on.events if event["event"] == "progress"] == [4]
    assert digests(out) == digests(whole)


@pytest.mark.parametrize("every", [1, 3], ids=["forgotten before it is written again", "written again in its place"])
def test_a_damaged_checkpoint_is_passed_over(bench: Bench, base: Path, tmp_path: Path, every: int) -> None:
    given = {**GIVEN, "method": "lora", "checkpoint_every": every}
    straight = bench.made("finetune", given, base=base, data=TINY / "data")
    with kept(bench, tmp_path / "kept") as folder:
        bench.made("finetune", given, base=base, data=TINY / "data")
        (found,) = folder.iterdir()
        assert found.name == "step-3", "only the last is kept, and none after the end"
        path = found / "rank-0.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        (folder / ".step-9").mkdir()
        out, again = bench.run("finetune", given, base=base, data=TINY / "data")
    assert again.status == 0, again.log
    assert not [event for event in again.events if event["event"] == "resumed"]
    assert digests(out) == digests(straight)


# --- what goes wrong -------------------------------------------------------------------------------------------------


def descendants(pid: int) -> Iterator[int]:
    """The processes below a process."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in (thread / "children").read_text().split():
                yield int(child)
                yield from descendants(int(child))


def test_a_process_that_dies_ends_the_step_with_the_cause(bench: Bench, base: Path) -> None:
    given = {**GIVEN, **ways("ddp"), "method": "lora", "steps": 100000}
    found: list[float] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not found:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(OSError):
                    if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                        time.sleep(8)
                        os.kill(pid, signal.SIGKILL)
                        found.append(time.monotonic())
            time.sleep(0.1)

    thread = threading.Thread(target=kill)
    thread.start()
    _, result = bench.run("finetune", given, base=base, data=TINY / "data")
    thread.join()
    assert time.monotonic() - found[0] < 40
    assert result.status == 1
    assert result.error["message"] == "process 2 of 2 was killed by SIGKILL"


def test_what_one_process_finds_wrong_is_said_once(bench: Bench, base: Path) -> None:
    given = {**GIVEN, **ways("ddp"), "method": "full", "learning_rate": 1e30, "max_grad_norm": 0.0}
    _, result = bench.run("finetune", given, base=base, data=TINY / "data")
    assert result.status == 1
    assert "expected a finite loss" in str(result.error["message"])
    assert "learning rate" in str(result.error["hint"])


WRONG: list[tuple[Mapping[str, object], str]] = [
    ({"processes": 2}, 'parameter processes: expected 1 with parallel = "none", found 2'),
    ({"parallel": "ddp"}, 'parameter processes: expected 2 or more with parallel = "ddp", found 1'),
    ({"parallel": "zero3"}, 'parameter processes: expected 2 or more with parallel = "zero3", found 1'),
    ({"parallel": "ddp", "processes": 3}, "parameter processes: expected at most 2, a thread each, found 3"),
    ({**ways("fsdp"), "method": "qlora"}, 'method = "qlora" does not go with parallel = "fsdp"'),
    ({**ways("zero2"), "method": "qlora"}, 'method = "qlora" does not go with parallel = "zero2"'),
    ({**ways("zero3"), "precision": "bfloat16"}, 'parallel = "zero3" does not go with precision = "bfloat16"'),
    ({**ways("ddp"), "deepspeed": "{}"}, 'parameter deepspeed: not read with parallel = "ddp"'),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_does_not_go_together_is_refused(
    bench: Bench, base: Path, given: Mapping[str, object], message: str
) -> None:
    began = time.monotonic()
    _, result = bench.run("finetune", {**GIVEN, **given}, base=base, data=TINY / "data")
    assert result.status == 1
    assert result.error["message"] == message
    assert result.error["hint"]
    assert time.monotonic() - began < 5, "said before torch is loaded"


def test_the_documented_combinations_are_those_of_the_description() -> None:
    description = tomllib.loads((TINY.parents[1] / "builder" / "steps" / "finetune.toml").read_text(encoding="utf-8"))
    page = (TINY.parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    for name in ("method", "parallel"):
        for choice in description["parameters"][name]["choices"]:
            assert f"`{choice}`" in page
    assert json.dumps(description["parameters"]["checkpoint_every"]["default"]) in page
