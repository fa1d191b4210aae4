"""The contract of job stores: what every driver promises, whatever keeps its rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from ingot.serve.jobs.job import Job, JobState, Lease, NewJob, Notice, Placed


@runtime_checkable
class JobStore(Protocol):
    """Durable jobs. What `put` returned for is never lost; no job completes twice.

    A job is handed out under a lease: `owner` and `attempt` fence everything that is said about
    it afterwards, so an answer that comes after the lease was given to another changes nothing.
    Attempts are at least once: a process may die after its work and before its word. Every method
    is one transaction, may be called by many processes at once, and holds when any of them is
    killed at any instant. A store object is used by one thread at a time unless it says otherwise.
    `ingot.testing.check_job_store` checks all of this on any driver.
    """

    def put(self, jobs: Sequence[NewJob]) -> list[Placed]:
        """Accept jobs, all of them or none, in this order.

        A job whose endpoint and idempotency key are known is not made again.

        Raises:
            QuotaError: More jobs would wait than this store accepts.
            StoreError: They cannot be kept; the disk is full, say.
        """
        ...

    def get(self, job: str) -> Job | None:
        """Return one job, or None if there is none of that id."""
        ...

    def jobs(
        self,
        endpoint: str,
        *,
        state: JobState | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Job]:
        """Return jobs, the newest first.

        Args:
            endpoint: Of this endpoint.
            state: Only those in this state.
            limit: At most so many.
            after: Only those older than the job of this id.
        """
        ...

    def counts(self, endpoint: str) -> dict[JobState, int]:
        """Return how many jobs are in each state, every state present."""
        ...

    def claim(self, endpoint: str, owner: str, *, n: int, lease_s: float) -> list[Lease]:
        """Hand out up to `n` jobs that are due, the first in first, each under a new lease.

        Jobs past their ttl expire and leases that ran out lapse before any is handed out, so
        nothing waits for a sweeper. A suspect job is handed out alone, to an owner that holds
        nothing else, and its owner is given nothing more while it holds it.
        """
        ...

    def heartbeat(self, leases: Sequence[Lease], *, lease_s: float) -> frozenset[str]:
        """Extend leases from now and return the ids of the jobs that are still their holder's."""
        ...

    def complete(
        self,
        lease: Lease,
        *,
        size_bytes: int = 0,
        note: str = "",
        publish: Callable[[], None] | None = None,
    ) -> bool:
        """End a job with success, if the lease still holds its fence.

        Args:
            lease: The lease.
            size_bytes: Size of the result.
            note: What the result says about itself.
            publish: Makes the result visible; called after the fence was checked and before the
                success can be seen, so a late attempt never replaces the winner's result.

        Returns:
            Whether the job ended by this call.
        """
        ...

    def fail(self, lease: Lease, error: str, *, retry: bool = True) -> JobState | None:
        """Say that an attempt failed: wait and try again, or the dead letter.

        Returns:
            The new state, or None if the lease lost its fence.
        """
        ...

    def release(self, leases: Sequence[Lease]) -> int:
        """Give jobs back untouched, e.g. at the end of a process; return how many went back."""
        ...

    def lapse(self, owner: str, *, blame: bool = True) -> int:
        """Say that an owner is dead, so that its jobs need not wait for their leases to run out.

        Args:
            owner: Who.
            blame: Whether its jobs may have been the cause; False for one that was ended on
                purpose, and they are due again at once.

        Returns:
            How many jobs it held.
        """
        ...

    def cancel(self, job: str) -> Job | None:
        """End a job that has not ended; return it as it then is, or None if there is none."""
        ...

    def requeue(self, jobs: Sequence[str]) -> list[str]:
        """Put dead jobs back in the queue, due at once; return those that were dead, in this order.

        Only the dead letter keeps its requests, so a job at another end stays there, as do jobs
        that wait or run. A job that was put back has all its tries and a whole ttl again, says in
        its note why it had died, and its next end is told anew. Its attempts are counted on, so
        that whoever held it before it died passes no fence.

        Raises:
            QuotaError: More jobs would wait than this store accepts; none is put back.
        """
        ...

    def next_due_s(self, endpoint: str) -> float | None:
        """Return the seconds until a job waits that can be claimed; None without any job."""
        ...

    def notices(self, owner: str, *, n: int, lease_s: float) -> list[Notice]:
        """Hand out ends of jobs that are to be told, each at most once within `lease_s`."""
        ...

    def settle(self, notice: Notice, *, delivered: bool, again_in_s: float | None = None) -> None:
        """Say how telling went: delivered, to be tried again in some time, or given up.

        Of a job that was put back meanwhile it changes nothing: its next end is still to be told.
        """
        ...

    def stale(self, *, retention_s: float, max_bytes: int, limit: int) -> list[Job]:
        """Return ended jobs to be forgotten, the oldest end first.

        Args:
            retention_s: Those that ended longer ago than this.
            max_bytes: And the oldest for which results together take more than this.
            limit: At most so many.
        """
        ...

    def forget(self, jobs: Sequence[str]) -> int:
        """Delete ended jobs and their idempotency keys; return how many there were."""
        ...

    def close(self) -> None:
        """Close; a second call does nothing."""
        ...


def backlog(counts: Mapping[JobState, int]) -> int:
    """Return the jobs that are waiting or being processed.

    Examples:
        >>> backlog({JobState.QUEUED: 3, JobState.RUNNING: 2, JobState.SUCCEEDED: 9})
        5
    """
    return counts.get(JobState.QUEUED, 0) + counts.get(JobState.RUNNING, 0)
