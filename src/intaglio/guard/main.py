"""``intaglio-guard``: verify a model, then become its server; or say in one line why not.

- Nothing is trusted but the anchor, which is this side's own; passport and model are what is judged.
- Every byte of the model is hashed once, into sealed memory where a process of our own user could change it later.
- No process of the server exists before the verdict; the exit status is that of ``docs/exit-codes.md``.
- Whatever goes wrong is one line of JSON on standard error, and a refusal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from intaglio.content.bare import BareLayout
from intaglio.content.modelpack import ModelImage
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint="intaglio-guard [--root FILE|DIR] --passport DIR --model DIR -- SERVER ARGS…")


def parse(argv: Sequence[str]) -> Request:
    """Return what the command line asks for.

    Raises:
        UsageError: it is none.
    """
    words = list(argv)
    parser = _Parser(prog="intaglio-guard", description="Verify a model, then become its server.", allow_abbrev=False)
    parser.add_argument("--root", type=Path, default=anchor.DEFAULT, help="The anchor: a folder, a policy, a TUF root.")
    parser.add_argument("--passport", type=Path, required=True, help="The model's manifest, signatures and claims.")
    parser.add_argument("--model", type=Path, required=True, help="Folder with the model's files.")
    parser.add_argument("--policy", help="Name of the policy to judge by, instead of the anchor's own.")
    if "--" not in words:
        if {"-h", "--help"} & set(words):
            parser.parse_args(words)
        raise UsageError("expected -- and the server's command line", hint="… -- /env/bin/python server.py {request}")
    place = words.index("--")
    given = parser.parse_args(words[:place])
    server = tuple(words[place + 1 :])
    if not server:
        raise UsageError("expected the server's command line behind --")
    return Request(given.root, given.passport, given.model, given.policy, server)


def main() -> int:
    """Verify, then become the server; return the exit status of a refusal."""
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
