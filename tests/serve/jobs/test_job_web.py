import json
import socket
import threading
from urllib.parse import urlsplit

import pytest
from job_sessions import SLEEP
from job_words import JOBS, request_of
from outside import wait_for

from ingot.serve.jobs.job import StoreError


def refused(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found["status"] == status
    return found["detail"]


def test_a_job_is_accepted_with_its_id_and_its_output(web, endpoint):
    answer = web.post(JOBS, json=request_of(1.0, 2.0) | {"id": "mine"})
    found = answer.json()

    assert answer.status_code == 202
    assert answer.headers["location"] == found["status_url"] == f"{JOBS}/{found['job']}"
    assert answer.headers["ingot-version"] == endpoint.version.digest
    assert found["id"] == "mine"
    assert found["output"].endswith(f"/doubler/{found['job']}.json")


def test_one_idempotency_key_is_one_job(web):
    keyed = {"idempotency-key": "k1"}
    first = web.post(JOBS, json=request_of(1.0, 2.0), headers=keyed)
    again = web.post(JOBS, json=request_of(1.0, 2.0), headers=keyed)
    other = web.post(JOBS, json=request_of(3.0, 4.0), headers=keyed)

    assert again.json()["job"] == first.json()["job"]
    assert again.headers["idempotency-replayed"] == "true"
    assert first.json()["job"] in refused(other, 422)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({}, "either inputs or input_uri"),
        ({"inputs": [], "input_uri": "x"}, "either inputs or input_uri"),
        ({"inputs": []}, "Every input must be given"),
        (request_of(1.0, 2.0) | {"ttl_s": 0}, "ttl_s must be above 0"),
        (request_of(1.0, 2.0) | {"timeout_s": 3601}, "at most 3,600 seconds"),
        (request_of(1.0, 2.0) | {"id": "x" * 256}, "at most 255"),
        (request_of(1.0, 2.0) | {"notify": "ftp://x"}, "http(s) URL"),
        ({"input_uri": "http://169.254.169.254/latest"}, "must be a local path or one of"),
        ({"input_uri": "relative.json"}, "absolute path"),
        ({"input_uri": "/a\x07b"}, "printable"),
        (request_of(1.0, 2.0) | {"id": "a\x07b"}, "printable"),
    ],
)
def test_a_wrong_request_is_400_before_anything_is_kept(web, body, complaint):
    assert complaint in refused(web.post(JOBS, content=json.dumps(body)), 400)
    assert web.get(JOBS).json()["jobs"] == []


def test_a_wrong_tensor_is_refused_at_once_like_in_real_time(web):
    body = request_of(1.0, 2.0)
    body["inputs"][0]["name"] = "y"

    assert "No input is named 'y'" in refused(web.post(JOBS, json=body), 400)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"inputs": 1' + b"[" * 2000])
def test_what_is_no_request_is_400(web, content):
    refused(web.post(JOBS, content=content), 400)


def test_places_outside_the_roots_are_403(web, tmp_path, inputs):
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (inputs / "link.json").symlink_to(secret)

    for uri in (secret, inputs / ".." / "secret.json", inputs / "link.json"):
        assert "inside a folder" in refused(web.post(JOBS, json={"input_uri": str(uri)}), 403)
    assert refused(web.post(JOBS, json={"input_uri": "s3://bucket/x.json"}), 403)


def test_an_input_that_is_not_there_is_404(web, inputs):
    refused(web.post(JOBS, json={"input_uri": str(inputs / "none.json")}), 404)


def test_a_local_address_is_notified_only_if_allowed(web):
    body = request_of(1.0, 2.0)

    assert web.post(JOBS, json=body | {"notify": "http://127.0.0.1:9/"}).status_code == 202
    words = refused(web.post(JOBS, json=body | {"notify": "http://169.254.169.254/"}), 403)
    assert "169.254.169.254" in words


def test_a_body_beyond_the_inline_limit_is_413_and_names_the_way_out(web):
    for content in (b" " * 128_001, (b" " * 1000 for _ in range(129))):
        assert "input_uri" in refused(web.post(JOBS, content=content), 413)


def test_a_caller_that_hangs_up_harms_nobody(serving, web, caplog):
    address = urlsplit(serving.url)
    with socket.create_connection((address.hostname, address.port)) as link:
        link.sendall(f"POST {JOBS} HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{{".encode())

    assert web.post(JOBS, json=request_of(1.0, 2.0)).status_code == 202
    assert "failed" not in caplog.text


def test_a_body_of_exactly_the_inline_limit_is_taken(web):
    body = json.dumps(request_of(1.0, 2.0)).encode().ljust(128_000)

    assert web.post(JOBS, content=body).status_code == 202


def test_a_compressed_body_is_415(web):
    refused(web.post(JOBS, content=b"x", headers={"content-encoding": "gzip"}), 415)


def test_more_jobs_than_may_wait_are_429_with_a_time_to_come_back(serving, web):
    serving.desk.store._max_queued = 0

    answer = web.post(JOBS, json=request_of(1.0, 2.0))

    assert "may wait" in refused(answer, 429)
    assert answer.headers["retry-after"] == "5"


def test_a_store_that_cannot_write_is_507_and_nothing_is_accepted(serving, web, monkeypatch):
    def full(jobs):
        raise StoreError("disk full at a secret path")

    monkeypatch.setattr(serving.desk.store, "put", full, raising=False)

    words = refused(web.post(JOBS, json=request_of(1.0, 2.0)), 507)

    assert "secret" not in words


def test_a_draining_endpoint_refuses_jobs_and_is_not_ready(serving, web):
    serving.desk.is_draining = True

    refused(web.post(JOBS, json=request_of(1.0, 2.0)), 503)
    assert web.get("/v2/health/ready").status_code == 503
    assert web.get("/v2/health/live").status_code == 200


def test_health_and_metadata_are_there(web, endpoint):
    model = web.get("/v2/models/doubler").json()

    assert web.get("/v2/health/ready").json() == {"ready": True}
    assert model["parameters"]["ingot-version"] == endpoint.version.digest
    refused(web.get("/v2/models/dubler"), 404)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/doubler/jobs/none", 404),
        ("DELETE", "/v2/models/doubler/jobs/none", 404),
        ("GET", "/v2/models/doubler/jobs/none/result", 404),
        ("GET", "/v2/models/doubler/jobs/none/events", 404),
        ("POST", "/v2/models/dubler/jobs", 404),
        ("GET", "/nowhere", 404),
        ("PUT", "/v2/models/doubler/jobs", 405),
        ("GET", "/v2/models/doubler/jobs?state=lost", 400),
        ("GET", "/v2/models/doubler/jobs?limit=0", 400),
        ("GET", "/v2/models/doubler/scaling?after=-1", 400),
    ],
)
def test_every_refusal_is_a_problem_document(web, method, path, status):
    refused(web.request(method, path), status)


def test_a_result_before_the_end_is_409_with_a_time_to_come_back(web):
    job = web.post(JOBS, json=request_of(SLEEP, 2.0)).json()["job"]

    answer = web.get(f"{JOBS}/{job}/result")

    refused(answer, 409)
    assert answer.headers["retry-after"] == "1"


def test_an_ended_job_cannot_be_cancelled(web, end_of):
    job = web.post(JOBS, json=request_of(1.0, 2.0)).json()["job"]
    end_of(job)

    assert "this one is succeeded" in refused(web.delete(f"{JOBS}/{job}"), 409)


def test_jobs_are_listed_newest_first_in_pages_and_counted(web, end_of):
    jobs = [web.post(JOBS, json=request_of(1.0, 2.0)).json()["job"] for _ in range(3)]
    for job in jobs:
        end_of(job)

    first = web.get(JOBS, params={"limit": 2, "state": "succeeded"}).json()
    second = web.get(JOBS, params={"limit": 2, "after": first["after"]}).json()

    assert [job["job"] for job in first["jobs"]] == jobs[:0:-1]
    assert [job["job"] for job in second["jobs"]] == jobs[:1]
    assert second["after"] is None
    assert first["counts"]["succeeded"] == 3


def test_events_tell_each_state_once_and_stop_at_the_end(web):
    job = web.post(JOBS, json=request_of(SLEEP, 2.0)).json()["job"]

    with web.stream("GET", f"{JOBS}/{job}/events") as stream:
        lines = list(stream.iter_lines())

    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names[-2:] == ["running", "succeeded"]
    assert len(names) == len(set(names))
    last = json.loads([line for line in lines if line.startswith("data: ")][-1][6:])
    assert last["result_url"] == f"{JOBS}/{job}/result"


def test_many_callers_at_once_each_get_their_own_job(serving, web):
    found = []

    def put():
        found.append(web.post(JOBS, json=request_of(1.0, 2.0)).json()["job"])

    threads = [threading.Thread(target=put) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(found)) == 16
    wait_for(lambda: web.get(JOBS).json()["counts"]["succeeded"] == 16)
