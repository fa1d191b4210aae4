"""One SQLite file, opened so that what was committed survives and two writers take turns."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from ingot.core.errors import LedgerError

BUSY_TIMEOUT_S = 30.0
FROZEN_FILE = "bundle.json"  # in the folder of a file that nobody writes any more
_WAL_RETRIES = 100
_WAL_PAUSE_S = 0.02


def open_database(
    path: Path, *, synchronous: Literal["FULL", "NORMAL"] = "FULL", shared: bool = False
) -> sqlite3.Connection:
    """Open or make a SQLite file in WAL mode; the caller begins and ends transactions.

    Args:
        path: The file; missing folders are made.
        synchronous: FULL survives power loss, NORMAL only loss of the process.
        shared: Whether several threads may use the connection (they must take turns themselves).

    Raises:
        LedgerError: The file is not a SQLite database.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=not shared
    )
    try:
        _use_wal(connection)
        connection.execute(f"PRAGMA synchronous={synchronous}")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise LedgerError(
            f"{path.name!r} must be a SQLite file that this process may write; got {error}. "
            "Restore it from a copy, or set INGOT_HOME to another folder."
        ) from error
    return connection


def is_frozen(path: Path) -> bool:
    """Say whether a SQLite file is part of a bundle, which never changes."""
    return (path.parent / FROZEN_FILE).is_file()


def open_frozen(path: Path) -> sqlite3.Connection:
    """Open a SQLite file of a bundle: nothing is written or locked, not even beside it.

    So it opens on a disk that is mounted read-only, and for a user who owns none of its files.

    Args:
        path: The file.

    Raises:
        LedgerError: It is missing or not a SQLite database.
    """
    address = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(address, uri=True, isolation_level=None)
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.DatabaseError as error:
        raise LedgerError(
            f"{path.name!r} of a bundle must be a SQLite file; got {error}. Make the bundle again."
        ) from error
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Hold the write lock for a block: all of it is committed, or none of it.

    BEGIN IMMEDIATE, because a transaction that reads first and writes later is refused by SQLite
    when another process wrote in between.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has rolled back by itself when the disk was full
            connection.execute("ROLLBACK")
        raise


def _use_wal(connection: sqlite3.Connection) -> None:
    # Changing the mode does not wait for the busy timeout when two processes make the file at once.
    for attempt in range(_WAL_RETRIES):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if attempt == _WAL_RETRIES - 1:
                raise
            time.sleep(_WAL_PAUSE_S)
        else:
            return
