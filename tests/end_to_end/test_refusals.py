"""The table "What is refused" of ``docs/exit-codes.md``, row by row: made for real, typed as a user types it.

A row is made here, or in the test that :data:`ELSEWHERE` names: one that needs containers, a disk or a guard.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.attacks.registries import authority
from tests.attacks.registries.distribution import PASSWORD, USER, Distribution, running
from tests.images import safetensors
from tests.recipe.sources.web import Hub, Server
from tests.workshop import CLOCK, Finished, Workshop, furnish

from intaglio.digest import Digest
from intaglio.errors import Error, ExitCode
from intaglio.trust.key import PrivateKey
from intaglio.trust.repository import Repository

pytestmark = [pytest.mark.real, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "exit-codes.md"
NAME = "tests/shop:1.0.0"
WORDS = "datasets/acme/words@1.0.0"
ENTRY = """
name = "{name}"
version = "1.0.0"
summary = "For a test."
licence = "Apache-2.0"
publisher = "Acme"
{where}
"""
STEPS = '[steps.make]\nuses = "./make"\ninputs = { source = "data" }\n'
SOURCE = "[source]\nrequired = true\n"


class Site:
    """A workshop with a good image, the published source that lists what went into it, and registries."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.shop = furnish(root / "shop")
        self.root = root
        self._stack = stack
        shop = self.shop
        shop.one('write(read("source"))')
        tree = tomllib.loads((shop.recipe / "Modelfile.lock").read_text())["inputs"]["data"]["tree"]
        (root / "words.toml").write_text(
            ENTRY.format(name="datasets/acme/words", where=f'tree = "{tree}"\norigins = ["file:data.txt"]')
        )
        (root / "tiny.toml").write_text(
            ENTRY.format(name="toolchains/acme/tiny", where='source = "builder/toolchains/tiny"')
        )
        shutil.copy(shop.recipe / "data.txt", root)
        shop.run("trust", "init", root / "source").ok()
        shop.run("trust", "add", root / "source", root / "words.toml", root / "tiny.toml").ok()
        self.publish(root)
        shop.run("trust", "anchor", root / "www" / "metadata" / "1.root.json").ok()
        shop.run("trust", "refresh", "--url", root / "www").ok()
        shop.write(STEPS, source="make", inputs=f'data = {{ uri = "{WORDS}" }}')
        shop.lock()
        self.image = Digest(shop.built()["image"])
        self.verify(self.policy(SOURCE)).ok()

    # --- the source ----------------------------------------------------------------------------------------------

    def publish(self, place: Path) -> None:
        """Sign what is staged in ``place`` with all offline keys, and publish it there."""
        for key in sorted((place / "source-keys" / "offline").glob("*.key")):
            self.shop.run("trust", "sign", place / "source", "--key", key)  # refused where it signs for nothing
        self.shop.run("trust", "publish", place / "source", place / "www").ok()

    def copy(self, tmp_path: Path) -> tuple[Path, Path]:
        """Return a publisher's folder and a home of one's own, in the state that all cases begin with."""
        place, home = tmp_path / "publisher", tmp_path / "home"
        place.mkdir()
        for name in ("source", "source-keys", "www"):
            shutil.copytree(self.root / name, place / name)
        home.mkdir()
        for name in ("root.json", "policy.toml"):
            shutil.copy(self.shop.home / name, home)
        for name in ("tuf", "keys"):
            shutil.copytree(self.shop.home / name, home / name)
        return place, home

    def refresh(self, place: Path, home: Path) -> Finished:
        return self.shop.run("trust", "refresh", "--url", place / "www", INTAGLIO_HOME=str(home))

    def yanked(self, tmp_path: Path) -> Path:
        """Return a home that knows that the words were yanked."""
        place, home = self.copy(tmp_path)
        self.shop.run("trust", "yank", place / "source", WORDS, "--reason", "it leaked").ok()
        self.publish(place)
        self.refresh(place, home).ok()
        return home

    def aged(self, tmp_path: Path, age: timedelta) -> Path:
        """Return a home whose metadata was signed, and last seen, that long ago."""
        place, home = self.copy(tmp_path)
        then = datetime.now(UTC) - age
        keys = place / "source-keys" / "online"
        online = {role: PrivateKey.load((keys / f"{role}.key").read_bytes()) for role in ("snapshot", "timestamp")}
        Repository.open(place / "source").publish(place / "www", online, then)
        self.refresh(place, home).ok()
        state = home / "tuf" / "state.json"
        state.write_text(json.dumps({**json.loads(state.read_text()), "seen": f"{then:%Y-%m-%dT%H:%M:%SZ}"}))
        return home

    # --- images --------------------------------------------------------------------------------------------------

    def policy(self, more: str = "", **replaced: str) -> Path:
        """Return a policy file: the home's, with ``more`` behind it, and lines beginning as named replaced."""
        lines = (self.shop.home / "policy.toml").read_text().splitlines()
        for key, value in replaced.items():
            lines = [f"{key} = {value}" if line.startswith(f"{key} = ") else line for line in lines]
        path = self.root / f"policy-{Digest.of((more + str(replaced)).encode()).hex[:8]}.toml"
        path.write_text("\n".join(lines) + "\n" + more)
        return path

    def verify(self, policy: Path, home: Path | None = None, *more: str) -> Finished:
        store = self.shop.home / "store"
        own = {"INTAGLIO_HOME": str(home)} if home else {}
        return self.shop.run("verify", NAME, "--policy", policy, "--store", store, *more, **own)

    # --- inputs --------------------------------------------------------------------------------------------------

    def fetch(self, tmp_path: Path, data: str, command: str, **environment: str) -> Finished:
        """Lock or build a recipe whose one input is ``data``, in a home that has nothing of it."""
        folder, home = tmp_path / "recipe", tmp_path / f"home-of-{command}"
        if not folder.exists():
            shutil.copytree(self.shop.recipe, folder)
            (folder / "Modelfile.lock").unlink()
            toml = folder / "Modelfile.toml"
            toml.write_text(re.sub(r"^data = .*$", f"data = {{ {data} }}", toml.read_text(), flags=re.MULTILINE))
        self.shop.run("init", INTAGLIO_HOME=str(home)).ok()
        done = self.shop.run(command, folder, INTAGLIO_HOME=str(home), **environment)
        assert (
            done.status == 0
            or not (home / "store" / "partial").exists()
            or not list((home / "store" / "partial").iterdir())
        )
        return done

    # --- registries ----------------------------------------------------------------------------------------------

    def registry(self, name: str, *, password: bool = False, tls: tuple[Path, Path] | None = None) -> Distribution:
        return self._stack.enter_context(running(self.root / name, password=password, tls=tls))

    def pushed(self, name: str) -> Distribution:
        """Return a registry that has the image."""
        there = self.registry(name)
        self.shop.run("push", NAME, there.reference()).ok()
        return there

    def pull(self, reference: str, home: Path) -> Finished:
        home.mkdir(exist_ok=True)
        shutil.copy(self.shop.home / "policy.toml", home)
        done = self.shop.run("pull", reference, INTAGLIO_HOME=str(home))
        assert self.shop.run("store", "list", "--json", INTAGLIO_HOME=str(home)).ok().json == {"images": []}
        assert list((home / "store" / "blobs" / "sha256").iterdir()) == []
        return done


Case = Callable[[Site, Path], Finished]
CASES: dict[str, Case] = {}


def row(title: str) -> Callable[[Case], Case]:
    """Register what the row of the table called ``title`` says."""

    def register(case: Case) -> Case:
        assert title not in CASES
        CASES[title] = case
        return case

    return register


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path_factory.mktemp("refusals"), stack)


@dataclass(frozen=True)
class Row:
    """What the page says about one refusal."""

    command: str
    status: int
    rule: str
    """The rule that the verdict names, or nothing."""


def table() -> dict[str, Row]:
    """Return the page's rows, by what is refused."""
    part = PAGE.read_text(encoding="utf-8").partition("\n## What is refused\n")[2]
    lines = [line for line in part.splitlines() if line.startswith("| ")][2:]
    rows = {}
    for line in lines:
        found = re.fullmatch(r"\| (.+?) \| `(intaglio[ -].+?)` \| (\d+) \| (?:`(.+)`|–) \|", line)
        assert found, line
        assert found[1] not in rows, line
        rows[found[1]] = Row(found[2], int(found[3]), found[4] or "")
    return rows


def test_every_row_has_a_test_and_every_test_a_row() -> None:
    assert not CASES.keys() & ELSEWHERE.keys()
    assert sorted(table()) == sorted([*CASES, *ELSEWHERE])


def test_no_other_page_has_such_a_table() -> None:
    for name in ("run", "runtime-images", "evaluation", "training", "serving", "kits", "registries"):
        text = PAGE.with_name(f"{name}.md").read_text(encoding="utf-8")
        assert not re.search(r"^\|.*exit (code|status)", text, re.MULTILINE), name
        assert "(exit-codes.md#what-is-refused)" in text, name


@pytest.mark.parametrize("what", CASES)
def test_it_is_refused(site: Site, tmp_path: Path, what: str) -> None:
    done, row = CASES[what](site, tmp_path), table()[what]
    assert done.status == row.status, f"{done.out}\n{done.err}"
    assert "error: " in done.err or done.out.splitlines()[-1].startswith(("refused: ", "stale: "))
    assert row.rule in done.out
    assert "Traceback" not in done.err


RUN, GUARD = "interop/test_run_guarded.py", "guard/test_main.py"
REGISTRY = "interop/test_registry.py::test_refusals_leave_nothing"
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "a kit that is cut short, or holds what no kit has": (
        "cli/test_kit.py::test_a_kit_that_ends_early_is_refused",
        "cli/test_kit.py::test_a_member_that_no_kit_has_is_refused",
    ),
    "a kit of an image that a key released which the policy does not name": (
        "cli/test_kit.py::test_a_kit_signed_whole_by_somebody_else_is_refused",
    ),
    "a kit, where there is no policy": ("cli/test_kit.py::test_without_a_policy_there_is_no_verdict",),
    "an image in a registry that a key released which the policy does not name": (REGISTRY,),
    "an image in a registry, where there is no policy": (REGISTRY,),
    "a registry that has no such image, or does not answer": (REGISTRY,),
    "an image, where there is no policy": ("cli/test_verify.py::test_without_an_anchor_the_answer_is_no",),
    "a metric that is out of the policy's bounds, or that nobody measured": (
        "cli/test_gates.py::test_policies_ask_for_the_test_result_and_its_metrics",
        "cli/test_gates.py::test_a_metric_that_nobody_measured",
    ),
    "what is not in the store, under `--offline`": ("cli/test_build.py::test_offline_asks_nobody_and_is_20",),
    "a wheel of another digest than the toolchain's lock says": (
        "cli/test_build.py::test_a_toolchain_whose_wheel_is_another_is_21",
    ),
    "a wheel that is built here and comes out otherwise than locked": (
        "end_to_end/test_wheel_action.py::test_another_wheel_than_the_locks_is_refused",
    ),
    "a build without keys, without bubblewrap, or on a full disk": (
        "cli/test_build.py::test_without_keys_it_stops_with_a_hint_to_init",
        "cli/test_build.py::test_without_bubblewrap_it_is_50_with_a_hint",
        "cli/test_build.py::test_a_full_disk_is_50_and_harms_nothing",
    ),
    "a model that is damaged in the store": ("end_to_end/test_tiny.py::test_it_verifies_and_refuses_a_flipped_bit",),
    "a model without a runtime image": (f"{RUN}::test_a_model_without_a_runtime_image",),
    "a runtime image that is damaged": (f"{RUN}::test_a_damaged_layer_is_refused_before_the_engine_gets_it",),
    "a runtime image that a key released which the policy does not name": (
        f"{RUN}::test_a_runtime_image_that_is_not_ours_reaches_no_engine",
    ),
    "a runtime image, where the trusted source has not been heard of for longer than the policy allows": (
        f"{RUN}::test_what_is_stale_here_reaches_no_engine",
    ),
    "no engine answers": (f"{RUN}::test_no_engine_answers",),
    "Python's docker package is missing": (f"{RUN}::test_the_docker_package_is_missing",),
    "an engine that refuses": (f"{RUN}::test_an_engine_that_refuses",),
    "a port that is taken": (f"{RUN}::test_a_port_that_is_taken",),
    "a server that does not answer within `--startup` seconds": (f"{RUN}::test_a_server_that_does_not_answer_in_time",),
    "a quantised form that its server serves on other processors alone": (
        "build/test_servers.py::test_a_server_that_needs_another_processor_is_not_taken",
    ),
    "a runtime image of a form that its server does not serve": (
        "cli/test_servable.py::test_nf4_for_vllm_makes_no_image",
    ),
    "the guard itself fails: a bug of ours": ("build/test_containers.py::test_the_guards_own_fault_is_no_servers",),
    "a server that ends by itself": (f"{RUN}::test_a_server_that_ends_by_itself",),
    "one byte of the model changed": (f"{RUN}::REFUSALS[one byte of the model changed]",),
    "an attestation that the image's policy requires is missing": (f"{RUN}::REFUSALS[a missing attestation]",),
    "a model that a key released which the image's policy does not name": (f"{RUN}::REFUSALS[an untrusted key]",),
    "a model replaced under its name, and signed by other keys": (f"{RUN}::REFUSALS[replaced and re-signed]",),
    "model and passport both replaced, and signed under another root": (
        f"{RUN}::REFUSALS[replaced and re-signed under another root]",
    ),
    "a base model, dataset or toolchain that was yanked": (f"{RUN}::REFUSALS[a yanked base model]",),
    "metadata that is older than the bound of the image's policy": (f"{RUN}::REFUSALS[metadata past the bound]",),
    "the same, where the model is inside the image": (
        f"{RUN}::test_a_model_inside_is_refused_with_metadata_past_the_bound",
    ),
    "a file of the model that is missing, a link, or one too many": (
        f"{GUARD}::test_a_file_that_is_missing",
        f"{GUARD}::test_a_link_in_place_of_a_file",
        f"{GUARD}::test_a_file_beside_the_model",
    ),
    "no metadata in the passport, where the policy asks for the trusted source": (
        f"{GUARD}::test_a_policy_that_asks_for_a_source_and_a_passport_without_metadata",
    ),
    "no anchor, or one without a policy": (
        f"{GUARD}::test_no_anchor",
        "guard/test_anchor.py::test_an_empty_folder_is_no_anchor",
    ),
    "a command line, or a number in the environment, that is none": (f"{GUARD}::test_a_number_that_is_none",),
    "no memory for the copies, here or within the container's limit": (
        "guard/test_memory.py::test_too_little_memory_is_said_before_copying",
    ),
    "a server that is not there, or a port that is taken": (
        f"{GUARD}::test_a_server_that_is_not_there",
        f"{GUARD}::test_a_port_that_is_taken_is_the_only_thing_said",
    ),
}
"""What is refused → the tests that make it: a function, or one case of a table of them."""


def _source_of(place: str) -> str:
    """Return the text of a test function, or of the entry of a table of cases, that ``place`` names."""
    path, _, name = place.partition("::")
    text = (ROOT / "tests" / path).read_text(encoding="utf-8")
    name, _, case = name.removesuffix("]").partition("[")
    for node in ast.parse(text).body:
        if not case and isinstance(node, ast.FunctionDef) and node.name == name and name.startswith("test_"):
            return ast.get_source_segment(text, node) or ""
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict) and ast.unparse(node.target) == name:
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if key is not None and ast.literal_eval(key) == case:
                    return ast.get_source_segment(text, value) or ""
    raise AssertionError(f"there is no {place}")


@pytest.mark.parametrize(("what", "place"), [(what, one) for what, places in ELSEWHERE.items() for one in places])
def test_the_test_of_a_row_is_there_and_of_its_status(what: str, place: str) -> None:
    source, row = _source_of(place), table()[what]
    code = ExitCode(row.status)
    kinds = [kind.__name__ for kind in _kinds(Error) if kind.exit_code == code]
    words = re.findall(r"\w+", source)
    assert {code.name, str(row.status), *kinds} & set(words), f"{place} does not speak of {row.status}:\n{source}"


def _kinds(kind: type[Error]) -> list[type[Error]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _kinds(child))]


def test_cases_of_containers_name_the_rule_of_their_row() -> None:
    rows = table()
    for what, places in ELSEWHERE.items():
        for place in places:
            if "::REFUSALS[" in place:
                assert f'"{rows[what].rule}"' in _source_of(place), what


# --- the trusted source ----------------------------------------------------------------------------------------------


@row("an input that the trusted source does not list")
def _(site: Site, tmp_path: Path) -> Finished:
    shutil.copytree(site.shop.recipe, tmp_path / "recipe")
    toml = tmp_path / "recipe" / "Modelfile.toml"
    toml.write_text(toml.read_text().replace("acme/words@", "acme/wards@"))
    return site.shop.run("lock", tmp_path / "recipe")


@row("an input or base model that was yanked, when it is pinned")
def _(site: Site, tmp_path: Path) -> Finished:
    shutil.copytree(site.shop.recipe, tmp_path / "recipe")
    (tmp_path / "recipe" / "Modelfile.lock").unlink()
    return site.shop.run("lock", tmp_path / "recipe", INTAGLIO_HOME=str(site.yanked(tmp_path)))


@row("the same, when it was pinned before, however much of the build is cached")
def _(site: Site, tmp_path: Path) -> Finished:
    store = site.shop.home / "store"
    return site.shop.run("build", "--locked", "--store", store, INTAGLIO_HOME=str(site.yanked(tmp_path)))


@row("an image made from what was yanked since, where the policy asks for the source")
def _(site: Site, tmp_path: Path) -> Finished:
    return site.verify(site.policy(SOURCE), site.yanked(tmp_path))


@row("metadata that is older than what was seen before")
def _(site: Site, tmp_path: Path) -> Finished:
    home = site.yanked(tmp_path)
    return site.refresh(site.root, home)


@row("an image whose trusted source was last seen longer ago than the policy allows")
def _(site: Site, tmp_path: Path) -> Finished:
    home = site.aged(tmp_path, timedelta(days=2))
    site.verify(site.policy('[freshness]\nmax_age = "3d"\n'), home).ok()
    policy = site.policy('[freshness]\nmax_age = "1d"\n')
    told = site.verify(policy, home, "--json").json
    assert told["verdict"] == "stale"
    assert "error" not in told
    assert [rule["rule"] for rule in told["rules"] if rule["result"] == "fail"] == ["freshness"]
    return site.verify(policy, home)


@row("metadata that has expired")
def _(site: Site, tmp_path: Path) -> Finished:
    place, home = site.copy(tmp_path)
    keys = place / "source-keys" / "online"
    online = {role: PrivateKey.load((keys / f"{role}.key").read_bytes()) for role in ("snapshot", "timestamp")}
    Repository.open(place / "source").publish(place / "www", online, datetime.now(UTC) - timedelta(days=8))
    return site.refresh(place, home)


@row("a root that too few of its keys have signed, when it is published")
def _(site: Site, tmp_path: Path) -> Finished:
    place, _ = site.copy(tmp_path)
    site.shop.run("trust", "renew", place / "source", "root").ok()
    key = place / "source-keys" / "offline" / "root-1.key"
    site.shop.run("trust", "sign", place / "source", "--key", key).ok()
    return site.shop.run("trust", "publish", place / "source", place / "www")


@row("a root that too few of its keys have signed, when it is read")
def _(site: Site, tmp_path: Path) -> Finished:
    place, home = site.copy(tmp_path)
    site.shop.run("trust", "renew", place / "source", "root").ok()
    key = place / "source-keys" / "offline" / "root-1.key"
    site.shop.run("trust", "sign", place / "source", "--key", key).ok()
    shutil.copy(place / "source" / "staged" / "root.json", place / "www" / "metadata" / "2.root.json")
    return site.refresh(place, home)


@row("a policy or key whose file is not the one that was signed")
def _(site: Site, tmp_path: Path) -> Finished:
    place, home = site.copy(tmp_path)
    given = ("policies/acme/release@1", "--file", site.shop.home / "policy.toml", "--publisher", "Acme")
    site.shop.run("trust", "add", place / "source", *given).ok()
    site.publish(place)
    (blob,) = (place / "www" / "blobs" / "sha256").iterdir()
    blob.write_bytes(blob.read_bytes().replace(b"allow_unsandboxed = false", b"allow_unsandboxed = true "))
    return site.refresh(place, home)


# --- inputs ----------------------------------------------------------------------------------------------------------


@row("a file behind `https:` whose bytes changed")
def _(site: Site, tmp_path: Path) -> Finished:
    with closing(Server()) as server:
        server.pages["/data.txt"] = b"as it was promised"
        data = f'uri = "{server.url}/data.txt", digest = "{Digest.of(b"as it was promised")}"'
        site.fetch(tmp_path, data, "lock").ok()
        server.pages["/data.txt"] = b"as it is today"
        done = site.fetch(tmp_path, data, "build")
    assert "the bytes changed" in done.err
    return done


@row("a repository behind `hf:` whose bytes changed")
def _(site: Site, tmp_path: Path) -> Finished:
    """Under the same commit: in what the hub lists, and in what it sends."""
    data, endpoint = f'uri = "hf:org/name@{Hub.REVISION}"', "HF_ENDPOINT"
    with closing(Server()) as cdn, closing(Hub(cdn)) as hub:
        hub.add("org/name", {"small.txt": b"small", "large.bin": b"large"}, {"large.bin"})
        site.fetch(tmp_path, data, "lock", **{endpoint: hub.url}).ok()
        cdn.pages = dict.fromkeys(cdn.pages, b"LARGE")
        sent = site.fetch(tmp_path, data, "build", **{endpoint: hub.url})
        hub.add("org/name", {"small.txt": b"other", "large.bin": b"large"}, {"large.bin"})
        listed = site.fetch(tmp_path, data, "build", **{endpoint: hub.url})
    assert "wrong bytes, twice" in sent.err
    assert "the bytes changed" in listed.err
    assert sent.status == listed.status
    return listed


@row("a name of the trusted source of which an origin gives other bytes, and none the signed ones")
def _(site: Site, tmp_path: Path) -> Finished:
    _, home = site.copy(tmp_path)
    shutil.copytree(site.shop.recipe, tmp_path / "recipe")
    (tmp_path / "recipe" / "data.txt").write_text("as it is today")
    (tmp_path / "recipe" / "Modelfile.lock").unlink()
    return site.shop.run("lock", tmp_path / "recipe", INTAGLIO_HOME=str(home))


# --- images ----------------------------------------------------------------------------------------------------------


@row("an image that a key released which the policy does not name")
def _(site: Site, tmp_path: Path) -> Finished:
    stranger = tmp_path / "stranger"
    site.shop.run("init", INTAGLIO_HOME=str(stranger)).ok()
    return site.verify(stranger / "policy.toml")


@row("an image that lacks an attestation which the policy requires")
def _(site: Site, tmp_path: Path) -> Finished:
    return site.verify(site.policy('[attestations]\n"https://in-toto.io/attestation/test-result/v0.1" = "evaluator"\n'))


@row("a name that the policy reserves")
def _(site: Site, tmp_path: Path) -> Finished:
    return site.verify(site.policy('[names.reserved]\n"tests/*" = []\n'))


@row("a file of a format that the policy does not allow")
def _(site: Site, tmp_path: Path) -> Finished:
    return site.verify(site.policy(formats='["gguf"]'))


@row("a kit with a damaged blob")
def _(site: Site, tmp_path: Path) -> Finished:
    kit = tmp_path / "shop.kit"
    site.shop.run("kit", "export", NAME, "-o", kit).ok()
    data = kit.read_bytes()
    assert data.count(b"what the model is made of") == 1
    kit.write_bytes(data.replace(b"what the model is made of", b"what the model IS made of"))
    _, home = site.copy(tmp_path)
    return site.shop.run("kit", "import", kit, INTAGLIO_HOME=str(home))


def kit_of(site: Site, place: Path, home: Path | None = None) -> Path:
    """Return a kit of the image, with what ``home`` knows of the source."""
    known = {"INTAGLIO_HOME": str(home)} if home else {}
    store = site.shop.home / "store"
    site.shop.run("kit", "export", NAME, "-o", place / "shop.kit", "--store", store, **known).ok()
    return place / "shop.kit"


def take(site: Site, kit: Path, home: Path, **environment: str) -> Finished:
    """Take a kit where the policy asks for the source, and for news of it in 14 days; nothing may be there then."""
    shutil.copy(site.policy(SOURCE + '[freshness]\nmax_age = "14d"\n'), home / "policy.toml")
    done = site.shop.run("kit", "import", kit, INTAGLIO_HOME=str(home), **environment)
    assert site.shop.run("store", "list", "--json", INTAGLIO_HOME=str(home)).ok().json == {"images": []}
    return done


@row("a kit that is older than what is known here of its source")
def _(site: Site, tmp_path: Path) -> Finished:
    return take(site, kit_of(site, tmp_path), site.yanked(tmp_path))


@row("a kit of an image made from what its source has yanked")
def _(site: Site, tmp_path: Path) -> Finished:
    (tmp_path / "here").mkdir()
    kit = kit_of(site, tmp_path, site.yanked(tmp_path))
    return take(site, kit, site.copy(tmp_path / "here")[1])


@row("a kit whose metadata is older than the policy allows")
def _(site: Site, tmp_path: Path) -> Finished:
    _, home = site.copy(tmp_path)
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK.format(days=20))
    return take(site, kit_of(site, tmp_path), home, PYTHONPATH=str(tmp_path / "clock"))


# --- registries ------------------------------------------------------------------------------------------------------


@row("a blob that is damaged in the registry")
def _(site: Site, tmp_path: Path) -> Finished:
    there = site.pushed("damaged")
    layer = json.loads(site.shop.store.read(site.image, what="image"))["layers"][0]["digest"]
    blob = there.blob(layer)
    blob.write_bytes(bytes([blob.read_bytes()[0] ^ 1]) + blob.read_bytes()[1:])
    return site.pull(there.reference(), tmp_path / "elsewhere")


@row("a tag that means another image than the digest beside it")
def _(site: Site, tmp_path: Path) -> Finished:
    there = site.pushed("tags")
    return site.pull(f"{there.reference()}@{Digest.of(b'another')}", tmp_path / "elsewhere")


@row("wrong credentials")
def _(site: Site, tmp_path: Path) -> Finished:
    there = site.registry("closed", password=True)

    def login(password: str) -> Finished:
        typed = ("sh", "-c", 'echo "$1" | { shift; "$@"; }', "sh", password)
        return site.shop.run("login", there.host, "--plain-http", "--username", USER, "--password-stdin", before=typed)

    login(PASSWORD).ok()
    return login("guessed")


@row("a registry whose certificate no authority here has signed")
def _(site: Site, tmp_path: Path) -> Finished:
    made = authority.make(tmp_path / "tls")
    there = site.registry("private", tls=(made.certificate, made.key))
    site.shop.run("push", NAME, there.reference(), INTAGLIO_CA_FILE=str(made.ca)).ok()
    return site.shop.run("push", NAME, there.reference(), INTAGLIO_CA_FILE="")


# --- building --------------------------------------------------------------------------------------------------------


def fresh(tmp_path: Path) -> Workshop:
    """Return a workshop of one's own."""
    return furnish(tmp_path / "shop")


MEASURED = """
[steps.make]
uses = "./make"
inputs = { source = "data" }
[steps.check]
uses = "./measure"
inputs = { model = "MODEL" }
[steps.check.gates]
"size" = { minimum = 1000 }
"""


def measured(tmp_path: Path, results: str = '{"metrics": {"size": 7}, "samples": 1}', model: str = "make") -> Workshop:
    """Return a workshop whose recipe measures what it makes."""
    shop = fresh(tmp_path)
    shop.step("make", 'write(read("source"))')
    shop.step("measure", f"write({results!r}, 'results.json')", inputs=("model",), outputs=("results.json",))
    shop.write(MEASURED.replace("MODEL", model), source="make")
    return shop


@row("a recipe with a mistake: an unknown key, a gate on what does not become the image")
def _(site: Site, tmp_path: Path) -> Finished:
    shop = measured(tmp_path, model="data")
    done = shop.build().failed(ExitCode.RECIPE)
    shop.edit("Modelfile.toml", 'inputs = { model = "data" }', 'inputs = { model = "make" }\nseed = 1')
    shop.build().failed(ExitCode.RECIPE)
    return done


@row("an input that the lock does not pin")
def _(site: Site, tmp_path: Path) -> Finished:
    shop = measured(tmp_path)
    shop.lock()
    shop.edit("Modelfile.toml", "[inputs]", '[inputs]\nmore = { uri = "file:more.txt" }')
    shop.edit("Modelfile.toml", '{ source = "data" }', '{ source = "more" }')
    shop.recipe.joinpath("more.txt").write_text("more")
    return shop.build()


@row("a gate that is missed, or whose metric was not measured")
def _(site: Site, tmp_path: Path) -> Finished:
    shop = measured(tmp_path)
    shop.lock()
    done = shop.build()
    assert "size: expected at least 1000, found 7: 993 too low" in done.err
    shop.edit("Modelfile.toml", '"size"', '"syze"')
    assert "it was not measured" in shop.build().failed(ExitCode.POLICY).err
    return done


@row("a metric that could not be computed: no samples, a value that is not finite, none at all")
def _(site: Site, tmp_path: Path) -> Finished:
    for number, results in enumerate(('{"metrics": {"size": 7}, "samples": 0}', '{"metrics": {}, "samples": 1}')):
        shop = measured(tmp_path / str(number), results)
        shop.lock()
        shop.build().failed(ExitCode.STEP)
    shop = measured(tmp_path / "nan", '{"metrics": {"size": NaN}, "samples": 1}')
    shop.lock()
    return shop.build()


@row("a recipe that measures, without the evaluator's key")
def _(site: Site, tmp_path: Path) -> Finished:
    shop = measured(tmp_path)
    shop.lock()
    (shop.home / "keys" / "evaluator.key").unlink()
    return shop.build()


@row("a step that ends with an error")
def _(site: Site, tmp_path: Path) -> Finished:
    shop = fresh(tmp_path)
    shop.one('sys.exit("the data is empty")')
    return shop.build()


@row("a step that reaches a limit")
def _(site: Site, tmp_path: Path) -> Finished:
    shop = fresh(tmp_path)
    shop.one("import time; time.sleep(60)", limits='{ time = "1s" }')
    return shop.build()


# --- training: the real program, where no torch is -------------------------------------------------------------------


def training(tmp_path: Path, *settings: str) -> Finished:
    """Return the last of the builds of recipes whose finetune step has such settings; the others end as it does."""
    shop = fresh(tmp_path)
    steps, builder = ROOT / "builder" / "steps", shop.builder
    shutil.copytree(ROOT / "builder" / "lib", builder / "lib", dirs_exist_ok=True)
    shutil.copy(steps / "finetune.py", builder / "steps")
    description = (steps / "finetune.toml").read_text()
    (builder / "steps" / "finetune.toml").write_text(re.sub(r'"train-[a-z]+"', '"tiny"', description))
    for given in settings:
        shop.write(
            '[steps.tune]\nuses = "finetune"\ninputs = { base = "data", data = "data" }\n'
            f"with = {{ steps = 1, {given} }}\nlimits = {{ threads = 2 }}\n",
            source="tune",
        )
        shop.lock()
        done = shop.build().failed(ExitCode.STEP)
        assert "No module named" not in done.err
        assert "hint: " in done.err
    return done


@row('`processes` above 1 with `parallel = "none"`, or 1 with another')
def _(site: Site, tmp_path: Path) -> Finished:
    return training(tmp_path, "processes = 2", 'parallel = "ddp"')


@row("more `processes` than the step's `threads`")
def _(site: Site, tmp_path: Path) -> Finished:
    return training(tmp_path, 'parallel = "ddp", processes = 3')


@row('`method = "qlora"` with `fsdp`, `zero2` or `zero3`')
def _(site: Site, tmp_path: Path) -> Finished:
    given = [f'method = "qlora", processes = 2, parallel = "{one}"' for one in ("fsdp", "zero2", "zero3")]
    return training(tmp_path, *given)


@row('`precision = "bfloat16"` with `zero2` or `zero3`')
def _(site: Site, tmp_path: Path) -> Finished:
    given = [f'precision = "bfloat16", processes = 2, parallel = "{one}"' for one in ("zero2", "zero3")]
    return training(tmp_path, *given)


@row("`deepspeed` with anything but `zero2` and `zero3`")
def _(site: Site, tmp_path: Path) -> Finished:
    return training(tmp_path, "deepspeed = '{}', processes = 2, parallel = \"fsdp\"")


# --- serving ---------------------------------------------------------------------------------------------------------


@row("a quantised form that no server serves, or that the one named does not")
def _(site: Site, tmp_path: Path) -> Finished:
    shop = fresh(tmp_path)
    for name in ("servers", "lib"):
        shutil.copytree(ROOT / "builder" / name, shop.builder / name, dirs_exist_ok=True)
    weights = safetensors({"a": ("F32", [2], b"\1" * 8)})
    code = f'write({weights!r}, "model.safetensors"); write(read("source"), "config.json")'

    def serve(method: str, *words: str) -> Finished:
        shop.recipe.joinpath("data.txt").write_text(json.dumps({"quantization_config": method_of[method]}))
        shop.one(code)
        shop.built()
        return shop.run("serve", NAME, "--port", "0", *words)

    method_of = {
        "hqq": {"quant_method": "hqq"},
        "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    }
    assert "vllm does not serve" in serve("nf4", "--runtime", "vllm").failed(ExitCode.USAGE).err
    done = serve("hqq")
    assert "no server here serves safetensors quantised as other (hqq)" in done.err
    return done
