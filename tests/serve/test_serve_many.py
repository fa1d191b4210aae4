"""Several versions in one server."""

from dataclasses import replace

import httpx
import numpy as np
import pytest

from ingot.observe.log import ObservationLog
from ingot.serve import assembly
from ingot.serve.client import predict
from ingot.serve.server import serve_in_thread

BODY = {
    "inputs": [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]},
        {"name": "mask", "shape": [1], "datatype": "INT64", "data": [1]},
    ]
}


class Times:
    """A session that multiplies."""

    def __init__(self, factor):
        self._factor = np.float32(factor)

    def run(self, feeds):
        return {"y": feeds["x"] * self._factor, "kept": feeds["mask"] > 0}

    def close(self):
        return


@pytest.fixture
def many(endpoint, monkeypatch):
    """A server of `doubler` 3 and 2 and of `tripler` 1, which multiply by 2, 5 and 3."""
    older = replace(endpoint.version, number=2)
    tripler = replace(endpoint.version, name="tripler", number=1)
    factors = {endpoint.version.label: 2, older.label: 5, tripler.label: 3}
    monkeypatch.setattr(assembly, "_open_session", lambda e: Times(factors[e.version.label]))
    beside = tuple(replace(endpoint, version=version) for version in (older, tripler))
    with serve_in_thread(replace(endpoint, beside=beside)) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "value", "number"),
    [
        ("doubler", 2.0, "3"), ("doubler/versions/3", 2.0, "3"), ("doubler/versions/2", 5.0, "2"),
        ("tripler", 3.0, "1"), ("tripler/versions/1", 3.0, "1"), ("%64oubler", 2.0, "3"),
    ],
)  # fmt: skip
def test_each_path_is_answered_by_its_own_version(many, path, value, number):
    answer = httpx.post(f"{many.url}/v2/models/{path}/infer", json=BODY, trust_env=False).json()

    assert answer["outputs"][0]["data"][0] == value
    assert answer["model_version"] == number


def test_the_header_names_the_version_that_answered(many, endpoint):
    inputs = {"x": np.ones((1, 2), np.float32), "mask": np.ones(1, np.int64)}

    _, headers = predict(many.url, "tripler", inputs)

    assert headers["ingot-version"] == replace(endpoint.version, name="tripler", number=1).digest


@pytest.mark.parametrize(
    ("path", "complaint"),
    [("tripler/versions/3", "Valid: 1."), ("trippler", "Did you mean 'tripler'")],
)
def test_what_is_not_served_is_404_with_the_nearest(many, path, complaint):
    infer = httpx.post(f"{many.url}/v2/models/{path}/infer", json=BODY, trust_env=False)
    page = httpx.get(f"{many.url}/v2/models/{path}", trust_env=False)

    assert (infer.status_code, page.status_code) == (404, 404)
    assert complaint in infer.json()["error"]
    assert complaint in page.json()["error"]


def test_a_model_lists_all_of_its_versions(many):
    page = httpx.get(many.url + "/v2/models/doubler", trust_env=False).json()

    assert page["versions"] == ["3", "2"]


def test_the_server_is_ready_when_every_model_is(many):
    many.states[2].is_warm = False

    server_ready = httpx.get(many.url + "/v2/health/ready", trust_env=False)
    models = [
        httpx.get(f"{many.url}/v2/models/{name}/ready", trust_env=False).status_code
        for name in ("doubler", "tripler")
    ]
    many.states[2].is_warm = True

    assert server_ready.status_code == 503
    assert models == [200, 503]


def test_requests_are_counted_and_observed_by_model(many, endpoint):
    for path in ("doubler", "tripler", "tripler"):
        httpx.post(f"{many.url}/v2/models/{path}/infer", json=BODY, trust_env=False)
    text = httpx.get(many.url + "/metrics", trust_env=False).text
    many.stop()

    with ObservationLog(endpoint.log) as log:
        seen = [observation.endpoint for observation in log.read()]
    assert seen == ["doubler", "tripler", "tripler"]
    assert 'ingot_requests_total{model="tripler",status="200",version="1"} 2.0' in text
    assert text.count("# TYPE ingot_requests_in_flight gauge") == 1
