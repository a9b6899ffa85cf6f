"""``intaglio-guard``: verify a model, then become its server; or say in one line why not.

- Nothing is trusted but the anchor, which is this side's own; passport and model are what is judged.
- Every byte of the model is hashed once, into sealed memory where a process of our own user could change it later.
- No process of the server exists before the verdict; the exit status is that of ``docs/exit-codes.md``.
- Whatever goes wrong is one line of JSON on standard error, and a refusal.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from intaglio.content.bare import BareLayout
from intaglio.content.modelpack import ModelImage
from intaglio.dataclass import dataclass
from intaglio.digest import Digest
from intaglio.errors import Error, ExitCode, InternalError, NotVerifiable, UsageError, VerificationError
from intaglio.guard import anchor, launch
from intaglio.guard.memory import HeldFile, hold
from intaglio.policy.decide import VerdictName
from intaglio.verify import Report, verify_folder


@dataclass(frozen=True, slots=True)
class Request:
    """What the guard was asked to do."""

    root: Path
    passport: Path
    model: Path
    policy: str | None
    server: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A file of the model as its manifest promises it, with where its bytes should stand."""

    path: str
    digest: Digest
    size: int
    source: Path


class RefusedError(Exception):
    """The verdict is no; ``line`` says why."""

    def __init__(self, line: dict[str, object]) -> None:
        super().__init__(str(line["detail"]))
        self.line = line


USAGE = "intaglio-guard [--root FILE|DIR] --passport DIR --model DIR [--policy NAME] -- SERVER ARGS…"
HELP = f"""usage: {USAGE}

Verify a model, then become its server.

  --root FILE|DIR   the anchor: a folder, a policy, a TUF root; default {anchor.DEFAULT}
  --passport DIR    the model's manifest, signatures and claims
  --model DIR       folder with the model's files
  --policy NAME     the policy to judge by, instead of the anchor's own
"""
_OPTIONS = ("root", "passport", "model", "policy")


def parse(argv: Sequence[str]) -> Request:
    """Return what the command line asks for.

    Raises:
        UsageError: it is none.
    """
    words, dashes, server = _split(argv)
    given: dict[str, str] = {}
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--") or name[2:] not in _OPTIONS:
            raise UsageError(f"unknown argument {name[:80]!r}", hint=USAGE)
        if not equals:
            if not words:
                raise UsageError(f"{name}: expected a value", hint=USAGE)
            value = words.pop(0)
        given[name[2:]] = value
    if not dashes or not server:
        raise UsageError("expected -- and the server's command line", hint="… -- /env/bin/python server.py {request}")
    for name in ("passport", "model"):
        if name not in given:
            raise UsageError(f"expected --{name}", hint=USAGE)
    root = Path(given["root"]) if "root" in given else anchor.DEFAULT
    return Request(root, Path(given["passport"]), Path(given["model"]), given.get("policy"), server)


def _split(argv: Sequence[str]) -> tuple[list[str], bool, tuple[str, ...]]:
    """Return what stands before the first ``--``, whether there is one, and what stands behind it."""
    words = list(argv)
    place = words.index("--") if "--" in words else len(words)
    return words[:place], place < len(words), tuple(words[place + 1 :])


def main() -> int:
    """Verify, then become the server; return the exit status of a refusal."""
    if {"-h", "--help"} & set(_split(sys.argv[1:])[0]):
        sys.stdout.write(HELP)
        return 0
    try:
        guard(parse(sys.argv[1:]), dict(os.environ), datetime.now(UTC))
    except RefusedError as refusal:
        line = refusal.line
    except Error as error:
        line = _line(error, None, "guard")
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - a fault of the guard's is a refusal, and one line like any other
        line = _line(InternalError(f"the guard itself failed: {type(error).__name__}: {error}"), None, "guard")
    _say(line)
    return int(str(line["exit_code"]))


def guard(request: Request, environment: dict[str, str], clock: datetime) -> None:
    """Verify, then become the server; returns never.

    Raises:
        RefusedError: the verdict is no.
        Error: something is missing.
    """
    image: Digest | None = None
    with contextlib.ExitStack() as stack:
        try:
            trusted = anchor.read(request.root, request.passport, clock, request.policy)
        except VerificationError as error:
            raise RefusedError(_line(error, None, "anchor")) from None
        try:
            layout = BareLayout(request.passport)
            image = _the_image(layout, request.passport)
            what = f"image {image.short}"
            model = ModelImage.parse(layout.read(image, what=what), what)
            files = [PlacedFile(one.path, one.digest, one.size, request.model / one.path) for one in model.files]
            held = stack.enter_context(hold(files))
            report = verify_folder(
                layout, image, request.model, trusted.policy, listing=trusted.listing,
                held={file.path: file.descriptor for file in held},
            )  # fmt: skip
            if report.verdict != "verified":
                raise RefusedError(_verdict(report))
            about = model.check_config(layout.read(model.config.digest, what=what), what)["descriptor"]
        except VerificationError as error:
            raise RefusedError(_line(error, image, "content")) from None
        except OSError as error:
            raise RefusedError(_line(NotVerifiable(f"{error.filename}: {error.strerror}"), image, "content")) from None
        _start(request, report, held, launch.settings(environment, _name(about, image)), environment)


def _name(about: dict[str, object], image: Digest) -> str:
    name, version = about.get("name"), about.get("version")
    return f"{name}:{version}" if name and version else str(name or image)


def _the_image(layout: BareLayout, passport: Path) -> Digest:
    images = layout.images()
    if len(images) != 1:
        raise NotVerifiable(f"{passport}: expected one model image, found {len(images)}")
    return images[0].digest


def _start(
    request: Request,
    report: Report,
    held: Sequence[HeldFile],
    about: dict[str, object],
    environment: dict[str, str],
) -> None:
    folder = launch.lay_out(held, request.model)
    values = {"model": str(folder), "name": str(about["name"]), "socket": str(about["socket"])}
    if any("{request}" in word for word in request.server):
        values["request"] = launch.request(held, folder, about)
    if port := environment.get(launch.PORT):
        from intaglio.guard import relay

        relay.start(int(port), values["socket"])
    copied = sum(file.size for file in held if file.copied)
    _say(
        {
            "verdict": "verified",
            "exit_code": 0,
            "image": str(report.image),
            "rules": sum(rule.result == "pass" for rule in report.rules),
            "copied": copied,
            "served": sum(file.size for file in held) - copied,
        }
    )
    launch.execute(launch.fill(request.server, values), held, environment)


# --- what is said -----------------------------------------------------------------------------------------------------


def _verdict(report: Report) -> dict[str, object]:
    """Return the line of a verdict that is no: of its rules, the first with the gravest fault."""
    gravest = next(rule for rule in report.rules if rule.result == "fail" and rule.exit_code == report.exit_code)
    return {
        "verdict": report.verdict,
        "exit_code": int(report.exit_code),
        "rule": gravest.rule,
        "detail": gravest.detail,
        "image": str(report.image),
        "hint": None,
    }


def _line(error: Error, image: Digest | None, rule: str) -> dict[str, object]:
    verdict: VerdictName = "stale" if error.exit_code == ExitCode.STALE else "refused"
    return {
        "verdict": verdict,
        "exit_code": int(error.exit_code),
        "rule": rule,
        "detail": error.message,
        "image": str(image) if image else None,
        "hint": error.hint,
    }


def _say(line: dict[str, object]) -> None:
    sys.stderr.write(json.dumps(line, ensure_ascii=False) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
