"""The table "What is refused" of ``docs/exit-codes.md``, row by row: made for real, typed as a user types it."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.attacks.registries import authority
from tests.attacks.registries.distribution import PASSWORD, USER, Distribution, running
from tests.recipe.sources.web import Hub, Server
from tests.workshop import Finished, furnish

from intaglio.digest import Digest
from intaglio.trust.key import PrivateKey
from intaglio.trust.repository import Repository

pytestmark = [pytest.mark.real, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "exit-codes.md"
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


def table() -> dict[str, int]:
    """Return the page's rows: what is refused → exit status."""
    part = PAGE.read_text(encoding="utf-8").partition("\n## What is refused\n")[2]
    rows = re.findall(r"^\| (.+?) \| `intaglio .+?` \| (\d+) \|$", part, re.MULTILINE)
    return {what: int(code) for what, code in rows}


def test_the_table_and_the_cases_are_of_the_same_rows() -> None:
    assert list(table()) == list(CASES)


@pytest.mark.parametrize("what", CASES)
def test_it_is_refused(site: Site, tmp_path: Path, what: str) -> None:
    done = CASES[what](site, tmp_path)
    assert done.status == table()[what], f"{done.out}\n{done.err}"
    assert "error: " in done.err or done.out.splitlines()[-1].startswith(("refused: ", "stale: "))
    assert "Traceback" not in done.err


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
