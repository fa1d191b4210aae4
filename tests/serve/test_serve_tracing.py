import asyncio
import json
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otlp_collector import collecting

from ingot.core.errors import ServeError
from ingot.serve import tracing as tracing_module
from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access, Batching, Tracing
from ingot.serve.rides import RIDES
from ingot.serve.server import serve_in_thread
from ingot.serve.tracing import RUN, WAIT, Tracer

INFER = "/v2/models/doubler/infer"
SERVER = "POST /v2/models/{name}/infer"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ANYWHERE = Tracing("http://127.0.0.1:1")


@pytest.fixture
def exporter(monkeypatch):
    found = InMemorySpanExporter()
    monkeypatch.setattr(tracing_module, "open_exporter", lambda _: found)
    return found


@contextmanager
def serving(endpoint, session):
    with (
        serve_in_thread(endpoint, session) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=10) as client,
    ):
        yield running, client


def ask(endpoint, session, *requests, prepare=lambda _running: None):
    """Serve, send requests, stop; return the answers."""
    with serving(endpoint, session) as (running, client):
        prepare(running)
        return [client.post(INFER, **request) for request in requests]


def named(exporter, name):
    return [span for span in exporter.get_finished_spans() if span.name == name]


def test_a_request_has_a_span_with_its_wait_and_its_run_inside(endpoint, doubler, exporter, body):
    (answer,) = ask(replace(endpoint, tracing=ANYWHERE), doubler, {"json": body})

    (server,), (wait,), (run,) = (named(exporter, name) for name in (SERVER, WAIT, RUN))
    assert wait.parent.span_id == run.parent.span_id == server.context.span_id
    assert server.parent is None
    assert server.start_time <= wait.start_time <= wait.end_time == run.start_time
    assert run.start_time <= run.end_time <= server.end_time
    assert run.attributes["ingot.call.requests"] == 1
    assert {k: v for k, v in server.attributes.items() if k != "server.port"} == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{name}/infer",
        "http.response.status_code": 200,
        "url.path": INFER,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "ingot.model": "doubler",
        "ingot.version": endpoint.version.digest,
        "ingot.arm": "main",
        "ingot.request_id": answer.headers["x-request-id"],
    }
    assert server.kind.name == "SERVER"


def test_the_version_path_has_a_route_of_its_own(endpoint, doubler, exporter, body):
    with serving(replace(endpoint, tracing=ANYWHERE), doubler) as (_, client):
        client.post("/v2/models/doubler/versions/3/infer", json=body)

    assert len(named(exporter, "POST /v2/models/{name}/versions/{number}/infer")) == 1


@pytest.mark.parametrize(("sample", "flag", "spans"), [
    (1.0, "01", 1), (0.0, "01", 1), (1.0, "00", 0), (0.0, None, 0), (1.0, None, 1),
])  # fmt: skip
def test_callers_decide_about_their_traces_and_the_fraction_about_others(
    endpoint, doubler, exporter, body, sample, flag, spans
):
    headers = {} if flag is None else {"traceparent": f"00-{TRACE}-{PARENT}-{flag}"}
    traced = replace(endpoint, tracing=replace(ANYWHERE, sample=sample))

    ask(traced, doubler, {"json": body, "headers": headers})

    found = named(exporter, SERVER)
    assert len(found) == spans
    assert len(named(exporter, RUN)) == spans
    if flag == "01":
        assert f"{found[0].context.trace_id:032x}" == TRACE
        assert f"{found[0].parent.span_id:016x}" == PARENT


@pytest.mark.parametrize("parent", ["nonsense", "00-" + "0" * 32 + "-" + PARENT + "-01", "00", ""])
def test_a_traceparent_that_is_none_begins_a_trace(endpoint, doubler, exporter, body, parent):
    request = {"json": body, "headers": {"traceparent": parent}}

    (answer,) = ask(replace(endpoint, tracing=ANYWHERE), doubler, request)

    assert answer.status_code == 200
    assert named(exporter, SERVER)[0].parent is None


def test_requests_that_run_in_threads_are_traced_too(endpoint, doubler, exporter, body):
    def never_inline(running):
        running.state.inline_bytes = 0

    ask(replace(endpoint, tracing=ANYWHERE), doubler, {"json": body}, prepare=never_inline)

    (server,), (run,) = named(exporter, SERVER), named(exporter, RUN)
    assert run.parent.span_id == server.context.span_id


def test_requests_that_share_a_call_each_have_its_run_in_their_trace(
    endpoint, doubler, exporter, body
):
    batching = Batching(max_rows=4, max_wait_ms=10_000.0)  # two requests of two rows fill a call
    traced = replace(endpoint, tracing=ANYWHERE, batching=batching)
    with serving(traced, doubler) as (_, client), ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: client.post(INFER, json=body), range(2)))

    servers, runs, waits = (named(exporter, name) for name in (SERVER, RUN, WAIT))
    assert {run.attributes["ingot.call.requests"] for run in runs} == {2}
    for spans in (runs, waits):
        assert {s.parent.span_id for s in spans} == {s.context.span_id for s in servers}
    assert len(servers) == len(runs) == len(waits) == 2


def test_a_call_of_a_worker_is_traced_and_its_failure_seen(exporter):
    class Worker:
        ready = 1

        async def run(self, feeds):
            raise ServeError("secret words")

    tracer = Tracer(ANYWHERE, exporter=exporter)

    async def call():
        span = tracer.begin(
            {"headers": [], "method": "POST", "path": "/x", "scheme": "http",
             "http_version": "1.1", "path_params": {}}, "/x",
        )  # fmt: skip
        RIDES.set(tracer.ride(span))
        await tracer.runner(Worker()).run({"x": np.zeros(1)})

    with pytest.raises(ServeError):
        asyncio.run(call())
    tracer.close()

    (run,) = named(exporter, RUN)
    assert run.status.status_code.name == "ERROR"
    assert "secret" not in run.to_json()


def test_a_failure_of_the_server_is_an_error_and_one_of_the_caller_is_none(
    endpoint, doubler, exporter, body
):
    broken = json.loads(json.dumps(body))
    broken["inputs"][0]["data"][0] = -1
    traced = replace(endpoint, tracing=ANYWHERE)

    ask(traced, doubler, {"json": broken}, {"content": b"{"})

    failed, refused = named(exporter, SERVER)
    assert failed.status.status_code.name == "ERROR"
    assert failed.attributes["error.type"] == "500"
    assert refused.status.status_code.name == "UNSET"
    assert refused.attributes["http.response.status_code"] == 400


@pytest.fixture
def collector():
    with collecting() as found:
        yield found


def test_a_collector_gets_spans_and_no_secrets(endpoint, doubler, collector, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    store = KeyStore(tmp_path / "keys.sqlite")
    key, _ = store.create("robot", ["infer:doubler"])
    traced = replace(endpoint, tracing=Tracing(collector.url), access=Access(keys=store._path))
    secret = {"authorization": f"Bearer {key}", "cookie": "cookie-secret", "ingot-unit": "unit-ada"}

    ask(traced, doubler,
        {"content": b'{"inputs": "body-secret"}', "headers": secret},
        {"content": b"{}", "headers": secret | {"authorization": "Bearer ingot_wrong-secret"}},
        )  # fmt: skip

    for group in collector.groups:
        service = {a.key: a.value.string_value for a in group.resource.attributes}
        assert service["service.name"] == "ingot"
    assert {post[:2] for post in collector.posts} == {("/v1/traces", "application/x-protobuf")}
    assert [span.name for span in collector.spans].count(SERVER) == 2
    everything = b"".join(body for _, _, body in collector.posts) + caplog.text.encode()
    words = (key, key[-12:], "wrong-secret", "cookie-secret", "unit-ada", "body-secret")
    assert [word for word in words if word.encode() in everything] == []


def test_a_dead_collector_neither_fails_requests_nor_holds_the_stop(endpoint, doubler, body):
    answers = ask(replace(endpoint, tracing=ANYWHERE), doubler, *[{"json": body}] * 5)

    assert {answer.status_code for answer in answers} == {200}


def test_a_collector_that_hangs_costs_spans_and_not_time_or_memory(caplog):
    class Hanging(InMemorySpanExporter):
        def __init__(self):
            super().__init__()
            self.go = threading.Event()

        def export(self, spans):
            self.go.wait(30)
            return super().export(spans)

    exporter = Hanging()
    tracer = Tracer(ANYWHERE, exporter=exporter)
    for i in range(9000):
        tracer.note_job("", (i, 0, i + 1), {}, 200)
    exporter.go.set()
    tracer.close()

    kept = len(exporter.get_finished_spans())
    assert 4096 <= kept <= 4096 + 2 * 512
    assert "Queue full" in caplog.text


def test_without_tracing_the_library_is_not_even_imported(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from conftest import Doubler, SIGNATURE, MODEL_DIGEST\n"
        "from ingot.models.model import Lineage, Model\n"
        "from ingot.registry.version import Version\n"
        "from ingot.runtime.engine import EngineConfig\n"
        "from ingot.serve.endpoint import Endpoint\n"
        "from ingot.serve.server import serve_in_thread\n"
        "model = Model(Path(sys.argv[2]), MODEL_DIGEST, SIGNATURE, Lineage('onnx'), 'doubler')\n"
        "version = Version('doubler', 3, MODEL_DIGEST, MODEL_DIGEST, EngineConfig(), '', 0)\n"
        "with serve_in_thread(Endpoint(version, model, port=0), Doubler()): pass\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]

    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize(("url", "sample"), [("localhost:4318", 1.0), ("http://x", 1.5)])
def test_an_address_or_fraction_that_cannot_be_is_refused(url, sample):
    with pytest.raises(ServeError, match="http:// or https://"):
        Tracing(url, sample)
