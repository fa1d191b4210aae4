"""The contract that every job store keeps, as one function; `kill_jobs` adds the kill test."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ingot.serve.jobs.job import JobState, NewJob, QuotaError
from ingot.testing.check_job_retry import RETRY_CHECKS
from ingot.testing.job_bench import ENDPOINT as _E
from ingot.testing.job_bench import Bench, OpenStore, new_job

_YEAR_S = 366 * 86_400.0


def check_job_store(open_store: OpenStore) -> None:
    """Check that a driver keeps the contract of `ingot.serve.jobs.store.JobStore`.

    What is checked: first in, first out; idempotency keys; all or none; leases, their fences and
    their end; heartbeats; back-off and the dead letter; suspects alone, quarantine; cancellation;
    ttl; counts; notices; retention; dead jobs put back; that a wall clock that jumps a year
    changes nothing and that a restart of the machine ends every lease; that no job is handed to two
    of many threads.

    Args:
        open_store: Opens a store of the driver.

    Raises:
        AssertionError: The first rule that is broken, in words.
    """
    for check in _CHECKS:
        bench = Bench(open_store, max_queued=3 if check is _quota else 100)
        try:
            check(bench)
        finally:
            bench.store.close()
            bench.store.close()


def _order(b: Bench) -> None:
    b.put("j1", "j2", "j3")
    b.store.put([NewJob("other", "another", "out", b"x", origin="who")])
    leases = b.claim(n=2)
    assert [lease.job for lease in leases] == ["j1", "j2"], "the first in must be the first out"
    assert leases[0].body == b"j1", "a lease must carry the request"
    assert [lease.job for lease in b.claim("b", n=5)] == ["j3"], "a leased job is not handed out"
    assert b.claim("c", n=5) == [], "an endpoint must not get another endpoint's jobs"
    other = b.store.claim("another", "d", n=1, lease_s=9.0)
    assert [lease.origin for lease in other] == ["who"], "a lease must carry the origin"
    kept = b.store.jobs("another")
    assert [job.origin for job in kept] == ["who"], "a job must keep its origin"
    listed = [job.id for job in b.store.jobs(_E, limit=2)]
    assert listed == ["j3", "j2"], f"jobs() must give the newest first; got {listed}"
    rest = [job.id for job in b.store.jobs(_E, after="j2")]
    assert rest == ["j1"], f"jobs(after=) must give what is older; got {rest}"
    assert b.store.get("nothing") is None, "get() of an unknown id must be None"


def _keys(b: Bench) -> None:
    b.put("j1", key="k")
    again, other = b.store.put(
        [new_job("j2", key="k"), NewJob("j3", "another", "o", b"x", "", "k")]
    )
    assert (again.id, again.is_new) == ("j1", False), "a known key must give its first job"
    assert not again.is_same, "a key used with another request must be told apart"
    assert other.is_new, "keys of two endpoints must not meet"
    (same,) = b.store.put(
        [NewJob("j4", _E, "o", b"j1", idempotency_key="k")],
    )
    assert same.is_same, "a key used with the same request must say so"
    assert b.store.get("j2") is None, "a job that was not made must not be there"


def _quota(b: Bench) -> None:
    b.put("j1", "j2")
    try:
        b.put("j3", "j4")
    except QuotaError:
        pass
    else:
        raise AssertionError("more jobs than max_queued must be refused with QuotaError")
    assert b.store.counts(_E)[JobState.QUEUED] == 2, "a refused put must keep none of its jobs"
    b.put("j3")


def _fence(b: Bench) -> None:
    b.put("j1")
    late = b.one()
    b.time.pass_s(10.1)
    assert b.store.next_due_s(_E) == 0.0, "a lease that ran out must be due"
    b.claim("b")  # takes the lapsed job back, which then waits
    b.time.pass_s(8.1)
    winner = b.one("b")
    assert winner.attempt == late.attempt + 1, "each hand-out must be another attempt"
    published: list[str] = []
    done = b.store.complete(late, publish=lambda: published.append("late"))
    assert not done, "a lease that was given to another must not complete"
    assert not published, "a late attempt must not publish"
    assert b.store.fail(late, "late") is None, "a late attempt must not fail the job"
    assert b.store.release([late]) == 0, "a late attempt must not release the job"
    assert b.store.complete(winner, size_bytes=3, note="n", publish=lambda: published.append("w"))
    assert published == ["w"], "the winner's result must be published once"
    assert not b.store.complete(winner), "a job must not complete twice"
    job = b.store.get("j1")
    assert job is not None
    found = (job.state, job.lapses, job.result_bytes, job.note)
    assert found == (JobState.SUCCEEDED, 1, 3, "n"), f"get() must tell the end; got {found}"


def _publishing_fails(b: Bench) -> None:
    def publish() -> None:
        raise OSError("no room")

    b.put("j1")
    lease = b.one()
    try:
        b.store.complete(lease, publish=publish)
    except OSError:
        pass
    else:
        raise AssertionError("complete() must pass on the error of publish")
    assert b.state("j1") is JobState.RUNNING, "a result that is not there must not be a success"
    assert b.store.complete(lease), "the lease must still be good after a failed publish"


def _heartbeat(b: Bench) -> None:
    b.put("j1", "j2")
    leases = b.claim(n=2)
    b.time.pass_s(9.0)
    assert b.store.heartbeat(leases, lease_s=10.0) == {"j1", "j2"}, "a holder keeps its leases"
    b.time.pass_s(9.0)
    assert b.claim("b", n=2) == [], "an extended lease must not run out at its first end"
    b.store.cancel("j2")
    kept = b.store.heartbeat(leases, lease_s=10.0)
    assert kept == {"j1"}, f"a heartbeat must tell which leases are lost; got {set(kept)}"


def _failures(b: Bench) -> None:
    b.put("j1")
    for _ in range(b.retry.max_failures):
        state = b.store.fail(b.one(), "boom")
        assert not b.claim("b"), "a failed job must wait before it is tried again"
        b.time.pass_s(8.1)
    assert state is b.state("j1") is JobState.DEAD, "max_failures failures must make a job dead"
    job = b.store.get("j1")
    assert job is not None
    assert (job.failures, job.error) == (b.retry.max_failures, "boom"), "the reason must be kept"


def _refusal(b: Bench) -> None:
    b.put("j1")
    assert b.store.fail(b.one(), "no such input", retry=False) is JobState.DEAD
    assert b.store.counts(_E)[JobState.DEAD] == 1, "a refused job must go to the dead letter"


def _poison(b: Bench) -> None:
    b.put("poison")
    for life in range(b.retry.max_lapses):
        lease = b.one(f"life{life}")
        suspected = life >= b.retry.suspect_lapses
        assert lease.is_suspect == suspected, "a job that lapsed often must be marked as suspect"
        b.put(f"good{life}")
        got = b.claim(f"life{life}", n=5)
        assert (not got) == suspected, "who holds a suspect must get nothing beside it"
        b.store.release(got)
        assert b.store.lapse(f"life{life}") == 1, "lapse() must take back what a dead owner held"
        b.time.pass_s(8.1)
        for other in b.claim("clean", n=9):
            if other.job != "poison":
                b.store.complete(other)
            else:
                b.store.release([other])
    assert b.state("poison") is JobState.DEAD, "a job that lapsed max_lapses times must be dead"
    assert b.store.lapse("nobody") == 0


def _released(b: Bench) -> None:
    b.put("j1")
    assert b.store.release([b.one()]) == 1
    again = b.one("b")
    job = b.store.get("j1")
    assert job is not None
    assert again.attempt == 2, "a released job must be due at once, under a new fence"
    assert (job.failures, job.lapses) == (0, 0), "giving a job back must not count against it"
    assert b.store.lapse("b", blame=False) == 1
    assert b.one("c").job == "j1", "an owner ended on purpose must leave its jobs due at once"
    job = b.store.get("j1")
    assert job is not None
    assert job.lapses == 0, "an owner ended on purpose must not count against its jobs"


def _cancelling(b: Bench) -> None:
    b.put("waits", "runs")
    assert b.store.cancel("waits"), "cancel() must return the job"
    lease = b.one()
    b.store.cancel("runs")
    assert not b.store.complete(lease), "a cancelled job must not complete"
    assert b.state("runs") is b.state("waits") is JobState.CANCELLED
    b.put("done")
    b.store.complete(b.one())
    found = b.store.cancel("done")
    assert found is not None
    assert found.state is JobState.SUCCEEDED, "an ended job must stay as it is"
    assert b.store.cancel("nothing") is None, "cancel() of an unknown id must be None"


def _ttl(b: Bench) -> None:
    b.put("short", ttl_s=5.0)
    b.put("long", ttl_s=50.0)
    b.time.pass_s(6.0)
    assert [lease.job for lease in b.claim(n=5)] == ["long"], "a job past its ttl must not start"
    assert b.state("short") is JobState.EXPIRED


def _counting(b: Bench) -> None:
    b.put("a", "b", "c", "d")
    b.store.complete(b.one())
    b.one()
    b.store.cancel("d")
    found = {state.value: n for state, n in b.store.counts(_E).items()}
    wanted = {"queued": 1, "running": 1, "succeeded": 1, "dead": 0, "cancelled": 1, "expired": 0}
    assert found == wanted, f"counts() must give every state; got {found}"
    assert set(b.store.counts("unknown").values()) == {0}


def _jump(b: Bench) -> None:
    for jump in (_YEAR_S, -2 * _YEAR_S):
        b.put(f"waits{jump}", ttl_s=100.0)
        b.put(f"runs{jump}", ttl_s=100.0)
        held = b.one()
        b.time.wall += jump
        reopened = b.again()
        other = [lease.job for lease in reopened.claim(_E, "b", n=5, lease_s=10.0)]
        reopened.close()
        assert held.job not in other, "a clock that is set must not end a lease"
        assert len(other) == 1, "a clock that is set must not expire a job"
        assert b.store.complete(held), "a clock that is set must not move the fence"


def _restart(b: Bench) -> None:
    b.put("held", "waits")
    b.put("old", ttl_s=30.0)
    held = b.one()
    b.store.close()
    b.time.boot, b.time.steady, b.time.wall = "second", 5.0, b.time.wall + 60.0
    b.store = b.again()
    names = [lease.job for lease in b.claim("b", n=5)]
    b.time.pass_s(8.1)
    names += [lease.job for lease in b.claim("b", n=5)]
    assert sorted(names) == ["held", "waits"], (
        f"after a restart of the machine leases must be over and ttls go on; got {names}"
    )
    assert not b.store.complete(held), "a lease from before a restart must be void"


def _telling(b: Bench) -> None:
    b.put("j1", notify="http://x")
    b.put("quiet")
    assert b.store.notices("n", n=5, lease_s=10.0) == [], "nothing is told before the end"
    for lease in b.claim(n=2):
        b.store.complete(lease)
    (notice,) = b.store.notices("n", n=5, lease_s=10.0)
    assert (notice.job, notice.url, notice.tries) == ("j1", "http://x", 1)
    assert b.store.notices("m", n=5, lease_s=10.0) == [], "an end is told by one at a time"
    b.store.settle(notice, delivered=False, again_in_s=20.0)
    b.time.pass_s(20.1)
    (notice,) = b.store.notices("n", n=5, lease_s=10.0)
    assert notice.tries == 2, "a notice must be tried again"
    b.store.settle(notice, delivered=True)
    b.time.pass_s(100.0)
    assert b.store.notices("n", n=5, lease_s=10.0) == [], "what was delivered is not told again"
    job = b.store.get("j1")
    assert job is not None
    assert job.notice == "delivered"


def _retention(b: Bench) -> None:
    for name in ("old", "big", "new"):
        b.put(name, key=name)
        b.store.complete(b.one(), size_bytes=100)
        b.time.pass_s(10.0)
    b.put("alive")

    def stale(retention_s: float, max_bytes: int) -> list[str]:
        found = b.store.stale(retention_s=retention_s, max_bytes=max_bytes, limit=9)
        return [job.id for job in found]

    assert stale(25.0, 10**9) == ["old"], "what ended before the retention must be stale"
    assert stale(1e6, 150) == ["old", "big"], "the oldest results must go until the rest fits"
    assert b.store.forget(["old", "alive"]) == 1, "only ended jobs may be forgotten"
    assert b.store.get("old") is None
    assert b.store.put([new_job("old2", key="old")])[0].is_new, "a forgotten key must be free"
    assert stale(1e6, 200) == [], "a forgotten result must not count"


def _race(b: Bench) -> None:
    b.put(*(f"j{i}" for i in range(40)))

    def take(owner: int) -> list[str]:
        store = b.again()
        try:
            return [
                lease.job
                for _ in range(20)
                for lease in store.claim(_E, f"o{owner}", n=2, lease_s=99.0)
            ]
        finally:
            store.close()

    with ThreadPoolExecutor(4) as pool:
        taken = [job for jobs in pool.map(take, range(4)) for job in jobs]
    assert sorted(taken) == sorted(f"j{i}" for i in range(40)), (
        "each job must be handed to exactly one of many claimers"
    )


_CHECKS: tuple[Callable[[Bench], None], ...] = (
    _order, _keys, _quota, _fence, _publishing_fails, _heartbeat, _failures, _refusal, _poison,
    _released, _cancelling, _ttl, _counting, _jump, _restart, _telling, _retention, _race,
    *RETRY_CHECKS,
)  # fmt: skip
