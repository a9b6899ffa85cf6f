"""The store's index: an SQLite file that can be thrown away and rebuilt from the blobs.

- Rows are hints where to look: what they lead to is verified when it is read. A row may point at a blob that is gone.
- A row is written before its blob becomes visible, so that no crash leaves a claim that nobody finds.
- The history of built keys and the cache of file stamps are local and convenient; losing them loses no content.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intaglio.digest import ActionKey, Digest
from intaglio.errors import MachineError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS referrer (subject TEXT, manifest TEXT, action TEXT, PRIMARY KEY (subject, manifest));
CREATE INDEX IF NOT EXISTS referrer_action ON referrer (action) WHERE action IS NOT NULL;
CREATE TABLE IF NOT EXISTS stamp (path TEXT PRIMARY KEY, stamp TEXT, digest TEXT);
CREATE TABLE IF NOT EXISTS history (recipe TEXT, step TEXT, key TEXT, at REAL);
CREATE INDEX IF NOT EXISTS history_step ON history (recipe, step, at);
"""


class Index:
    """Claims, referrers, file stamps and build history of one store; processes and threads may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.RLock()
        self.fresh = False
        """Whether the index was never filled from the blobs: whoever opened it must do so, and then :meth:`filled`."""
        with self._errors():
            try:
                self._db = self._open()
            except sqlite3.OperationalError:
                raise  # locked, full or not writable: nothing is wrong with the file
            except sqlite3.DatabaseError:
                self._discard()
                self._db = self._open()

    def _discard(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            self.fresh = connection.execute("PRAGMA user_version").fetchone()[0] != 1
            if self.fresh:
                connection.executescript(_SCHEMA)
            connection.execute("SELECT (SELECT count(*) FROM referrer) + (SELECT count(*) FROM history)")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Say what SQLite's errors mean to a person."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise MachineError(
                f"{self._path}: {error}", hint="is the disk full, or the store not yours to write?"
            ) from None
        except sqlite3.DatabaseError as error:
            raise MachineError(
                f"{self._path} is damaged: {error}", hint="remove it: it is made anew from the blobs"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Group writes; rolled back when the body raises."""
        with self._guard, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _run(self, statement: str, *values: str | float | None) -> list[tuple[Any, ...]]:
        with self._guard, self._errors():
            return self._db.execute(statement, values).fetchall()

    def add_referrer(self, subject: Digest, manifest: Digest, action: ActionKey | None) -> None:
        """Record that ``manifest`` refers to ``subject`` and, for a claim, which action it is about."""
        self._run(
            "INSERT OR REPLACE INTO referrer VALUES (?, ?, ?)",
            str(subject),
            str(manifest),
            str(action) if action else None,
        )

    def referrers(self, subject: Digest) -> tuple[Digest, ...]:
        """Return the manifests said to refer to ``subject``, sorted."""
        rows = self._run("SELECT manifest FROM referrer WHERE subject = ? ORDER BY manifest", str(subject))
        return tuple(Digest(row[0]) for row in rows)

    def claims(self, action: ActionKey) -> tuple[Digest, ...]:
        """Return the manifests said to be claims about ``action``, sorted."""
        rows = self._run("SELECT manifest FROM referrer WHERE action = ? ORDER BY manifest", str(action))
        return tuple(Digest(row[0]) for row in rows)

    def filled(self) -> None:
        """Record that every referrer among the blobs is here; within the transaction that put them here."""
        self._run("PRAGMA user_version = 1")
        self.fresh = False

    def forget_referrers(self) -> None:
        """Drop every referrer row, before they are gathered anew."""
        self._run("DELETE FROM referrer")

    def stamp(self, path: str) -> tuple[str, Digest] | None:
        """Return the recorded stamp and digest of the user's file or folder at ``path``."""
        rows = self._run("SELECT stamp, digest FROM stamp WHERE path = ?", path)
        return (rows[0][0], Digest(rows[0][1])) if rows else None

    def set_stamp(self, path: str, stamp: str, digest: Digest) -> None:
        """Record that what stands at ``path`` with this ``stamp`` has this ``digest``."""
        self._run("INSERT OR REPLACE INTO stamp VALUES (?, ?, ?)", path, stamp, str(digest))

    def record(self, recipe: str, step: str, key: ActionKey) -> None:
        """Append to the history that ``step`` of ``recipe`` was last wanted under ``key``; repeats are not kept."""
        if self.history(recipe, step)[:1] != (key,):
            self._run("INSERT INTO history VALUES (?, ?, ?, ?)", recipe, step, str(key), time.time())

    def history(self, recipe: str, step: str) -> tuple[ActionKey, ...]:
        """Return the keys under which ``step`` of ``recipe`` was built here, newest first."""
        rows = self._run(
            "SELECT key FROM history WHERE recipe = ? AND step = ? ORDER BY at DESC, rowid DESC LIMIT 50", recipe, step
        )
        return tuple(ActionKey(row[0]) for row in rows)
