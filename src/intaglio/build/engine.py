"""The engine: walks a plan, believes claims, runs what has none, and ends with a signed image.

- An action runs at most once for all processes that share a store: whoever holds its lock runs it, the others wait
  and then find its claim.
- A claim is believed when a builder key of the policy signed it and its output is whole; else the action runs.
- What a step wrote is hashed by the engine before anything uses it; its claim is signed after that.
- What the trusted source no longer lists is refused before anything runs, however much of the build is cached.
- An input's bytes are fetched when a step that needs them runs, and not before.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from intaglio.build import claim, gate, image, release
from intaglio.build.action import ASSEMBLE, Action
from intaglio.build.claim import Circumstances, Claim
from intaglio.build.plan import Plan, PlannedStep
from intaglio.build.runner import Runner
from intaglio.build.stamps import Stamps
from intaglio.content.descriptor import EMPTY, MANIFEST_TYPE, Descriptor
from intaglio.content.layout import Store
from intaglio.content.modelpack import MODEL_TYPE, ModelImage
from intaglio.content.tree import Tree
from intaglio.dataclass import dataclass, field
from intaglio.digest import ActionKey, Digest
from intaglio.errors import CorruptContent, VerificationError
from intaglio.progress import Progress
from intaglio.recipe.sources.interface import is_name, resolve
from intaglio.trust.cosign import lineage_referrer, signature_referrers
from intaglio.trust.key import PrivateKey, PublicKey
from intaglio.trust.statement import Dependency

if TYPE_CHECKING:
    from intaglio.build.runtime import RuntimeResult
    from intaglio.trust.tuf import TrustedSource

IMAGE_STEP = "image"
"""The name under which assembling the image is reported."""


class Signers(Protocol):
    """The keys of a build; private ones are opened when something has to be signed, and not before."""

    builders: tuple[PublicKey, ...]
    """Whose claims are believed."""
    release_public: PublicKey

    def builder(self) -> PrivateKey:
        """Return the builder key, which signs claims."""

    def release(self) -> PrivateKey:
        """Return the release key, which signs the image."""

    def evaluator_public(self) -> PublicKey:
        """Return the public half of the evaluator key; only a recipe that measures asks for it."""

    def evaluator(self) -> PrivateKey:
        """Return the evaluator key, which signs what was measured."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """How one step of a build ended."""

    name: str
    key: ActionKey
    status: str
    """``cached`` or ``built``."""
    output: Digest
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """A finished build."""

    image: Descriptor
    tag: str
    steps: tuple[StepResult, ...]
    referrers: tuple[Descriptor, ...]
    runtime: RuntimeResult | None = None
    """The runnable image, where the recipe asks for one."""


@dataclass
class _State:
    """What is known while a build runs; one lock guards it."""

    outputs: dict[str, Digest] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    results: dict[str, StepResult] = field(default_factory=dict)


class Engine:
    """One build of one plan."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        signers: Signers,
        progress: Progress,
        *,
        offline: bool,
        replay: str = "intaglio replay",
        trusted: Callable[[], TrustedSource] | None = None,
        anchor: Callable[[], Mapping[str, bytes]] = dict,
    ) -> None:
        """Prepare the build of ``plan``.

        Args:
            plan: what to build.
            store: where everything is kept.
            signers: the keys.
            progress: where the work is shown.
            offline: whether no network may be asked.
            replay: the command that, with recipe and step behind it, runs a step again; shown when one fails.
            trusted: opens the trusted source, for inputs that are names of it.
            anchor: the files that a runnable image's guard is to trust, by name.
        """
        self._trusted = trusted
        self._anchor = anchor
        self._plan = plan
        self._store = store
        self._signers = signers
        self._progress = progress
        again = f"{replay} {shlex.quote(str(plan.recipe.folder))}"
        self._runner = Runner(store, progress, offline=offline, record=self._record, replay=again)
        self._offline = offline
        self._state = _State()
        self._guard = threading.Lock()

    def build(self, tag: str) -> Result:
        """Build the image, sign it, and let ``tag`` mean it.

        Raises:
            StepFailed: a step failed, or reached a limit; its log says more.
            RecipeError: what was made cannot be served by the runtime: there is no image.
            PolicyRefusal: the trusted source does not list an input, or a gate does not hold: there is no image, and
                ``tag`` means what it meant before.
            Error: as the parts that are used say.
        """
        if self._plan.recipe.evaluations:
            self._signers.evaluator_public()  # a missing key is said before the work
        self._plan.require_listed(self._trusted)
        self._check_files()
        self._store.put(EMPTY)  # what every manifest of ours names as its config
        self._steps()
        self._check_runtime()
        evaluations = self._evaluations()
        assembled, result = self._assemble()
        referrers = self._sign(assembled, evaluations)
        self._store.tag(tag, assembled, referrers)
        runtime = self._runtime(result, tag)
        steps = [self._state.results[name] for name in self._plan.needed()]
        return Result(assembled, tag, (*steps, result), referrers, runtime)

    # --- inputs --------------------------------------------------------------------------------------------------

    def _check_files(self) -> None:
        """Refuse local files that are no longer what the lock pins, however much of the build is cached."""
        for name in self._plan.inputs():
            if self._plan.recipe.inputs[name].uri.startswith("file:"):
                self._origin(name, fetch=False)

    def _origin(self, name: str, *, fetch: bool) -> Tree | None:
        """Return the tree of an input, fetched if it is not in the store and ``fetch`` asks for it."""
        item, pin = self._plan.recipe.inputs[name], self._plan.origins[name]
        stamps = Stamps(self._store.index)
        source = resolve(
            item.uri, self._plan.recipe.folder, name=name, digest=item.digest, stats=stamps, trusted=self._trusted
        )
        if item.uri.startswith("file:"):
            return source.fetch(self._store, expected=pin.tree, progress=self._progress, offline=self._offline)
        if self._store.has_tree(pin.tree):
            return self._store.tree(pin.tree)
        if not fetch:
            return None
        with self._store.lock(pin.tree.hex, self._progress):
            if self._store.has_tree(pin.tree):
                return self._store.tree(pin.tree)
            return source.fetch(self._store, expected=pin.tree, progress=self._progress, offline=self._offline)

    # --- steps ---------------------------------------------------------------------------------------------------

    def _steps(self) -> None:
        """Bring every needed step to its output: all claims that hold first, then what has to run, side by side."""
        needed = list(self._plan.needed())
        for name in needed:  # the cached part needs no threads
            if not self._ready(name) or not self._try_cached(name):
                break
        remaining = [name for name in needed if name not in self._state.outputs]
        if remaining:
            self._signers.builder()  # a wrong passphrase is said before the work, not after it
            self._signers.release()
            if self._plan.recipe.evaluations:
                self._signers.evaluator()
            self._run_all(remaining)

    def _ready(self, name: str) -> bool:
        sources = self._plan.steps[name].upstream.values()
        return all(source in self._state.outputs or source in self._plan.origins for source in sources)

    def _run_all(self, names: list[str]) -> None:
        waiting, running = list(names), dict[Future[None], str]()
        failure: BaseException | None = None
        with ThreadPoolExecutor(max_workers=len(names), thread_name_prefix="step") as pool:
            try:
                while running or (waiting and failure is None):
                    if failure is None:
                        for name in [name for name in waiting if self._ready(name)]:
                            waiting.remove(name)
                            running[pool.submit(self._step, name)] = name
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        del running[future]
                        failure = failure or future.exception()
            except BaseException:
                # Ctrl-C, wherever it arrives: what runs is ended, or leaving the pool would wait for it.
                self._runner.stop()
                raise
        if failure is not None:
            raise failure

    def _try_cached(self, name: str) -> bool:
        started = time.monotonic()
        action = self._action(name)
        found = self._believed(action)
        self._store.index.record(self._plan.recipe.model.name, name, action.key)
        if found is None:
            return False
        self._finish(name, found, "cached", started)
        return True

    def _step(self, name: str) -> None:
        started = time.monotonic()
        if self._try_cached(name):
            return
        planned, action = self._plan.steps[name], self._action(name)
        with self._store.lock(action.key.hex, self._progress):
            found = self._believed(action)
            if found is not None:
                self._finish(name, found, "cached", started)
                return
            inputs = {slot: self._tree(source) for slot, source in planned.upstream.items()}
            for input_tree in inputs.values():
                self._store.check_tree(input_tree)
            tree = self._runner.run(name, planned, action, inputs)
            about = self._about(name, planned, self._dependencies(planned))
            made = self._record(action, tree.descriptor(), about)
        self._finish(name, made, "built", started)

    def _keep_program(self, planned: PlannedStep) -> None:
        """Have the program in the store: the claim names its tree, and a kit can take it along."""
        program = planned.step.program
        for data in program.files.values():
            self._store.put(data)
        self._store.put(program.tree().manifest())

    def _finish(self, name: str, made: Claim, status: str, started: float) -> None:
        self._keep_program(self._plan.steps[name])
        seconds = round(time.monotonic() - started, 3)
        with self._guard:
            self._state.claims[name] = made
            self._state.results[name] = StepResult(name, made.action, status, made.subject, seconds)
            self._state.outputs[name] = made.subject
        if status == "built":
            self._progress.note(f"{name}: built in {seconds:.1f} s → {made.subject}")
        else:
            self._progress.note(f"{name}: cached → {made.subject}")

    def _action(self, name: str) -> Action:
        planned = self._plan.steps[name]
        return planned.action({slot: self._digest(source) for slot, source in planned.upstream.items()})

    def _digest(self, source: str) -> Digest:
        return self._state.outputs.get(source) or self._plan.origins[source].tree

    def _tree(self, source: str) -> Tree:
        if source in self._state.outputs:
            return self._store.tree(self._state.outputs[source])
        tree = self._origin(source, fetch=True)
        if tree is None:
            raise CorruptContent(f"input {source}: gone while the build ran")
        return tree

    def _believed(self, action: Action) -> Claim | None:
        """Return a claim about ``action`` by a builder of the policy, whose output is in the store."""
        for found in claim.find(self._store, action.key, self._signers.builders):
            if self._store.has_tree(found.subject):
                return found
        return None

    def _dependencies(self, planned: PlannedStep) -> tuple[Dependency, ...]:
        inputs = []
        for slot, source in planned.upstream.items():
            item = self._plan.recipe.inputs.get(source)
            kind = "output" if item is None else "origin"
            inputs.append(Dependency(f"input:{slot}", self._digest(source), kind, item.uri if item else None))
        program = Dependency(f"program:{planned.step.uses}", planned.program, "program")
        chain = Dependency(f"toolchain:{planned.toolchain.name}", planned.toolchain.tree().digest, "toolchain")
        return (*inputs, program, chain)

    def _about(self, name: str, planned: PlannedStep, dependencies: tuple[Dependency, ...]) -> Circumstances:
        named = any(one.kind == "origin" and is_name(one.uri or ":") for one in dependencies)
        inputs = self._plan.recipe.inputs
        licences = {
            f"input:{slot}": licence
            for slot, source in planned.upstream.items()
            if source in inputs and (licence := inputs[source].licence)
        }
        return Circumstances(
            recipe=self._title,
            step=name,
            uses=planned.step.uses,
            reproducible=planned.step.reproducible,
            sandbox="bubblewrap",
            dependencies=dependencies,
            trust=self._plan.trust if named else {},
            licences=licences,
        )

    def _record(self, action: Action, output: Descriptor, about: Circumstances) -> Claim:
        return claim.record(self._store, action, output, about, self._signers.builder())

    # --- gates ---------------------------------------------------------------------------------------------------

    def _evaluations(self) -> tuple[gate.Evaluation, ...]:
        """Return what was measured about what becomes the image; every gate on it holds."""
        trees = {name: pin.tree for name, pin in self._plan.origins.items()} | self._state.outputs
        found = gate.evaluations(self._store, self._plan, trees)
        for one in found:
            self._progress.note(f"{one.step}: {one.describe()}")
        gate.require(found)
        return found

    # --- image ---------------------------------------------------------------------------------------------------

    @cached_property
    def _title(self) -> str:
        model = self._plan.recipe.model
        return f"{model.name}@{model.version}"

    def _assemble(self) -> tuple[Descriptor, StepResult]:
        """Return the image of the last step's output, with how it came about."""
        started = time.monotonic()
        recipe = self._plan.recipe
        source = self._state.outputs[recipe.image.source]
        action = Action(ASSEMBLE, None, image.parameters(recipe), {"model": source}, (), "any", {}, {})
        self._store.index.record(recipe.model.name, IMAGE_STEP, action.key)
        status, found = "cached", self._believed_image(action)
        if found is None:
            with self._store.lock(action.key.hex, self._progress):
                found = self._believed_image(action)
                if found is None:
                    status, found = "built", self._make_image(action, source)
        size = len(self._store.read(found.subject, what="image"))
        descriptor = Descriptor(MANIFEST_TYPE, found.subject, size, MODEL_TYPE)
        seconds = round(time.monotonic() - started, 3)
        return descriptor, StepResult(IMAGE_STEP, action.key, status, found.subject, seconds)

    def _believed_image(self, action: Action) -> Claim | None:
        """Return a claim about the assembly by a builder of the policy, whose image is in the store."""
        claims = claim.find(self._store, action.key, self._signers.builders)
        return next((made for made in claims if self._has_image(made.subject)), None)

    def _make_image(self, action: Action, source: Digest) -> Claim:
        """Assemble the image of the tree ``source``, and sign the claim that says so."""
        tree = self._store.tree(source)
        made = image.assemble(self._plan.recipe, tree, lambda file: self._store.read(file.digest, what=file.path))
        self._store.put(made.config)
        self._store.put(made.manifest)
        dependency = Dependency("input:model", source, "output")
        about = Circumstances(self._title, IMAGE_STEP, "assemble", "bit", "builtin", (dependency,))
        return self._record(action, made.descriptor(), about)

    def _has_image(self, digest: Digest) -> bool:
        """Return whether manifest and config are there; the layers are the last step's output."""
        try:
            image = ModelImage.parse(self._store.read(digest, what="image"), "image")
            self._store.read(image.config.digest, what="config")
        except VerificationError:
            return False
        return True

    def _sign(self, assembled: Descriptor, evaluations: tuple[gate.Evaluation, ...]) -> tuple[Descriptor, ...]:
        """Give the image its lineage, release signatures and test results, unless it has these very ones; return its
        referrers.
        """
        upstream = [self._state.claims[name].bundle for name in self._plan.needed()]
        lineage = lineage_referrer(assembled, upstream)
        if not all(map(self._store.holds, (lineage.manifest, *lineage.blobs))):
            self._store.put_referrer(lineage.manifest, lineage.blobs)
        public = self._signers.release_public
        tree = self._store.tree(self._state.outputs[self._plan.recipe.image.source])
        files = [(file.path, file.digest) for file in tree.files]
        name = self._plan.recipe.model.name
        if not release.is_released(self._store, assembled, files, public):
            for referrer in signature_referrers(assembled, name, files, self._signers.release()):
                self._store.put_referrer(referrer.manifest, referrer.blobs)
        if evaluations:
            gate.attest(self._store, assembled, evaluations, self._signers)
        return self._store.referrers(assembled.digest)

    # --- runtime image -------------------------------------------------------------------------------------------

    def _check_runtime(self) -> None:
        """Refuse a runnable image whose server cannot serve the model, before any image is made."""
        asked = self._plan.recipe.image
        if asked.runtime is not None:
            from intaglio.build import servers, serving

            tree = self._store.tree(self._state.outputs[asked.source])
            servers.check(serving.form(self._store, tree.files), asked.runtime)

    def _runtime(self, assembled: StepResult, tag: str) -> RuntimeResult | None:
        """Make, sign and tag the runnable image, where the recipe asks for one."""
        asked = self._plan.recipe.image
        if asked.runtime is None:
            return None
        from intaglio.build import runtime

        assembly = runtime.Assembly(
            self._store, self._runner, self._progress, self._signers, offline=self._offline, anchor=self._anchor()
        )
        embedded = None
        if asked.embed:
            own = claim.find(self._store, assembled.key, self._signers.builders)
            claims = [made.bundle for made in own if made.subject == assembled.output]
            claims += [self._state.claims[name].bundle for name in self._plan.needed()]
            embedded = runtime.Embedded(assembled.output, tuple(claims))
        return assembly.build(runtime.parts(asked.runtime), self._title, tag, embedded, self._record)
