"""The HTTP surface under what nobody would send on purpose: never a 500, always a document."""

import asyncio
import json
from contextlib import ExitStack, closing
from urllib.parse import quote, urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job_words import JOBS, request_of
from starlette.applications import Starlette

from ingot.serve import answers
from ingot.serve.jobs.app import build_jobs_app
from ingot.serve.jobs.decisions import DecisionLog
from ingot.serve.jobs.desk import JobDesk
from ingot.serve.jobs.metrics import JobMetrics
from ingot.serve.jobs.openapi import describe_jobs
from ingot.serve.jobs.web import job_routes
from ingot.serve.problems import RequestError
from ingot.twin.policy import Decision, Memory, Seen


@pytest.fixture
def app(endpoint, request):
    """Give an application without instances, so that jobs stay where they are put."""
    configured = request.getfixturevalue("settings")
    with ExitStack() as stack:
        store = stack.enter_context(closing(configured.open_store(is_first=True)))
        decisions = stack.enter_context(closing(DecisionLog(configured.folder / "s.sqlite")))
        decisions.record("doubler", Decision(Seen(0.0, 3, 0), "wake", 1, "why", Memory()))
        desk = stack.enter_context(
            closing(
                JobDesk(
                    endpoint, configured, store, decisions,
                    wake=lambda: None, is_ready=lambda: True,
                )
            )
        )  # fmt: skip
        made = build_jobs_app(desk, JobMetrics("doubler", store, instances=lambda: 2))
        made.state.desk = desk
        yield made


def ask(app, method, path, **more):
    async def exchange():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **more)

    return asyncio.run(exchange())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(["x", "mask", "y", ""]), "shape": st.lists(st.integers(-2, 3)) | JSON,
     "datatype": st.sampled_from(["FP32", "INT64", "BYTES", "", "fp32"]), "data": JSON}
)  # fmt: skip
PLACES = st.sampled_from(
    [
        "",
        "/",
        "/etc/passwd",
        "file:///etc/passwd",
        "s3://b/k",
        "s3://",
        "http://[::1",
        "a::b",
        "~",
        "//x",
    ]
) | st.text(max_size=30)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(TENSOR, max_size=3) | JSON, "input_uri": PLACES | JSON,
        "ttl_s": st.floats(allow_nan=False, allow_infinity=False) | JSON, "timeout_s": JSON,
        "notify": st.sampled_from(["http://[", "http://x:y", "http://1.1.1.1"]) | JSON,
        "id": st.text(max_size=10) | JSON, "outputs": JSON,
    },
)  # fmt: skip
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(body=BODIES.map(json.dumps).map(str.encode) | st.binary(max_size=60),
       key=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=5))  # fmt: skip
def test_no_body_makes_the_server_fail(app, body, key):
    answer = ask(
        app, "POST", JOBS, content=body, headers={"idempotency-key": key.encode("latin-1")}
    )

    assert answer.status_code in {202, 400, 403, 404, 422}
    if answer.status_code != 202:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code


PIECE = st.text(st.characters(codec="utf-8", exclude_characters="/?#%"), max_size=12)
WORDS = st.sampled_from(["v2", "models", "doubler", "jobs", "none", "result", "events", "scaling"])


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(
    method=st.sampled_from(["GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"]),
    pieces=st.lists(WORDS | PIECE, max_size=6),
    query=st.dictionaries(st.sampled_from(["state", "limit", "after"]), PIECE, max_size=3),
)
def test_no_path_makes_the_server_fail(app, method, pieces, query):
    path = "/" + "/".join(quote(piece, safe="") for piece in pieces)

    answer = ask(app, method, f"http://here{path}?{urlencode(query)}")

    assert answer.status_code < 500
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_that_comes_too_slowly_is_408(app, monkeypatch):
    monkeypatch.setattr(answers, "_BODY_S", 0.01)

    async def slow():
        yield b"{"
        await asyncio.sleep(30)

    answer = ask(app, "POST", JOBS, content=slow())

    assert answer.status_code == 408
    assert answer.headers["connection"] == "close"


def test_whoever_is_not_admitted_gets_no_page(app):
    async def admit(request):
        if request.headers.get("authorization") != "Bearer good":
            raise RequestError("A request must prove who sends it; this one does not.", status=401)

    guarded = Starlette(routes=job_routes(app.state.desk, admit=admit))

    refusals = [ask(guarded, "GET", JOBS), ask(guarded, "POST", JOBS, json=request_of(1.0, 2.0)),
                ask(guarded, "GET", "/v2/models/other/scaling")]  # fmt: skip
    admitted = ask(guarded, "GET", JOBS, headers={"authorization": "Bearer good"})

    assert [answer.status_code for answer in refusals] == [401, 401, 401]
    assert refusals[0].headers["www-authenticate"] == "Bearer"
    assert admitted.json()["jobs"] == []


def test_metrics_show_backlog_and_instances(app):
    for _ in range(3):
        ask(app, "POST", JOBS, json=request_of(1.0, 2.0))

    lines = ask(app, "GET", "/metrics").text.splitlines()

    assert 'ingot_jobs{model="doubler",state="queued"} 3.0' in lines
    assert 'ingot_job_backlog{model="doubler"} 3.0' in lines
    assert 'ingot_job_instances{model="doubler"} 2.0' in lines
    assert 'ingot_job_backlog_per_instance{model="doubler"} 1.5' in lines


def test_decisions_are_read_with_their_reasons(app):
    (row,) = ask(app, "GET", "/v2/models/doubler/scaling").json()["decisions"]

    assert (row["action"], row["before"], row["instances"]) == ("wake", 0, 1)
    assert (row["backlog"], row["reason"]) == (3, "why")
    after = ask(app, "GET", f"/v2/models/doubler/scaling?after={row['id']}").json()
    assert after["decisions"] == []


def test_the_document_names_every_route_and_every_answer_fits_it(app, endpoint):
    document = ask(app, "GET", "/openapi.json").json()
    routes = {
        (route.path.replace("{name}", "doubler"), method.lower())
        for route in app.routes
        for method in route.methods - {"HEAD"}
    }

    described = {(path, method) for path, item in document["paths"].items() for method in item}
    accepted = ask(app, "POST", JOBS, json=request_of(1.0, 2.0)).json()

    assert document == json.loads(json.dumps(describe_jobs(endpoint)))
    assert described == routes
    schema = document["paths"][JOBS]["post"]["responses"]["202"]["content"]["application/json"]
    assert set(schema["schema"]["required"]) <= set(accepted)
    status = ask(app, "GET", accepted["status_url"]).json()
    assert set(status) == set(schema["schema"]["properties"])


def test_the_documents_examples_are_accepted(app):
    document = ask(app, "GET", "/openapi.json").json()
    body = document["paths"][JOBS]["post"]["requestBody"]["content"]["application/json"]
    inline, place = body["examples"]["inline"]["value"], body["examples"]["place"]["value"]

    assert ask(app, "POST", JOBS, json=inline).status_code == 202
    assert ask(app, "POST", JOBS, json=place).status_code == 403  # a bucket nobody allowed


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(JOBS, {"GET", "HEAD", "POST"}), (JOBS + "/x", {"GET", "HEAD", "DELETE"})],
)
def test_a_wrong_method_is_told_every_right_one(app, path, allowed):
    answer = ask(app, "PUT", path)

    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed


def test_the_head_of_a_page_is_answered_like_the_page(app):
    assert ask(app, "HEAD", JOBS).status_code == 200
    assert ask(app, "HEAD", JOBS + "/none").status_code == 404


def test_the_head_of_a_stream_of_events_does_not_wait_for_the_end(app):
    job = ask(app, "POST", JOBS, json=request_of(1.0, 2.0)).json()

    head = ask(app, "HEAD", job["events_url"])

    assert head.headers["content-type"].startswith("text/event-stream")
    assert head.content == b""
