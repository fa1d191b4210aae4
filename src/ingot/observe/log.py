"""The observation log: one row per request in SQLite, at a cost the request does not feel."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ingot.core.closing import Closing
from ingot.core.errors import LedgerError
from ingot.ledger.database import transaction
from ingot.observe.observation import Observation
from ingot.observe.reading import Selection, Summary, read_log, summarize
from ingot.observe.retention import Retention
from ingot.observe.rules import FIRST_ERROR, LogRules
from ingot.observe.table import INSERT, count_losses, note_rules, open_table, row_of
from ingot.observe.thinning import Thinning

log = logging.getLogger(__name__)

_PRUNE_S = 1.0
_BUSY_MS = 500  # how long one try waits for another process that writes; the rows wait in the queue
_CLOSE_S = 5.0  # how long closing waits for it


class ObservationLog(Closing):
    """Observations of one file: recorded by requests, written by one thread in batches.

    Losing the process loses what was recorded since the last flush; a full queue loses the
    observation and counts it in `dropped`. A request never waits for the disk.
    """

    def __init__(
        self,
        path: Path,
        *,
        capacity: int = 10_000,
        flush_s: float = 0.25,
        rules: LogRules | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open or make the log.

        Args:
            path: SQLite file; one of an older version gets the columns it lacks.
            capacity: Most observations that wait for the disk.
            flush_s: Most seconds between recording and committing, up to 0.5.
            rules: What is kept; `LogRules()` if not given.
            clock: UTC seconds since 1970.

        Raises:
            ValueError: `capacity` or `flush_s` is out of range.
            LedgerError: The file is not a SQLite database.
            ServeError: The rules' key file holds no key.
        """
        if capacity < 1 or not 0 < flush_s <= 0.5:
            raise ValueError(
                "An observation log needs capacity >= 1 and 0 < flush_s <= 0.5; got "
                f"{capacity} and {flush_s}. Leave them out to get values that fit most endpoints."
            )
        self.path = path
        self._capacity, self._flush_s, self._clock = capacity, flush_s, clock
        self._pending: list[Observation] = []
        self._dropped = self._told = 0
        self._lock, self._write_lock = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._rules = rules = rules or LogRules()
        self._sieve, self._retention = rules.sieve(path), Retention.of(rules)
        self._thinning = Thinning(rules.refusals_per_s)
        self._next_prune = 0.0
        self._open()
        self._thread = threading.Thread(target=self._write, name="ingot-observe", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Observations that were lost: the queue was full, closed, or the row not storable.

        What the rules left out on purpose is not among them.
        """
        return self._dropped

    @property
    def thinned(self) -> int:
        """Observations of refused requests that the rules left out, so that a flood is bounded."""
        return self._thinning.left_out

    def record(self, observation: Observation) -> None:
        """Put an observation on the queue; never waits for the disk and never raises."""
        kept: Observation | None = observation
        if observation.status >= FIRST_ERROR:
            kept = self._thinning.pass_on(observation)
        if kept is not None and self._sieve is not None:
            kept = self._sieve.pass_on(kept)
        if kept is None:
            return
        with self._lock:
            if len(self._pending) >= self._capacity or self._stop.is_set():
                self._dropped += 1
            else:
                self._pending.append(kept)

    def flush(self) -> None:
        """Commit everything recorded so far."""
        with self._write_lock:
            with self._lock:
                batch, self._pending = self._pending, []
            if batch:
                self._store(batch)
            self._tell_losses()

    def prune(self) -> int:
        """Delete some of what the rules keep no longer; return how many rows, 0 when done."""
        if self._retention is None:
            return 0
        with self._write_lock:
            return self._retention.prune(self._db, self._clock())

    def close(self) -> None:
        """Commit everything recorded so far and close the file; a second call does nothing."""
        with self._lock:
            if self._stop.is_set():
                return
            self._stop.set()
        self._thread.join()
        deadline = time.monotonic() + _CLOSE_S
        self.flush()
        while self._pending and time.monotonic() < deadline:
            self.flush()
        if self._pending:
            log.warning("%d observations were not stored: the file is locked", len(self._pending))
        self._db.close()

    def read(
        self, *, since: float | None = None, endpoint: str | None = None
    ) -> Iterator[Observation]:
        """Yield observations in order of time, everything recorded before the first included.

        Args:
            since: UTC seconds since 1970; earlier ones are left out.
            endpoint: Only those of this endpoint.
        """
        if not self._stop.is_set():
            self.flush()
        yield from read_log(self.path, Selection(endpoint, since=since))

    def summary(self, endpoint: str) -> Summary:
        """Return counts by status and latency percentiles of an endpoint."""
        if not self._stop.is_set():
            self.flush()
        found = summarize(self.path, Selection(endpoint), per_version=False)
        return found[0] if found else Summary(endpoint, 0, {}, None, None, None)

    def _write(self) -> None:
        while not self._stop.wait(self._flush_s):
            self.flush()
            if self._retention is not None and time.monotonic() >= self._next_prune:
                self._prune_some()

    def _prune_some(self) -> None:
        try:
            # what is left over goes with the next flush, so that flushing is never late
            self._next_prune = time.monotonic() + (0.0 if self.prune() else _PRUNE_S)
        except sqlite3.Error as error:  # another process is busy with the file, or the disk is full
            self._next_prune = time.monotonic() + _PRUNE_S
            log.warning("old observations were not deleted: %s", error)

    def _open(self) -> None:
        self._db = open_table(self.path)
        self._db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        note_rules(self._db, self._rules, self._clock())
        self._file = _identity(self.path)

    def _store(self, batch: Sequence[Observation]) -> None:
        rows = [row_of(observation) for observation in batch]
        try:
            if _identity(self.path) != self._file:
                log.warning("%s was removed while it was written; it begins anew", self.path)
                self._db.close()
                self._open()
            self._insert(rows)
        except (LedgerError, OSError) as error:
            self._put_back(batch, error)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                self._put_back(batch, error)
                return
            with self._lock:  # a full disk, say: no row of it would fit
                self._dropped += len(rows)
            log.warning("%d observations were not stored: %s", len(rows), error)
        except (sqlite3.Error, ValueError, OverflowError):
            self._insert_singly(rows)

    def _put_back(self, batch: Sequence[Observation], error: Exception) -> None:
        """Let observations wait for the next flush, as far as the queue has room."""
        log.warning("%d observations wait: %s", len(batch), error)
        with self._lock:
            room = max(0, self._capacity - len(self._pending))
            self._pending[:0] = batch[:room]
            self._dropped += len(batch[room:])

    def _tell_losses(self) -> None:
        lost = self._dropped - self._told
        if lost:
            try:
                count_losses(self._db, self._clock(), lost)
            except sqlite3.Error:  # the next flush tries again
                log.debug("%d lost observations could not be counted on disk", lost)
            else:
                self._told += lost

    def _insert(self, rows: Sequence[tuple[object, ...]]) -> None:
        with transaction(self._db):
            self._db.executemany(INSERT, rows)

    def _insert_singly(self, rows: Sequence[tuple[object, ...]]) -> None:
        for row in rows:
            try:
                self._insert([row])
            except (sqlite3.Error, ValueError, OverflowError) as error:
                with self._lock:
                    self._dropped += 1
                log.warning("An observation was not stored: %s", error)


def _identity(path: Path) -> tuple[int, int]:
    """Return what tells a file from another one of that name; zeros where there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino
