"""The tables of a job store in SQLite, and how a file is judged before it is used."""

import sqlite3
from pathlib import Path
from typing import Literal

from ingot.core.errors import LedgerError
from ingot.ledger.database import open_database, transaction
from ingot.serve.jobs.clock import Clock
from ingot.serve.jobs.disks import need_local_disk
from ingot.serve.jobs.job import StoreError
from ingot.serve.jobs.tables import FORMAT, Dialect, carry_over, is_of

APPLICATION_ID = 0x494E474A  # "INGJ": tells our file from somebody else's
SCHEMA_VERSION = FORMAT

SQLITE = Dialect(
    number="INTEGER PRIMARY KEY",
    job="INTEGER PRIMARY KEY",
    text="TEXT",
    real="REAL",
    int="INTEGER",
    long="INTEGER",
    bytes="BLOB",
    most="max",
    least="min",
    by_key=" WITHOUT ROWID",
    triggers=(
        "CREATE TRIGGER jobs_in AFTER INSERT ON jobs BEGIN {enter} END",
        """CREATE TRIGGER jobs_on AFTER UPDATE OF state ON jobs WHEN old.state <> new.state
        BEGIN {leave} {enter} END""",
        """CREATE TRIGGER jobs_out AFTER DELETE ON jobs
        BEGIN {leave} DELETE FROM bodies WHERE seq = old.seq; END""",
    ),
)


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
                for statement in SQLITE.statements():
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
            f"A job store must have format {SCHEMA_VERSION}; {str(path)!r} has {version}. "
            "Use the version of Ingot that wrote it, or another file."
        )
    if connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is not None:
        raise StoreError(
            f"A job store must have a file of its own; {str(path)!r} holds other tables. "
            "Choose another file."
        )
    return False


def _carry_over(connection: sqlite3.Connection, clock: Clock) -> None:
    if not is_of(connection, clock):
        with transaction(connection):  # looks again: another process may have done it meanwhile
            carry_over(connection, SQLITE, clock)


def _damaged(path: Path, reason: str) -> str:
    return (
        f"A job store must be a whole SQLite file; {str(path)!r} gives {reason!r}. Nothing was "
        "changed or deleted. Save a copy of it with its -wal and -shm files, recover what it "
        "holds with: sqlite3 FILE .recover, or start with another file."
    )
