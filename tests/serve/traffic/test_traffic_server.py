"""Requests dealt by a real server: arms, shadows, canaries, and the page of them."""

import threading
import time
from dataclasses import replace

import httpx
import numpy as np
import pytest
from outside import wait_for

from ingot.core.errors import ServeError
from ingot.models.model import Signature, TensorSpec
from ingot.observe.log import ObservationLog
from ingot.serve import assembly
from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access, Batching
from ingot.serve.rpc.messages import SERVICE, messages
from ingot.serve.server import serve_in_thread
from ingot.serve.traffic.client import traffic
from ingot.serve.traffic.plan import Shadow, Traffic
from ingot.serve.traffic.split import Split
from ingot.twin.canary import Canary

HALVES = Split(((3, 0.5), (2, 0.5)))
BODY = {
    "inputs": [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]},
        {"name": "mask", "shape": [1], "datatype": "INT64", "data": [1]},
    ]
}


class Times:
    """A session that multiplies; after its warm-up it can be made to wait or to fail."""

    def __init__(self, factor):
        self.factor, self.is_broken, self.calls = np.float32(factor), False, 0
        self.opened = threading.Event()
        self.opened.set()

    def run(self, feeds):
        self.calls += 1
        assert self.opened.wait(20)
        if self.is_broken:
            raise RuntimeError("secret detail")
        return {"y": feeds["x"] * self.factor, "kept": feeds["mask"] > 0}

    def close(self):
        return


class Served:
    def __init__(self, running, sessions):
        self.running, self.sessions, self.url = running, sessions, running.url
        self.http = httpx.Client(base_url=running.url, trust_env=False, timeout=20)

    def ask(self, path="doubler", **headers):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(f"/v2/models/{path}/infer", json=BODY, headers=sent)

    def page(self):
        return self.http.get("/v2/models/doubler/traffic").json()


@pytest.fixture
def serve(endpoint, monkeypatch):
    """Give `serve(plan)`: versions 3, 2 and 4 of `doubler`, which multiply by 3, 2 and -4."""
    begun = []

    def begin(plan, **more):
        sessions = {3: Times(3), 2: Times(2), 4: Times(-4)}
        monkeypatch.setattr(assembly, "_open_session", lambda e: sessions[e.version.number])
        of_name = [replace(endpoint, version=replace(endpoint.version, number=n)) for n in (2, 4)]
        of_name += more.pop("others", [])
        running = serve_in_thread(replace(endpoint, traffic=plan, beside=tuple(of_name), **more))
        begun.append(Served(running, sessions))
        return begun[-1]

    yield begin
    for one in begun:
        one.http.close()
        for session in one.sessions.values():
            session.opened.set()
        one.running.stop()


def observations(served, endpoint):
    served.running.stop()
    with ObservationLog(endpoint.log) as log:
        return list(log.read())


def test_a_unit_always_meets_the_version_that_its_hash_says(serve, endpoint):
    served = serve(Traffic(HALVES))
    units = [f"robot-{i}" for i in range(12)] * 2
    answers = [served.ask(ingot_unit=unit) for unit in units]

    expected = [str(HALVES.arm(unit)) for unit in units]
    assert set(expected) == {"2", "3"}
    assert [answer.json()["model_version"] for answer in answers] == expected
    assert [answer.headers["ingot-arm"] for answer in answers] == expected
    seen = observations(served, endpoint)
    assert [(o.unit_key, o.arm, o.propensity) for o in seen] == [
        (unit, arm, 0.5) for unit, arm in zip(units, expected, strict=True)
    ]
    digests = {o.arm: o.version for o in seen}
    assert digests["3"] == endpoint.version.digest
    assert digests["2"] == replace(endpoint.version, number=2).digest


def test_requests_without_a_unit_are_drawn_by_the_seed(serve):
    arms = []
    for _ in range(2):
        served = serve(Traffic(HALVES, seed=5))
        arms.append([served.ask().headers["ingot-arm"] for _ in range(20)])

    assert arms[0] == arms[1]
    assert set(arms[0]) == {"2", "3"}


def test_a_request_that_names_its_version_is_not_dealt_and_says_so(serve, endpoint):
    served = serve(Traffic(HALVES))
    answer = served.ask("doubler/versions/4", ingot_unit="robot-7")

    assert answer.json()["model_version"] == "4"
    assert answer.headers["ingot-arm"] == "pinned"
    assert [(o.arm, o.propensity) for o in observations(served, endpoint)] == [("pinned", 1.0)]


def test_other_spellings_of_the_path_are_dealt_too(serve):
    served = serve(Traffic(Split(((2, 1.0),))))

    assert served.ask("%64oubler").json()["model_version"] == "2"


def test_a_name_without_a_plan_beside_it_stays_as_it_is(serve, endpoint):
    other = replace(endpoint, version=replace(endpoint.version, name="other", number=2))
    served = serve(Traffic(HALVES), others=[other])
    answer = served.ask("other")

    assert answer.status_code == 200
    assert "ingot-arm" not in answer.headers
    assert served.http.get("/v2/models/other/traffic").status_code == 404
    assert [o.arm for o in observations(served, endpoint)] == ["main"]


def test_without_a_plan_nothing_is_dealt_or_shown(serve, endpoint):
    served = serve(None)

    assert "ingot-arm" not in served.ask().headers
    assert served.http.get("/v2/models/doubler/traffic").status_code == 404
    assert [o.arm for o in observations(served, endpoint)] == ["main"]


def test_a_shadow_answers_for_itself_and_is_compared(serve, endpoint):
    served = serve(Traffic(shadow=Shadow(4)))
    answer = served.ask(x_request_id="r1", ingot_unit="robot")
    wait_for(lambda: served.page()["copies"]["compared"] == 1)
    copies = served.page()["copies"]
    metrics = served.http.get("/metrics").text

    # 3 x [1, 2] has its largest second, -4 x [1, 2] first
    assert answer.json()["outputs"][0]["data"] == [3.0, 6.0]
    assert copies["statuses"] == {"200/200": 1}
    assert copies["agreed"] == 0
    assert copies["outputs"]["y"] == {"compared": 1, "agreed": 0, "largest_difference": 14.0}
    assert copies["outputs"]["kept"] == {"compared": 1, "agreed": 1, "largest_difference": 0.0}
    assert 'ingot_shadow_agreed_total{model="doubler",output="kept",version="4"} 1.0' in metrics
    assert 'ingot_traffic_weight{model="doubler",version="3"} 1.0' in metrics
    given, shadow = sorted(observations(served, endpoint), key=lambda o: o.request_id)
    assert (given.request_id, shadow.request_id) == ("r1", "r1.shadow")
    assert (given.arm, shadow.arm, shadow.propensity) == ("3", "shadow", 1.0)
    assert shadow.inputs_ref == given.inputs_ref
    assert shadow.version == replace(endpoint.version, number=4).digest


def test_a_shadow_that_waits_delays_nobody_and_drops_what_is_too_much(serve):
    served = serve(Traffic(shadow=Shadow(4, most_waiting=3)))
    served.sessions[4].opened.clear()

    answers = [served.ask() for _ in range(8)]
    waiting = served.page()["copies"]
    served.sessions[4].opened.set()
    wait_for(lambda: served.page()["copies"]["compared"] == 3)

    assert {answer.status_code for answer in answers} == {200}
    assert (waiting["compared"], waiting["dropped"]) == (0, 5)


def test_a_shadow_that_fails_changes_no_answer_and_is_observed(serve, endpoint):
    served = serve(Traffic(shadow=Shadow(4)))
    served.sessions[4].is_broken = True
    answers = [served.ask() for _ in range(3)]
    wait_for(lambda: served.page()["copies"]["statuses"] == {"200/500": 3})

    assert {answer.status_code for answer in answers} == {200}
    shadows = [o for o in observations(served, endpoint) if o.arm == "shadow"]
    assert {o.status for o in shadows} == {500}


def test_a_request_that_no_model_took_is_not_copied(serve):
    served = serve(Traffic(shadow=Shadow(4)))
    calls = served.sessions[4].calls

    assert served.http.post("/v2/models/doubler/infer", json={}).status_code == 400
    assert served.sessions[4].calls == calls
    assert served.page()["copies"]["statuses"] == {}


def test_about_a_share_of_the_requests_is_copied_and_none_of_those_that_name_a_version(serve):
    served = serve(Traffic(shadow=Shadow(4, share=0.5, most_waiting=100), seed=3))
    for _ in range(40):
        served.ask()
        served.ask("doubler/versions/3")
    wait_for(lambda: served.page()["copies"]["compared"] >= 10)
    served.running.stop()

    # 40 draws of 0.5 are outside of 8 to 32 once in ten thousand seeds
    assert 8 <= served.sessions[4].calls - 2 <= 32


def test_copies_of_binary_requests_are_compared_too(serve):
    from ingot.serve.client import predict

    served = serve(Traffic(shadow=Shadow(2)))
    inputs = {"x": np.array([[1, 2]], np.float32), "mask": np.ones(1, np.int64)}

    outputs, _ = predict(served.url, "doubler", inputs, binary=True)
    wait_for(lambda: served.page()["copies"]["compared"] == 1)

    assert outputs["y"].tolist() == [[3.0, 6.0]]
    assert served.page()["copies"]["agreed"] == 1


def test_a_shadow_in_worker_processes_is_compared(cnn, tmp_path):
    from ingot.registry.version import Version
    from ingot.runtime.engine import EngineConfig
    from ingot.serve.client import predict
    from ingot.serve.endpoint import Endpoint

    version = Version("cnn", 1, cnn.digest, cnn.digest, EngineConfig(threads=1), "t", 0)
    second = Endpoint(replace(version, number=2), cnn, workers=1)
    plan = Traffic(shadow=Shadow(2))
    with serve_in_thread(Endpoint(version, cnn, port=0, traffic=plan, beside=(second,))) as running:
        predict(running.url, "cnn", {"image": np.ones((1, 1, 8, 8), np.float32)})
        wait_for(lambda: traffic(running.url, "cnn")["copies"]["compared"] == 1)
        found = traffic(running.url, "cnn")["copies"]

    assert (found["agreed"], found["failed"]) == (1, 0)


def canary(tmp_path, **more):
    plan = Canary(4, ("error_rate <= 0.1",), steps=(0.5, 1.0), step_s=0.0, step_requests=50)
    return Traffic(canary=replace(plan, **more), record=tmp_path / "traffic.sqlite", seed=2)


def test_a_canary_that_fails_is_taken_out_by_the_server_and_stays_out(serve, tmp_path, endpoint):
    served = serve(canary(tmp_path))
    served.sessions[4].is_broken = True
    failed = 0
    deadline = time.monotonic() + 30
    while served.page()["state"] == "running":
        assert time.monotonic() < deadline
        failed += sum(served.ask().status_code == 500 for _ in range(10))
    after = {served.ask(ingot_unit=f"u{i}").json()["model_version"] for i in range(30)}
    page = served.page()
    served.running.stop()
    again = serve(canary(tmp_path))

    assert failed > 0
    assert after == {"3"}
    assert page["decisions"][-1]["action"] == "roll back"
    assert page["decisions"][-1]["who"] == "canary"
    assert page["decisions"][-1]["judgements"][0]["outcome"] == "broken"
    assert page["next"] == "ingot serve doubler:3"
    assert again.page()["state"] == "rolled back"
    assert {again.ask().headers["ingot-arm"] for _ in range(20)} == {"3"}


def test_a_canary_that_holds_gets_everything(serve, tmp_path):
    served = serve(canary(tmp_path))
    deadline = time.monotonic() + 30
    while served.page()["state"] == "running":
        assert time.monotonic() < deadline
        served.ask()

    assert served.page()["state"] == "done"
    assert {served.ask().json()["model_version"] for _ in range(20)} == {"4"}
    assert served.page()["next"] == "ingot promote doubler:4 STAGE"


def test_only_whoever_may_operate_changes_traffic_and_is_recorded(serve, tmp_path):
    store = KeyStore(tmp_path / "keys.sqlite")
    ann, _ = store.create("ann", ["operate:doubler", "infer:doubler"])
    bob, _ = store.create("bob", ["infer:doubler"])
    served = serve(canary(tmp_path), access=Access(keys=tmp_path / "keys.sqlite"))
    path = "/v2/models/doubler/traffic"
    change, refused = {"weights": {"3": 0.25, "2": 0.75}}, []
    for key in (None, bob):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        refused.append(served.http.post(path, json=change, headers=headers).status_code)

    found = traffic(served.url, "doubler", change, token=ann)
    read = traffic(served.url, "doubler", token=bob)

    assert refused == [401, 403]
    assert read["weights"] == found["weights"] == {"3": 0.25, "2": 0.75}
    assert (found["state"], found["decisions"][-1]["who"]) == ("by hand", "ann")
    arms = {
        served.ask(authorization=f"Bearer {bob}", ingot_unit=f"u{i}").headers["ingot-arm"]
        for i in range(20)
    }
    assert arms == {"2", "3"}


@pytest.mark.parametrize(
    ("sent", "status", "complaint"),
    [
        ({"json": {"weights": {"3": 0.5}}}, 422, "sum to 1"),
        ({"json": {"weights": {"9": 1.0}}}, 422, "must be served"),
        ({"json": {"weights": {"x": 1.0}}}, 400, "must be JSON such as"),
        ({"json": {"weights": {"3": 1.0}, "start": True}}, 400, "one of weights"),
        ({"json": {}}, 400, "one of weights"),
        ({"json": {"roll_back": True}}, 422, "must have a canary"),
        ({"json": {"weight": 1}}, 400, "unknown field"),
        ({"json": {"weights": {"3": 1.0}}, "headers": {"content-type": "text/plain"}}, 415, "json"),
        ({"content": b"[" * 70_000, "headers": {"content-type": "application/json"}}, 413, "most"),
        ({"content": b"[" * 9_000, "headers": {"content-type": "application/json"}}, 400, "JSON"),
    ],
)
def test_changes_that_make_no_sense_are_refused_and_change_nothing(serve, sent, status, complaint):
    served = serve(Traffic(HALVES))
    answer = served.http.post("/v2/models/doubler/traffic", **sent)

    assert (answer.status_code, answer.headers["content-type"]) == (
        status, "application/problem+json",
    )  # fmt: skip
    assert complaint in answer.json()["detail"]
    assert served.page()["weights"] == {"3": 0.5, "2": 0.5}


def test_the_document_has_the_page_where_there_is_one(serve):
    served = serve(Traffic(HALVES))
    paths = served.http.get("/openapi.json").json()["paths"]

    assert set(paths["/v2/models/doubler/traffic"]) == {"get", "post"}
    for method in ("get", "post"):
        answer = served.http.request(method.upper(), "/v2/models/doubler/traffic")
        known = paths["/v2/models/doubler/traffic"][method]["responses"]
        assert str(answer.status_code) in known


def test_requests_over_grpc_are_dealt_too(serve, endpoint):
    grpc = pytest.importorskip("grpc")
    served = serve(Traffic(HALVES), grpc_port=0)
    request = messages()["ModelInferRequest"](model_name="doubler")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.inputs.add(name="mask", datatype="INT64", shape=[1])
    request.raw_input_contents.extend(
        [np.ones((1, 2), np.float32).tobytes(), np.ones(1, np.int64).tobytes()]
    )
    with grpc.insecure_channel(f"127.0.0.1:{served.running.grpc_port}") as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=messages()["ModelInferResponse"].FromString,
        )
        units = [f"robot-{i}" for i in range(8)]
        found = [call.with_call(request, metadata=[("ingot-unit", u)], timeout=20) for u in units]

    expected = [str(HALVES.arm(unit)) for unit in units]
    assert [answer.model_version for answer, _ in found] == expected
    arms = [dict(done.initial_metadata())["ingot-arm"] for _, done in found]
    assert arms == expected
    assert [o.arm for o in observations(served, endpoint)] == expected


def test_versions_that_do_not_take_the_same_share_nothing(endpoint, monkeypatch):
    monkeypatch.setattr(assembly, "_open_session", lambda e: Times(1))
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("mask", "int64", ("n",))),
        endpoint.model.signature.outputs,
    )
    other = replace(
        endpoint, version=replace(endpoint.version, number=2),
        model=replace(endpoint.model, signature=signature),
    )  # fmt: skip

    with pytest.raises(ServeError, match="must take and give the same tensors"):
        serve_in_thread(replace(endpoint, traffic=Traffic(HALVES), beside=(other,)))


def test_two_plans_for_one_name_are_refused(endpoint, monkeypatch):
    monkeypatch.setattr(assembly, "_open_session", lambda e: Times(1))
    other = replace(endpoint, version=replace(endpoint.version, number=2), traffic=Traffic(HALVES))

    with pytest.raises(ServeError, match="planned once"):
        serve_in_thread(replace(endpoint, traffic=Traffic(HALVES), beside=(other,)))


def test_a_shadow_that_is_not_served_is_refused(serve):
    with pytest.raises(ServeError, match="shadow must be served"):
        serve(Traffic(shadow=Shadow(7)))


def test_a_batched_shadow_in_workers_that_answers_callers_too_is_refused(endpoint, monkeypatch):
    monkeypatch.setattr(assembly, "_open_session", lambda e: Times(1))
    other = replace(
        endpoint, version=replace(endpoint.version, number=2), workers=1, batching=Batching()
    )

    with pytest.raises(ServeError, match="must not join a call"):
        serve_in_thread(replace(endpoint, traffic=Traffic(HALVES, Shadow(2)), beside=(other,)))


def test_a_name_is_ready_when_every_version_with_a_share_answers(serve):
    served = serve(Traffic(HALVES, Shadow(4)))
    three, two, four = served.running.states

    found = []
    for down in (two, four):
        down.is_warm = False
        pages = ("/v2/models/doubler/ready", "/v2/health/ready")
        found.append([served.http.get(page) for page in pages])
        down.is_warm = True

    assert three.is_ready
    assert [[answer.status_code for answer in one] for one in found] == [[503, 503], [200, 200]]
    assert found[0][0].json()["reason"] == "doubler:2 does not answer."


def test_a_version_that_is_named_is_ready_by_itself(serve):
    served = serve(Traffic(HALVES, Shadow(4)))
    served.running.states[2].is_warm = False

    answers = [
        served.http.get(f"/v2/models/doubler/versions/{n}/ready").status_code for n in (3, 2, 4)
    ]

    assert answers == [200, 200, 503]


def test_a_canary_that_was_rolled_back_keeps_nobody_waiting(serve, tmp_path):
    canary = Canary(4, ("error_rate <= 0.05",), steps=(0.2, 1.0))
    served = serve(Traffic(canary=canary, record=tmp_path / "traffic.sqlite"))
    served.running.states[2].is_warm = False

    before = served.http.get("/v2/health/ready").status_code
    traffic(served.url, "doubler", {"roll_back": True})
    after = served.http.get("/v2/health/ready").status_code

    assert (before, after) == (503, 200)
