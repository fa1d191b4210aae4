"""Pages of a real-time server: all endpoints, and one of them."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ingot.core.errors import ServeError
from ingot.observe.stats import Window
from ingot.serve.console.arms import TrafficState, arm_charts, read_traffic
from ingot.serve.console.charts import Chart, Line
from ingot.serve.console.facts import VersionFacts, curl_line, limits_of, read_facts
from ingot.serve.console.page import Action, Page, Section, Visit
from ingot.serve.console.series import LOOK_S, Level, StatsSource, Totals
from ingot.serve.console.site import Console
from ingot.serve.metrics import Metrics
from ingot.serve.problems import RequestError
from ingot.serve.routing import MODEL, VERSION, find_version, refuse_path
from ingot.serve.running import Repeat
from ingot.serve.state import Served, State
from ingot.serve.traffic.desk import TrafficDesk

NOW_S = 60.0  # figures of now are over so long
_SPARK_S = 600.0
_WORDS = {
    "ready": "answers requests",
    "draining": "finishes what it has and takes nothing new",
    "starting": "has not answered its first inference",
    "down": "has no worker that can answer",
}


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """One served version now.

    Attributes:
        name: Of the model.
        number: Of the version.
        digest: Of the version.
        state: `ready`, `draining`, `starting` or `down`.
        words: What that means.
        now: What happened in the last minute.
        in_flight: Requests being read or answered.
        waiting: Those of them that wait for the engine.
        workers_ready: Processes that can answer.
        workers_wanted: Processes there shall be; 0 runs the model in the server's own.
        trend: Requests a second in the last ten minutes, the oldest first.
        share: Of the requests for its name; None where none are dealt.
        role: `canary` or `shadow` where it is one.
    """

    name: str
    number: int
    digest: str
    state: str
    words: str
    now: Window
    in_flight: int
    waiting: int
    workers_ready: int
    workers_wanted: int
    trend: tuple[float, ...]
    share: float | None = None
    role: str = ""

    @property
    def path(self) -> str:
        """Its page, below `/console`."""
        return f"/endpoints/{self.name}/{self.number}"


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every served version that the visitor may see."""

    title: str
    summary: str
    time: float
    rows: tuple[EndpointRow, ...]
    charts: tuple[Chart, ...] = ()


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bar of a histogram: how many, and their share of the most."""

    label: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class EndpointContent:
    """One served version, now and over the last hour."""

    title: str
    summary: str
    time: float
    row: EndpointRow
    totals: Totals
    batches: tuple[Bucket, ...]
    facts: VersionFacts
    curl: str
    charts: tuple[Chart, ...]
    traffic: TrafficState | None = None


class EndpointPages:
    """Makes the pages of a real-time server.

    Args:
        served: What is served.
        source: Where figures come from.
        desks: Traffic by name of the model, where requests are dealt.
        clock: UTC seconds since 1970.
    """

    def __init__(
        self,
        served: Sequence[Served],
        source: StatsSource,
        desks: Mapping[str, TrafficDesk] | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._served, self._source, self._clock = served, source, clock
        self._desks = desks or {}
        self._versions = [one.endpoint.version for one in served]
        self._known: dict[int, VersionFacts] = {}

    @property
    def pages(self) -> tuple[Page, ...]:
        """Every page."""
        return (
            Page("/endpoints", "endpoints.html", self.fleet, "Endpoints"),
            Page(
                "/endpoints/{name}/{number:int}", "endpoint.html", self.endpoint, "Endpoints"
            ),
        )  # fmt: skip

    @property
    def actions(self) -> tuple[Action, ...]:
        """Every button."""
        if not self._desks:
            return ()
        return (Action("/endpoints/{name}/{number:int}/roll-back", self.roll_back),)

    async def fleet(self, visit: Visit) -> Fleet:
        """Return every version that the visitor may see."""
        names = {version.name for version in self._versions}
        seen = {name for name in names if visit.may("read", name) or visit.may("metrics")}
        shown = [one for one in self._served if one.endpoint.version.name in seen]
        # in a thread: figures of many windows take longer than other requests may have to wait
        rows = await asyncio.to_thread(lambda: tuple(map(self._row, shown)))
        ready = sum(row.state == "ready" for row in rows)
        summary = f"{ready} of {len(rows)} ready" if rows else "none to see"
        return Fleet("Endpoints", summary, self._clock(), rows)

    async def endpoint(self, visit: Visit) -> EndpointContent:
        """Return one version.

        Raises:
            RequestError: It is not served (404) or not for this visitor (403).
        """
        visit.need("read", visit.path["name"])
        path = {"name": visit.path["name"], "number": str(visit.path["number"])}
        index = find_version(self._versions, path)
        if index is None:
            raise RequestError(refuse_path(self._versions, path), status=404)
        return await asyncio.to_thread(self._content, visit, index)

    async def roll_back(self, visit: Visit) -> str:
        """Take the canary of a name out, in the visitor's name.

        Raises:
            RequestError: The visitor may not (403), the name is not dealt (404), or it has no
                canary (422).
        """
        name = visit.path["name"]
        visit.need("operate", name)
        desk = self._desks.get(name)
        if desk is None:
            raise RequestError(
                f"Requests for {name!r} must be dealt to roll back; they are not. Look at the "
                "endpoints for names that are.",
                status=404,
            )
        if desk.state != "rolled back":  # the second of two clicks asks for nothing more
            who = "" if visit.caller is None else visit.caller.name
            try:
                await asyncio.to_thread(desk.roll_back, who)
            except ServeError as error:
                raise RequestError(str(error), status=422) from error
        return f"/endpoints/{name}/{visit.path['number']}"

    def _content(self, visit: Visit, index: int) -> EndpointContent:
        one, row = self._served[index], self._row(self._served[index])
        name, number = row.name, str(row.number)
        # levels first: a window that ends meanwhile must not be older than what was shown
        levels = self._source.levels(name, number) if row.workers_wanted else ()
        windows = self._source.windows(name, number, since=visit.since)
        charts, totals = _charts(windows), self._source.totals(name, number)
        desk, traffic = self._desks.get(name), None
        if desk is not None:
            traffic = read_traffic(
                desk, self._source, may_operate=visit.may("operate", name)
            )  # fmt: skip
            charts += arm_charts(desk, self._source, since=visit.since)
        if row.workers_wanted:
            charts += (_worker_chart(levels, visit.since),)
        url = visit.base_url + self._infer_path(row)
        return EndpointContent(
            f"{name}:{number}", f"{name}:{number} is {row.state}{_said(traffic)}", self._clock(),
            row, totals, _buckets(totals.rows), self._facts(index),
            curl_line(one.endpoint, url, is_known=visit.is_known), charts, traffic,
        )  # fmt: skip

    def _facts(self, index: int) -> VersionFacts:
        if index not in self._known:
            endpoint = self._served[index].endpoint
            self._known[index] = read_facts(endpoint, limits_of(endpoint))
        return self._known[index]

    def _infer_path(self, row: EndpointRow) -> str:
        served = [version.name for version in self._versions].count(row.name)
        path = MODEL if served == 1 else VERSION
        return path.format(name=row.name, number=row.number) + "/infer"

    def _row(self, one: Served) -> EndpointRow:
        version, state = one.endpoint.version, one.state
        name, number = version.name, str(version.number)
        wanted, word = one.endpoint.workers, _state(state)
        recent = self._source.windows(name, number, since=self._clock() - _SPARK_S)
        share, role = self._place(name, version.number)
        return EndpointRow(
            name, version.number, version.digest, word, _WORDS[word],
            self._source.over(name, number, NOW_S), state.in_flight, state.waiting,
            self._source.totals(name, number).workers_ready if wanted else int(state.is_warm),
            wanted, tuple(window.rate_per_s for window in recent), share, role,
        )  # fmt: skip

    def _place(self, name: str, number: int) -> tuple[float | None, str]:
        """Return the share of a version, and what it is in the traffic of its name."""
        desk = self._desks.get(name)
        if desk is None:
            return None, ""
        canary, shadow = desk.plan.canary, desk.plan.shadow
        role = "shadow" if shadow is not None and shadow.version == number else ""
        role = "canary" if canary is not None and canary.version == number else role
        return desk.table.split.weight(number), role


def console_of(
    served: Sequence[Served], metrics: Metrics, desks: Mapping[str, TrafficDesk]
) -> tuple[Console, Repeat]:
    """Return the console of a real-time server, and the thread that feeds it, which runs.

    Args:
        served: What is served.
        metrics: What the server counts.
        desks: Traffic by name of the model, where requests are dealt.
    """
    source = StatsSource(metrics)
    made = EndpointPages(served, source, desks)
    console = Console(
        (Section("Endpoints", "/endpoints"),),
        made.pages,
        lambda: any(one.state.is_draining for one in served),
        made.actions,
    )
    return console, Repeat("ingot-console", LOOK_S, source.look)


def _state(state: State) -> str:
    if state.is_draining:
        return "draining"
    if not state.is_warm:
        return "starting"
    return "ready" if state.is_ready else "down"


def _said(traffic: TrafficState | None) -> str:
    if traffic is None or traffic.canary is None:
        return ""
    return f", its canary {traffic.name}:{traffic.canary} is {traffic.state}"


def _charts(windows: Sequence[Window]) -> tuple[Chart, ...]:
    times = tuple(round(one.end, 3) for one in windows)

    def answers(hundreds: int) -> tuple[float, ...]:
        return tuple(
            sum(n for s, n in one.by_status.items() if s // 100 == hundreds) / one.seconds
            for one in windows
        )

    latency = (
        Line("p50", tuple(one.p50_ms for one in windows)),
        Line("p95", tuple(one.p95_ms for one in windows)),
        Line("p99", tuple(one.p99_ms for one in windows)),
    )
    refused = (Line("refused (4xx)", answers(4)), Line("failed (5xx)", answers(5)))
    rate = (Line("answers", tuple(one.rate_per_s for one in windows)),)
    return (
        Chart("rate", "Answers per second", "/s", times, rate),
        Chart("latency", "Latency", "ms", times, latency),
        Chart("refusals", "Refused and failed", "/s", times, refused),
    )


def _worker_chart(levels: Sequence[Level], since: float) -> Chart:
    """Return the workers that were ready, and restarts between one look and the next."""
    before = [*levels[:1], *levels[:-1]]
    shown = [
        (now, now.restarts - then.restarts)
        for now, then in zip(levels, before, strict=True)
        if now.time > since + 1e-3  # times are rounded to a millisecond on their way
    ]
    lines = (
        Line("ready", tuple(float(one.workers_ready) for one, _ in shown)),
        Line("restarted", tuple(float(restarts) for _, restarts in shown)),
    )
    times = tuple(round(one.time, 3) for one, _ in shown)
    return Chart("workers", "Workers", "", times, lines, is_stepped=True)


def _buckets(rows: Mapping[str, int]) -> tuple[Bucket, ...]:
    """Return the bars from the first that is not empty to the last."""
    most = max(rows.values(), default=0)
    if not most:
        return ()
    found, low = [], 0
    for bound, count in rows.items():
        high = 0 if bound == "+Inf" else int(float(bound))
        label = f"> {low}" if not high else str(high) if high <= low + 1 else f"{low + 1} to {high}"
        found.append(Bucket(label, count, count / most))
        low = high
    while not found[-1].count:
        found.pop()
    return tuple(found)
