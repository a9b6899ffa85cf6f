"""The real thing: Debian's ``docker-registry`` on loopback, in clear or with TLS, open or behind a password."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import programs

USER, PASSWORD = "ci", "correct horse"
# bcrypt, the only form that this registry takes; made once from the password above, since neither Python nor Debian's
# small installation can make one.
HTPASSWD = "ci:$2b$05$x7O2hPe2wL3ZbW0E8NGbUeV2l1mHd.amGidVwhbAZFyIjrL3kBLfq\n"


@dataclass(frozen=True)
class Distribution:
    """A running registry."""

    host: str
    """``127.0.0.1:port``."""
    root: Path
    """Where it keeps what it has."""

    def reference(self, name: str = "models/demo:1") -> str:
        return f"{self.host}/{name}"

    @property
    def blobs(self) -> Path:
        return self.root / "docker" / "registry" / "v2" / "blobs" / "sha256"

    def blob(self, digest: str) -> Path:
        """Where the registry keeps the bytes of a blob."""
        hexadecimal = digest.removeprefix("sha256:")
        return self.blobs / hexadecimal[:2] / hexadecimal / "data"


@contextlib.contextmanager
def running(
    folder: Path,
    *,
    tls: tuple[Path, Path] | None = None,
    password: bool = False,
    suite: str = "bookworm",
    port: int | None = None,
) -> Iterator[Distribution]:
    """Run a registry that keeps its data below ``folder``; ``tls`` is a certificate and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or _free_port()
    text = f"""version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{folder / "data"}"}}, delete: {{enabled: true}}}}
http:
  addr: 127.0.0.1:{port}
  secret: no-secret
"""
    if tls:
        text += f'  tls: {{certificate: "{tls[0]}", key: "{tls[1]}"}}\n'
    if password:
        (folder / "htpasswd").write_text(HTPASSWD)
        text += f'auth: {{htpasswd: {{realm: test, path: "{folder / "htpasswd"}"}}}}\n'
    (folder / "config.yml").write_text(text)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [str(programs.docker_registry(suite)), "serve", str(folder / "config.yml")],
            stdout=log,
            stderr=log,
            env={"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
        )
        try:
            _wait(port, process, folder / "log")
            yield Distribution(f"127.0.0.1:{port}", folder / "data")
        finally:
            process.terminate()
            process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"the registry ended: {log.read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError("the registry does not answer")
