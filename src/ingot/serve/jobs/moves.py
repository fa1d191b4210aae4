"""Moves of a job from one state to another, each inside a transaction that somebody else holds."""

from collections.abc import Sequence
from typing import Any, Protocol

from ingot.core.units import show_number
from ingot.serve.jobs.clock import Clock
from ingot.serve.jobs.job import JobState, Lease, RetryPolicy

_REASON_LENGTH = 200  # of the reason of a death, in the note of a job that was put back
FENCE = "id = ? AND state = 'running' AND owner = ? AND attempt = ?"


class Rows(Protocol):
    """What runs SQL, with `?` for values."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Any:
        """Run a statement and return its cursor; Any, for each library has its own."""
        ...


class Moves:
    """The one place where states change.

    Args:
        db: A connection with the tables of a job store.
        clock: What deadlines are kept in.
        retry: When jobs are tried again.
    """

    def __init__(self, db: Rows, clock: Clock, retry: RetryPolicy) -> None:
        self._db, self._clock, self._retry = db, clock, retry
        self.unanswered: list[int] = []  # rows ended since somebody asked

    def fenced(self, lease: Lease) -> tuple[int, int, int] | None:
        """Return row, failures and lapses of a job that is still its holder's; None otherwise."""
        row: tuple[int, int, int] | None = self._db.execute(
            f"SELECT seq, failures, lapses FROM jobs WHERE {FENCE}",  # noqa: S608 # a constant
            (lease.job, lease.owner, lease.attempt),
        ).fetchone()
        return row

    def end(self, seq: int, state: JobState, *, size_bytes: int = 0, note: str = "") -> None:
        """End a job; whoever asked for a notice will be told."""
        now = self._clock.steady()
        self._db.execute(
            "UPDATE jobs SET state = ?, owner = '', due = ?, ended = ?, result_bytes = ?,"
            " note = coalesce(nullif(?, ''), note), notice_due = ?,"
            " notice = CASE notify WHEN '' THEN '' ELSE 'pending' END"
            " WHERE seq = ?",
            (state.value, now, self._clock.wall(), size_bytes, note, now, seq),
        )
        if state is not JobState.DEAD:  # a dead letter keeps what it was asked
            self._db.execute("DELETE FROM bodies WHERE seq = ?", (seq,))

    def end_unanswered(self, seq: int, state: JobState) -> None:
        """End a job that no attempt has answered, and remember it."""
        self.end(seq, state)
        self.unanswered.append(seq)

    def requeue(self, seq: int, wait_s: float) -> None:
        """Let a job wait for its next attempt, with a whole ttl: it was started in time once."""
        due = self._clock.steady() + wait_s
        self._db.execute(
            "UPDATE jobs SET state = 'queued', owner = '', due = ?, expires = ? + ttl_s"
            " WHERE seq = ?",
            (due, due, seq),
        )

    def revive(self, job: str) -> bool:
        """Put a dead job back, with all its tries; say whether it was dead.

        Its attempts go on being counted: they fence it against whoever held it before it died.
        """
        row = self._db.execute(
            "SELECT seq, attempt, error FROM jobs WHERE id = ? AND state = 'dead'", (job,)
        ).fetchone()
        if row is None:
            return False
        seq, attempt, error = row
        note = f"retried after {show_number(attempt, 'attempt')}: {error}"
        self._db.execute(
            "UPDATE jobs SET failures = 0, lapses = 0, ended = 0, note = ?, notice = '',"
            " notice_tries = 0 WHERE seq = ?",
            (note[:_REASON_LENGTH], seq),
        )
        self.requeue(seq, 0.0)
        return True

    def expire(self, endpoint: str) -> None:
        """End the jobs that nobody started within their ttl."""
        rows = self._db.execute(
            "SELECT seq FROM jobs WHERE endpoint = ? AND state = 'queued' AND expires <= ?",
            (endpoint, self._clock.steady()),
        ).fetchall()
        for (seq,) in rows:
            self.end_unanswered(seq, JobState.EXPIRED)

    def lapse_overdue(self, endpoint: str) -> int:
        """Take back the jobs whose leases ran out; return how many."""
        return self._lapse("endpoint = ? AND due <= ?", (endpoint, self._clock.steady()))

    def lapse_owner(self, owner: str, *, blame: bool) -> int:
        """Take back the jobs of a dead owner; return how many."""
        if blame:
            return self._lapse("owner = ?", (owner,))
        rows = self._db.execute(
            "SELECT seq FROM jobs WHERE state = 'running' AND owner = ?", (owner,)
        ).fetchall()
        for (seq,) in rows:
            self.requeue(seq, 0.0)
        return len(rows)

    def _lapse(self, where: str, values: tuple[object, ...]) -> int:
        rows = self._db.execute(
            f"SELECT seq, id, failures, lapses + 1 FROM jobs WHERE state = 'running' AND {where}",  # noqa: S608 # one of two constants
            values,
        ).fetchall()
        for seq, job, failures, lapses in rows:
            reason = f"an attempt ended without a word, {lapses} so far: its process died or hung"
            self._db.execute(
                "UPDATE jobs SET lapses = ?, error = ? WHERE seq = ?", (lapses, reason, seq)
            )
            if lapses >= self._retry.max_lapses:
                self.end_unanswered(seq, JobState.DEAD)
            else:
                self.requeue(seq, self._retry.wait_s(job, failures + lapses))
        return len(rows)
