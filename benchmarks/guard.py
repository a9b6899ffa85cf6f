"""The guard's own start: from the start of its process until the server's, over a model of a few kilobytes.

- The guard stands as in a runtime image: its wheel alone, compiled, and beside it the libraries of its toolchain.
- Verified is a signed image with its claims: once by a policy alone, once with the trusted source in the passport.
"""

from __future__ import annotations

import compileall
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from py_compile import PycInvalidationMode
from statistics import median

from tests.guard import site as sites
from tests.guard.site import WITH_SOURCE, Site

from benchmarks.table import Table, figures, verdict
from benchmarks.timing import Variant, interleave, stopwatch
from intaglio.build import guard_package, runtime

STARTED = 0.2
"""Most seconds wanted, median."""
_LIBRARIES = ("_cffi_backend", "cryptography", "rfc8785")
_SCALE = "python -I -c pass"


@dataclass(frozen=True, slots=True)
class Guard:
    """Seconds of whole processes, by what was run."""

    seconds: Mapping[str, list[float]]

    @property
    def met(self) -> bool:
        """Whether every start keeps the target."""
        return all(median(values) <= STARTED for name, values in self.seconds.items() if name != _SCALE)

    def table(self) -> Table:
        """Return it as rows."""
        rows = []
        for name, values in self.seconds.items():
            held = ("", "") if name == _SCALE else (f"≤ {STARTED} s", verdict(median(values) <= STARTED))
            rows.append((f"`{name}`" if name == _SCALE else name, figures(values, digits=3), *held))
        note = "From the start of the process to the end of the server, `/bin/true`; bytecode is there, as in an image."
        return Table("The guard's own start", ("", "median (range)", "target", "met"), tuple(rows), note)


def measure(place: Path, rounds: int, note: Callable[[str], None]) -> Guard:
    """Measure in the folder ``place``, which is made."""
    python = packed(place / "guard")
    guarded = {
        "the guard, by a policy alone": Site(place / "alone"),
        "the guard, with a TUF passport and root": Site(place / "source", source=sites.source(), policy=WITH_SOURCE),
    }
    variants: dict[str, Variant] = {_SCALE: _process([str(python), "-I", "-c", "pass"])}
    for name, site in guarded.items():
        argv = [str(python), "-I", str(python.with_name("intaglio-guard")), "--root", str(site.anchor)]
        argv += ["--passport", str(site.passport), "--model", str(site.model), "--", "/bin/true"]
        variants[name] = _process(argv)
        variants[name]()  # once, so that its files stand in the page cache
    return Guard(interleave(variants, rounds, note))


def packed(place: Path) -> Path:
    """Make ``place`` an environment as runtime images have one for the guard; return its Python."""
    packages = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    programs = place / "bin"
    packages.mkdir(parents=True)
    programs.mkdir()
    with zipfile.ZipFile(io.BytesIO(guard_package.wheel())) as wheel:
        wheel.extractall(packages)
    compileall.compile_dir(packages, quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    for name in _LIBRARIES:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(name)
        origin = Path(spec.origin)
        library = origin.parent if origin.name == "__init__.py" else origin
        (packages / library.name).symlink_to(library)
    python = Path(sys.executable).resolve()
    (programs / "python").symlink_to(python)
    (programs / "intaglio-guard").write_text(runtime.SCRIPT, encoding="utf-8")
    (place / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n")
    return programs / "python"


def _process(argv: list[str]) -> Variant:
    return lambda: stopwatch(lambda: subprocess.run(argv, env={}, check=True, capture_output=True))
