"""Decisions in a SQLite file: written as they are made, read by whoever asks why."""

import logging
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ingot.ledger.database import open_database, transaction

log = logging.getLogger(__name__)

Row = tuple[Any, ...]  # what SQLite gives: numbers and texts, as the columns say


class DecisionTable:
    """Rows of one kind of decision, by endpoint. May be used by several threads.

    Args:
        path: The file.
        name: Of the table.
        columns: SQL types by column, beside `id` and `endpoint`.
        kept: Most rows; beyond it the oldest go. None keeps all.
        synchronous: FULL survives power loss, NORMAL only loss of the process.

    Raises:
        LedgerError: It is no SQLite file.
        sqlite3.Error: It is damaged.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        columns: Mapping[str, str],
        *,
        kept: int | None = None,
        synchronous: Literal["FULL", "NORMAL"] = "NORMAL",
    ) -> None:
        self._lock, self._kept, self._name = threading.Lock(), kept, name
        self._columns = ", ".join(columns)
        typed = ", ".join(f"{column} {kind} NOT NULL" for column, kind in columns.items())
        marks = ", ".join("?" for _ in columns)
        # every name below is our own
        self._insert = f"INSERT INTO {name} (endpoint, {self._columns}) VALUES (?, {marks})"  # noqa: S608
        self._db = open_database(path, synchronous=synchronous, shared=True)
        index = f"CREATE INDEX IF NOT EXISTS {name}_by_endpoint ON {name} (endpoint, id)"
        try:
            self._db.execute(
                f"CREATE TABLE IF NOT EXISTS {name}"
                f" (id INTEGER PRIMARY KEY, endpoint TEXT NOT NULL, {typed})"
            )
            self._db.execute(index)
        except sqlite3.Error:
            self._db.close()
            raise

    def add(self, endpoint: str, *values: object) -> int:
        """Write one row and return its id. What was decided goes on without, as 0, on no disk."""
        try:
            with self._lock, transaction(self._db):
                last = self._db.execute(self._insert, (endpoint, *values)).lastrowid or 0
                if self._kept is not None and last % 1000 == 0:
                    # the name is our own
                    prune = f"DELETE FROM {self._name} WHERE id <= ?"  # noqa: S608
                    self._db.execute(prune, (last - self._kept,))
        except sqlite3.Error as error:  # a full disk, a closed file
            log.error("a decision about %s was not recorded: %s", endpoint, error)
            return 0
        return last

    def read(self, endpoint: str, *, after: int = 0, limit: int = 1000) -> list[Row]:
        """Return `(id, *columns)` of the newest rows above an id, in order of time."""
        query = (
            f"SELECT id, {self._columns} FROM {self._name}"  # noqa: S608 # names of our own
            " WHERE endpoint = ? AND id > ? ORDER BY id DESC LIMIT ?"
        )
        with self._lock:
            rows = self._db.execute(query, (endpoint, after, limit)).fetchall()
        return rows[::-1]

    def last(self, endpoint: str, column: str, value: object) -> Row | None:
        """Return `(id, *columns)` of the newest row that has a value in a column of ours."""
        query = (
            f"SELECT id, {self._columns} FROM {self._name}"  # noqa: S608 # names of our own
            f" WHERE endpoint = ? AND {column} = ? ORDER BY id DESC LIMIT 1"
        )
        with self._lock:
            row: Row | None = self._db.execute(query, (endpoint, value)).fetchone()
        return row

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
