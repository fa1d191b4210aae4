"""The part of the contract of job stores that gives dead jobs a second life."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ingot.serve.jobs.job import Job, JobState, QuotaError
from ingot.testing.job_bench import ENDPOINT, Bench


def _die(b: Bench, job: str) -> None:
    """Claim the one due job, which must be this one, and let it be refused for good."""
    lease = b.one()
    assert lease.job == job
    assert b.store.fail(lease, "no such input", retry=False) is JobState.DEAD


def _job(b: Bench, job: str) -> Job:
    found = b.store.get(job)
    assert found is not None
    return found


def _second_life(b: Bench) -> None:
    b.put("j1", key="k")
    for _ in range(b.retry.max_failures):
        b.store.fail(b.one(), "boom")
        b.time.pass_s(8.1)
    died = _job(b, "j1")
    assert b.store.requeue(["j1"]) == ["j1"], "requeue() must return the dead jobs it put back"
    job = _job(b, "j1")
    found = (job.state, job.failures, job.lapses, job.ended, job.attempt)
    wanted = (JobState.QUEUED, 0, 0, 0.0, died.attempt)
    assert found == wanted, f"a job put back must have its tries, and count on; got {found}"
    assert "boom" in job.note, "a job that was put back must say why it had died"
    again = b.one("b")
    assert again.body == b"j1", "a job that was put back must keep its request"
    assert again.attempt == died.attempt + 1, "each hand-out must be another attempt"
    assert b.store.fail(again, "boom") is JobState.QUEUED, "a job put back must have all its tries"
    b.time.pass_s(8.1)
    assert b.store.complete(b.one("c")), "a job that was put back must be able to succeed"
    assert "boom" in _job(b, "j1").note, "why it had died must be kept beyond its end"
    assert b.store.requeue(["j1"]) == [], "a job that succeeded must not run again"


def _only_the_dead(b: Bench) -> None:
    b.put("done", "dead", "gone", "held")
    b.put("waits")
    b.put("late", ttl_s=1.0)
    b.store.complete(b.one())
    _die(b, "dead")
    b.store.cancel("gone")
    b.time.pass_s(2.0)
    held = b.one("h")
    assert b.state("late") is JobState.EXPIRED
    names = ["late", "waits", "held", "gone", "done", "unknown", "dead", "dead"]
    before = b.store.counts(ENDPOINT)
    found = b.store.requeue(names)
    assert found == ["dead"], f"only dead jobs may be put back, each once; got {found}"
    assert b.store.requeue(names) == [], "a job that was put back is not dead"
    after = b.store.counts(ENDPOINT)
    moved = {state.value: after[state] - before[state] for state in JobState}
    assert moved == {"queued": 1, "running": 0, "succeeded": 0, "dead": -1, "cancelled": 0,
                     "expired": 0}, f"a job put back must be counted once; got {moved}"  # fmt: skip
    assert b.store.complete(held), "a job that runs must not notice"
    assert b.store.requeue([]) == []


def _late_word(b: Bench) -> None:
    b.put("j1")
    leases = []
    for _ in range(b.retry.max_lapses):
        leases.append(b.one())
        b.store.lapse("a")
        b.time.pass_s(8.1)
    assert b.store.requeue(["j1"]) == ["j1"]
    published: list[int] = []

    def no_late_word() -> None:
        for late in leases:
            done = b.store.complete(late, publish=lambda: published.append(0))
            assert not done, "an attempt from before the death must not complete"
            assert b.store.fail(late, "late") is None, "nor fail the job"
        assert b.store.release(leases) == 0, "nor release it"
        assert b.store.heartbeat(leases, lease_s=10.0) == frozenset(), "nor extend its lease"

    no_late_word()
    winner = b.one()  # the same owner as all those before
    assert not winner.is_suspect, "a job that was put back must be judged anew"
    no_late_word()
    assert b.store.requeue(["j1"]) == [], "a job that runs must not be put back"
    assert b.store.complete(winner, publish=lambda: published.append(1))
    assert not b.store.complete(winner), "a job that was put back must not complete twice"
    assert published == [1], "the winner's result must be published once"


def _whole_ttl(b: Bench) -> None:
    b.put("in", "over", ttl_s=5.0)
    _die(b, "in")
    _die(b, "over")
    b.time.pass_s(100.0)
    b.store.requeue(["in", "over"])
    assert b.store.stale(retention_s=0.0, max_bytes=0, limit=9) == [], "a waiting job is not stale"
    assert b.store.forget(["in", "over"]) == 0, "a job that was put back must not be forgotten"
    b.time.pass_s(4.0)
    assert b.one().job == "in", "a job that was put back must have a whole ttl"
    b.time.pass_s(2.0)
    assert b.claim("b") == [], "the ttl of a job that was put back must end"
    assert b.state("over") is JobState.EXPIRED


def _told_anew(b: Bench) -> None:
    b.put("j1", notify="http://x")
    _die(b, "j1")
    (death,) = b.store.notices("n", n=5, lease_s=10.0)
    b.store.requeue(["j1"])
    assert _job(b, "j1").notice == "", "a job that was put back has no end to tell"
    b.time.pass_s(10.1)
    assert b.store.notices("n", n=5, lease_s=10.0) == [], "nothing is told before the next end"
    b.store.complete(b.one())
    (success,) = b.store.notices("n", n=5, lease_s=10.0)
    assert (success.state, success.tries) == (JobState.SUCCEEDED, 1), "tries must count anew"
    b.store.settle(death, delivered=True)
    b.time.pass_s(10.1)
    (again,) = b.store.notices("n", n=5, lease_s=10.0)
    assert again.state is JobState.SUCCEEDED, "news of a death must not settle a success"
    b.store.settle(again, delivered=True)
    b.time.pass_s(100.0)
    assert b.store.notices("n", n=5, lease_s=10.0) == [], "a success is told once"
    assert _job(b, "j1").notice == "delivered"


def _no_room(b: Bench) -> None:
    b.put("dead1", "dead2")
    _die(b, "dead1")
    _die(b, "dead2")
    b.put(*(f"j{i}" for i in range(b.max_queued - 1)))
    try:
        b.store.requeue(["dead1", "dead2"])
    except QuotaError:
        pass
    else:
        raise AssertionError("more jobs than max_queued must be refused with QuotaError")
    assert b.store.counts(ENDPOINT)[JobState.DEAD] == 2, "a refused requeue must put none back"
    assert b.store.requeue(["dead2"]) == ["dead2"]


def _many_at_once(b: Bench) -> None:
    names = [f"j{i}" for i in range(20)]
    b.put(*names)
    for name in names:
        _die(b, name)

    def put_back(_: int) -> list[str]:
        store = b.again()
        try:
            return [job for name in names for job in store.requeue([name])]
        finally:
            store.close()

    with ThreadPoolExecutor(4) as pool:
        found = [job for jobs in pool.map(put_back, range(4)) for job in jobs]
    assert sorted(found) == sorted(names), "each dead job must be put back by exactly one of many"
    assert b.store.counts(ENDPOINT)[JobState.QUEUED] == len(names)


RETRY_CHECKS: tuple[Callable[[Bench], None], ...] = (
    _second_life, _only_the_dead, _late_word, _whole_ttl, _told_anew, _no_room, _many_at_once,
)  # fmt: skip
