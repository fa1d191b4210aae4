"""The kill test of job stores: processes that put and run jobs are ended by SIGKILL, at random."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from ingot.serve.jobs.job import JobState, NewJob
from ingot.serve.jobs.store import JobStore, backlog

_ENDPOINT = "killed"
_LEASE_S = 1.0
_PUT_AT_ONCE = 10
_SHARE = 0.9  # of the jobs are done when the last kill falls


@dataclass(frozen=True, slots=True)
class Tally:
    """What a kill test found.

    Attributes:
        jobs: How many were put.
        kills: How many processes were killed.
        control_kills: How many of them were the control process.
        lost: Jobs that never succeeded.
        twice: Jobs that were told more than once that they had completed.
        again: Attempts that were handed out beyond the first of each job.
        seconds: How long it took.
    """

    jobs: int
    kills: int
    control_kills: int
    lost: int
    twice: int
    again: int
    seconds: float


def kill_jobs(
    open_store: Callable[[], JobStore],
    folder: Path,
    *,
    jobs: int,
    kills: int,
    workers: int = 2,
    work_s: float = 0.005,
    seed: int = 0,
    patience_s: float = 300.0,
) -> Tally:
    """Put jobs, run them and kill whoever does, the control process included; then count.

    A control process puts the jobs under idempotency keys and keeps the workers alive; whenever it
    is killed another takes its place and puts all jobs again. Workers hold two jobs at a time and
    write each completion that the store granted to a log of their own, so that the count of
    double completions does not rest on what the store says about itself.

    Args:
        open_store: Opens the store under test; it is sent to other processes, so it must be
            picklable: a function of a module, or a `functools.partial` of one.
        folder: An empty folder for the logs.
        jobs: How many jobs.
        kills: How many SIGKILLs, one control process in about every `workers + 1`.
        workers: How many workers.
        work_s: Seconds that each job takes.
        seed: Who is killed and when.
        patience_s: Longest wait after a kill for the jobs to go on.

    Raises:
        AssertionError: The jobs did not go on after a kill.
    """
    began = time.monotonic()
    control = _Control(
        partial(_control, open_store, folder, jobs=jobs, workers=workers, work_s=work_s),
        folder,
        patience_s=patience_s,
    )
    rng = np.random.default_rng(seed)
    killed: Counter[str] = Counter()
    store = open_store()
    try:
        while sum(killed.values()) < kills:
            # spread over the jobs, and always while one of them is being run
            share = _SHARE * (sum(killed.values()) + rng.uniform()) / kills
            control.wait_until(partial(_is_hit, store, done=int(share * jobs)))
            killed[control.kill_one(rng)] += 1
        control.wait_until(partial(_is_over, store, jobs=jobs))
        counts = store.counts(_ENDPOINT)
        attempts = sum(job.attempt for job in store.jobs(_ENDPOINT, limit=jobs))
    finally:
        control.stop()
        store.close()
    told = Counter(line for log in folder.glob("*.log") for line in log.read_text().split())
    return Tally(
        jobs, sum(killed.values()), killed["control"], jobs - counts[JobState.SUCCEEDED],
        sum(n > 1 for n in told.values()), attempts - jobs, time.monotonic() - began,
    )  # fmt: skip


class _Control:
    """The control process as the test sees it: started again whenever it is dead."""

    def __init__(self, run: "partial[None]", folder: Path, *, patience_s: float) -> None:
        self._run, self._folder, self._patience_s = run, folder, patience_s
        self._context = _context()
        self._process: BaseProcess | None = None
        self._link: Connection | None = None
        self.keep()

    def keep(self) -> None:
        """Start it if it does not run."""
        if self._process is None or not self._process.is_alive():
            self._link, theirs = self._context.Pipe()
            self._process = self._context.Process(target=self._run, args=(theirs,))
            self._process.start()
            theirs.close()

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Keep it running until something is so."""
        give_up = time.monotonic() + self._patience_s
        while not is_so():
            self.keep()
            assert time.monotonic() < give_up, "the jobs must go on after a kill; they do not"
            time.sleep(0.002)

    def kill_one(self, rng: np.random.Generator) -> str:
        """Kill the control process or a worker that lives; return which kind."""
        self.keep()
        assert self._process is not None
        victims = [self._process.pid, *_living(self._folder / "workers.json")]
        victim = victims[int(rng.integers(len(victims)))]
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        if victim != self._process.pid:
            return "worker"
        self._process.join()
        self.keep()
        return "control"

    def stop(self) -> None:
        """End it in good order."""
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            self._process.join(10)


def _is_hit(store: JobStore, *, done: int) -> bool:
    counts = store.counts(_ENDPOINT)
    return counts[JobState.RUNNING] > 0 and counts[JobState.SUCCEEDED] >= done


def _is_over(store: JobStore, *, jobs: int) -> bool:
    counts = store.counts(_ENDPOINT)
    return sum(counts.values()) == jobs and not backlog(counts)


def _control(
    open_store: Callable[[], JobStore],
    folder: Path,
    link: Connection,
    *,
    jobs: int,
    workers: int,
    work_s: float,
) -> None:
    store, context = open_store(), _context()
    alive: dict[str, tuple[BaseProcess, Connection]] = {}
    written = 0
    while not link.poll(0):  # the other end closes: the test is over, or its process is gone
        for owner in [name for name, (process, _) in alive.items() if not process.is_alive()]:
            store.lapse(owner)
            del alive[owner]
        if len(alive) < workers:
            while len(alive) < workers:
                owner = os.urandom(8).hex()
                ours, theirs = context.Pipe()
                work = partial(_work, open_store, folder / f"{owner}.log", owner, work_s)
                process = context.Process(target=work, args=(theirs,))
                process.start()
                theirs.close()
                alive[owner] = (process, ours)
            pids = [process.pid for process, _ in alive.values()]
            (folder / "next.json").write_text(json.dumps(pids))
            (folder / "next.json").replace(folder / "workers.json")
        names = [f"j{i}" for i in range(written, min(jobs, written + _PUT_AT_ONCE))]
        written += len(store.put([_job(name) for name in names]))
        wait([process.sentinel for process, _ in alive.values()], timeout=0.005)
    store.close()


def _work(
    open_store: Callable[[], JobStore], log: Path, owner: str, work_s: float, link: Connection
) -> None:
    store = open_store()
    with log.open("ab", buffering=0) as told:
        while not link.poll(0):  # the control process is gone when its end of the pipe is
            leases = store.claim(_ENDPOINT, owner, n=2, lease_s=_LEASE_S)
            for lease in leases:
                time.sleep(work_s)
                if store.complete(lease):
                    told.write(f"{lease.job}\n".encode())
            if not leases:
                time.sleep(0.005)
    store.close()


def _job(name: str) -> NewJob:
    return NewJob(os.urandom(8).hex(), _ENDPOINT, "", name.encode(), idempotency_key=name)


def _living(path: Path) -> list[int]:
    pids: list[int] = json.loads(path.read_text()) if path.exists() else []
    return [pid for pid in pids if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _context() -> Any:  # multiprocessing's contexts share no public base with Process
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ingot.testing.kill_jobs", "ingot.serve.jobs.sqlite_store"])
    return context
