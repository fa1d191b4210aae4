"""Jobs through a scaled endpoint in simulated time: what the policy would have done."""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ingot.twin.policy import Decision, Memory, ScalingPolicy, Seen

_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class Trace:
    """What happened.

    Attributes:
        decisions: Every decision, in order: one a second, and one at each wake from zero.
        finished_s: When each job was done, in the order of its arrival.
        instance_s: Seconds that instances ran, all of them together.
        longest_wait_s: Longest time from a job's arrival at zero instances to the decision to wake.
    """

    decisions: tuple[Decision, ...]
    finished_s: tuple[float, ...]
    instance_s: float
    longest_wait_s: float

    def series(self) -> dict[str, list[float]]:
        """Return the data of the charts, one value per decision.

        `time_s`, `backlog`, `backlog_per_instance` (0 at zero instances without backlog, the
        backlog itself at zero instances with one) and `instances` after the decision.
        """
        return {
            "time_s": [d.seen.time_s for d in self.decisions],
            "backlog": [float(d.seen.backlog) for d in self.decisions],
            "backlog_per_instance": [
                d.seen.backlog / max(1, d.seen.instances) for d in self.decisions
            ],
            "instances": [float(d.instances) for d in self.decisions],
        }


def replay(
    policy: ScalingPolicy,
    arrivals_s: Sequence[float],
    *,
    service_s: float,
    concurrency: int = 2,
    start_s: float = 0.035,
    settle_s: float = 600.0,
) -> Trace:
    """Run jobs through an endpoint that a policy scales, in simulated time.

    Decisions fall on whole seconds and, at zero instances, on the arrival that ends the idleness.
    Jobs are served first in, first out; an instance that is taken away finishes what it holds.

    Args:
        policy: Decides.
        arrivals_s: When jobs arrive, ascending.
        service_s: Seconds that each job takes.
        concurrency: Jobs that an instance runs at once.
        start_s: Seconds from the decision to an instance that takes jobs.
        settle_s: Most seconds to go on after the last job is done, for scaling in.
    """
    run = _Run(policy, arrivals_s, service_s=service_s, concurrency=concurrency, start_s=start_s)
    last = math.inf
    while run.now < last + settle_s:
        run.step()
        if run.is_done and last == math.inf:
            last = run.now
        if run.is_done and len(run.ready) == policy.min_instances:
            break
    return Trace(tuple(run.decisions), tuple(run.finished), run.instance_s, run.longest_wait_s)


class _Run:
    """The state between two events."""

    def __init__(
        self,
        policy: ScalingPolicy,
        arrivals_s: Sequence[float],
        *,
        service_s: float,
        concurrency: int,
        start_s: float,
    ) -> None:
        self._policy, self._arrivals = policy, arrivals_s
        self._service_s, self._concurrency, self._start_s = service_s, concurrency, start_s
        self._memory, self._tick, self._arrived = Memory(), 0.0, 0
        self._waiting: deque[int] = deque()
        self._busy: list[tuple[float, int]] = []  # a heap of end and job
        self.ready: list[float] = []  # when each instance can take its first job
        self.now, self.instance_s, self.longest_wait_s = 0.0, 0.0, 0.0
        self.finished = [math.nan] * len(arrivals_s)
        self.decisions: list[Decision] = []

    @property
    def is_done(self) -> bool:
        return self._arrived == len(self._arrivals) and not self._waiting and not self._busy

    def step(self) -> None:
        """Go to the next event and do what falls on it."""
        self._go_on()
        while self._busy and self._busy[0][0] <= self.now:
            ended, job = heapq.heappop(self._busy)
            self.finished[job] = ended
        before = self._arrived
        while self._arrived < len(self._arrivals) and self._arrivals[self._arrived] <= self.now:
            self._waiting.append(self._arrived)
            self._arrived += 1
        if self.now >= self._tick or (self._arrived > before and not self.ready):
            self._decide()
        free = self._concurrency * sum(at <= self.now for at in self.ready) - len(self._busy)
        for _ in range(min(free, len(self._waiting))):
            heapq.heappush(self._busy, (self.now + self._service_s, self._waiting.popleft()))

    def _go_on(self) -> None:
        events = [self._tick, *self._arrivals[self._arrived : self._arrived + 1]]
        events += [self._busy[0][0]] if self._busy else []
        events += [at for at in self.ready if at > self.now]
        then = max(self.now, min(events))
        self.instance_s += len(self.ready) * (then - self.now)
        self.now = then

    def _decide(self) -> None:
        seen = Seen(self.now, len(self._waiting) + len(self._busy), len(self.ready))
        decision = self._policy.decide(seen, self._memory)
        if decision.action == "wake":
            waited = self.now - self._arrivals[self._waiting[0]]
            self.longest_wait_s = max(self.longest_wait_s, waited)
        self._memory = decision.memory
        self.ready += [self.now + self._start_s] * (decision.instances - len(self.ready))
        del self.ready[decision.instances :]
        self.decisions.append(decision)
        if self.now >= self._tick:
            self._tick += _PERIOD_S
