"""A bench that a job store is put on: clocks that stand still, and short words for its methods."""

from dataclasses import dataclass
from itertools import count
from typing import Protocol

from ingot.serve.jobs.clock import Clock
from ingot.serve.jobs.job import JobState, Lease, NewJob, RetryPolicy
from ingot.serve.jobs.store import JobStore

ENDPOINT = "model"  # of every job of `new_job`


class OpenStore(Protocol):
    """Opens a store: the same name is the same jobs, a new name is an empty store."""

    def __call__(self, name: str, *, clock: Clock, retry: RetryPolicy, max_queued: int) -> JobStore:
        """Open it; see `SqliteJobStore` for what the arguments mean."""
        ...


@dataclass
class ManualClock:
    """Clocks that stand still until they are told.

    Attributes:
        steady: Seconds since the machine started.
        wall: UTC seconds since 1970.
        boot: Name of this start of the machine.
    """

    steady: float = 1000.0
    wall: float = 1.8e9
    boot: str = "first"

    def clock(self) -> Clock:
        """Return the clocks as a store takes them."""
        return Clock(lambda: self.steady, lambda: self.wall, self.boot)

    def pass_s(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.steady += seconds
        self.wall += seconds


class Bench:
    """One store under check, with its clock and short words for what the checks do often."""

    _names = count()

    def __init__(self, open_store: OpenStore, *, max_queued: int = 100) -> None:
        self._open, self.max_queued = open_store, max_queued
        self._name = f"check-{next(Bench._names)}"
        self.time = ManualClock()
        self.retry = RetryPolicy(base_s=1.0, cap_s=8.0)
        self.store = self.again()

    def again(self) -> JobStore:
        """Open the same jobs once more."""
        return self._open(
            self._name, clock=self.time.clock(), retry=self.retry, max_queued=self.max_queued
        )

    def put(self, *names: str, key: str = "", ttl_s: float = 1e6, notify: str = "") -> None:
        """Put jobs with these ids."""
        self.store.put([new_job(n, key=key, ttl_s=ttl_s, notify=notify) for n in names])

    def claim(self, owner: str = "a", n: int = 1) -> list[Lease]:
        """Claim with a lease of ten seconds."""
        return self.store.claim(ENDPOINT, owner, n=n, lease_s=10.0)

    def one(self, owner: str = "a") -> Lease:
        """Claim exactly one."""
        leases = self.claim(owner)
        assert len(leases) == 1, f"claim(n=1) must hand out the one due job; got {leases}"
        return leases[0]

    def state(self, job: str) -> JobState:
        """Return the state of a job."""
        found = self.store.get(job)
        assert found is not None, f"get({job!r}) must find a job that was put"
        return found.state


def new_job(name: str, *, key: str = "", ttl_s: float = 1e6, notify: str = "") -> NewJob:
    """Return a job whose body is its name."""
    return NewJob(name, ENDPOINT, f"out/{name}", name.encode(), "", key, "", ttl_s, 60.0, notify)
