"""Gated builds from end to end: the gate, the attestation, the policies that ask for it, and the comparison."""

from __future__ import annotations

import json

import pytest
from tests.workshop import Workshop

from intaglio.content.layout import Store
from intaglio.digest import Digest
from intaglio.errors import ExitCode, Untrusted
from intaglio.strictjson import Object
from intaglio.trust import keyring
from intaglio.trust.cosign import Link, bundle_referrer
from intaglio.trust.key import PrivateKey
from intaglio.trust.signature import BUNDLE_TYPE, sign_bundle
from intaglio.trust.statement import TEST_RESULT, Statement, Subject, open_statement

COPY = 'write(read("source"))\n'
MEASURE = """\
words = read("model").decode().split()
right = sum(word in read("tasks").decode().split() for word in words)
results = {"metrics": {"qa.acc": right / len(words), "text.perplexity": 7.5}, "samples": len(words)}
write(json.dumps(results), "results.json")
"""
GATES = '[steps.check.gates]\n"qa.acc" = { minimum = 0.5 }\n"text.perplexity" = { maximum = 40.0 }\n'
NAME = "tests/shop:1.0.0"


@pytest.fixture
def gated(shop: Workshop) -> Workshop:
    """A workshop whose recipe measures what it makes: one word of the model's two is among the tasks'."""
    shop.recipe.joinpath("data.txt").write_text("right wrong\n")
    shop.recipe.joinpath("tasks.txt").write_text("right\n")
    write(shop)
    shop.lock()
    return shop


def write(shop: Workshop, gates: str = GATES, code: str = MEASURE) -> None:
    shop.step("make", COPY)
    shop.step("measure", code, inputs=("model", "tasks"), outputs=("results.json",))
    shop.write(
        '[steps.make]\nuses = "./make"\ninputs = { source = "data" }\n'
        f'[steps.check]\nuses = "./measure"\ninputs = {{ model = "make", tasks = "tasks" }}\n{gates}',
        source="make",
        inputs='data = { uri = "file:data.txt" }\ntasks = { uri = "file:tasks.txt" }',
    )


def policy(shop: Workshop, *tables: str) -> str:
    """Write a policy that asks for more than the home's, and return its path."""
    path = shop.root / "policy.toml"
    text = (shop.home / "policy.toml").read_text()
    head, keys, rest = text.partition("[keys.")
    path.write_text(head + "\n".join(tables) + "\n" + keys + rest)
    return str(path)


ATTESTED = f'[attestations]\n"{TEST_RESULT}" = "evaluator"\n'


def threshold(minimum: float) -> str:
    return f'[evaluation]\n"qa.acc" = {{ minimum = {minimum} }}\n'


def results_of(store: Store, image: str, key: PrivateKey) -> list[Object]:
    """Return the test results about the image that the key signed."""
    found = []
    for referrer in store.referrers(Digest(image)):
        for layer in Link.parse(store.read(referrer.digest, what="referrer"), "referrer").layers:
            if layer.media_type != BUNDLE_TYPE:
                continue
            try:
                statement = open_statement(store.read(layer.digest, what="bundle"), [key.public], what="").statement
            except Untrusted:
                continue
            if statement.predicate_type == TEST_RESULT:
                assert [str(subject.digest) for subject in statement.subjects] == [image]
                found.append(statement.predicate)
    return found


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_what_was_measured_is_attested_by_the_evaluator_alone(gated: Workshop) -> None:
    answer = gated.built()
    assert [step["name"] for step in answer["steps"]] == ["make", "check", "image"]
    (found,) = results_of(gated.store, answer["image"], keyring.load_private(gated.home, "evaluator"))
    assert found["result"] == "PASSED"
    assert found["metrics"] == {"qa.acc": 0.5, "text.perplexity": 7.5}
    assert found["gates"] == {"qa.acc": {"minimum": 0.5}, "text.perplexity": {"maximum": 40}}
    assert (found["passedTests"], found["failedTests"]) == (["qa.acc", "text.perplexity"], [])
    names = [entry["name"] for entry in found["configuration"]]
    assert names == ["input:tasks", "program:./measure", "toolchain:tiny"]
    for other in ("builder", "release"):
        assert results_of(gated.store, answer["image"], keyring.load_private(gated.home, other)) == []
    assert gated.run("verify", NAME).ok()


def test_the_image_is_the_same_with_gates_and_without(gated: Workshop) -> None:
    first = gated.built()["image"]
    write(gated, gates="")
    assert gated.built()["image"] == first
    shop = gated
    shop.step("make", COPY)
    shop.write('[steps.make]\nuses = "./make"\ninputs = { source = "data" }\n', source="make")
    assert shop.built()["image"] == first


def test_the_same_bytes_twice_and_nothing_is_signed_twice(gated: Workshop) -> None:
    def blobs() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (gated.home / "store/blobs/sha256").iterdir()}

    gated.built()
    first = blobs()
    gated.built()
    assert blobs() == first
    for name in list(first):
        if b"test-result" in first[name] or b"vnd.dev.sigstore.bundle" in first[name]:
            (gated.home / "store/blobs/sha256" / name).unlink()
    gated.built()
    assert blobs() == first


def test_a_missed_gate_stops_the_image_and_says_by_how_much(gated: Workshop) -> None:
    write(gated, GATES.replace("0.5", "0.75").replace("40.0", "5"))
    done = gated.build().failed(ExitCode.POLICY)
    assert "step check: qa.acc: expected at least 0.75, found 0.5: 0.25 too low" in done.err
    assert "step check: text.perplexity: expected at most 5, found 7.5: 2.5 too high" in done.err
    assert done.json["error"]["exit_code"] == 23
    assert gated.run("store", "list", "--json").ok().json == {"images": []}
    assert gated.run("verify", NAME).status == ExitCode.NOT_VERIFIABLE


def test_a_gate_that_is_moved_decides_anew_and_measures_nothing_again(gated: Workshop) -> None:
    passed = gated.built()["image"]
    write(gated, GATES.replace("0.5", "0.75"))
    gated.build().failed(ExitCode.POLICY)
    assert str(gated.store.resolve(NAME)) == passed, "the tag means what it meant"
    write(gated, GATES.replace("0.5", "0.25"))
    assert set(gated.statuses().values()) == {"cached"}


def test_a_metric_that_was_not_measured_holds_no_gate(gated: Workshop) -> None:
    write(gated, '[steps.check.gates]\n"qa.akk" = { maximum = 1 }\n')
    assert "qa.akk: expected at most 1, but it was not measured" in gated.build().failed(ExitCode.POLICY).err


@pytest.mark.parametrize(
    "code",
    [
        """write('{"metrics": {"qa.acc": NaN}, "samples": 1}', "results.json")""",
        """write('{"metrics": {"qa.acc": 0.9}, "samples": 0}', "results.json")""",
        """write('{"metrics": {}, "samples": 1}', "results.json")""",
        """write('', "results.json")""",
    ],
)
def test_results_that_are_none_stop_the_image(gated: Workshop, code: str) -> None:
    write(gated, code=code)
    assert "step check: results.json" in gated.build().failed(ExitCode.STEP).err
    assert gated.run("store", "list", "--json").ok().json == {"images": []}


def test_without_the_evaluator_key_the_build_stops_before_the_work(gated: Workshop) -> None:
    (gated.home / "keys" / "evaluator.key").unlink()
    done = gated.build().failed(ExitCode.MACHINE)
    assert "no key 'evaluator'" in done.err
    assert "intaglio init" in done.err
    assert not (gated.home / "store" / "logs").exists(), "nothing has run"
    gated.chain("one")
    gated.built()  # a recipe that measures nothing needs none


# --- policies ---------------------------------------------------------------------------------------------------------


def verdict(shop: Workshop, path: str) -> tuple[int, dict[str, str]]:
    done = shop.run("verify", NAME, "--json", "--policy", path)
    return done.status, {rule["rule"]: f"{rule['result']}: {rule['detail']}" for rule in done.json["rules"]}


def test_policies_ask_for_the_test_result_and_its_metrics(gated: Workshop) -> None:
    gated.built()
    status, rules = verdict(gated, policy(gated, ATTESTED, threshold(0.5)))
    assert status == ExitCode.OK
    assert rules["attestations"] == "pass: test-result/v0.1 by evaluator"
    assert rules["evaluation"] == "pass: qa.acc 0.5"
    status, rules = verdict(gated, policy(gated, ATTESTED, threshold(0.9)))
    assert status == ExitCode.POLICY
    assert rules["evaluation"] == "fail: qa.acc: expected at least 0.9, found 0.5"


def test_an_evaluator_that_the_policy_does_not_name(gated: Workshop) -> None:
    gated.built()
    gated.run("key", "new", "another").ok()
    path = policy(gated, ATTESTED)
    text = (gated.root / "policy.toml").read_text()
    mine = (gated.home / "keys" / "evaluator.pub").read_text().strip()
    other = (gated.home / "keys" / "another.pub").read_text().strip()
    (gated.root / "policy.toml").write_text(text.replace(mine, other))
    status, rules = verdict(gated, path)
    assert status == ExitCode.UNTRUSTED
    assert rules["attestations"].startswith("fail: evaluator's test-result/v0.1")
    done = gated.run("eval", "compare", NAME, NAME, "--policy", path).failed(ExitCode.UNTRUSTED)
    assert "not signed by a key that the policy names" in done.err


def test_an_image_that_measured_nothing(gated: Workshop) -> None:
    shop = gated
    shop.step("make", COPY)
    shop.write('[steps.make]\nuses = "./make"\ninputs = { source = "data" }\n', source="make")
    shop.built()
    status, rules = verdict(shop, policy(shop, ATTESTED, threshold(0.1)))
    assert status == ExitCode.UNTRUSTED
    assert rules["attestations"].startswith("fail: ")
    assert rules["evaluation"].startswith("fail: ")
    assert shop.run("eval", "compare", NAME, NAME).failed(ExitCode.UNTRUSTED)


def test_a_metric_that_nobody_measured(gated: Workshop) -> None:
    gated.built()
    status, rules = verdict(gated, policy(gated, '[evaluation]\n"qa.f1" = { minimum = 0 }\n'))
    assert (status, rules["evaluation"]) == (ExitCode.POLICY, "fail: qa.f1: no evaluation measured it")


# --- comparison -------------------------------------------------------------------------------------------------------


def test_two_images_are_compared_by_what_was_attested(gated: Workshop) -> None:
    first = gated.built()["image"]
    gated.recipe.joinpath("data.txt").write_text("right right wrong right\n")
    gated.lock()
    second = gated.built("--tag", "tests/shop:2")["image"]
    gated.run("export", "tests/shop:2", gated.root / "exported").ok()
    for reference in ("tests/shop:2", second, str(gated.root / "exported")):
        answer = gated.run("eval", "compare", first, reference, "--json").ok().json
        assert answer["a"] == {"reference": first, "image": first}
        assert answer["b"] == {"reference": reference, "image": second}
        assert answer["metrics"] == {
            "qa.acc": {"a": 0.5, "b": 0.75, "difference": 0.25},
            "text.perplexity": {"a": 7.5, "b": 7.5, "difference": 0},
        }
    lines = gated.run("eval", "compare", NAME, "tests/shop:2").ok().out.splitlines()
    assert [line.split() for line in lines] == [
        ["A", "B", "B", "-", "A"],
        ["qa.acc", "0.5", "0.75", "+0.25"],
        ["text.perplexity", "7.5", "7.5", "+0"],
    ]


def test_what_cannot_be_compared(gated: Workshop) -> None:
    gated.built()
    assert "no image" in gated.run("eval", "compare", NAME, "tests/shop:9").failed(ExitCode.NOT_VERIFIABLE).err
    text = (gated.home / "policy.toml").read_text()
    (gated.home / "policy.toml").write_text(text.replace('evaluator = ["evaluator"]\n', ""))
    done = gated.run("eval", "compare", NAME, NAME, "--json").failed(ExitCode.NOT_VERIFIABLE)
    assert "names no evaluator" in json.loads(done.out)["error"]["message"]


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_results_without_metrics_cannot_be_compared(shop: Workshop, form: tuple[str, ...]) -> None:
    shop.step("make", COPY)
    shop.write('[steps.make]\nuses = "./make"\ninputs = { source = "data" }\n', source="make")
    shop.lock()
    shop.built()
    image = shop.store.tags()[NAME]
    said = Statement((Subject(image.digest),), TEST_RESULT, {"result": "PASSED", "configuration": []})
    bundle = sign_bundle(said.payload(), keyring.load_private(shop.home, "evaluator"))
    referrer = bundle_referrer(image, bundle, TEST_RESULT)
    shop.store.put_referrer(referrer.manifest, referrer.blobs)
    done = shop.run("eval", "compare", NAME, NAME, *form).failed(ExitCode.NOT_VERIFIABLE)
    assert f"{image.digest}: its evaluators attest to tests that passed, but to no metric" in done.err


def test_a_metric_with_two_values_has_none(gated: Workshop) -> None:
    gated.built()
    write(gated, code=MEASURE.replace("7.5", "8.5"))
    gated.lock()
    gated.built()
    done = gated.run("eval", "compare", NAME, NAME).failed(ExitCode.POLICY)
    assert "text.perplexity: two evaluations disagree: 7.5, 8.5" in done.err or "8.5, 7.5" in done.err
