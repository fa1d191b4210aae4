"""Pages of a server that takes jobs: its endpoint, its jobs, its scaling."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ingot.core.names import suggest
from ingot.core.units import show_bytes, show_number
from ingot.serve.console.charts import Chart, Line
from ingot.serve.console.facts import VersionFacts, curl_line, read_facts
from ingot.serve.console.page import Page, Section, Visit
from ingot.serve.console.site import Console
from ingot.serve.jobs.console_actions import JobActions, find_job
from ingot.serve.jobs.decisions import Recorded
from ingot.serve.jobs.desk import JobDesk
from ingot.serve.jobs.job import MAX_INLINE_BYTES, MAX_TIMEOUT_S, Job, JobState
from ingot.serve.jobs.settings import AsyncSettings
from ingot.serve.jobs.status import job_path
from ingot.serve.problems import RequestError

_HOUR = 3600
_LISTED = 25
_MOST_LISTED = 250
_DECISIONS = 30
_SPARK = 300  # decisions, so about five minutes


@dataclass(frozen=True, slots=True)
class JobsRow:
    """An asynchronous endpoint now.

    Attributes:
        name: Of the model.
        number: Of the version.
        digest: Of the version.
        state: `ready`, `draining` or `down`.
        words: What that means.
        queued: Jobs that wait.
        running: Jobs that are being processed.
        dead: Jobs that were given up and are kept.
        instances: Instances that run or are starting.
        wanted: Instances that the last decision asked for.
        most: Instances there may be.
        target: Backlog per instance that is aimed at.
        last: The last decision.
        trend: Backlog at the last decisions, the oldest first.
    """

    name: str
    number: int
    digest: str
    state: str
    words: str
    queued: int
    running: int
    dead: int
    instances: int
    wanted: int
    most: int
    target: float
    last: Recorded | None
    trend: tuple[float, ...]

    @property
    def path(self) -> str:
        """Its page, below `/console`."""
        return f"/endpoints/{self.name}/{self.number}"

    @property
    def per_instance(self) -> float:
        """Backlog per instance; the backlog where there is none."""
        return (self.queued + self.running) / max(1, self.instances)


@dataclass(frozen=True, slots=True)
class JobsFleet:
    """The endpoint of the server, if the visitor may see it."""

    title: str
    summary: str
    time: float
    rows: tuple[JobsRow, ...]
    charts: tuple[Chart, ...] = ()


@dataclass(frozen=True, slots=True)
class JobsEndpoint:
    """The endpoint, now and over the last hour."""

    title: str
    summary: str
    time: float
    row: JobsRow
    counts: tuple[tuple[str, int], ...]
    facts: VersionFacts
    curl: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True)
class JobList:
    """Jobs, the newest first, where the next ones are, and whether all the dead can be put back."""

    title: str
    summary: str
    time: float
    name: str
    state: str
    states: tuple[tuple[str, int], ...]
    jobs: tuple[Job, ...]
    after: str
    next: str
    can_retry: bool
    charts: tuple[Chart, ...] = ()


@dataclass(frozen=True, slots=True)
class JobContent:
    """One job.

    Attributes:
        title: Heading.
        summary: One sentence.
        time: Now, UTC seconds since 1970.
        job: The job.
        path: Of its status in the API.
        curl: A line for a shell that fetches its result.
        can_cancel: Whether it has not ended and the visitor may cancel it.
        can_retry: Whether it is dead and the visitor may put it back.
        is_open: Whether a browser may fetch the result without a key.
        charts: None.
    """

    title: str
    summary: str
    time: float
    job: Job
    path: str
    curl: str
    can_cancel: bool
    can_retry: bool
    is_open: bool
    charts: tuple[Chart, ...] = ()


@dataclass(frozen=True, slots=True)
class Scaling:
    """Decisions with their reasons, the newest first, and charts of the last hour.

    Attributes:
        title: Heading.
        summary: One sentence.
        time: Now, UTC seconds since 1970.
        row: The endpoint now.
        decisions: Those that changed something, or all.
        shows_all: Whether decisions to hold are among them.
        charts: Backlog, backlog per instance, instances.
    """

    title: str
    summary: str
    time: float
    row: JobsRow
    decisions: tuple[Recorded, ...]
    shows_all: bool
    charts: tuple[Chart, ...]


class JobPages:
    """Makes the pages of a server that takes jobs.

    Args:
        desk: What knows the jobs.
        instances: Says how many instances run or are starting.
        clock: UTC seconds since 1970.
    """

    def __init__(
        self,
        desk: JobDesk,
        *,
        instances: Callable[[], int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._desk, self._instances, self._clock = desk, instances, clock

    @property
    def pages(self) -> tuple[Page, ...]:
        """Every page."""
        return (
            Page("/endpoints", "job_endpoints.html", self.fleet, "Endpoints"),
            Page(
                "/endpoints/{name}/{number:int}", "job_endpoint.html", self.endpoint, "Endpoints"
            ),
            Page("/jobs", "jobs.html", self.jobs, "Jobs"),
            Page("/jobs/{job}", "job.html", self.job, "Jobs"),
            Page("/scaling", "scaling.html", self.scaling, "Scaling"),
        )  # fmt: skip

    async def fleet(self, visit: Visit) -> JobsFleet:
        """Return the endpoint, if the visitor may see it."""
        if not (visit.may("read", self._desk.name) or visit.may("metrics")):
            return JobsFleet("Endpoints", "none to see", self._clock(), ())
        row = await self._row()
        return JobsFleet("Endpoints", _summary(row), self._clock(), (row,))

    async def endpoint(self, visit: Visit) -> JobsEndpoint:
        """Return the endpoint.

        Raises:
            RequestError: It is another one that is asked for (404), or it is not for this visitor.
        """
        visit.need("read", visit.path["name"])
        version = self._desk.endpoint.version
        if (visit.path["name"], visit.path["number"]) != (version.name, version.number):
            raise RequestError(
                f"Version {version.label} is served here and no other. Ask for it.", status=404
            )
        row = await self._row()
        counts = await self._desk.ask(self._desk.store.counts, self._desk.name)
        url = f"{visit.base_url}/v2/models/{version.name}/jobs"
        return JobsEndpoint(
            version.label, _summary(row), self._clock(), row,
            tuple((state.value, n) for state, n in counts.items()), self._facts,
            curl_line(self._desk.endpoint, url, is_known=visit.is_known),
            await self._charts(visit.since),
        )  # fmt: skip

    async def jobs(self, visit: Visit) -> JobList:
        """Return jobs, the newest first.

        Raises:
            RequestError: The state is none (400), or they are not for this visitor (403).
        """
        visit.need("read", self._desk.name)
        state, after = visit.query.get("state", ""), visit.query.get("after", "")
        states = [one.value for one in JobState]
        if state and state not in states:
            raise RequestError(f"No job is ever {state[:40]!r}. {suggest(state, states)}")
        limit = visit.query.get("limit", "")
        size = min(int(limit), _MOST_LISTED) if limit.isascii() and limit.isdigit() else _LISTED
        found = await self._desk.ask(
            self._desk.store.jobs, self._desk.name,
            state=JobState(state) if state else None, limit=max(1, size), after=after or None,
        )  # fmt: skip
        counts = await self._desk.ask(self._desk.store.counts, self._desk.name)
        numbers = tuple((one.value, n) for one, n in counts.items())
        return JobList(
            "Jobs", ", ".join(f"{n} {one}" for one, n in numbers if n) or "no jobs",
            self._clock(), self._desk.name, state, numbers, tuple(found), after,
            found[-1].id if len(found) == size else "",
            state == JobState.DEAD and bool(found) and visit.may("infer", self._desk.name),
        )  # fmt: skip

    async def job(self, visit: Visit) -> JobContent:
        """Return one job.

        Raises:
            RequestError: There is none (404), or it is not for this visitor (403).
        """
        visit.need("read", self._desk.name)
        job = await find_job(self._desk, visit)
        path = job_path(job.endpoint, job.id)
        may = visit.may("infer", self._desk.name)
        proof = ' -H "Authorization: Bearer $INGOT_TOKEN"' if visit.is_known else ""
        return JobContent(
            f"Job {job.id[:8]}", f"job {job.state.value}, attempt {job.attempt}", self._clock(),
            job, path, f"curl '{visit.base_url}{path}/result'{proof} -o result.json",
            not job.state.is_end and may, job.state is JobState.DEAD and may, not visit.is_known,
        )  # fmt: skip

    async def scaling(self, visit: Visit) -> Scaling:
        """Return the newest decisions and the charts.

        Raises:
            RequestError: They are not for this visitor (403).
        """
        visit.need("read", self._desk.name)
        shows_all = visit.query.get("all", "") == "1"
        recent = await self._decisions(_HOUR)
        shown = [one for one in reversed(recent) if shows_all or one.action != "hold"]
        row = await self._row()
        return Scaling(
            "Scaling", _summary(row), self._clock(), row, tuple(shown[:_DECISIONS]), shows_all,
            _charts(recent, visit.since),
        )  # fmt: skip

    @cached_property
    def _facts(self) -> VersionFacts:
        return read_facts(self._desk.endpoint, _limits(self._desk.settings))

    async def _decisions(self, limit: int) -> list[Recorded]:
        read = self._desk.decisions.read
        return await self._desk.ask(read, self._desk.name, limit=limit)

    async def _charts(self, since: float) -> tuple[Chart, ...]:
        return _charts(await self._decisions(_HOUR), since)

    async def _row(self) -> JobsRow:
        desk, version = self._desk, self._desk.endpoint.version
        counts = await desk.ask(desk.store.counts, desk.name)
        recent = await self._decisions(_SPARK)
        instances = self._instances()
        state, words = _state(desk)
        return JobsRow(
            desk.name, version.number, version.digest, state, words,
            counts[JobState.QUEUED], counts[JobState.RUNNING], counts[JobState.DEAD],
            instances, recent[-1].instances if recent else instances,
            desk.settings.policy.max_instances, desk.settings.policy.target,
            recent[-1] if recent else None, tuple(float(one.backlog) for one in recent),
        )  # fmt: skip


def console_of_jobs(desk: JobDesk, *, instances: Callable[[], int]) -> Console:
    """Return the console of a server that takes jobs.

    Args:
        desk: What knows the jobs.
        instances: Says how many instances run or are starting.
    """
    made = JobPages(desk, instances=instances)
    sections = (
        Section("Endpoints", "/endpoints"), Section("Jobs", "/jobs"),
        Section("Scaling", "/scaling"),
    )  # fmt: skip
    return Console(sections, made.pages, lambda: desk.is_draining, JobActions(desk).actions)


def _state(desk: JobDesk) -> tuple[str, str]:
    if desk.is_draining:
        return "draining", "takes no new jobs; what is queued stays queued"
    if desk.is_ready():
        return "ready", "takes jobs"
    return "down", "instances do not start; the server's log says why"


def _limits(settings: AsyncSettings) -> list[tuple[str, str]]:
    days = settings.retention_s / 86_400
    return [
        ("Largest request inline", show_bytes(MAX_INLINE_BYTES)),
        ("Inputs by URI from", ", ".join(settings.roots) or "nowhere"),
        ("Longest attempt", f"{MAX_TIMEOUT_S:g} s"),
        ("Jobs that may wait", f"{settings.max_queued:,}"),
        ("Jobs an instance runs at once", str(settings.concurrency)),
        ("Tries", f"{settings.retry.max_failures}, or {settings.retry.max_lapses} without a word"),
        ("Ended jobs are kept", f"{days:g} days, results up to "
         f"{show_bytes(settings.max_result_bytes)}"),
        ("Accepted jobs survive", "power loss" if settings.durability == "FULL"
         else "the death of every process"),
    ]  # fmt: skip


def _summary(row: JobsRow) -> str:
    waiting = f"{row.queued} queued, {row.running} running"
    most = show_number(row.most, "instance")
    return f"{row.name} is {row.state}: {waiting}, {row.instances} of {most}"


def _charts(decisions: Sequence[Recorded], since: float) -> tuple[Chart, ...]:
    """Return backlog, backlog per instance and instances, as the decisions saw them."""
    shown = [one for one in decisions if one.time > since]
    times = tuple(round(one.time, 3) for one in shown)
    waiting = tuple(float(one.backlog) for one in shown)
    per = tuple(round(one.backlog / max(1, one.before), 3) for one in shown)
    before = tuple(float(one.before) for one in shown)
    after = tuple(float(one.instances) for one in shown)
    return (
        Chart("backlog", "Backlog", "jobs", times, (Line("waiting or running", waiting),), True),
        Chart("per_instance", "Backlog per instance", "jobs", times, (Line("jobs", per),), True),
        Chart(
            "instances", "Instances", "", times, (Line("running", before), Line("wanted", after)),
            True,
        ),
    )  # fmt: skip
