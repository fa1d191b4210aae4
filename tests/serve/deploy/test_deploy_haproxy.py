import json
import os
import subprocess
import sys

import pytest

from ingot.serve.deploy import haproxy
from ingot.serve.endpoint import Tls

# what Ray Serve 2.60 writes, shortened
CONFIG = """\
global
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
defaults
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path not found."
backend http-app
    server one 127.0.0.1:30000 check
listen stats
  bind *:8404
  stats enable
"""


def binds(config):
    return [line.split()[1] for line in config.splitlines() if line.split()[:1] == ["bind"]]


def test_counts_and_statistics_listen_on_loopback_alone():
    config = haproxy.narrow(CONFIG, "127.0.0.1:8000", "refusal.http")

    assert binds(config) == ["127.0.0.1:9101", "127.0.0.1:8000", "127.0.0.1:8404"]


def test_requests_are_taken_where_the_host_says():
    config = haproxy.narrow(CONFIG, "0.0.0.0:8000", "refusal.http")

    assert binds(config) == ["127.0.0.1:9101", "0.0.0.0:8000", "127.0.0.1:8404"]


@pytest.mark.parametrize("bind", ["*:1", ":1", "0.0.0.0:1", "[::]:1", ":::1"])
def test_every_way_to_say_everywhere_is_narrowed(bind):
    assert haproxy.narrow(f"  bind {bind}\n", "127.0.0.1:8000", "x") == "  bind 127.0.0.1:1\n"


def test_narrowing_twice_changes_nothing_more():
    once = haproxy.narrow(CONFIG, "10.0.0.1:8000", "refusal.http")

    assert haproxy.narrow(once, "10.0.0.1:8000", "refusal.http") == once


def test_only_the_answers_are_encrypted_and_only_once():
    once = haproxy.narrow(CONFIG, "127.0.0.1:8000", "refusal.http", "both.pem")

    assert once.count(" ssl crt both.pem\n") == 1
    assert "bind 127.0.0.1:8000 ssl crt both.pem\n" in once
    assert haproxy.narrow(once, "127.0.0.1:8000", "refusal.http", "both.pem") == once


def test_the_certificate_and_its_key_are_for_their_owner_alone(tmp_path):
    (tmp_path / "cert.pem").write_text("CERT")
    (tmp_path / "key.pem").write_text("KEY")
    path = haproxy.write_certificate(tmp_path, Tls(tmp_path / "cert.pem", tmp_path / "key.pem"))

    assert path.read_text() == "CERT\nKEY"
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_no_replica_takes_is_refused_in_our_words():
    config = haproxy.narrow(CONFIG, "127.0.0.1:8000", "/etc/refusal.http")

    assert config.count("errorfile 502 /etc/refusal.http\n") == 1
    assert config.count("errorfile 503 /etc/refusal.http\n") == 1
    assert "status 404" not in config
    assert "backend default_backend\n    http-request deny deny_status 503\n" in config


def test_the_refusal_is_a_whole_answer_with_a_problem_document(tmp_path):
    head, _, body = haproxy.write_refusal(tmp_path).read_bytes().partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ") for line in lines)

    assert status == "HTTP/1.1 503 Service Unavailable"
    assert int(headers["content-length"]) == len(body)
    assert headers["content-type"] == "application/problem+json"
    assert headers["retry-after"] == "1"
    assert json.loads(body)["status"] == 503


@pytest.mark.skipif(sys.platform != "linux", reason="it is bound to its parent by the kernel")
def test_the_wrapper_becomes_what_it_wraps_with_a_narrowed_configuration(tmp_path):
    wrapper = haproxy.write_wrapper(tmp_path)
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG)
    env = os.environ | {
        haproxy.BINARY: "/bin/cat",
        haproxy.ADDRESS: "127.0.0.1:8000",
        haproxy.REFUSAL: "refusal.http",
    }
    done = subprocess.run(
        [wrapper, config, "-f", config], env=env, capture_output=True, text=True, timeout=60
    )

    # cat has no -f: it prints the first file and complains
    assert "invalid option -- 'f'" in done.stderr
    assert binds(config.read_text()) == ["127.0.0.1:9101", "127.0.0.1:8000", "127.0.0.1:8404"]
