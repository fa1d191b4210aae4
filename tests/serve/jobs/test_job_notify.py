import base64
import hashlib
import hmac
import ipaddress
import json
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ingot.serve.jobs.notify import Notifier, check_url, choose_address, read_key, sign
from ingot.serve.jobs.sqlite_store import SqliteJobStore
from ingot.serve.problems import RequestError
from ingot.testing.job_bench import ManualClock, new_job

KEY = b"0123456789abcdef"


class Receiver:
    """A server on loopback that keeps what it is told and answers as the test says."""

    def __init__(self):
        outer = self
        self.seen, self.status, self.location = [], 204, ""

        class Take(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.seen.append((self.path, dict(self.headers.items()), body))
                self.send_response(outer.status)
                if outer.location:
                    self.send_header("location", outer.location)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *words):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.url = f"http://127.0.0.1:{self.server.server_port}/told?x=1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver():
    found = Receiver()
    yield found
    found.close()


@pytest.fixture
def time():
    return ManualClock()


@pytest.fixture
def store(tmp_path, time):
    found = SqliteJobStore(tmp_path / "jobs.sqlite", clock=time.clock())
    yield found
    found.close()


@pytest.fixture
def notifier(store, time):
    found = Notifier(store, KEY, allowed=("127.0.0.0/8",), clock=lambda: time.wall)
    yield found
    found.close()


def end_one(store, url):
    store.put([new_job("j1", notify=url)])
    (lease,) = store.claim("model", "me", n=1, lease_s=9)
    store.complete(lease, size_bytes=7)


def test_an_end_is_told_as_a_signed_cloud_event(store, notifier, receiver, time):
    end_one(store, receiver.url)

    assert notifier.tell() == 1

    ((path, headers, body),) = receiver.seen
    event = json.loads(body)
    assert path == "/told?x=1"
    assert headers["content-type"].startswith("application/cloudevents+json")
    assert (event["specversion"], event["type"]) == ("1.0", "io.ingot.job.succeeded")
    assert (event["subject"], event["source"]) == ("j1", "/v2/models/model/jobs")
    assert event["data"]["result_bytes"] == 7
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{mac}"
    assert int(headers["webhook-timestamp"]) == int(time.wall)
    assert store.get("j1").notice == "delivered"
    assert notifier.tell() == 0


def test_the_signature_is_the_one_of_the_published_example():
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")

    found = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')

    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_failed_telling_is_tried_again_later_and_given_up_in_the_end(
    store, notifier, receiver, time
):
    receiver.status = 500
    end_one(store, receiver.url)
    tries = 0
    for _ in range(20):
        tries += notifier.tell()
        assert notifier.tell() == 0
        time.pass_s(3600.1)

    assert tries == len(receiver.seen) == 8
    assert store.get("j1").notice == "failed"


def test_a_receiver_that_is_gone_for_good_is_not_asked_again(store, notifier, receiver):
    receiver.status = 410
    end_one(store, receiver.url)
    notifier.tell()

    assert store.get("j1").notice == "failed"


def test_a_redirect_is_not_followed(store, notifier, receiver):
    receiver.status, receiver.location = 302, "http://127.0.0.1:1/"
    end_one(store, receiver.url)
    notifier.tell()

    assert len(receiver.seen) == 1
    assert store.get("j1").notice == "pending"


def test_a_name_that_leads_inside_is_refused_when_it_is_told(store, receiver):
    inside = Notifier(store, KEY, look_up=lambda host, port: ["93.184.216.34", "10.0.0.1"])
    end_one(store, "http://harmless.example/x")
    inside.tell()
    inside.close()

    assert receiver.seen == []
    assert store.get("j1").notice == "failed"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://localhost/", "http://a.localhost/", "http://[::1]/",
        "http://169.254.169.254/latest", "http://[fe80::1]/", "http://[fd00:ec2::254]/",
        "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://0.0.0.0/",
        "http://[2002:7f00:1::]/", "http://224.0.0.1/", "http://10.1.2.3/", "http://100.64.0.1/",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(url):
    with pytest.raises(RequestError, match="public address") as caught:
        check_url(url, ())

    assert caught.value.status == 403


@pytest.mark.parametrize(
    "url", ["ftp://x/", "http://", "http://u:p@x/", "http://x:99999/", "x", "http://x/\r\nh: 1"]
)
def test_what_is_no_plain_url_is_refused(url):
    with pytest.raises(RequestError, match="notify must be"):
        check_url(url, ())


def test_names_and_networks_can_be_allowed():
    assert check_url("https://hooks.corp:8443/x", ()) == ("https", "hooks.corp", 8443)
    assert choose_address("hooks.corp", 80, ("hooks.corp",), look_up=lambda h, p: ["10.0.0.9"])
    assert choose_address("x", 80, ("10.0.0.0/8",), look_up=lambda h, p: ["10.0.0.9"]) == "10.0.0.9"
    with pytest.raises(RequestError):
        choose_address("x", 80, ("10.0.0.0/8",), look_up=lambda h, p: ["192.168.0.9"])
    with pytest.raises(OSError, match="no address"):
        choose_address("x", 80, (), look_up=lambda h, p: [])
    assert ipaddress.ip_address(choose_address("x", 1, (), look_up=lambda h, p: ["8.8.8.8"]))


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path):
    first, again = read_key(tmp_path / "k"), read_key(tmp_path / "k")

    assert first == again
    assert len(first) == 32
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
