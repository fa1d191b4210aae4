import asyncio
import os
import re
import signal
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

from ingot.core.errors import ServeError
from ingot.models.model import Lineage, Model, Signature, TensorSpec
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.serve.client import predict
from ingot.serve.endpoint import Batching, Endpoint
from ingot.serve.server import serve_in_thread
from ingot.serve.workers.nursery import Nursery
from ingot.serve.workers.pool import MOST_SENDS, Pool, shared_threads

HERE = Path(__file__).parent
DIGEST = "sha256:" + "ab" * 32
DIE_ONCE, DIE, HANG, REFUSE, BREAK, SLOW = -1, -2, -3, -4, -5, -6
URL = "/v2/models/fragile/infer"


@pytest.fixture
def fragile(tmp_path, monkeypatch):
    """An endpoint of an engine that dies, hangs or refuses when its input says so."""
    monkeypatch.syspath_prepend(str(HERE / "fragile"))
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 2)),),
        (TensorSpec("y", "float32", ("batch", 2)), TensorSpec("pid", "int64", ("batch", 1))),
    )
    model = Model(tmp_path, DIGEST, signature, Lineage("onnx"), "fragile")
    version = Version("fragile", 1, DIGEST, DIGEST, EngineConfig("fragile"), "t", 0)
    return Endpoint(version, model, port=0, workers=1)


def ask(running, value=1.0, **headers):
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [value, 2.0]}]}
    return httpx.post(running.url + URL, json=body, headers=headers, trust_env=False, timeout=30)


def page(running, path):
    return httpx.get(running.url + path, trust_env=False, timeout=30)


def pid_of(answer):
    return answer.json()["outputs"][1]["data"][0]


def metric(running, name):
    text = httpx.get(running.url + "/metrics", trust_env=False).text
    return float(re.search(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)[1])


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_answer_bit_by_bit_like_the_servers_own_process(cnn, images):
    version = Version("cnn", 1, cnn.digest, cnn.digest, EngineConfig(threads=1), "t", 0)
    endpoint = Endpoint(version, cnn, port=0)
    answers = []
    for workers in (0, 2):
        with serve_in_thread(replace(endpoint, workers=workers)) as running:
            answers.append(predict(running.url, "cnn", {"image": images[0][:3]})[0]["logits"])

    assert answers[0].tobytes() == answers[1].tobytes()


def test_a_request_whose_worker_dies_is_answered_by_another(fragile):
    with serve_in_thread(replace(fragile, workers=2)) as running:
        answer = ask(running, DIE_ONCE)
        resent = metric(running, "ingot_requests_resent_total")

    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["data"] == [-2.0, 4.0]
    assert resent == 1


def test_the_only_worker_is_replaced_and_answers_what_it_left(fragile):
    with serve_in_thread(fragile) as running:
        before = pid_of(ask(running))
        answer = ask(running, DIE_ONCE)

        assert answer.status_code == 200
        assert pid_of(answer) != before
        assert metric(running, "ingot_worker_restarts_total") == 1
        assert metric(running, "ingot_workers_ready") == 1


def test_no_request_is_lost_when_one_of_two_workers_is_killed_under_load(fragile):
    answers = []

    def load(running):
        answers.extend(ask(running) for _ in range(20))

    with serve_in_thread(replace(fragile, workers=2)) as running:
        clients = [threading.Thread(target=load, args=(running,)) for _ in range(4)]
        for client in clients:
            client.start()
        wait_for(lambda: len({pid_of(a) for a in tuple(answers)}) == 2)
        os.kill(pid_of(answers[-1]), signal.SIGKILL)
        for client in clients:
            client.join()

    assert len(answers) == 80
    assert {answer.status_code for answer in answers} == {200}


def test_no_request_is_lost_when_batches_lose_their_worker(fragile):
    answers = []

    def load(running):
        answers.extend(ask(running) for _ in range(15))

    endpoint = replace(fragile, workers=2, batching=Batching(4, 1.0))
    with serve_in_thread(endpoint) as running:
        clients = [threading.Thread(target=load, args=(running,)) for _ in range(6)]
        for client in clients:
            client.start()
        for kill in range(1, 4):
            wait_for(lambda kill=kill: len(answers) >= 20 * kill)
            os.kill(pid_of(answers[-1]), signal.SIGKILL)
        for client in clients:
            client.join()

    assert len(answers) == 90
    assert {answer.status_code for answer in answers} == {200}


def test_a_worker_that_dies_idle_is_replaced(fragile):
    with serve_in_thread(fragile) as running:
        pid = pid_of(ask(running))
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: metric(running, "ingot_worker_restarts_total") == 1)
        answer = ask(running)

        assert answer.status_code == 200
        assert pid_of(answer) != pid


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_outlive_their_template_and_a_new_one_forks_the_next(fragile):
    with serve_in_thread(fragile) as running:
        pid = pid_of(ask(running))
        os.kill(parent_of(pid), signal.SIGKILL)
        orphan = ask(running)
        os.kill(pid, signal.SIGKILL)
        after = ask(running)

    assert pid_of(orphan) == pid
    assert after.status_code == 200
    assert not is_there(pid_of(after))


def test_a_worker_takes_as_many_calls_at_a_time_as_its_engine_has_streams(fragile):
    version = replace(fragile.version, config=EngineConfig("fragile", threads=2, streams=2))
    with serve_in_thread(replace(fragile, version=version)) as running:
        statuses = []
        hung = threading.Thread(
            target=lambda: statuses.append(
                ask(running, HANG, **{"ingot-timeout-ms": "1000"}).status_code
            )
        )
        hung.start()
        wait_for(lambda: running.state.waiting == 1)
        beside = ask(running)
        hung.join()

    assert beside.status_code == 200
    assert statuses == [504]


def test_tensors_of_megabytes_cross_to_a_worker_and_back(fragile):
    array = np.random.default_rng(0).random((400_000, 2), np.float32)
    with serve_in_thread(fragile) as running:
        outputs, _ = predict(running.url, "fragile", {"x": array}, binary=True)

    np.testing.assert_array_equal(outputs["y"], array * 2)


def test_a_request_that_must_not_repeat_gets_503_when_its_worker_dies(fragile):
    with serve_in_thread(replace(fragile, is_idempotent=False)) as running:
        answer = ask(running, DIE_ONCE)
        after = ask(running)

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "not repeated" in answer.json()["detail"]
    assert after.status_code == 200


def test_a_request_that_ends_every_worker_is_given_up_and_the_endpoint_lives(fragile):
    with serve_in_thread(fragile) as running:
        answer = ask(running, DIE)
        after = ask(running)
        restarts = metric(running, "ingot_worker_restarts_total")

    assert answer.status_code == 500
    assert f"ended {MOST_SENDS}" in answer.json()["detail"]
    assert after.status_code == 200
    assert restarts == MOST_SENDS


def test_a_worker_that_hangs_is_replaced(fragile):
    with serve_in_thread(replace(fragile, timeout_s=0.3)) as running:
        before = pid_of(ask(running))
        hung = ask(running, HANG)
        after = ask(running, **{"ingot-timeout-ms": "60000"})
        wait_for(lambda: metric(running, "ingot_worker_restarts_total") == 1)
        wait_for(lambda: metric(running, "ingot_workers_ready") == 1)

        assert (hung.status_code, after.status_code) in {(504, 200), (504, 504)}
        assert pid_of(ask(running)) != before
        assert not is_there(before)


def test_a_callers_own_deadline_is_504_and_leaves_the_worker_alone(fragile):
    with serve_in_thread(fragile) as running:
        answer = ask(running, SLOW, **{"ingot-timeout-ms": "50"})
        restarts = metric(running, "ingot_worker_restarts_total")

    assert answer.status_code == 504
    assert "within 0.05 s" in answer.json()["detail"]
    assert restarts == 0


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "soon", "9" * 12])
def test_a_deadline_that_is_none_is_400(fragile, value):
    with serve_in_thread(replace(fragile, workers=0)) as running:
        assert ask(running, **{"ingot-timeout-ms": value}).status_code == 400


@pytest.mark.parametrize("workers", [0, 1])
def test_an_engine_that_answers_nothing_any_more_is_to_blame_and_not_the_request(fragile, workers):
    with serve_in_thread(replace(fragile, workers=workers)) as running:
        (fragile.model.path / "broken").touch()
        answer = ask(running)

    assert answer.status_code == 500


@pytest.mark.parametrize("workers", [0, 1])
def test_inputs_that_the_engine_refuses_are_422_with_its_words(fragile, workers):
    with serve_in_thread(replace(fragile, workers=workers)) as running:
        answer = ask(running, REFUSE)

    assert answer.status_code == 422
    assert "token 99" in answer.json()["detail"]


def test_an_empty_body_is_refused_by_the_server_itself(fragile):
    with serve_in_thread(fragile) as running:
        answer = httpx.post(running.url + URL, content=b"", trust_env=False)

    assert answer.status_code == 400


def test_an_engine_that_breaks_is_500_without_its_reason(fragile):
    with serve_in_thread(fragile) as running:
        answer = ask(running, BREAK)

    assert answer.status_code == 500
    assert "secret" not in answer.text


def test_more_requests_than_may_wait_get_429(fragile):
    statuses = []
    with serve_in_thread(replace(fragile, max_waiting=1)) as running:
        slow = threading.Thread(target=lambda: statuses.append(ask(running, SLOW).status_code))
        slow.start()
        wait_for(lambda: running.state.waiting == 1)
        refused = ask(running)
        slow.join()

    assert statuses == [200]
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"


def test_a_model_that_no_worker_can_open_is_refused_in_the_engines_words(fragile):
    (fragile.model.path / "unusable").touch()

    with pytest.raises(ServeError, match="this one is not"):
        serve_in_thread(fragile)


def test_a_worker_that_hangs_in_loading_is_given_up_and_named(fragile):
    (fragile.model.path / "stuck").touch()

    with pytest.raises(ServeError, match=r"within 0\.3 s of its start; process \d+ did not"):
        serve_in_thread(replace(fragile, load_timeout_s=0.3))


def test_readiness_says_that_workers_hang_in_loading_until_one_does_not(fragile):
    stuck = fragile.model.path / "stuck"
    with serve_in_thread(fragile) as running:
        pid = pid_of(ask(running))
        running.server._workforce._pools[0][1]._load_timeout_s = 1.0
        stuck.touch()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: "reason" in page(running, "/v2/health/ready").json())
        refused, model = (
            page(running, path) for path in ("/v2/health/ready", "/v2/models/fragile/ready")
        )
        stuck.unlink()
        wait_for(lambda: page(running, "/v2/health/ready").status_code == 200)
        answer = ask(running)

    assert refused.status_code == model.status_code == 503
    assert refused.json()["reason"] == model.json()["reason"]
    assert "within 1 s of its start" in model.json()["reason"]
    assert answer.status_code == 200


def test_workers_that_hang_in_loading_are_started_ever_more_slowly(fragile):
    async def main():
        pool = Pool(fragile, Nursery(set()))
        long_ago = asyncio.get_running_loop().time() - 300
        hung = SimpleNamespace(answered=0, born=long_ago, was_ready=False)
        return [pool._pause_s(hung) for _ in range(3)]

    assert asyncio.run(main()) == [0.1, 0.2, 0.4]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stopping_leaves_no_process_behind(fragile):
    with serve_in_thread(replace(fragile, workers=2)) as running:
        pid = pid_of(ask(running))
        template = parent_of(pid)

    assert not is_there(pid)
    assert not is_there(template)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_are_forked_from_a_process_without_threads(cnn):
    version = Version("cnn", 1, cnn.digest, cnn.digest, EngineConfig(threads=1), "t", 0)
    with serve_in_thread(Endpoint(version, cnn, port=0, workers=1)) as running:
        (process,) = running.server._workforce._pools[0][1]._processes
        tasks = list(Path(f"/proc/{parent_of(process.pid)}/task").iterdir())

    assert len(tasks) == 1


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


SCRIPT = """
import os, sys
print("script", flush=True)
sys.path[:0] = {path!r}
from pathlib import Path
from ingot.models.store import open_model
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.serve.endpoint import Batching, Endpoint
from ingot.serve.server import serve_in_thread
model = open_model(Path({folder!r}))
version = Version("cnn", 1, model.digest, model.digest, EngineConfig(threads=1), "t", 0)
running = serve_in_thread(Endpoint(version, model, port=0, workers=1))
print("ready", flush=True)
{end}
"""


def test_workers_do_not_run_the_callers_script_again(cnn, tmp_path):
    script = tmp_path / "script.py"
    code = dedent(SCRIPT).format(folder=str(cnn.path), path=sys.path, end="running.stop()")
    script.write_text(code)

    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)

    assert done.stdout == "script\nready\n", done.stderr


def test_workers_end_with_a_server_that_is_killed(cnn, tmp_path):
    script = tmp_path / "script.py"
    end = (
        "(p,) = running.server._workforce._pools[0][1]._processes\n"
        "print(p.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    script.write_text(dedent(SCRIPT).format(folder=str(cnn.path), path=sys.path, end=end))

    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout.split()[-1])

    wait_for(lambda: not is_there(pid))


def test_draining_waits_for_what_the_workers_have(fragile):
    statuses = []
    running = serve_in_thread(fragile)
    asking = threading.Thread(target=lambda: statuses.append(ask(running, SLOW).status_code))
    asking.start()
    wait_for(lambda: running.state.waiting == 1)

    running.stop()
    asking.join()

    assert statuses == [200]


def test_a_worker_that_cannot_start_is_tried_again_ever_more_slowly(fragile):
    async def main():
        pool = Pool(fragile, Nursery(set()))
        now = asyncio.get_running_loop().time()
        stillborn = SimpleNamespace(answered=0, born=now, was_ready=False)
        pauses = [pool._pause_s(stillborn) for _ in range(11)]
        useful = pool._pause_s(SimpleNamespace(answered=1, born=now, was_ready=True))
        return pauses, useful, pool._pause_s(stillborn)

    pauses, useful, after = asyncio.run(main())

    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    assert useful == 0
    assert after == 0.1


def test_all_cores_are_shared_among_workers_and_a_number_that_was_asked_for_stays():
    every, two = EngineConfig(threads=0), EngineConfig(threads=2)

    assert shared_threads(every, 1) == every
    assert shared_threads(every, 1000).threads == 1
    assert shared_threads(two, 4) == two


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"workers": -1}, "workers"), ({"timeout_s": 0}, "timeout_s"), ({"max_waiting": 0}, "max_w")],
)
def test_settings_that_cannot_be_served_are_refused_before_anything_is_opened(
    fragile, change, complaint
):
    with pytest.raises(ServeError, match=complaint):
        serve_in_thread(replace(fragile, **change))


def test_a_version_is_served_once(fragile):
    with pytest.raises(ServeError, match="twice"):
        serve_in_thread(replace(fragile, beside=(fragile,)))


def test_arrays_of_every_type_cross_to_a_worker_and_back():
    from ingot.serve.workers.wire import pack, unpack

    arrays = {
        "half": np.array([[1.5, np.nan]], np.float16), "none": np.zeros((0, 3), np.int8),
        "scalar": np.array(True), "strided": np.arange(6).reshape(2, 3).T,
    }  # fmt: skip

    back = unpack(pack(arrays), writable=True)

    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
        assert back[name].flags.writeable
