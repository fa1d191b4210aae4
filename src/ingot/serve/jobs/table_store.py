"""One leased table: what the job stores in SQLite and in PostgreSQL have in common."""

import abc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ingot.serve.jobs.clock import Clock
from ingot.serve.jobs.job import (
    Job,
    JobState,
    Lease,
    NewJob,
    Notice,
    Placed,
    QuotaError,
    RetryPolicy,
)
from ingot.serve.jobs.moves import FENCE, Moves, Rows

_JOB = (
    "SELECT id, endpoint, state, attempt, failures, lapses, created, started, ended, output,"
    " input_uri, caller_id, error, result_bytes, note, notice, origin FROM jobs "
)
_INSERT = """INSERT INTO jobs (id, endpoint, state, due, expires, idempotency_key, request, output,
    input_uri, caller_id, ttl_s, timeout_s, created, notify, origin)
    VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq"""


class TableJobStore(abc.ABC):
    """What drivers on SQL tables share: every query, and none of the connection.

    A driver sets `_db` and `_moves` and says how to read and how to hold the one write lock under
    which every change is made. May be used by several threads.

    Args:
        retry: When jobs are tried again.
        max_queued: More jobs than this may not wait.
        clock: What deadlines are kept in.
        on_end: Told of jobs whose end no attempt put into words: cancelled, expired, died with.
    """

    _db: Rows
    _moves: Moves

    def __init__(
        self,
        retry: RetryPolicy,
        max_queued: int,
        clock: Clock,
        *,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        self._retry, self._max_queued, self._clock = retry, max_queued, clock
        self._on_end = on_end

    @abc.abstractmethod
    def _read(self) -> AbstractContextManager[None]:
        """Give a block that may ask."""

    @abc.abstractmethod
    def _write(self) -> AbstractContextManager[None]:
        """Give a block that changes everything or nothing, while no other block changes any."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close; a second call does nothing."""

    def put(self, jobs: Sequence[NewJob]) -> list[Placed]:
        """Accept jobs; see `JobStore.put`."""
        with self._write():
            waiting = self._count("queued")
            placed = [self._put(job) for job in jobs]
            self._need_quota(waiting, sum(found.is_new for found in placed))
        return placed

    def _need_quota(self, waiting: int, added: int) -> None:
        if waiting + added > self._max_queued and added:
            raise QuotaError(
                f"At most {self._max_queued:,} jobs may wait; {waiting:,} do. "
                "Ask again later, or raise the quota."
            )

    def _put(self, job: NewJob) -> Placed:
        if job.idempotency_key:
            row = self._db.execute(
                "SELECT id, request FROM jobs WHERE endpoint = ? AND idempotency_key = ?",
                (job.endpoint, job.idempotency_key),
            ).fetchone()
            if row is not None:
                return Placed(row[0], is_new=False, is_same=row[1] == job.request)
        now = self._clock.steady()
        ((seq,),) = self._db.execute(
            _INSERT,
            (job.id, job.endpoint, now, now + job.ttl_s, job.idempotency_key or None, job.request,
             job.output, job.input_uri, job.caller_id, job.ttl_s, job.timeout_s,
             self._clock.wall(), job.notify, job.origin),
        ).fetchall()  # fmt: skip
        if job.body is not None:
            self._db.execute("INSERT INTO bodies VALUES (?, ?)", (seq, job.body))
        return Placed(job.id)

    def get(self, job: str) -> Job | None:
        """Return one job; see `JobStore.get`."""
        with self._read():
            row = self._db.execute(_JOB + "WHERE id = ?", (job,)).fetchone()
        return None if row is None else _job(row)

    def jobs(
        self,
        endpoint: str,
        *,
        state: JobState | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Job]:
        """Return jobs, newest first; see `JobStore.jobs`."""
        where, values = "WHERE endpoint = ? ", [endpoint]
        if state is not None:
            where, values = where + "AND state = ? ", [*values, state.value]
        if after is not None:
            where += "AND seq < (SELECT seq FROM jobs WHERE id = ?) "
            values = [*values, after]
        with self._read():
            rows = self._db.execute(
                _JOB + where + "ORDER BY seq DESC LIMIT ?", (*values, limit)
            ).fetchall()
        return [_job(row) for row in rows]

    def counts(self, endpoint: str) -> dict[JobState, int]:
        """Return jobs by state; see `JobStore.counts`."""
        with self._read():
            found = dict(
                self._db.execute(
                    "SELECT state, n FROM counts WHERE endpoint = ?", (endpoint,)
                ).fetchall()
            )
        return {state: found.get(state.value, 0) for state in JobState}

    def claim(self, endpoint: str, owner: str, *, n: int, lease_s: float) -> list[Lease]:
        """Hand out jobs; see `JobStore.claim`."""
        if n < 1 or not self._has_work(endpoint):  # a look that takes no lock from writers
            return []
        with self._write():
            now = self._clock.steady()
            self._moves.expire(endpoint)
            self._moves.lapse_overdue(endpoint)
            held = self._db.execute(
                "SELECT lapses FROM jobs WHERE owner = ? AND state = 'running'", (owner,)
            ).fetchall()
            if any(lapses >= self._retry.suspect_lapses for (lapses,) in held):
                return []
            rows = self._db.execute(
                "SELECT jobs.seq, id, attempt + 1, output, body, input_uri, timeout_s, created,"
                " origin, lapses FROM jobs LEFT JOIN bodies ON bodies.seq = jobs.seq"
                " WHERE endpoint = ? AND state = 'queued' AND due <= ? ORDER BY due, jobs.seq"
                " LIMIT ?",
                (endpoint, now, n),
            ).fetchall()
            chosen = self._alone_if_suspect(rows, is_free=not held)
            for row in chosen:
                self._db.execute(
                    "UPDATE jobs SET state = 'running', owner = ?, attempt = attempt + 1, due = ?,"
                    " started = ? WHERE seq = ?",
                    (owner, now + lease_s, self._clock.wall(), row[0]),
                )
            ended = self._ended()
        self._tell(ended)
        return [_lease(row, owner, self._retry.suspect_lapses) for row in chosen]

    def heartbeat(self, leases: Sequence[Lease], *, lease_s: float) -> frozenset[str]:
        """Extend leases; see `JobStore.heartbeat`."""
        with self._write():
            due = self._clock.steady() + lease_s
            kept = {
                lease.job
                for lease in leases
                if self._db.execute(f"UPDATE jobs SET due = ? WHERE {FENCE}",  # noqa: S608 # a constant
                                    (due, lease.job, lease.owner, lease.attempt)).rowcount
            }  # fmt: skip
        return frozenset(kept)

    def complete(
        self,
        lease: Lease,
        *,
        size_bytes: int = 0,
        note: str = "",
        publish: Callable[[], None] | None = None,
    ) -> bool:
        """End a job with success; see `JobStore.complete`."""
        with self._write():
            row = self._moves.fenced(lease)
            if row is None:
                return False
            if publish is not None:
                publish()
            self._moves.end(row[0], JobState.SUCCEEDED, size_bytes=size_bytes, note=note)
        return True

    def fail(self, lease: Lease, error: str, *, retry: bool = True) -> JobState | None:
        """Say that an attempt failed; see `JobStore.fail`."""
        with self._write():
            row = self._moves.fenced(lease)
            if row is None:
                return None
            seq, failures, lapses = row
            failures += 1
            self._db.execute(
                "UPDATE jobs SET failures = ?, error = ? WHERE seq = ?",
                (failures, error.replace("\0", ""), seq),
            )
            if not retry or failures >= self._retry.max_failures:
                self._moves.end(seq, JobState.DEAD)
                return JobState.DEAD
            self._moves.requeue(seq, self._retry.wait_s(lease.job, failures + lapses))
        return JobState.QUEUED

    def release(self, leases: Sequence[Lease]) -> int:
        """Give jobs back; see `JobStore.release`."""
        with self._write():
            rows = [row for lease in leases if (row := self._moves.fenced(lease)) is not None]
            for row in rows:
                self._moves.requeue(row[0], 0.0)
        return len(rows)

    def lapse(self, owner: str, *, blame: bool = True) -> int:
        """Say that an owner is dead; see `JobStore.lapse`."""
        with self._write():
            held = self._moves.lapse_owner(owner, blame=blame)
            ended = self._ended()
        self._tell(ended)
        return held

    def cancel(self, job: str) -> Job | None:
        """End a job; see `JobStore.cancel`."""
        with self._write():
            row = self._db.execute(
                "SELECT seq FROM jobs WHERE id = ? AND state IN ('queued', 'running')", (job,)
            ).fetchone()
            if row is not None:
                self._moves.end_unanswered(row[0], JobState.CANCELLED)
            ended = self._ended()
        self._tell(ended)
        return self.get(job)

    def requeue(self, jobs: Sequence[str]) -> list[str]:
        """Put dead jobs back; see `JobStore.requeue`."""
        with self._write():
            waiting = self._count("queued")
            revived = [job for job in jobs if self._moves.revive(job)]
            self._need_quota(waiting, len(revived))
        return revived

    def next_due_s(self, endpoint: str) -> float | None:
        """Return the seconds until something can be claimed; see `JobStore.next_due_s`."""
        with self._read():
            rows = self._db.execute(
                "SELECT * FROM (SELECT due FROM jobs WHERE endpoint = ? AND state = 'queued'"
                " ORDER BY due LIMIT 1) AS first UNION ALL SELECT * FROM (SELECT due FROM jobs"
                " WHERE endpoint = ? AND state = 'running' ORDER BY due LIMIT 1) AS other",
                (endpoint, endpoint),
            ).fetchall()
        return max(0.0, min(due for (due,) in rows) - self._clock.steady()) if rows else None

    def notices(self, owner: str, *, n: int, lease_s: float) -> list[Notice]:
        """Hand out ends to be told; see `JobStore.notices`."""
        del owner  # told at least once: receivers know repeats by the id of the event
        now = self._clock.steady()
        query = (
            "SELECT seq, id, notify, notice_tries + 1, attempt, state FROM jobs"
            " WHERE notice = 'pending' AND notice_due <= ? ORDER BY notice_due LIMIT ?"
        )
        with self._read():
            if not self._db.execute(query, (now, 1)).fetchall():
                return []
        with self._write():
            rows = self._db.execute(query, (now, n)).fetchall()
            for row in rows:
                self._db.execute(
                    "UPDATE jobs SET notice_due = ?, notice_tries = notice_tries + 1 WHERE seq = ?",
                    (now + lease_s, row[0]),
                )
        return [
            Notice(job, url, tries, attempt, JobState(state))
            for _, job, url, tries, attempt, state in rows
        ]

    def settle(self, notice: Notice, *, delivered: bool, again_in_s: float | None = None) -> None:
        """Say how telling went; see `JobStore.settle`."""
        state = "delivered" if delivered else "failed" if again_in_s is None else "pending"
        with self._write():
            self._db.execute(
                "UPDATE jobs SET notice = ?, notice_due = ? WHERE id = ? AND notice = 'pending'"
                " AND attempt = ? AND state = ?",
                (state, self._clock.steady() + (again_in_s or 0.0), notice.job, notice.attempt,
                 notice.state.value),
            )  # fmt: skip

    def stale(self, *, retention_s: float, max_bytes: int, limit: int) -> list[Job]:
        """Return ended jobs to be forgotten; see `JobStore.stale`."""
        with self._read():
            (used,) = self._db.execute("SELECT coalesce(sum(bytes), 0) FROM counts").fetchone()
            endpoints = self._db.execute("SELECT DISTINCT endpoint FROM counts").fetchall()
            ended = [
                row
                for (endpoint,) in endpoints
                for state in JobState
                if state.is_end
                for row in self._db.execute(
                    "SELECT due, id FROM jobs WHERE endpoint = ? AND state = ?"
                    " ORDER BY due LIMIT ?",
                    (endpoint, state.value, limit),
                )
            ]
        before, used = self._clock.steady() - retention_s, int(used)
        found: list[Job] = []
        for due, name in sorted(ended)[:limit]:
            if due >= before and used <= max_bytes:
                break
            job = self.get(name)
            if job is not None:
                used -= job.result_bytes
                found.append(job)
        return found

    def forget(self, jobs: Sequence[str]) -> int:
        """Delete ended jobs; see `JobStore.forget`."""
        ends = ", ".join(f"'{state.value}'" for state in JobState if state.is_end)
        with self._write():
            return sum(
                self._db.execute(
                    f"DELETE FROM jobs WHERE id = ? AND state IN ({ends})",  # noqa: S608 # our own states
                    (job,),
                ).rowcount
                for job in jobs
            )

    def _ended(self) -> list[Job]:
        """Return the jobs that this transaction ended without an answer."""
        found, self._moves.unanswered = self._moves.unanswered, []
        if self._on_end is None:
            return []
        jobs = [self._db.execute(_JOB + "WHERE seq = ?", (seq,)).fetchone() for seq in found]
        # an earlier transaction may have been undone after it moved a job
        return [job for row in jobs if row is not None and (job := _job(row)).state.is_end]

    def _tell(self, ended: Sequence[Job]) -> None:
        if self._on_end is not None:
            for job in ended:
                self._on_end(job)

    def _has_work(self, endpoint: str) -> bool:
        with self._read():
            due = self._db.execute(
                "SELECT 1 FROM jobs WHERE endpoint = ? AND state IN ('queued', 'running')"
                " AND due <= ? LIMIT 1",
                (endpoint, self._clock.steady()),
            ).fetchone()
        return due is not None

    def _count(self, state: str) -> int:
        (found,) = self._db.execute(
            "SELECT coalesce(sum(n), 0) FROM counts WHERE state = ?", (state,)
        ).fetchone()
        return int(found)

    # A row of the query in `claim`; the first three columns are seq, id, attempt, the last lapses.
    def _alone_if_suspect(self, rows: list[Any], *, is_free: bool) -> list[Any]:
        limit = self._retry.suspect_lapses
        if rows and rows[0][-1] >= limit:
            return rows[:1] if is_free else []  # whoever holds others lets them end first
        first = next((i for i, row in enumerate(rows) if row[-1] >= limit), len(rows))
        return rows[:first]


def _job(row: tuple[Any, ...]) -> Job:  # a row of _JOB
    name, endpoint, state, *rest = row
    return Job(name, endpoint, JobState(state), *rest)


def _lease(row: Any, owner: str, suspect_lapses: int) -> Lease:  # a row of the query in `claim`
    _, job, attempt, output, body, input_uri, timeout_s, created, origin, lapses = row
    return Lease(
        job, owner, attempt, output, body, input_uri, timeout_s, created,
        is_suspect=lapses >= suspect_lapses, origin=origin,
    )  # fmt: skip
