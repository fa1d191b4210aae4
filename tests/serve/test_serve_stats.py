import time
from dataclasses import replace

import httpx
import pytest

from ingot.observe.reading import read_log
from ingot.observe.rules import LogRules
from ingot.serve.access.keys import KeyStore
from ingot.serve.endpoint import Access
from ingot.serve.server import serve_in_thread

INFER, STATS = "/v2/models/doubler/infer", "/v2/models/doubler/stats"


def test_stats_count_requests_by_status_with_quantiles(http, body):
    for _ in range(3):
        http.post(INFER, json=body)
    http.post(INFER, content=b"{")

    found = http.get(STATS).json()

    (row,) = found["versions"]
    assert (found["model"], found["window_s"], found["accuracy"]) == ("doubler", 300.0, 0.01)
    assert (row["version"], row["arm"], row["requests"], row["errors"]) == ("3", "main", 4, 0)
    assert row["by_status"] == {"200": 3, "400": 1}
    assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert "windows" not in row


def test_stats_of_a_version_and_as_a_series(http, body):
    http.post(INFER, json=body)

    found = http.get("/v2/models/doubler/versions/3/stats?window_s=60&windows=true").json()

    (row,) = found["versions"]
    assert sum(window["requests"] for window in row["windows"]) == row["requests"] == 1
    assert row["windows"][0]["start"] == row["start"]


def test_a_model_that_was_never_asked_has_no_figures(http):
    assert http.get(STATS).json()["versions"] == []


@pytest.mark.parametrize("window", ["0", "-1", "1e9", "nan", "ten"])
def test_a_window_out_of_range_is_400(http, window):
    answer = http.get(STATS, params={"window_s": window})

    assert answer.status_code == 400
    assert "window_s must be above 0" in answer.json()["error"]


def test_stats_of_an_unknown_model_are_404(http):
    assert http.get("/v2/models/nope/stats").status_code == 404


def test_quantiles_are_published_for_prometheus(http, body):
    http.post(INFER, json=body)

    text = http.get("/metrics").text

    for quantile in ("0.5", "0.95", "0.99"):
        wanted = f'ingot_request_quantile_seconds{{arm="main",model="doubler",quantile="{quantile}"'
        assert wanted in text


@pytest.fixture
def ask(doubler):
    """Serve an endpoint and return a client of it."""
    clients, servers = [], []

    def begin(endpoint):
        servers.append(serve_in_thread(endpoint, doubler))
        clients.append(httpx.Client(base_url=servers[-1].url, trust_env=False, timeout=10))
        return clients[-1]

    yield begin
    for one in (*clients, *servers):
        one.close() if isinstance(one, httpx.Client) else one.stop()


def test_every_request_is_counted_though_the_log_keeps_few(endpoint, body, ask):
    http = ask(replace(endpoint, log_rules=LogRules(sample=1e-9)))
    for _ in range(5):
        http.post(INFER, json=body)
    http.post(INFER, content=b"{")

    (row,) = http.get(STATS).json()["versions"]
    time.sleep(0.6)  # the log is written within half a second

    assert row["requests"] == 6
    assert [kept.status for kept in read_log(endpoint.log)] == [400]


@pytest.mark.parametrize(
    ("scope", "status"),
    [("read:doubler", 200), ("infer:doubler", 200), ("metrics", 200), ("read:other", 403)],
)
def test_stats_are_for_callers_who_may_read_the_model_or_metrics(
    endpoint, tmp_path, ask, scope, status
):
    store = KeyStore(tmp_path / "keys.sqlite")
    key, _ = store.create("robot", [scope])
    http = ask(replace(endpoint, access=Access(keys=store._path)))

    answer = http.get(STATS, headers={"authorization": f"Bearer {key}"})

    assert answer.status_code == status
    assert http.get(STATS).status_code == 401
