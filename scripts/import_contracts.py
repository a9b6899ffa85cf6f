"""An import-linter contract that allows instead of forbidding: what a module may reach, all the way down.

``forbidden`` contracts name what must not be reached, so a new dependency passes unseen. This one names what may be.
"""

from __future__ import annotations

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class ClosureContract(Contract):
    """Everything that ``sources`` import, directly or not, is of the engine, the standard library or ``allowed``.

    ``sources``: modules, each with everything below it. ``allowed``: top-level names of other people's code.
    ``never``: modules of the engine that must not be reached; one that does not exist yet is not an error.
    """

    sources = fields.ListField(subfield=fields.StringField())
    allowed = fields.ListField(subfield=fields.StringField())
    never = fields.ListField(subfield=fields.StringField(), required=False, default=[])

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Return which modules are reached that must not be, with the shortest way to each."""
        del verbose
        sources: list[str] = list(self.sources)  # type: ignore[call-overload]
        for source in sources:
            if source not in graph.modules:
                raise ValueError(f"no module {source}")
        root = sources[0].partition(".")[0]
        allowed = {*self.allowed, *sys.stdlib_module_names, root}  # type: ignore[misc]
        never = {*self.never}  # type: ignore[misc]
        chains = []
        for source in sources:
            for module in sorted(graph.find_upstream_modules(source, as_package=True)):
                within_never = any(module == name or module.startswith(f"{name}.") for name in never)
                if module.partition(".")[0] not in allowed or within_never:
                    chain = graph.find_shortest_chain(source, module, as_packages=True)
                    chains.append(" → ".join(chain or (source, module)))
        return ContractCheck(kept=not chains, metadata={"chains": chains})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each way to a module that must not be reached."""
        for chain in check.metadata["chains"]:
            output.print_error(chain)
