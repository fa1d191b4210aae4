"""The tables of a job store in SQLite, and how a file is judged before it is used."""

import sqlite3
from pathlib import Path
from typing import Literal

from ingot.core.errors import LedgerError
from ingot.ledger.database import open_database, transaction
from ingot.serve.jobs.clock import Clock
from ingot.serve.jobs.disks import need_local_disk
from ingot.serve.jobs.job import StoreError

APPLICATION_ID = 0x494E474A  # "INGJ": tells our file from somebody else's
SCHEMA_VERSION = 2

# `due` is in steady seconds: when a queued job may start, when a running job's lease runs out,
# when an ended job ended. One index then serves claims, lapses and retention. Bodies have a table
# of their own because SQLite rewrites a whole row, its blob included, at each change of state.
TABLES = (
    """CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, endpoint TEXT NOT NULL,
        state TEXT NOT NULL, due REAL NOT NULL, expires REAL NOT NULL,
        idempotency_key TEXT, request TEXT NOT NULL, output TEXT NOT NULL,
        input_uri TEXT NOT NULL, caller_id TEXT NOT NULL, ttl_s REAL NOT NULL,
        timeout_s REAL NOT NULL, created REAL NOT NULL, started REAL NOT NULL DEFAULT 0,
        ended REAL NOT NULL DEFAULT 0, owner TEXT NOT NULL DEFAULT '',
        attempt INTEGER NOT NULL DEFAULT 0, failures INTEGER NOT NULL DEFAULT 0,
        lapses INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
        result_bytes INTEGER NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '',
        notify TEXT NOT NULL DEFAULT '', notice TEXT NOT NULL DEFAULT '',
        notice_due REAL NOT NULL DEFAULT 0, notice_tries INTEGER NOT NULL DEFAULT 0,
        origin TEXT NOT NULL DEFAULT '')""",
    "CREATE TABLE bodies (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    """CREATE TABLE counts (endpoint TEXT NOT NULL, state TEXT NOT NULL, n INTEGER NOT NULL,
        bytes INTEGER NOT NULL, PRIMARY KEY (endpoint, state)) WITHOUT ROWID""",
    "CREATE TABLE machine (boot TEXT NOT NULL, steady REAL NOT NULL)",
    "CREATE INDEX jobs_by_state ON jobs (endpoint, state, due, seq)",
    """CREATE UNIQUE INDEX jobs_by_key ON jobs (endpoint, idempotency_key)
        WHERE idempotency_key IS NOT NULL""",
    "CREATE INDEX jobs_by_ttl ON jobs (endpoint, expires) WHERE state = 'queued'",
    "CREATE INDEX jobs_by_owner ON jobs (owner) WHERE state = 'running'",
    "CREATE INDEX jobs_to_tell ON jobs (notice_due) WHERE notice = 'pending'",
    # Counting in triggers keeps a count one look-up, however many ended jobs are retained.
    """CREATE TRIGGER jobs_in AFTER INSERT ON jobs BEGIN
        INSERT INTO counts VALUES (new.endpoint, new.state, 1, new.result_bytes)
        ON CONFLICT DO UPDATE SET n = n + 1, bytes = bytes + excluded.bytes; END""",
    """CREATE TRIGGER jobs_on AFTER UPDATE OF state ON jobs WHEN old.state <> new.state BEGIN
        UPDATE counts SET n = n - 1, bytes = bytes - old.result_bytes
        WHERE endpoint = old.endpoint AND state = old.state;
        INSERT INTO counts VALUES (new.endpoint, new.state, 1, new.result_bytes)
        ON CONFLICT DO UPDATE SET n = n + 1, bytes = bytes + excluded.bytes; END""",
    """CREATE TRIGGER jobs_out AFTER DELETE ON jobs BEGIN
        UPDATE counts SET n = n - 1, bytes = bytes - old.result_bytes
        WHERE endpoint = old.endpoint AND state = old.state;
        DELETE FROM bodies WHERE seq = old.seq; END""",
)
_CARRY_OVER = """UPDATE jobs SET
    due = CASE WHEN state IN ('queued', 'running') THEN :steady
        ELSE :steady - max(0, :wall - ended) END,
    expires = :steady + max(0, min(ttl_s, created + ttl_s - :wall)),
    notice_due = :steady"""


def open_jobs_file(
    path: Path, clock: Clock, *, synchronous: Literal["NORMAL", "FULL"], is_first: bool
) -> sqlite3.Connection:
    """Open or make the file of a job store.

    Args:
        path: The file.
        clock: What its deadlines are kept in.
        synchronous: FULL survives power loss, NORMAL the death of every process.
        is_first: Whether to judge disk and file first; processes that are started by one that did
            leave it out.

    Raises:
        StoreError: The disk is a network's, or the file is damaged, somebody else's or newer than
            this program. The file is left as it was.
    """
    if is_first:
        need_local_disk(path.parent)
    try:
        connection = open_database(path, synchronous=synchronous, shared=True)
    except LedgerError as error:
        raise StoreError(_damaged(path, str(error.__cause__))) from error
    try:
        _check_or_make(connection, path, is_first=is_first)
        _carry_over(connection, clock)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise StoreError(_damaged(path, str(error))) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _check_or_make(connection: sqlite3.Connection, path: Path, *, is_first: bool) -> None:
    if is_first:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise StoreError(_damaged(path, verdict))
    _bring_up_to_date(connection)
    if not _is_ours(connection, path):
        with transaction(connection):
            if not _is_ours(connection, path):  # another process may have made it meanwhile
                for statement in TABLES:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Give a file of the first format the column that it lacks."""
    if _format(connection) == (APPLICATION_ID, 1):
        with transaction(connection):
            if _format(connection) == (APPLICATION_ID, 1):  # another process may have done it
                connection.execute("ALTER TABLE jobs ADD COLUMN origin TEXT NOT NULL DEFAULT ''")
                connection.execute("PRAGMA user_version = 2")


def _format(connection: sqlite3.Connection) -> tuple[int, int]:
    found = connection.execute("PRAGMA application_id").fetchone()[0]
    return found, connection.execute("PRAGMA user_version").fetchone()[0]


def _is_ours(connection: sqlite3.Connection, path: Path) -> bool:
    found, version = _format(connection)
    if (found, version) == (APPLICATION_ID, SCHEMA_VERSION):
        return True
    if found == APPLICATION_ID:
        raise StoreError(
            f"A job store must have format {SCHEMA_VERSION}; {path.name!r} has {version}. "
            "Use the version of Ingot that wrote it, or another file."
        )
    if connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is not None:
        raise StoreError(
            f"A job store must have a file of its own; {path.name!r} holds other tables. "
            "Choose another file."
        )
    return False


def _carry_over(connection: sqlite3.Connection, clock: Clock) -> None:
    """Turn deadlines of an earlier start of the machine into this one's.

    Leases of an earlier start are over, for no process outlives it; waits are over too. What is
    left of a ttl is reckoned by the wall clock, but never more than the whole ttl, so that a
    clock set back while the machine was off cannot make a job wait forever.
    """
    if _is_this_start(connection, clock):
        return
    with transaction(connection):
        if _is_this_start(connection, clock):
            return
        now = {"steady": clock.steady(), "wall": clock.wall()}
        connection.execute(_CARRY_OVER, now)
        connection.execute("DELETE FROM machine")
        connection.execute("INSERT INTO machine VALUES (?, ?)", (clock.boot, now["steady"]))


def _is_this_start(connection: sqlite3.Connection, clock: Clock) -> bool:
    row = connection.execute("SELECT boot, steady FROM machine").fetchone()
    return row is not None and row[0] == clock.boot and row[1] <= clock.steady()


def _damaged(path: Path, reason: str) -> str:
    return (
        f"A job store must be a whole SQLite file; {path.name!r} gives {reason!r}. Nothing was "
        "changed or deleted. Save a copy of it with its -wal and -shm files, recover what it "
        "holds with: sqlite3 FILE .recover, or start with another file."
    )
