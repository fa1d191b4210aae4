import hashlib
import http.client
import json
import logging
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx
import pytest
from outside import wait_for

from ingot.observe.log import ObservationLog
from ingot.serve.endpoint import Endpoint
from ingot.serve.state import Served, State

INFER = "/v2/models/doubler/infer"


def observations(endpoint):
    with ObservationLog(endpoint.log) as log:
        return list(log.read())


def test_an_inference_is_answered_by_name_with_shape_and_datatype(http, body):
    answer = http.post(INFER, json=body | {"id": "a7"})

    assert answer.status_code == 200
    assert answer.json() == {
        "model_name": "doubler",
        "model_version": "3",
        "id": "a7",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2, 2],
             "data": [3.0, 4.0, 0.20000000298023224, 8.0]},
            {"name": "kept", "datatype": "BOOL", "shape": [2], "data": [True, False]},
        ],
    }  # fmt: skip


def test_the_version_path_answers_like_the_model_path(http, body):
    path = "/v2/models/doubler/versions/3/infer"

    assert http.post(path, json=body).json() == http.post(INFER, json=body).json()


def test_only_the_requested_outputs_come_back(http, body):
    answer = http.post(INFER, json=body | {"outputs": [{"name": "kept"}]}).json()

    assert [tensor["name"] for tensor in answer["outputs"]] == ["kept"]


@pytest.mark.parametrize("content", [None, b"{"])
def test_every_inference_names_version_model_and_request(http, body, endpoint, content):
    sent = json.dumps(body) if content is None else content

    headers = http.post(INFER, content=sent, headers={"x-request-id": "mine-1"}).headers

    assert headers["ingot-version"] == endpoint.version.digest
    assert headers["ingot-model"] == endpoint.version.model
    assert headers["x-request-id"] == "mine-1"


def test_a_request_id_that_cannot_be_a_header_is_replaced(http, body):
    answer = http.post(INFER, json=body, headers={"x-request-id": "two words"})

    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/v2/models/dubler/infer", "Did you mean 'doubler'"),
        ("/v2/models/doubler/versions/4/infer", "number '4'"),
    ],
)
def test_an_unknown_model_or_version_is_404_with_the_nearest(http, body, path, complaint):
    answer = http.post(path, json=body)

    assert answer.status_code == 404
    assert complaint in answer.json()["error"]


@pytest.mark.parametrize("path", ["/v2/models/nope", "/v2/models/doubler/versions/9/ready", "/x"])
def test_unknown_pages_are_404_in_the_protocols_words(http, path):
    answer = http.get(path)

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["error"] == answer.json()["detail"]
    assert answer.json()["status"] == 404


def test_a_wrong_method_is_405_and_says_which_is_right(http):
    infer, live = http.get(INFER), http.post("/v2/health/live")

    assert (infer.status_code, infer.headers["allow"]) == (405, "POST")
    assert live.status_code == 405
    assert "GET" in live.headers["allow"]
    assert "must be asked with" in live.json()["error"]


def test_a_large_body_is_413_from_its_length_alone(running):
    connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=10)
    connection.putrequest("POST", INFER)
    connection.putheader("content-length", "4097")
    connection.endheaders()

    response = connection.getresponse()

    assert response.status == 413
    assert b"at most 4,096 bytes; got 4,097" in response.read()
    connection.close()


def test_a_large_body_without_a_length_is_413_too(http):
    answer = http.post(INFER, content=(b" " * 1000 for _ in range(5)))

    assert answer.status_code == 413


def test_a_body_of_exactly_the_limit_is_read(http, body):
    content = json.dumps(body).encode().ljust(4096)

    assert http.post(INFER, content=content).status_code == 200


def test_a_compressed_body_is_415(http):
    answer = http.post(INFER, content=b"x", headers={"content-encoding": "gzip"})

    assert answer.status_code == 415


def test_an_engine_failure_tells_the_caller_its_request_and_the_log_the_reason(http, body, caplog):
    body["inputs"][0]["data"][0] = -1

    with caplog.at_level(logging.ERROR):
        answer = http.post(INFER, json=body, headers={"x-request-id": "r9"})

    assert answer.status_code == 500
    assert "r9" in answer.json()["error"]
    assert "secret" not in answer.text
    assert "secret detail of the engine" in caplog.text


@pytest.mark.parametrize("inline_bytes", [0, 4096])
def test_threads_and_the_event_loop_answer_alike(running, http, body, inline_bytes):
    running.state.inline_bytes = inline_bytes

    answer = http.post(INFER, json=body)

    assert answer.json()["outputs"][1]["data"] == [True, False]


def test_a_request_leaves_one_observation_that_refers_to_it_without_holding_it(
    running, http, body, endpoint
):
    content = json.dumps(body).encode()
    answer = http.post(
        INFER,
        content=content,
        headers={
            "x-request-id": "r1", "ingot-unit": "robot-7", "ingot-episode": "e2", "ingot-step": "5",
        },
    )  # fmt: skip
    running.stop()

    (seen,) = observations(endpoint)

    assert seen.inputs_ref == "sha256:" + hashlib.sha256(content).hexdigest()
    assert seen.output_ref == "sha256:" + hashlib.sha256(answer.content).hexdigest()
    assert (seen.request_id, seen.endpoint, seen.version) == (
        "r1", "doubler", endpoint.version.digest,
    )  # fmt: skip
    assert (seen.unit_key, seen.episode_id, seen.step) == ("robot-7", "e2", 5)
    assert (seen.status, seen.arm, seen.propensity) == (200, "main", 1.0)
    assert seen.hour == datetime.fromtimestamp(seen.time, UTC).hour
    assert seen.latency_ms > 0
    assert b"1.5" not in endpoint.log.read_bytes()


def test_requests_that_fail_are_observed_too(running, http, body, endpoint):
    http.post(INFER, content=b"{")
    http.post("/v2/models/nope/infer", json=body)
    http.post(INFER, content=b" " * 5000)
    running.stop()

    assert [seen.status for seen in observations(endpoint)] == [400, 404, 413]


@pytest.mark.parametrize(
    ("header", "value"),
    [("ingot-step", "-1"), ("ingot-step", "1.5"), ("ingot-unit", "a b"), ("ingot-unit", "x" * 129)],
)
def test_bad_study_headers_are_400(http, body, header, value):
    answer = http.post(INFER, json=body, headers={header: value})

    assert answer.status_code == 400
    assert header in answer.json()["error"]


def test_live_and_ready_say_so(http):
    pages = [
        http.get(p) for p in ("/v2/health/live", "/v2/health/ready", "/v2/models/doubler/ready")
    ]

    assert [page.status_code for page in pages] == [200, 200, 200]
    assert pages[2].json() == {"name": "doubler", "ready": True}


@pytest.mark.parametrize(
    "page", ["/v2/health/ready", "/v2/models/doubler/ready", "/v2/models/doubler/versions/3/ready"]
)
@pytest.mark.parametrize("state", [{"is_warm": False}, {"is_draining": True}])
def test_cold_and_draining_endpoints_are_not_ready(running, http, page, state):
    before = running.state.is_warm
    for name, value in state.items():
        setattr(running.state, name, value)

    status = http.get(page).status_code
    running.state.is_warm, running.state.is_draining = before, False

    assert status == 503


def test_a_draining_endpoint_refuses_inference_and_lives(running, http, body):
    running.state.is_draining = True

    answer = http.post(INFER, json=body)

    assert answer.status_code == 503
    assert answer.headers["connection"] == "close"
    assert http.get("/v2/health/live").status_code == 200


def test_metadata_describe_server_and_model(http, endpoint: Endpoint):
    server, model = http.get("/v2").json(), http.get("/v2/models/doubler").json()

    assert server["name"] == "ingot"
    assert (model["name"], model["versions"]) == ("doubler", ["3"])
    assert model["platform"] == "onnx_onnxruntime"
    assert model["inputs"][0] == {
        "name": "x", "datatype": "FP32", "shape": [-1, 2], "parameters": {"axes": ["batch", 2]},
    }  # fmt: skip
    assert model["parameters"]["ingot-version"] == endpoint.version.digest
    assert http.get("/v2/models/doubler/versions/3").json() == model


def test_metrics_count_requests_by_status(http, body):
    http.post(INFER, json=body)
    http.post(INFER, json=body)
    http.post(INFER, content=b"{")

    lines = http.get("/metrics").text.splitlines()

    assert 'ingot_requests_total{model="doubler",status="200",version="3"} 2.0' in lines
    assert 'ingot_requests_total{model="doubler",status="400",version="3"} 1.0' in lines
    assert 'ingot_request_seconds_count{model="doubler",version="3"} 3.0' in lines
    assert 'ingot_requests_in_flight{model="doubler",version="3"} 0.0' in lines
    assert 'ingot_observations_dropped_total{model="doubler",version="3"} 0.0' in lines


def test_a_caller_that_hangs_up_is_observed_and_harms_nobody(running, http, body, endpoint):
    connection = http_connection(running.url)
    connection.putrequest("POST", INFER)
    connection.putheader("content-length", "100")
    connection.endheaders(b"{")
    wait_for(lambda: running.state.in_flight == 1)
    connection.close()
    wait_for(lambda: running.state.in_flight == 0)

    assert http.post(INFER, json=body).status_code == 200
    running.stop()
    assert [seen.status for seen in observations(endpoint)] == [499, 200]


def test_a_bug_on_a_page_is_500_without_its_reason(endpoint, caplog):
    from starlette.testclient import TestClient

    from ingot.serve.app import build_app
    from ingot.serve.surroundings import Surroundings

    class Broken:
        def record(self, observation):
            raise AssertionError("not asked here")

        @property
        def dropped(self):
            raise OSError("secret path")

    app = build_app([Served(endpoint, State(), object())], Surroundings(log=Broken()))
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/metrics")

    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret path" in caplog.text


def http_connection(url):
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)


def test_an_endpoint_listens_on_loopback_unless_asked_otherwise(running):
    assert httpx.URL(running.url).host == "127.0.0.1"
