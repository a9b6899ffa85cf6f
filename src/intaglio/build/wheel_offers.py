"""Say which of some files the user's pip configuration offers, without downloading any: a program of its own.

What pip sees in indexes and find-links counts, with proxies, certificates and credentials as configured; which Python
a file is for does not, since its name is in a lock. It uses pip's internals, as ``sdist_fetch.py`` does, and the same
holds: the test that asks an index stands for it.

    python wheel_offers.py < LINES

A line is a package's name, a space, a file's name; the names that are offered come back, a line each.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

_AT_A_TIME = 8
"""Packages that are asked about side by side: most of the time goes into waiting for an index."""
_OPTIONS = ("--no-input", "--disable-pip-version-check", "--no-cache-dir", "--retries=0", "--timeout=10")


def offered(wanted: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield those files of ``wanted``, pairs of package and file name, that an index or find-links has."""
    from pip import __version__
    from pip._internal.commands import create_command
    from pip._internal.index.collector import parse_links
    from pip._internal.network import session

    # pip's own also says which rustc is here, and has rustup make folders in the home to find out: nothing is changed.
    session.user_agent = lambda: f"pip/{__version__}"
    command: Any = create_command("download")
    options, _ = command.parse_args([*_OPTIONS, "nothing"])
    mine = threading.local()

    def names(package: str) -> set[str]:
        if not hasattr(mine, "collector"):
            finder = command._build_package_finder(options=options, session=command._build_session(options))
            mine.collector = finder._link_collector
        collector = mine.collector

        def page(link: Any) -> Iterable[Any]:
            response = collector.fetch_response(link)
            return () if response is None else parse_links(response)

        found = collector.collect_sources(project_name=package, candidates_from_page=page)
        sources = [one for one in (*found.find_links, *found.index_urls) if one is not None]
        return {link.filename for one in sources for link in chain(one.page_candidates(), one.file_links())}

    files: dict[str, list[str]] = {}
    for package, name in wanted:
        files.setdefault(package, []).append(name)
    with command.main_context(), ThreadPoolExecutor(_AT_A_TIME) as pool:
        for package, known in zip(files, pool.map(names, files), strict=True):
            yield from (name for name in files[package] if name in known)


if __name__ == "__main__":
    lines = [line.split() for line in sys.stdin]
    for file in offered([(package, name) for package, name in lines]):
        sys.stdout.write(f"{file}\n")
