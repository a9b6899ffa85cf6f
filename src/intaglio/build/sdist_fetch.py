"""Fetch one sdist by the user's pip configuration, without running a line of it: a program of its own.

``pip download`` of an sdist runs the package's build backend to learn its metadata: code from the network, outside
any sandbox. So this asks pip's finder where the file is and pip's session for its bytes (indexes, find-links,
certificates, proxies and credentials as configured), and stops there. It uses pip's internals, which have no promise
of stability: the test that fetches a real file stands for it. The caller checks the hash.

    python sdist_fetch.py PACKAGE FILE_NAME FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(package: str, name: str, folder: str) -> int:
    """Write the file ``name`` of ``package`` into ``folder``; say on stderr why not."""
    from pip._internal.commands import create_command

    command = create_command("download")
    options, _ = command.parse_args(["--no-binary", package, "--no-input", "--disable-pip-version-check", package])
    with command.main_context():
        session = command.get_default_session(options)  # type: ignore[attr-defined]
        finder = command._build_package_finder(options=options, session=session)  # type: ignore[attr-defined]
        links = {candidate.link.filename: candidate.link for candidate in finder.find_all_candidates(package)}
        link = links.get(name)
        if link is None:
            sys.stderr.write(f"ERROR: no index or find-links has {name}\n")
            return 1
        response = session.get(link.url_without_fragment, stream=True, headers={"Accept-Encoding": "identity"})
        response.raise_for_status()
        with open(Path(folder) / name, "wb") as sink:
            for chunk in response.iter_content(1 << 20):
                sink.write(chunk)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
