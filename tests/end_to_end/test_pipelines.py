"""The pipelines of ``docs/pipelines/``, run as their services would: every line of theirs, against a real registry.

What the services bring is played: checkout, caches, secrets, outputs between jobs. What they install is there already:
``sudo``, ``apt-get`` and ``pip`` are programs that only note what they were asked.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.attacks.registries import authority, distribution
from tests.attacks.registries.distribution import PASSWORD, USER, Distribution
from tests.workshop import PROGRAM, Workshop

from intaglio.errors import ExitCode

pytestmark = [pytest.mark.real, pytest.mark.slow]
PIPELINES = Path(__file__).resolve().parents[2] / "docs" / "pipelines"
GITHUB, GITLAB = (yaml.safe_load((PIPELINES / name).read_text()) for name in ("github-actions.yml", "gitlab-ci.yml"))
RECIPE = "modelfiles/helpdesk"
SECRET = "battery staple"  # noqa: S105 - a test's
_EXPRESSION = re.compile(r"\$\{\{\s*(.+?)\s*\}\}")
_ACTIONS = {"actions/checkout@v4", "actions/setup-python@v5", "actions/cache@v4", "actions/upload-artifact@v4"}


@dataclass
class Site:
    """A project, its secrets, the registry and what a service keeps between jobs and runs."""

    shop: Workshop
    project: Path
    registry: Distribution
    secrets: dict[str, str]
    environment: dict[str, str]
    caches: Path
    noted: Path

    @property
    def names(self) -> dict[str, str]:
        """What a user changes in a template."""
        host = self.registry.host
        return {"RECIPE": RECIPE, "IMAGE": "team/helpdesk:1", "REGISTRY": host, "TARGET": f"{host}/models/helpdesk:1"}

    def checkout(self, job: str) -> Path:
        """Return a workspace with the project in it, and nothing else."""
        place = self.caches.parent / "workspaces" / job
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.project, place)
        return place

    def run(self, script: str, place: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a script as both services do: the first command that fails ends it."""
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=place,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=240,
            check=False,
        )

    def restore(self, key: str, path: Path) -> None:
        if (self.caches / key).exists():
            shutil.copytree(self.caches / key, path, symlinks=True)

    def keep(self, key: str, path: Path) -> None:
        assert path.is_dir(), "the cache's path holds nothing"
        if not (self.caches / key).exists():
            shutil.copytree(path, self.caches / key, symlinks=True)


@dataclass
class Run:
    """What one run of a pipeline gave."""

    status: int = 0
    steps: list[str] = field(default_factory=list)
    said: str = ""
    workspaces: dict[str, Path] = field(default_factory=dict)

    def add(self, name: str, done: subprocess.CompletedProcess[str]) -> bool:
        """Take in a step; return whether it ended well."""
        self.steps.append(name)
        self.said += done.stdout + done.stderr
        self.status = self.status or done.returncode
        return done.returncode == 0

    def answer(self, job: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.workspaces[job] / name).read_text())
        return found


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Distribution, Path]]:
    """A registry with TLS and a password, and its authority."""
    tls = authority.make(tmp_path_factory.mktemp("tls"))
    folder = tmp_path_factory.mktemp("registry")
    with distribution.running(folder, tls=(tls.certificate, tls.key), password=True) as running:
        yield running, tls.ca


@pytest.fixture
def site(shop: Workshop, registry: tuple[Distribution, Path], tmp_path: Path) -> Site:
    shop.chain("first", "second")
    project, release = tmp_path / "project", tmp_path / "release"
    shutil.copytree(shop.recipe, project / RECIPE)
    shop.run("init", INTAGLIO_HOME=str(release), INTAGLIO_PASSPHRASE=SECRET).ok()
    (project / "deploy").mkdir()
    for place in (project / "policy.toml", project / "deploy" / "policy.toml"):
        shutil.copy(release / "policy.toml", place)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(release / "keys", "keys")
    programs, noted = tmp_path / "bin", tmp_path / "noted"
    programs.mkdir()
    for name in ("sudo", "apt-get", "pip"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {noted}\n')
        (programs / name).chmod(0o755)
    (programs / "intaglio").symlink_to(PROGRAM)
    environment = {name: value for name, value in shop.environment.items() if name != "INTAGLIO_HOME"}
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "INTAGLIO_CA_FILE": str(registry[1])}
    (tmp_path / "caches").mkdir()
    secrets = {
        "INTAGLIO_KEYS": base64.b64encode(packed.getvalue()).decode(),
        "INTAGLIO_PASSPHRASE": SECRET,
        "REGISTRY_USER": USER,
        "REGISTRY_PASSWORD": PASSWORD,
    }
    return Site(shop, project, registry[0], secrets, environment, tmp_path / "caches", noted)


# --- GitHub ----------------------------------------------------------------------------------------------------------


def github(site: Site) -> Run:
    """Run the workflow's jobs one after the other, until one fails."""
    run = Run()
    outputs: dict[str, dict[str, str]] = {}
    assert GITHUB["defaults"] == {"run": {"shell": "bash"}}
    for name, job in GITHUB["jobs"].items():
        place = run.workspaces[name] = site.checkout(name)
        known = {f"secrets.{key}": value for key, value in site.secrets.items()}
        known |= {"github.workspace": str(place), "runner.os": "Linux"}
        known |= {f"needs.{job['needs']}.outputs.{key}": value for key, value in outputs[job["needs"]].items()} if (
            "needs" in job
        ) else {}  # fmt: skip
        _job(site, run, job, place, known)
        if run.status:
            return run
        outputs[name] = {key: _fill(value, known, place) for key, value in job.get("outputs", {}).items()}
    return run


def _job(site: Site, run: Run, job: dict[str, Any], place: Path, known: dict[str, str]) -> None:
    """Run the steps of a job; what they put out becomes ``known``."""
    shared = {**GITHUB["env"], **site.names, **job.get("env", {})}
    kept: list[tuple[str, Path]] = []
    failed = False
    for step in job["steps"]:
        if failed and step.get("if") != "${{ always() }}":
            continue
        given = {key: _fill(value, known, place) for key, value in step.get("with", {}).items()}
        if "uses" in step:
            assert step["uses"] in _ACTIONS
            if step["uses"].startswith("actions/cache@"):
                kept.append((given["key"], place / given["path"]))
                site.restore(*kept[-1])
            continue
        environment = {**shared, **step.get("env", {})}
        filled = {key: _fill(value, known, place) for key, value in environment.items()}
        out = place.parent / "output"
        out.write_text("")
        done = site.run(_fill(step["run"], known, place), place, {**filled, "GITHUB_OUTPUT": str(out)})
        failed = not run.add(step["name"], done) or failed
        pairs = (line.partition("=") for line in out.read_text().splitlines())
        known |= {f"steps.{step.get('id')}.outputs.{key}": value for key, _, value in pairs}
    if not failed:
        for key, path in kept:
            site.keep(key, path)


def _fill(text: str, known: Mapping[str, str], place: Path) -> str:
    """Return ``text`` with its expressions worked out; an unknown one is a mistake in the template."""

    def value(found: re.Match[str]) -> str:
        expression = found[1]
        if hashed := re.fullmatch(r"hashFiles\('([^']+)'\)", expression):
            return hashlib.sha256((place / hashed[1]).read_bytes()).hexdigest()
        return known[expression]

    return _EXPRESSION.sub(value, str(text))


# --- GitLab ----------------------------------------------------------------------------------------------------------


def gitlab(site: Site) -> Run:
    """Run the jobs stage by stage, until one fails; a job's dotenv report is the later jobs' environment."""
    run = Run()
    carried: dict[str, str] = {}
    jobs = {name: job for name, job in GITLAB.items() if name not in ("stages", "variables")}
    for name, job in sorted(jobs.items(), key=lambda one: GITLAB["stages"].index(one[1]["stage"])):
        place = run.workspaces[name] = site.checkout(name)
        variables = {**GITLAB["variables"], **site.names}
        variables = {key: value.replace("$CI_PROJECT_DIR", str(place)) for key, value in variables.items()}
        environment = {**variables, **site.secrets, **carried}
        cache = job.get("cache")
        if cache:
            (locked,) = cache["key"]["files"]
            key = f"{cache['key']['prefix']}-{hashlib.sha256((place / locked).read_bytes()).hexdigest()}"
            (path,) = cache["paths"]
            site.restore(key, place / path)
        # The lines share one shell, and the first that fails ends it.
        for part in ("before_script", "script"):
            if not run.status:
                run.add(f"{name} {part}", site.run("\n".join(job[part]), place, environment))
        run.add(f"{name} after", site.run("\n".join(job.get("after_script", [])), place, environment))
        if run.status:
            return run
        if cache:
            site.keep(key, place / path)
        report = job.get("artifacts", {}).get("reports", {}).get("dotenv")
        lines = (place / report).read_text().splitlines() if report else []
        carried |= dict(line.split("=", 1) for line in lines)
    return run


SERVICES = pytest.mark.parametrize("service", [github, gitlab])


# --- what they do ----------------------------------------------------------------------------------------------------


@SERVICES
def test_a_pipeline_releases_and_deploys(site: Site, service: Any) -> None:
    first = service(site)
    assert first.status == 0, first.said
    built, pushed = (first.answer("release", name) for name in ("build.json", "push.json"))
    assert first.answer("release", "verify.json")["verdict"] == "verified"
    assert {step["status"] for step in built["steps"]} == {"built"}
    assert pushed["image"] == built["image"] == first.answer("deploy", "pull.json")["image"]
    model = first.workspaces["deploy"] / "model"
    assert (model / "model.txt").read_text() == "what the model is made of\nfirst\nsecond\n"
    assert (model / "model.sig").exists()
    assert "pip install intaglio" in site.noted.read_text()
    again = service(site)
    assert again.status == 0, again.said
    assert again.answer("release", "build.json")["image"] == built["image"]
    assert {step["status"] for step in again.answer("release", "build.json")["steps"]} == {"cached"}
    assert again.answer("release", "push.json")["bytes"] == 0


@SERVICES
def test_no_secret_is_left_or_said(site: Site, service: Any) -> None:
    run = service(site)
    assert run.status == 0, run.said
    assert not [secret for secret in (SECRET, PASSWORD) if secret in run.said]
    for place in (run.workspaces["release"], site.caches):
        left = [path.name for path in place.rglob("*") if path.is_file()]
        assert "release.key" not in left
        assert "auth.json" not in left


@SERVICES
def test_a_step_program_that_is_not_in_the_lock_stops_it(site: Site, service: Any) -> None:
    with open(site.project / RECIPE / "first.py", "a") as stream:
        stream.write("# changed\n")
    run = service(site)
    assert run.status == ExitCode.LOCK
    assert not (run.workspaces["release"] / "push.json").exists()
    assert not list((run.workspaces["release"] / ".intaglio").glob("keys/*")), "keys are removed after a failure, too"
    assert "deploy" not in run.workspaces


@SERVICES
def test_a_machine_that_lacks_something_stops_it_before_the_build(site: Site, service: Any) -> None:
    bwrap = Path(site.environment["PATH"].partition(":")[0]) / "bwrap"
    bwrap.write_text("#!/bin/sh\nexit 1\n")
    bwrap.chmod(0o755)
    run = service(site)
    assert run.status == ExitCode.MACHINE
    assert "builds are not possible" in run.said
    assert not (run.workspaces["release"] / "build.json").exists()


@SERVICES
def test_whoever_deploys_decides_whom_to_believe(site: Site, service: Any) -> None:
    other = site.project.parent / "other"
    site.shop.run("init", INTAGLIO_HOME=str(other)).ok()
    shutil.copy(other / "policy.toml", site.project / "deploy" / "policy.toml")
    run = service(site)
    assert run.status == ExitCode.UNTRUSTED
    assert (run.workspaces["release"] / "push.json").exists()
    assert not (run.workspaces["deploy"] / "model").exists()


@SERVICES
def test_a_wrong_password_stops_it(site: Site, service: Any) -> None:
    site.secrets |= {"REGISTRY_PASSWORD": "wrong"}
    run = service(site)
    assert run.status == ExitCode.REGISTRY
    assert "wrong" not in run.said
