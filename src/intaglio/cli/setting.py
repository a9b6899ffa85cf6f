"""Where a command runs: home, store, keys and policy, as options and environment name them."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from intaglio.dataclass import dataclass, field
from intaglio.errors import MachineError, NotVerifiable

if TYPE_CHECKING:
    from intaglio.content.layout import Store
    from intaglio.policy.document import Lookup, Policy
    from intaglio.policy.listing import Listing
    from intaglio.progress import Progress
    from intaglio.recipe.modelfile import Recipe
    from intaglio.trust.key import PrivateKey, PublicKey
    from intaglio.trust.keyring import PassphraseSource
    from intaglio.trust.target import Name
    from intaglio.trust.tuf import TrustedSource

HOME = "INTAGLIO_HOME"
POLICY_NAME = "policy.toml"
POLICY_NAMED = "policy.name"
"""A file in the home that names the policy as a target of the trusted source, where there is no policy file."""
POLICIES = "policies/"
_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass
class Setting:
    """Home, store and manner of speaking of one command."""

    home: Path
    store_path: Path
    as_json: bool
    style: str
    passphrase_file: Path | None = None
    _progress: Progress | None = field(default=None, repr=False)

    @functools.cached_property
    def store(self) -> Store:
        """The store, made where there is none."""
        from intaglio.content.layout import Store

        return Store.open(self.store_path)

    @property
    def existing_store(self) -> Store:
        """The store, which must be there: for commands that only read.

        Raises:
            NotVerifiable: there is none.
        """
        if not (self.store_path / "oci-layout").is_file():
            raise NotVerifiable(
                f"no store: expected {self.store_path}, found none",
                hint="`intaglio build` makes one; --store DIR or INTAGLIO_HOME name another",
            )
        return self.store

    def command(self, name: str) -> str:
        """Return the command ``name`` as a person types it to use this store."""
        named = self.store_path != self.home / "store"
        return f"intaglio {name}" + (f" --store {shlex.quote(str(self.store_path))}" if named else "")

    @property
    def progress(self) -> Progress:
        """Where work under way is shown."""
        if self._progress is None:
            from intaglio.report.terminal import progress

            self._progress = progress(self.style)
        return self._progress

    @property
    def policy_path(self) -> Path:
        """Where the anchor's policy stands: on this side, never with an image."""
        return self.home / POLICY_NAME

    def policy(self, named: str | Path | None = None, source: TrustedSource | None = None) -> Policy:
        """Return the policy that a file or a name of the trusted source means; the home's where none is given.

        Args:
            named: a file, or a name such as ``policies/org/name@1.0.0``.
            source: where names are looked up; the home's trusted source when not given.

        Raises:
            NotVerifiable: there is none, or it is none.
            VerificationError: the trusted source does not list it, or does not verify.
        """
        from intaglio.policy import document

        name = self.policy_name(named)
        if name is None:
            path = Path(named) if named is not None else self.policy_path
            return document.load(path, self._lookup(source) if source or self._follows else None)
        from intaglio.policy.named import load

        return load(name, source or self.trusted())

    def _lookup(self, source: TrustedSource | None) -> Lookup:
        """Return what finds the keys that a policy file names as targets, when it names any."""

        def lookup(name: Name) -> bytes | None:
            from intaglio.policy.named import keys_of

            return keys_of(source or self.trusted())(name)

        return lookup

    def policy_name(self, named: str | Path | None = None) -> str | None:
        """Return the name under which the trusted source has the policy; nothing where it is a file.

        Raises:
            NotVerifiable: the home's ``policy.name`` holds no such name.
        """
        text = str(named) if named is not None else None
        if text is None:
            if self.policy_path.exists() or not (self.home / POLICY_NAMED).exists():
                return None
            from intaglio.policy.named import configured

            return configured(self.home)
        if not text.startswith(POLICIES):
            return None
        from intaglio.policy.named import is_name

        return text if is_name(text) else None

    def trusted(self) -> TrustedSource:
        """Return the trusted source as it was last fetched; no network is asked."""
        return self._trusted

    @functools.cached_property
    def _trusted(self) -> TrustedSource:
        from datetime import UTC, datetime

        from intaglio.trust.tuf import TrustedSource

        return TrustedSource.load(self.home, datetime.now(UTC))

    def listing(self) -> Listing | None:
        """Return what the trusted source of this side lists; nothing where there is no anchor or nothing was fetched.

        Raises:
            VerificationError: there is a source, and it does not verify.
        """
        if not self._follows:
            return None
        from intaglio.policy.listing import SourceListing

        return SourceListing(self.trusted())

    @property
    def _follows(self) -> bool:
        """Whether there is an anchor, and something was fetched under it."""
        from intaglio.trust.kept import ANCHOR, FOLDER, STATE

        return (self.home / ANCHOR).exists() and (self.home / FOLDER / STATE).exists()

    def passphrases(self) -> PassphraseSource:
        """Return where passphrases come from: file, environment, or a person at a terminal."""
        from intaglio.trust.keyring import PassphraseSource

        ask = _ask if sys.stdin.isatty() and sys.stderr.isatty() else None
        return PassphraseSource(file=self.passphrase_file, prompt=ask)

    def emit(self, document: object, text: str) -> None:
        """Write the command's answer to standard output: ``document`` under ``--json``, else ``text``."""
        sys.stdout.write((json.dumps(document, ensure_ascii=False) if self.as_json else text) + "\n")

    def recipe(self, path: str, revision: Callable[[str], str | None] | None = None) -> Recipe:
        """Return the recipe at ``path``; ``revision`` is what may ask the network for the sake of an error's hint."""
        from intaglio.recipe import modelfile

        return modelfile.read(Path(path), revision=revision)


def _ask(question: str) -> str:
    answer: str = click.prompt(question, hide_input=True, default="", show_default=False, err=True)
    return answer


class Keys:
    """The configured keys, opened when something has to be signed."""

    def __init__(self, setting: Setting) -> None:
        """Find the keys; none is opened.

        Raises:
            MachineError: there are none.
        """
        from intaglio.trust import keyring

        self._setting = setting
        for name in (keyring.BUILDER, keyring.RELEASE):
            if not keyring.exists(setting.home, name):
                raise MachineError(
                    f"no key {name!r} in {setting.home / 'keys'}: claims and images are always signed",
                    hint="intaglio init   (makes the keys, and a policy that names them)",
                )
        policy = setting.policy()
        self.builders: tuple[PublicKey, ...] = policy.builders
        self.release_public: PublicKey = keyring.load_public(setting.home, keyring.RELEASE)
        self._opened: dict[str, PrivateKey] = {}

    def builder(self) -> PrivateKey:
        """Return the builder key."""
        return self._open("builder")

    def release(self) -> PrivateKey:
        """Return the release key."""
        return self._open("release")

    def evaluator_public(self) -> PublicKey:
        """Return the public half of the evaluator key, which only a recipe that measures needs.

        Raises:
            MachineError: there is none.
        """
        from intaglio.trust import keyring

        if not keyring.exists(self._setting.home, keyring.EVALUATOR):
            raise MachineError(
                f"no key {keyring.EVALUATOR!r} in {self._setting.home / 'keys'}: what was measured is always signed",
                hint="intaglio init   (makes it; name it under roles.evaluator of a policy that was there before)",
            )
        return keyring.load_public(self._setting.home, keyring.EVALUATOR)

    def evaluator(self) -> PrivateKey:
        """Return the evaluator key."""
        return self._open("evaluator")

    def _open(self, name: str) -> PrivateKey:
        from intaglio.trust import keyring

        if name not in self._opened:
            self._opened[name] = keyring.load_private(self._setting.home, name, self._setting.passphrases())
        return self._opened[name]


def default_home() -> Path:
    """Return ``INTAGLIO_HOME``, else ``intaglio`` in the user's data folder."""
    named = os.environ.get(HOME)
    if named:
        return Path(named).absolute()
    data = os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    return Path(data) / "intaglio"


policy_option = click.option(
    "--policy", metavar="FILE|NAME", help="Verify against this policy, a file or a name of the trusted source."
)
"""Which policy decides, instead of the home's; for :meth:`Setting.policy`."""


def options(function: _Command) -> _Command:
    """Give a command the options that all have, and a :class:`Setting` as its first argument."""

    @click.option("--store", type=click.Path(), help="Use this store instead of the one in INTAGLIO_HOME.")
    @click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object on standard output.")
    @click.option(
        "--progress",
        "style",
        type=click.Choice(("auto", "bars", "plain", "json", "none")),
        default="auto",
        show_default=True,
        help="How work under way is shown on standard error.",
    )
    @functools.wraps(function)
    def wrapped(store: str | None, as_json: bool, style: str, **rest: Any) -> Any:
        home = default_home()
        named = store or (click.get_current_context().obj or {}).get("store")
        setting = Setting(home, Path(named) if named else home / "store", as_json, style)
        return function(setting, **rest)

    return wrapped  # type: ignore[return-value]
