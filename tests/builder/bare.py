"""Run a step program bare: no engine, no sandbox, the Python of an environment that has the step's toolchain.

    python tests/builder/bare.py finetune --in base=DIR --in data=DIR --set steps=4 --set 'method="full"' --out OUT

Values of ``--set`` are TOML. Parameters are filled in from the step's description, the determinism environment is set.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from intaglio.recipe.limits import Limits

BUILDER = Path(__file__).resolve().parents[2] / "builder"

DETERMINISM = {
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
    "SOURCE_DATE_EPOCH": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


@dataclass(frozen=True, slots=True)
class Result:
    """How a step ended and what it said."""

    status: int
    events: list[dict[str, object]]
    log: str

    @property
    def error(self) -> dict[str, object]:
        """The step's one error event."""
        found = [event for event in self.events if event["event"] == "error"]
        assert len(found) == 1, self.log
        return found[0]


def resolve(step: str, given: Mapping[str, object]) -> dict[str, object]:
    """The step's parameters: those given, defaults for the rest, null where nothing is said."""
    description = tomllib.loads((BUILDER / "steps" / f"{step}.toml").read_text(encoding="utf-8"))
    declared = description.get("parameters", {})
    unknown = sorted(set(given) - set(declared))
    if unknown:
        raise ValueError(f"{step} has no parameter {', '.join(unknown)}")
    return {name: given.get(name, entry.get("default")) for name, entry in declared.items()}


def time_limit(step: str) -> int:
    """The seconds that the step's description allows."""
    description = tomllib.loads((BUILDER / "steps" / f"{step}.toml").read_text(encoding="utf-8"))
    return Limits().override({"time": description["time"]} if "time" in description else {}).time


def run_step(
    step: str,
    inputs: Mapping[str, Path],
    out: Path,
    given: Mapping[str, object],
    *,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    checkpoint: Path | None = None,
) -> Result:
    """Run a step; ``out`` is made. Log and events are caught.

    Raises:
        subprocess.TimeoutExpired: it took longer than its description allows; it was killed.
    """
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        work.mkdir()
        request = {
            "protocol": 1,
            "parameters": resolve(step, given),
            "inputs": {name: str(path) for name, path in inputs.items()},
            "out": str(out),
            "work": str(work),
            **({"checkpoint": str(checkpoint)} if checkpoint else {}),
        }
        (Path(folder) / "request.json").write_text(json.dumps(request), encoding="utf-8")
        events = Path(folder) / "events"
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "OMP_WAIT_POLICY") if name in os.environ}
        settings = {**kept, **DETERMINISM, "HOME": str(work), "HF_HOME": str(work / "hf"), **(environment or {})}
        program = [python, "-B", "-s", "-P", str(BUILDER / "steps" / f"{step}.py"), f"{folder}/request.json"]
        with events.open("ab") as stream:
            status, log = run(program, work, settings, stream.fileno(), time_limit(step))
        lines = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    return Result(status, lines, log.decode("utf-8", "replace"))


def run(
    program: Sequence[str], work: Path, environment: Mapping[str, str], events: int, seconds: float
) -> tuple[int, bytes]:
    """Run a program and return its status and log; whatever ends the waiting ends all of its processes."""
    child = subprocess.Popen(
        program,
        cwd=work,
        env={**environment, "INTAGLIO_EVENTS_FD": str(events)},
        pass_fds=[events],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    try:
        log, _ = child.communicate(timeout=seconds)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        raise
    return child.returncode, log


def main() -> int:
    """Run one step from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step")
    parser.add_argument("--in", dest="inputs", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--set", dest="given", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    inputs = {name: Path(path).resolve() for name, _, path in (entry.partition("=") for entry in options.inputs)}
    given = tomllib.loads("\n".join(options.given))
    result = run_step(options.step, inputs, options.out.resolve(), given, python=options.python)
    sys.stderr.write(result.log)
    for event in result.events:
        print(json.dumps(event, ensure_ascii=False))
    return result.status


if __name__ == "__main__":
    raise SystemExit(main())
