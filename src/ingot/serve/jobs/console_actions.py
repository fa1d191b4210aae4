"""Buttons of the console of a server that takes jobs: cancel one, retry one, retry all the dead."""

from ingot.serve.console.page import Action, Visit
from ingot.serve.jobs.desk import JobDesk
from ingot.serve.jobs.job import Job, JobState, QuotaError
from ingot.serve.problems import RequestError

_AT_ONCE = 500  # jobs put back under one lock, so that puts and claims come between


class JobActions:
    """What the buttons do.

    Args:
        desk: What knows the jobs.
    """

    def __init__(self, desk: JobDesk) -> None:
        self._desk = desk

    @property
    def actions(self) -> tuple[Action, ...]:
        """Every button."""
        return (
            Action("/jobs/{job}/cancel", self.cancel),
            Action("/jobs/{job}/retry", self.retry),
            Action("/jobs/retry-dead", self.retry_dead),
        )

    async def cancel(self, visit: Visit) -> str:
        """Cancel a job; one that has ended meanwhile stays as it is, and its page says so."""
        visit.need("infer", self._desk.name)
        job = await find_job(self._desk, visit)
        await self._desk.ask(self._desk.store.cancel, job.id)
        return f"/jobs/{job.id}"

    async def retry(self, visit: Visit) -> str:
        """Put a dead job back; one that is not dead any more stays as it is."""
        visit.need("infer", self._desk.name)
        job = await find_job(self._desk, visit)
        await self._put_back([job.id])
        return f"/jobs/{job.id}"

    async def retry_dead(self, visit: Visit) -> str:
        """Put back all jobs that are dead now, the first put first."""
        visit.need("infer", self._desk.name)
        dead: list[str] = []
        while found := await self._desk.ask(
            self._desk.store.jobs, self._desk.name,
            state=JobState.DEAD, limit=_AT_ONCE, after=dead[-1] if dead else None,
        ):  # fmt: skip
            dead += [job.id for job in found]
        dead.reverse()
        for first in range(0, len(dead), _AT_ONCE):
            await self._put_back(dead[first : first + _AT_ONCE])
        return "/jobs"

    async def _put_back(self, jobs: list[str]) -> None:
        try:
            await self._desk.retry(jobs)
        except QuotaError as error:
            raise RequestError(str(error), status=429) from error


async def find_job(desk: JobDesk, visit: Visit) -> Job:
    """Return the job that a path names.

    Raises:
        RequestError: There is none (404).
    """
    job = await desk.get(visit.path["job"])
    if job is None:
        raise RequestError(
            "A job must be known to this endpoint; this one is not. It may have been forgotten "
            "after its retention. Look for it among all jobs.",
            status=404,
        )
    return job
