import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from job_words import request_of

from ingot.core.errors import ServeError
from ingot.serve.jobs.client import JobClient


@pytest.fixture
def client(serving):
    return JobClient(serving.url, "doubler")


def test_a_job_is_put_followed_and_its_result_saved(client, tmp_path):
    asked = client.submit(request_of(1.0, 2.0) | {"id": "mine"}, idempotency_key="k")
    again = client.submit(request_of(1.0, 2.0) | {"id": "mine"}, idempotency_key="k")
    ended = client.wait(asked["job"])
    path = client.save_result(asked["job"], tmp_path / "r.json")

    assert again["job"] == asked["job"]
    assert (ended["state"], ended["id"]) == ("succeeded", "mine")
    assert path.read_bytes() == client.result(asked["job"])
    assert json.loads(path.read_bytes())["outputs"][0]["data"] == [2.0, 4.0]
    assert client.jobs(state="succeeded")["counts"]["succeeded"] == 1
    assert client.status(asked["job"])["state"] == "succeeded"


def test_a_refusal_is_quoted(client):
    with pytest.raises(ServeError, match="answered 400: .*either inputs or input_uri"):
        client.submit({})
    with pytest.raises(ServeError, match="answered 404: .*must be known"):
        client.cancel("none")


def test_a_wait_that_is_over_says_so(client):
    job = client.submit({**request_of(-3.0, 1.0)})["job"]

    with pytest.raises(ServeError, match="must end within 0 s"):
        client.wait(job, timeout_s=0.0)


@pytest.mark.parametrize("url", ["ftp://x", "file:///etc/passwd", "x"])
def test_only_http_is_spoken(url):
    with pytest.raises(ServeError, match="must be http"):
        JobClient(url, "m").jobs()


def test_a_token_is_sent_and_never_shown():
    seen = []

    class Keep(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers["authorization"])
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Keep) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        client = JobClient(f"http://127.0.0.1:{server.server_port}", "m", token="secret")
        client.jobs()
        server.shutdown()
        thread.join()

    assert seen == ["Bearer secret"]
    assert "secret" not in repr(client)
