"""Asynchronous jobs: what is lost under SIGKILL, enqueue rates, cold starts, the long trace."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from _jobs_server import NAME
from _postgres_server import postgres_server
from _realtime import drive
from _results import HERE, Claim, Section

from ingot.core.errors import ServeError
from ingot.evaluate.intervals import proportion
from ingot.runtime.quantiles import quantile_interval
from ingot.serve.jobs.client import JobClient
from ingot.serve.jobs.job import JobState, NewJob
from ingot.serve.jobs.postgres_store import PostgresJobStore
from ingot.serve.jobs.sqlite_store import SqliteJobStore
from ingot.serve.jobs.table_store import TableJobStore
from ingot.testing.kill_jobs import kill_jobs
from ingot.twin.policy import ScalingPolicy
from ingot.twin.trace import replay

JOBS, KILLS, SEED = 1000, 50, 0
PUTS, COLD_STARTS, COLD_HOSTS, TRACE = 5000, 200, 9, 10_000
AT_ONCE, WEB_PUTS = 16, 250
WORK_S = 0.1  # a job of the kill test, so that kills hit jobs in hand
ARRIVALS_PER_S, SERVICE_S = 50.0, 0.25
COOLDOWN_S = 120.0


def kills(_data: Path, work: Path) -> Section:
    """Kill whoever puts and runs jobs: the driver alone, and a whole endpoint over HTTP."""
    folder = _empty(work / "kills")
    path = folder / "jobs.sqlite"
    SqliteJobStore(path).close()
    claims = _kill_driver("sqlite", partial(SqliteJobStore, path, is_first=False), folder)
    with postgres_server() as url:
        open_store = partial(PostgresJobStore, url)
        claims += _kill_driver("postgres", open_store, _empty(work / "kills_postgres"))
    whole = _kill_endpoint(_empty(work / "kill_endpoint"))
    return Section(claims + _lost_claims("whole endpoint over HTTP, sqlite", *whole))


def enqueue(_data: Path, work: Path) -> Section:
    """Put jobs one commit at a time, in both modes of durability; FULL in batches too."""
    folder, rows, claims = _empty(work / "enqueue"), [], []
    for durability, at_once in (("NORMAL", 1), ("FULL", 1), ("FULL", 64)):
        rates = [
            _enqueue_rate(folder / f"{durability}{at_once}{i}.sqlite", durability, at_once)
            for i in range(5)
        ]
        found = float(np.median(rates)), min(rates), max(rates)
        survives = "a process kill" if durability == "NORMAL" else "power loss"
        rows.append([durability, at_once, survives, *(round(rate) for rate in found)])
        if at_once == 1:
            asked = ">= 5000" if durability == "NORMAL" else "shown beside"
            claims.append(
                Claim(
                    f"enqueue at the store, one commit each, mode that survives {survives}",
                    *found, "1/s", len(rates), asked, durability == "FULL" or found[1] >= 5000, {},
                    f"synchronous={durability}, body of 400 bytes; least and most of 5 runs",
                )
            )  # fmt: skip
    with postgres_server() as url, closing(PostgresJobStore(url)) as store:
        rates = [_put_all(store, f"{run}-", PUTS // 10, 1) for run in range(5)]
    spread = (float(np.median(rates)), min(rates), max(rates))
    rows.append(["PostgreSQL, its own defaults", 1, "power loss", *(round(r) for r in spread)])
    rows.append(["NORMAL, over HTTP, 16 connections", "as they come", "a process kill",
                 *(round(rate) for rate in _web_rates(_empty(work / "enqueue_web")))])  # fmt: skip
    return Section(claims, {"enqueue": rows})


def cold(_data: Path, work: Path) -> Section:
    """Time from POST to the result's file, each job at an endpoint that has gone to zero."""
    hosts_s = [_cold_host(_empty(work / f"cold_host_{i}")) for i in range(COLD_HOSTS)]
    took = []
    with _server(_empty(work / "cold"), cooldown_s=0.0) as (process, url):
        client = JobClient(url, NAME)
        for _ in range(COLD_STARTS):
            _wait_zero(process)
            start = time.perf_counter()
            _wait_file(Path(client.submit(_request())["output"]))
            took.append((time.perf_counter() - start) * 1e3)
        decisions = _scaling(url)
    command = [sys.executable, "-m", "ingot.cli", "jobs", "demo", "--json"]
    began = time.monotonic()
    shown = subprocess.run(command, check=True, capture_output=True)
    demo_s, demo = time.monotonic() - began, json.loads(shown.stdout)
    woken = sum(row["action"] == "wake" for row in decisions)
    p95, low, high = quantile_interval(took, 0.95)
    p50 = float(np.median(took))
    host = quantile_interval(hosts_s, 0.5)
    return Section(
        [
            Claim("cold start from zero, warm host, enqueue to result, p95", p95, low, high, "ms",
                  len(took), "<= 100 ms", high <= 100, {"p50": p50},
                  f"small CNN on ONNX Runtime, POST to the file of the result; {woken} wakes"),
            Claim("cold host: start of the server to the first durable result", *host, "s",
                  COLD_HOSTS, "<= 3 s", host[2] <= 3, {}, "median of fresh processes and folders"),
            Claim("install to first durable async result: one command after install", demo_s,
                  demo_s, demo_s, "s", 1, "< 10 s", demo_s < 10, {},
                  f"`ingot jobs demo` from its start to its end; first result after "
                  f"{demo['first_s']:.2f} s, then {demo['jobs']} jobs and a killed instance; "
                  f"{demo['succeeded']} answered; the install itself is not counted"),
        ]
    )  # fmt: skip


def _cold_host(folder: Path) -> float:
    """Return seconds from the start of a server to the file of its first result."""
    began = time.monotonic()
    with _server(folder, cooldown_s=0.0) as (_process, url):
        _wait_file(Path(JobClient(url, NAME).submit(_request())["output"]))
        return time.monotonic() - began


def trace(_data: Path, work: Path) -> Section:
    """Ten thousand requests, fifty a second: in simulated time, and through a server."""
    arrivals = [i / ARRIVALS_PER_S for i in range(TRACE)]
    found = replay(ScalingPolicy(), arrivals, service_s=SERVICE_S, concurrency=2)
    charts = found.series()
    rows = [
        [round(t, 2), int(b), round(per, 2), int(n)]
        for t, b, per, n in zip(*charts.values(), strict=True)
    ]
    gap_s = float(np.diff(charts["time_s"]).max())
    note = (
        f"{ARRIVALS_PER_S:g}/s for {TRACE / ARRIVALS_PER_S:g} s, {SERVICE_S} s each, min 0, max 5, "
        f"target 5, cool-downs {COOLDOWN_S:g} s, two at once per instance; peak backlog "
        f"{max(charts['backlog']):.0f}, {found.instance_s:.0f} instance-seconds"
    )
    all_done = not np.isnan(found.finished_s).any()
    claims = _trace_claims("simulated", TRACE if all_done else 0, rows, gap_s, note)
    live = _live_trace(_empty(work / "trace"))
    return Section(claims + live.claims, {"trace": _turns(rows)} | live.rows)


def _live_trace(folder: Path) -> Section:
    """Put the same requests, at the same times, to a server with the same policy."""
    with _server(folder, cooldown_s=COOLDOWN_S, work_s=SERVICE_S) as (process, url):
        _watch(folder)
        client, request = JobClient(url, NAME), _request()
        began, start = time.time(), time.monotonic()
        for i in range(TRACE):
            time.sleep(max(0.0, start + i / ARRIVALS_PER_S - time.monotonic()))
            client.submit(request, idempotency_key=f"r{i}")
        put_s = time.monotonic() - start
        _wait_counts(client, TRACE)
        took_s = time.monotonic() - start
        _wait_zero(process)
        made = [row for row in _scaling(url) if row["time"] >= began]
    times = Counter(_completions(folder).values())
    # an endpoint that rests at zero writes one row for the whole rest; every other row has a next
    gap_s = max(b["time"] - a["time"] for a, b in pairwise(made) if a["instances"] or a["backlog"])
    rows = [
        [round(row["time"] - began, 1), row["backlog"],
         round(row["backlog"] / max(1, row["instances"]), 2), row["instances"]]
        for row in made
    ]  # fmt: skip
    note = (
        f"the same through a server, put in {put_s:.0f} s, all done after {took_s:.0f} s; peak "
        f"backlog {max(row[1] for row in rows)}; counted by a trigger in the file"
    )
    claims = _trace_claims("in real time", times[1], rows, gap_s, note)
    claims[0].met = times == {1: TRACE}
    return Section(claims, {"trace_live": _turns(rows)})


def _trace_claims(how: str, done: int, rows: list[list], gap_s: float, note: str) -> list[Claim]:
    name, (end_s, *_, left) = f"10,000-request trace, {how}", rows[-1]
    return [
        Claim(f"{name}: jobs done exactly once", done, done, done, "jobs", 1, "10000",
              done == TRACE, {}, note),
        Claim(f"{name}: instances at the end", left, left, left, "instances", 1, "0", left == 0,
              {}, f"zero again {end_s:.0f} s after the first request"),
        Claim(f"{name}: longest time between decisions", gap_s, gap_s, gap_s, "s", len(rows),
              "<= 1 s", gap_s <= 1.0),
    ]  # fmt: skip


def _turns(rows: list[list]) -> list[list]:
    """Return every tenth row, the last, and those where the number of instances changes."""
    last = len(rows) - 1
    return [
        row for i, row in enumerate(rows) if i % 10 == 0 or i == last or row[3] != rows[i - 1][3]
    ]


def _kill_driver(name: str, open_store: Callable[[], TableJobStore], folder: Path) -> list[Claim]:
    tally = kill_jobs(open_store, folder, jobs=JOBS, kills=KILLS, work_s=0.02, seed=SEED)
    note = (
        f"{tally.kills} kills, {tally.control_kills} of them of the control process; "
        f"{tally.again} attempts were handed out again; {tally.seconds:.0f} s"
    )
    return _lost_claims(f"{name} driver", tally.lost, tally.twice, note)


def _kill_endpoint(folder: Path) -> tuple[int, int, str]:
    """Return jobs lost, jobs completed twice, and how it went, for a server under SIGKILL."""
    rng = np.random.default_rng(SEED)
    control, put, began = 0, 0, time.monotonic()
    start = partial(_start, folder, cooldown_s=5.0, work_s=WORK_S)
    process, url = start()
    _watch(folder)
    accepted: set[str] = set()
    for kill in range(KILLS):
        until = min(JOBS, (kill + 1) * JOBS // KILLS)
        while put < until:
            with suppress(ServeError):  # the server is being started: ask again with the same key
                found = JobClient(url, NAME).submit(_request(), idempotency_key=f"r{put}")
                accepted.add(found["job"])
                put += 1
        time.sleep(rng.uniform(0.0, 2 * WORK_S))
        while not (_running(folder) and (instances := _instances(process.pid))):
            time.sleep(0.002)  # a kill that hits no running job would prove nothing
        victims = [process.pid, *instances]
        victim = victims[int(rng.integers(len(victims)))]
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        if victim == process.pid:
            control += 1
            process.wait()
            process, url = start()
    client = JobClient(url, NAME)
    _wait_counts(client, JOBS)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    with closing(SqliteJobStore(folder / "jobs" / "jobs.sqlite")) as store:
        ended = [store.get(job) for job in accepted]
    good = [job for job in ended if job is not None and job.state is JobState.SUCCEEDED]
    whole = [job for job in good if _is_whole(Path(job.output))]
    twice = sum(n > 1 for n in _completions(folder).values())
    again = sum(job.attempt - 1 for job in good)
    note = (
        f"{KILLS} kills, {control} of them of the server; {again} attempts were handed out again; "
        f"each result was read; completions counted by a trigger; {time.monotonic() - began:.0f} s"
    )
    return JOBS - len(whole), twice, note


def _lost_claims(what: str, lost: int, twice: int, note: str) -> list[Claim]:
    claims = []
    for name, found in (("lost", lost), ("completed twice", twice)):
        rate = proportion(found, JOBS)
        text = f"{what}: async jobs {name} under kill -9, of {JOBS}"
        more = f"{note}; 95 % upper bound of the rate {rate.high:.2%}"
        claims.append(Claim(text, found, found, found, "jobs", JOBS, "0", found == 0, {}, more))
    return claims


def _enqueue_rate(path: Path, durability: str, at_once: int) -> float:
    puts = PUTS if durability == "NORMAL" else PUTS // 10 * min(at_once, 10)
    with closing(SqliteJobStore(path, durability=durability)) as store:
        return _put_all(store, "", puts, at_once)


def _put_all(store: TableJobStore, prefix: str, puts: int, at_once: int) -> float:
    """Return the jobs put per second."""
    body = b"x" * 400
    jobs = [NewJob(f"{prefix}{i:032x}", NAME, f"out/{i}", body) for i in range(puts)]
    start = time.perf_counter()
    for i in range(0, puts, at_once):
        store.put(jobs[i : i + at_once])
    return puts / (time.perf_counter() - start)


def _web_rates(folder: Path) -> tuple[float, float, float]:
    """Return the median, least and most of five rates of accepted jobs over HTTP."""
    count = AT_ONCE * WEB_PUTS
    with _server(folder, cooldown_s=5.0) as (_process, url):
        host, _, port = url.removeprefix("http://").partition(":")
        body = json.dumps(_request()).encode()
        head = f"POST /v2/models/{NAME}/jobs HTTP/1.1\r\nhost: {host}\r\n"
        message = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        took = [drive(int(port), message, count, at_once=AT_ONCE, status=202) for _ in range(5)]
    rates = [count / seconds for seconds in took]
    return float(np.median(rates)), min(rates), max(rates)


def _watch(folder: Path) -> None:
    """Count completions where nobody who might be wrong does the counting."""
    with sqlite3.connect(folder / "jobs" / "jobs.sqlite", timeout=30) as db:
        db.execute("CREATE TABLE IF NOT EXISTS completions (id TEXT NOT NULL)")
        db.execute(
            "CREATE TRIGGER IF NOT EXISTS watch AFTER UPDATE OF state ON jobs"
            " WHEN new.state = 'succeeded' BEGIN INSERT INTO completions VALUES (new.id); END"
        )
    db.close()


def _running(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "jobs" / "jobs.sqlite", timeout=30)) as db:
        query = "SELECT coalesce(sum(n), 0) FROM counts WHERE state = 'running'"
        return db.execute(query).fetchone()[0]


def _completions(folder: Path) -> Counter[str]:
    with closing(sqlite3.connect(folder / "jobs" / "jobs.sqlite", timeout=30)) as db:
        return Counter(row[0] for row in db.execute("SELECT id FROM completions"))


def _request() -> dict:
    data = [0.5] * 64
    tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": data}
    return {"inputs": [tensor]}


def _is_whole(path: Path) -> bool:
    try:
        return len(json.loads(path.read_bytes())["outputs"][0]["data"]) == 4
    except (OSError, ValueError, KeyError):
        return False


def _start(folder: Path, *, cooldown_s: float, work_s: float = 0.0) -> tuple[subprocess.Popen, str]:
    words = [sys.executable, HERE / "_jobs_server.py", folder, str(cooldown_s), str(work_s)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    url = process.stdout.readline().strip()
    assert url, "the server must say where it answers"
    return process, url


@contextmanager
def _server(
    folder: Path, *, cooldown_s: float, work_s: float = 0.0
) -> Iterator[tuple[subprocess.Popen, str]]:
    process, url = _start(folder, cooldown_s=cooldown_s, work_s=work_s)
    try:
        yield process, url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _scaling(url: str) -> list[dict]:
    import urllib.request

    with urllib.request.urlopen(f"{url}/v2/models/{NAME}/scaling?limit=10000") as answer:
        return json.loads(answer.read())["decisions"]


def _instances(pid: int) -> list[int]:
    """Return the processes below the server's template: its instances."""
    return [child for server in _children(pid) for child in _children(server)]


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    with suppress(OSError):
        return [int(child) for child in path.read_text().split()]
    return []


def _wait_zero(process: subprocess.Popen) -> None:
    while _instances(process.pid):
        time.sleep(0.002)


def _wait_file(path: Path) -> None:
    while not path.exists():
        time.sleep(0.0005)


def _wait_counts(client: JobClient, jobs: int) -> None:
    until = time.monotonic() + 600
    while True:
        counts = client.jobs(limit=1)["counts"]
        if sum(counts.values()) == jobs and not counts["queued"] + counts["running"]:
            return
        assert time.monotonic() < until, f"all jobs must end; got {counts}"
        time.sleep(0.1)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
