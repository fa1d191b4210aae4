import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from outside import wait_for

from ingot.core.errors import EngineError, MissingExtraError, ServeError
from ingot.models.model import Signature, TensorSpec
from ingot.observe.log import ObservationLog
from ingot.runtime.engine import EngineConfig
from ingot.serve import assembly, server
from ingot.serve.running import stop_signals
from ingot.serve.server import serve_in_thread
from ingot.serve.warmup import inline_limit, sample_feeds, warm_up

HERE = Path(__file__).parent
INFER = "/v2/models/doubler/infer"


class Gate:
    """A session whose answer waits until the test says so, once the warm-up is over."""

    config = EngineConfig()

    def __init__(self):
        self.entered, self.opened, self.calls, self.is_closed = (
            threading.Event(), threading.Event(), 0, False,
        )  # fmt: skip

    def run(self, feeds):
        self.calls += 1
        if self.calls > 2:
            self.entered.set()
            assert self.opened.wait(20)
        return {"y": feeds["x"], "kept": feeds["mask"] > 0}

    def close(self):
        self.is_closed = True


@pytest.fixture
def slow(endpoint):
    gate = Gate()
    running = serve_in_thread(endpoint, gate)
    running.state.inline_bytes = 0
    yield SimpleNamespace(gate=gate, running=running, url=running.url)
    gate.opened.set()
    running.stop()


def post_in_thread(url, body, answers):
    def post():
        try:
            answers.append(
                httpx.post(url + INFER, json=body, timeout=20, trust_env=False).status_code
            )
        except httpx.HTTPError as error:
            answers.append(type(error).__name__)

    thread = threading.Thread(target=post)
    thread.start()
    return thread


def test_draining_finishes_the_request_in_flight_and_refuses_new_ones(slow, body):
    answers = []
    asking = post_in_thread(slow.url, body, answers)
    assert slow.gate.entered.wait(20)
    stopping = threading.Thread(target=slow.running.stop)
    stopping.start()
    wait_for(lambda: slow.running.state.is_draining)

    late = httpx.post(slow.url + INFER, json=body, trust_env=False)
    ready = httpx.get(slow.url + "/v2/health/ready", trust_env=False)
    slow.gate.opened.set()
    asking.join()
    stopping.join()

    assert (late.status_code, ready.status_code) == (503, 503)
    assert answers == [200]
    with pytest.raises(httpx.ConnectError):
        httpx.post(slow.url + INFER, json=body, trust_env=False)


def test_a_request_that_outlives_the_drain_is_cut_off(endpoint, body):
    gate = Gate()
    running = serve_in_thread(replace(endpoint, drain_s=0.05), gate)
    running.state.inline_bytes = 0
    answers = []
    asking = post_in_thread(running.url, body, answers)
    assert gate.entered.wait(20)

    running.stop()
    gate.opened.set()
    asking.join()

    assert not running.is_alive
    assert answers != [200]


def test_a_slow_request_does_not_keep_health_from_answering(slow, body):
    asking = post_in_thread(slow.url, body, [])
    assert slow.gate.entered.wait(20)

    live = httpx.get(slow.url + "/v2/health/live", trust_env=False)
    slow.gate.opened.set()
    asking.join()

    assert live.status_code == 200


def test_stopping_twice_does_nothing_more(endpoint):
    running = serve_in_thread(endpoint, Gate())
    running.stop()

    running.stop()

    assert not running.is_alive


def test_a_taken_port_fails_before_the_model_is_touched(endpoint):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = replace(endpoint, port=other.getsockname()[1])

        with pytest.raises(ServeError, match="Choose another port, or 0"):
            serve_in_thread(taken, object())


def test_a_port_that_cannot_be_is_refused(endpoint):
    with pytest.raises(ServeError, match="must be 1 to 65535, or 0 for a free one; got 99999"):
        serve_in_thread(replace(endpoint, port=99_999), object())


def test_an_ipv6_address_is_written_in_brackets(endpoint):
    try:
        running = serve_in_thread(replace(endpoint, host="::1"), Gate())
    except ServeError:
        pytest.skip("this machine has no IPv6 loopback")

    with running:
        assert running.url.startswith("http://[::1]:")


def test_a_missing_extra_is_named(endpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)

    with pytest.raises(MissingExtraError, match=r"ingot\[serve\]"):
        serve_in_thread(endpoint, Gate())


def test_an_endpoint_without_a_log_answers(endpoint, body):
    with serve_in_thread(replace(endpoint, log=None), Gate()) as running:
        assert httpx.get(running.url + "/metrics", trust_env=False).status_code == 200


def test_a_session_that_the_endpoint_opened_is_closed_by_it(endpoint, monkeypatch):
    gate = Gate()
    monkeypatch.setattr(assembly, "_open_session", lambda endpoint: gate)

    serve_in_thread(endpoint).stop()

    assert gate.is_closed


def test_a_model_that_never_answers_is_not_served_and_its_port_is_free_again(endpoint, monkeypatch):
    class Mute(Gate):
        def run(self, feeds):
            raise EngineError("node Conv_1: bad shape")

    with pytest.raises(ServeError, match="node Conv_1: bad shape"):
        serve_in_thread(endpoint, Mute())


def test_warm_up_tries_other_sizes_until_one_fits():
    signature = Signature((TensorSpec("x", "float32", ("batch", "length")),), ())

    class Wants32:
        def run(self, feeds):
            if feeds["x"].shape != (1, 32):
                raise EngineError("no")
            return {}

    ticks = iter([1.0, 1.0005])
    feeds, latency_ms = warm_up(Wants32(), signature, EngineConfig(), clock=lambda: next(ticks))

    assert feeds["x"].shape == (1, 32)
    assert latency_ms == pytest.approx(0.5)


def test_warm_up_uses_the_first_bucket():
    signature = Signature((TensorSpec("ids", "int64", ("batch", "sequence")),), ())
    session = SimpleNamespace(run=lambda feeds: {})

    feeds, _ = warm_up(session, signature, EngineConfig(buckets=(24, 48)))

    np.testing.assert_array_equal(feeds["ids"], np.ones((1, 24), np.int64))


def test_sample_feeds_are_zeros_for_floats_and_ones_for_the_rest():
    specs = (TensorSpec("a", "float16", (2, 3)), TensorSpec("b", "bool", ("n",)))

    feeds = sample_feeds(Signature(specs, ()), 5)

    assert feeds["a"].sum() == 0
    assert feeds["a"].shape == (2, 3)
    assert feeds["b"].tolist() == [True]


@pytest.mark.parametrize(
    ("latency_ms", "body_bytes", "limit"),
    [(0.5, 200, 400), (1.0, 200, 0), (3.0, 200, 0), (0.0, 200, 65536), (0.9, 90, 100)],
)
def test_inline_limit_keeps_the_event_loop_free_for_a_millisecond(latency_ms, body_bytes, limit):
    assert inline_limit(latency_ms, body_bytes) == limit


def test_run_serves_until_it_is_told_to_stop_and_restores_the_signals(endpoint, monkeypatch):
    gate, statuses = Gate(), []
    monkeypatch.setattr(assembly, "_open_session", lambda endpoint: gate)
    before = signal.getsignal(signal.SIGTERM)

    def stop(url):
        statuses.append(httpx.get(url + "/v2/health/ready", trust_env=False).status_code)
        os.kill(os.getpid(), signal.SIGTERM)

    endpoint.run(on_ready=stop)

    assert statuses == [200]
    assert gate.is_closed
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_end_of_a_terminal_is_left_alone_where_it_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_server_that_dies_by_itself_is_an_error(endpoint, monkeypatch):
    start = server.serve_in_thread

    def dying(*args):
        running = start(*args)
        running.server.should_exit = True
        return running

    monkeypatch.setattr(server, "serve_in_thread", dying)

    with pytest.raises(ServeError, match="ended by itself"):
        server.run(endpoint, Gate())


def test_equal_endpoints_have_equal_digests(endpoint):
    assert replace(endpoint).digest == endpoint.digest
    assert replace(endpoint, port=1).digest != endpoint.digest


SERVE = """
import signal
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever these tests run under
from conftest import MODEL_DIGEST, SIGNATURE, Doubler
from ingot.models.model import Lineage, Model
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.serve import assembly
from ingot.serve.endpoint import Endpoint
model = Model(Path({folder!r}), MODEL_DIGEST, SIGNATURE, Lineage("onnx"), "doubler")
version = Version("doubler", 3, MODEL_DIGEST, MODEL_DIGEST, EngineConfig(), "t", 0)
assembly._open_session = lambda endpoint: Doubler()
Endpoint(version, model, port=0).run(on_ready=lambda url: print(url, flush=True))
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_process_with_exit_code_0(tmp_path, body, number):
    code = dedent(SERVE).format(here=str(HERE), folder=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        url = process.stdout.readline().strip()
        answer = httpx.post(url + INFER, json=body, trust_env=False)
        process.send_signal(number)
        rest = process.stdout.read()

        assert answer.status_code == 200
        assert rest == "ended\n"
    assert process.returncode == 0


LIGHT = """
import sys
from pathlib import Path
import httpx
from ingot.models.store import open_model
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.serve.endpoint import Endpoint
from ingot.serve.server import serve_in_thread
model = open_model(Path({folder!r}))
version = Version("cnn", 1, model.digest, model.digest, EngineConfig(threads=1), "t", 0)
zeros = {{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0] * 64}}
with serve_in_thread(Endpoint(version, model, port=0)) as running:
    url = running.url + "/v2/models/cnn/infer"
    assert httpx.post(url, json={{"inputs": [zeros]}}, trust_env=False).status_code == 200
print([name for name in ("torch", "onnx") if name in sys.modules])
"""


def test_serving_a_request_imports_neither_torch_nor_onnx(cnn):
    code = dedent(LIGHT).format(folder=str(cnn.path))

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stdout == "[]\n", done.stderr


def test_callers_that_hang_up_keep_nobody_waiting(slow, endpoint, body):
    gate, running = slow.gate, slow.running
    content = json.dumps(body).encode()
    request = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
    address = httpx.URL(running.url)
    callers = [socket.create_connection((address.host, address.port)) for _ in range(50)]
    for caller in callers:
        caller.sendall(request.encode() + content)
    wait_for(lambda: running.state.waiting == 50)
    for caller in callers:
        caller.close()

    wait_for(lambda: running.state.in_flight == 0)  # while the engine is still at the first

    assert running.state.waiting == 0
    gate.opened.set()
    assert httpx.post(running.url + INFER, json=body, trust_env=False).status_code == 200
    running.stop()
    with ObservationLog(endpoint.log) as log:
        assert [row.status for row in log.read()].count(499) == 50
    assert gate.calls < 30
