"""The driver for PostgreSQL, on a server that the tests start for themselves."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from job_words import request_of
from outside import wait_for

from ingot.core.errors import MissingExtraError
from ingot.serve.deploy.scaling import AsyncScaling, Scaling, scaled_object
from ingot.serve.jobs import postgres_store
from ingot.serve.jobs.client import JobClient
from ingot.serve.jobs.job import JobState, StoreError
from ingot.serve.jobs.postgres_store import PostgresJobStore
from ingot.serve.jobs.server import serve_jobs_in_thread
from ingot.serve.jobs.settings import AsyncSettings
from ingot.testing.check_job_store import check_job_store
from ingot.testing.job_bench import new_job
from ingot.testing.kill_jobs import kill_jobs
from ingot.twin.policy import ScalingPolicy


class Server:
    """A PostgreSQL server on a socket of its own, without TCP."""

    def __init__(self, folder, programs, user):
        self.folder, self._programs, self._user = folder, programs, user
        self.url = f"host={folder} user=tester dbname=postgres"
        self._run("initdb", "-A", "trust", "-N", "-U", "tester")
        self.start()

    def _run(self, program, *words):
        subprocess.run([self._programs / program, "-D", self.folder / "data", *words], check=True,
                       capture_output=True, user=self._user, cwd=self.folder)  # fmt: skip

    def start(self):
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        self._run("pg_ctl", "-o", options, "-l", self.folder / "log", "-w", "start")

    def stop(self):
        self._run("pg_ctl", "-m", "immediate", "-w", "stop")


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("psycopg")
    initdb = shutil.which("initdb")
    user = None
    if os.getuid() == 0:  # the server refuses to run as root
        try:
            user = pwd.getpwnam("postgres").pw_uid
        except KeyError:
            pytest.skip("no user to run PostgreSQL as")
    if initdb is None:
        pytest.skip("PostgreSQL is not installed")
    # not in pytest's folder: a socket's path is short, and the other user must reach it
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        if user is not None:
            os.chown(folder, user, -1)
        found = Server(folder, Path(initdb).resolve().parent, user)
        yield found
        found.stop()


@pytest.fixture
def schema(request):
    return "t" + "".join(c for c in request.node.name.lower() if c.isalnum())[:40]


def test_the_postgres_driver_keeps_the_contract(server):
    def open_store(name, *, clock, retry, max_queued):
        return PostgresJobStore(
            server.url, schema=name.replace("-", "_"), clock=clock, retry=retry,
            max_queued=max_queued,
        )  # fmt: skip

    check_job_store(open_store)


def test_nothing_is_lost_and_nothing_completes_twice_under_sigkill(server, schema, tmp_path):
    open_store = partial(PostgresJobStore, server.url, schema=schema)

    found = kill_jobs(open_store, tmp_path, jobs=40, kills=4, work_s=0.02, seed=1)

    assert (found.lost, found.twice, found.kills) == (0, 0, 4)


def test_a_server_that_was_killed_has_lost_nothing_and_is_found_again(server, schema):
    store = PostgresJobStore(server.url, schema=schema)
    store.put([new_job("kept")])
    pid = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGQUIT)  # immediate: no buffer is written
    assert "must reach its PostgreSQL server" in wait_for(lambda: refusal(store))
    server.start()

    assert store.get("kept").state is JobState.QUEUED
    store.put([new_job("new")])
    store.close()


def refusal(store):
    try:
        store.get("kept")
    except StoreError as error:
        return str(error)
    return ""


def test_tables_of_a_later_version_are_refused(server, schema, monkeypatch):
    PostgresJobStore(server.url, schema=schema).close()
    monkeypatch.setattr(postgres_store, "FORMAT", 3)

    with pytest.raises(StoreError, match="format 3; this one has 2"):
        PostgresJobStore(server.url, schema=schema)


def test_tables_of_the_first_format_are_brought_up_to_date_and_keep_their_jobs(server, schema):
    store = PostgresJobStore(server.url, schema=schema)
    store.put([new_job("old")])
    store._link.run("ALTER TABLE jobs DROP COLUMN origin")
    store._link.run("UPDATE format SET version = 1")
    store.close()

    again = PostgresJobStore(server.url, schema=schema)

    assert again.get("old").origin == ""
    again.close()


def test_a_closed_store_says_so(server, schema):
    store = PostgresJobStore(server.url, schema=schema)
    store.close()
    store.close()

    with pytest.raises(StoreError):
        store.get("x")


def test_settings_open_the_shared_store(server, tmp_path):
    store = AsyncSettings(tmp_path, database=server.url).open_store(is_first=True)

    assert isinstance(store, PostgresJobStore)
    store.close()


def test_an_endpoint_answers_from_the_shared_store(server, endpoint, settings):
    with serve_jobs_in_thread(endpoint, replace(settings, database=server.url)) as running:
        client = JobClient(running.url, "doubler")
        ended = client.wait(client.submit(request_of(1.0, 2.0))["job"])

        assert ended["state"] == "succeeded"
        assert b"[2.0,4.0]" in client.result(ended["job"])


@pytest.mark.parametrize("schema", ["", "x; DROP TABLE jobs", "Upper", "a" * 60])
def test_a_schema_that_is_no_plain_name_is_refused(schema):
    with pytest.raises(StoreError, match="lower-case name"):
        PostgresJobStore("", schema=schema)


def test_without_the_driver_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)

    with pytest.raises(MissingExtraError, match=r"ingot\[postgres\]"):
        PostgresJobStore("postgresql://nowhere")


def test_a_server_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("psycopg")

    with pytest.raises(StoreError, match="Check the address"):
        PostgresJobStore(f"host={tmp_path} dbname=x user=y")


def test_the_query_that_scales_on_kubernetes_counts_the_backlog(server):
    psycopg = pytest.importorskip("psycopg")
    jobs = AsyncScaling("database", "s3://bucket/results")
    scaler = scaled_object(
        Scaling("http://prometheus:9090", ScalingPolicy(min_instances=0)),
        jobs,
        model="digits",
        namespace="ml",
    )
    query = scaler["spec"]["triggers"][0]["metadata"]["query"]
    store = PostgresJobStore(server.url)
    store.put([replace(new_job(f"job-{n}"), endpoint="digits") for n in range(3)])
    store.put([replace(new_job("job-of-another"), endpoint="letters")])
    with psycopg.connect(server.url) as database:
        found = database.execute(query).fetchone()[0]
    store.close()

    assert found == 3
