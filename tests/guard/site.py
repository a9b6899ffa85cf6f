"""A place where a guard stands: an anchor, a model, its passport, and a server that leaves a mark when it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests import images
from tests.images import Draft
from tests.trust import sources
from tests.trust.sources import DAY, Source
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from intaglio.digest import Digest

SERVER = """
import json, os, sys
model, request, mark = sys.argv[1:4]
asked = json.load(open(request))
found = {name: open(path, "rb").read() for name, path in asked["model"]["files"].items()}
beside = {name: open(os.path.join(model, name), "rb").read() for name in found}
assert found == beside, "the folder and the files differ"
sizes = {name: len(data) for name, data in found.items()}
copied = [os.path.islink(os.path.join(model, name)) for name in found]
said = {"request": asked, "bytes": sizes, "environment": dict(os.environ), "pid": os.getpid(), "copied": copied}
json.dump(said, open(mark, "w"))
"""
WITH_SOURCE = '\n[source]\nrequired = true\n[freshness]\nmax_age = "14d"\n'


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def source(signed: datetime | None = None) -> Source:
    """A trusted source that lists what :class:`tests.images.Draft` is made of, signed at that time."""
    then = signed or now()
    made = Source(
        root=Root(expires=then + 365 * DAY),
        targets=Targets(expires=then + 180 * DAY),
        snapshot=Snapshot(expires=then + 30 * DAY),
        timestamp=Timestamp(expires=then + 7 * DAY),
        signed_at=then,
    )
    for name, uri in (("models/acme/base@1.0", "pypi:base==1.0"), ("datasets/acme/faq@1", "file:data.jsonl")):
        made.targets.targets[sources.target(name).path] = _listed(name, uri)
    made.targets.targets["toolchains/acme/train/1"] = _listed("toolchains/acme/train@1", "toolchain")
    return made


def _listed(name: str, content: str, **changes: Any) -> Any:
    return sources.listing(sources.target(name, digest=Digest.of(content.encode()), **changes))


def yank(made: Source) -> None:
    """Let ``made`` say that the base model was withdrawn."""
    entry = _listed("models/acme/base@1.0", "pypi:base==1.0", status="yanked", reason="poisoned")
    made.targets.targets["models/acme/base/1.0"] = entry


@dataclass
class Site:
    """Everything below ``root``; change it, then :meth:`run` the guard."""

    root: Path
    draft: Draft = field(default_factory=Draft)
    source: Source | None = None
    policy: str = ""
    """What the policy says beside the default."""

    def __post_init__(self) -> None:
        self.draft.sign()
        for folder in (self.anchor, self.passport, self.model):
            folder.mkdir(parents=True)
        self.draft.write(self.passport)
        for path, data in self.draft.files.items():
            place = self.model / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            (self.passport / "blobs" / "sha256" / Digest.of(data).hex).unlink()
        self.anchor.joinpath("policy.toml").write_text(images.policy_text() + self.policy)
        if self.source is not None:
            sources.write(self.source.publish(), self.passport)
            self.anchor.joinpath("root.json").write_bytes(self.source.anchor)

    @property
    def anchor(self) -> Path:
        return self.root / "anchor"

    @property
    def passport(self) -> Path:
        return self.root / "passport"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def mark(self) -> Path:
        return self.root / "started.json"

    def republish(self) -> None:
        """Put what the source says now into the passport."""
        assert self.source is not None
        sources.write(self.source.publish(), self.passport)

    def run(
        self, *options: str, server: tuple[str, ...] | None = None, root: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the guard as a program of its own."""
        argv = [sys.executable, "-m", "intaglio.guard.main", "--root", str(root or self.anchor)]
        argv += ["--passport", str(self.passport), "--model", str(self.model), *options, "--"]
        argv += server or (sys.executable, "-c", SERVER, "{model}", "{request}", str(self.mark))
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        return subprocess.run(
            argv, env={**kept, **environment}, capture_output=True, text=True, timeout=60, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def started(self) -> dict[str, Any]:
        """What the server said of itself."""
        found: dict[str, Any] = json.loads(self.mark.read_text())
        return found

    def refused(self, done: subprocess.CompletedProcess[str], code: int, rule: str) -> dict[str, Any]:
        """Check that the guard refused with one line of JSON and no server, and return that line."""
        assert not self.mark.exists(), "a server was started"
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        said: dict[str, Any] = json.loads(lines[0])
        assert said.keys() == {"verdict", "exit_code", "rule", "detail", "image", "hint"}
        assert (said["exit_code"], said["rule"]) == (code, rule), said
        assert said["verdict"] == ("stale" if code == 24 else "refused")
        return said


LONG_AGO = timedelta(days=30)
