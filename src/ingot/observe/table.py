"""The file of an observation log: its tables, and older files made new."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import MISSING, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from ingot.ledger.database import open_database, transaction
from ingot.observe.observation import Observation
from ingot.observe.rules import LogRules

NAMES = tuple(f.name for f in fields(Observation))
row_of = attrgetter(*NAMES)
_TYPES = {str: "TEXT NOT NULL", float: "REAL NOT NULL", int: "INTEGER NOT NULL"} | {
    bool: "INTEGER NOT NULL",
    str | None: "TEXT",
    float | None: "REAL",
}
_COLUMNS = {f.name: f"{f.name} {_TYPES[f.type]}" for f in fields(Observation)}  # type: ignore[index] # the map holds every type that Observation uses
_DEFAULTS = {f.name: f.default for f in fields(Observation) if f.default is not MISSING}
_TABLES = (
    "CREATE TABLE IF NOT EXISTS observations (id INTEGER PRIMARY KEY, "
    + ", ".join(_COLUMNS.values())
    + ")",
    "CREATE INDEX IF NOT EXISTS observations_by_time ON observations (endpoint, time)",
    "CREATE TABLE IF NOT EXISTS losses (hour INTEGER PRIMARY KEY, n INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS rules (digest TEXT PRIMARY KEY, since REAL NOT NULL, text TEXT"
    " NOT NULL)",
)
INSERT = f"INSERT INTO observations ({', '.join(NAMES)}) VALUES ({', '.join('?' for _ in NAMES)})"  # noqa: S608 # names of our own fields
# Each endpoint by one look into the index, instead of a walk through all of it.
ENDPOINTS = """WITH RECURSIVE names (name) AS (
    SELECT min(endpoint) FROM observations UNION ALL
    SELECT (SELECT min(endpoint) FROM observations WHERE endpoint > name) FROM names
    WHERE name IS NOT NULL)
    SELECT name FROM names WHERE name IS NOT NULL"""
_JOURNAL_BYTES = 8 * 1024 * 1024


def open_table(path: Path) -> sqlite3.Connection:
    """Open or make the file of a log for writing; one of an older version gets what it lacks.

    Raises:
        LedgerError: The file is not a SQLite database.
    """
    # NORMAL: a killed process loses nothing committed, and each batch saves an fsync.
    db = open_database(path, synchronous="NORMAL", shared=True)
    try:
        _return_pages(db)
        for statement in _TABLES:
            db.execute(statement)
        _add_columns(db)
        db.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Give a connection that reads a log while others write it.

    Raises:
        LedgerError: The file is not a SQLite database.
    """
    with contextlib.closing(open_database(path, synchronous="NORMAL", shared=True)) as db:
        yield db


def columns_of(db: sqlite3.Connection) -> list[str]:
    """Return what to select for each field; defaults where an older file has no such column."""
    there = _there(db)
    return [name if name in there else f"{_default(name)} AS {name}" for name in NAMES]


def observation_of(row: tuple[Any, ...]) -> Observation:
    """Return the observation of a row of `columns_of`; Any, for cells are of many types."""
    values = dict(zip(NAMES, row, strict=True))
    return Observation(**values | {"deferred": bool(values["deferred"])})


def note_rules(db: sqlite3.Connection, rules: LogRules, now: float) -> None:
    """Write down which rules a log is kept by, and since when."""
    if db.execute("SELECT 1 FROM rules WHERE digest = ?", (rules.digest,)).fetchone():
        return  # nothing to write, so another process that is writing keeps nobody waiting
    db.execute(
        "INSERT OR IGNORE INTO rules (digest, since, text) VALUES (?, ?, ?)",
        (rules.digest, now, json.dumps(rules.to_json(), sort_keys=True)),
    )


def count_losses(db: sqlite3.Connection, now: float, n: int) -> None:
    """Write down how many observations were lost."""
    db.execute(
        "INSERT INTO losses (hour, n) VALUES (?, ?) ON CONFLICT (hour) DO UPDATE"
        " SET n = n + excluded.n",
        (int(now // 3600), n),
    )


def has_table(db: sqlite3.Connection, name: str) -> bool:
    """Say whether a file has a table; those of older versions lack some."""
    query = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?"
    return db.execute(query, (name,)).fetchone() is not None


def _return_pages(db: sqlite3.Connection) -> None:
    """Let a new file give room back to the disk when rows are deleted; an older one reuses it."""
    if db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        with contextlib.suppress(sqlite3.OperationalError):  # another process makes it right now
            db.execute("VACUUM")  # the mode takes effect when an empty file is written anew


def _add_columns(db: sqlite3.Connection) -> None:
    if set(NAMES) <= _there(db):
        return
    with transaction(db):
        there = _there(db)  # again: another process may have added them meanwhile
        for name in NAMES:
            if name not in there:
                db.execute(
                    f"ALTER TABLE observations ADD COLUMN {_COLUMNS[name]} DEFAULT {_default(name)}"
                )


def _there(db: sqlite3.Connection) -> set[str]:
    return {row[1] for row in db.execute("PRAGMA table_info(observations)")}


def _default(name: str) -> str:
    value = _DEFAULTS.get(name)
    if value is None:
        return "NULL"
    return f"'{value}'" if isinstance(value, str) else str(float(value))
