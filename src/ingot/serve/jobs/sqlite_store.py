"""The default job store: one leased table in a SQLite file on a local disk, no server."""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from ingot.ledger.database import transaction
from ingot.serve.jobs.clock import Clock, machine_clock
from ingot.serve.jobs.job import Job, RetryPolicy, StoreError
from ingot.serve.jobs.moves import Moves
from ingot.serve.jobs.sqlite_schema import open_jobs_file
from ingot.serve.jobs.table_store import TableJobStore

Durability = Literal["NORMAL", "FULL"]


class SqliteJobStore(TableJobStore):
    """Jobs of any number of endpoints in one file. May be used by several threads.

    Args:
        path: The file, on a local disk.
        durability: NORMAL: what was accepted survives the death of every process, a commit costs
            no wait for the disk. FULL: it survives power loss too, each commit waits for the disk.
        retry: When jobs are tried again.
        max_queued: More jobs than this may not wait.
        clock: What deadlines are kept in; the machine's unless a test says otherwise.
        is_first: Whether to judge disk and file before use; see `open_jobs_file`.
        on_end: Told of jobs whose end no attempt put into words.

    Raises:
        StoreError: The disk is a network's, or the file is damaged or not ours.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability = "NORMAL",
        retry: RetryPolicy | None = None,
        max_queued: int = 1_000_000,
        clock: Clock | None = None,
        is_first: bool = True,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        super().__init__(
            retry or RetryPolicy(), max_queued, clock or machine_clock(), on_end=on_end
        )
        self._lock = threading.RLock()
        self._is_closed = False
        self._file = open_jobs_file(path, self._clock, synchronous=durability, is_first=is_first)
        self._db = self._file
        self._moves = Moves(self._db, self._clock, self._retry)

    def close(self) -> None:
        """Close; a second call does nothing."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._file.close()

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        with self._lock, _explained():
            yield

    @contextlib.contextmanager
    def _write(self) -> Iterator[None]:
        # BEGIN IMMEDIATE: one writer of the file at a time, in this process or any other
        with self._lock, _explained(), transaction(self._file):
            yield


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(
            f"A job store must be able to read and write its file; got {error}. What was accepted "
            "before is safe, this call changed nothing. Check the disk's room and health."
        ) from error
