"""Tables of figures: written as Markdown for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a heading."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """What a reader must know to read it rightly."""

    def markdown(self) -> str:
        """Return it as Markdown."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
        return "\n\n".join(part for part in (f"## {self.title}", body, self.note) if part)


@dataclass(frozen=True, slots=True)
class Report:
    """One page of tables, with the machine and the command that makes it again."""

    name: str
    """File name without its ending."""
    title: str
    command: str
    machine: Mapping[str, str]
    tables: tuple[Table, ...]
    data: Mapping[str, object] = field(default_factory=dict)
    """Every single measurement, for programs."""
    passed: bool = True

    def markdown(self) -> str:
        """Return the page."""
        facts = "\n".join(f"- {name}: {value}" for name, value in self.machine.items())
        head = f"# {self.title}\n\nWritten by `{self.command}`.\n\n{facts}"
        return "\n\n".join([head, *(table.markdown() for table in self.tables)]) + "\n"

    def write(self, folder: Path) -> Path:
        """Write ``NAME.md`` and ``NAME.json`` into ``folder``; return the page."""
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / f"{self.name}.md"
        page.write_text(self.markdown(), encoding="utf-8")
        document = {"command": self.command, "machine": dict(self.machine), "passed": self.passed, **self.data}
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        (folder / f"{self.name}.json").write_text(text, encoding="utf-8")
        return page


def earlier(folder: Path, name: str) -> dict[str, object]:
    """Return what the page ``name`` in ``folder`` says to programs; nothing where there is none."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return {}
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found


def verdict(met: bool) -> str:
    """Return how a target came out, in a word."""
    return "yes" if met else "**no**"


def figures(values: Sequence[float], unit: str = "s", digits: int = 2) -> str:
    """Return median and range of ``values``."""
    from statistics import median

    middle, low, high = median(values), min(values), max(values)
    return f"{middle:.{digits}f} {unit} ({low:.{digits}f}–{high:.{digits}f})"
