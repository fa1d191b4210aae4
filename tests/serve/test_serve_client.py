import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from ingot.core.errors import ServeError
from ingot.serve.client import fetch_signature, predict

INPUTS = {"x": np.array([[0.1, np.nan]], np.float32), "mask": np.array([1])}


@pytest.fixture
def answering():
    """Start a server that gives one fixed answer; return its URL."""
    servers = []

    def start(status, payload):
        class Fixed(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args):
                return

        server = HTTPServer(("127.0.0.1", 0), Fixed)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_predict_returns_arrays_and_who_answered(running, endpoint):
    outputs, headers = predict(running.url, "doubler", INPUTS, headers={"x-request-id": "q"})

    np.testing.assert_array_equal(outputs["y"], INPUTS["x"] * np.float32(2))
    assert outputs["y"].dtype == np.float32
    assert outputs["kept"].tolist() == [True]
    assert headers["ingot-version"] == endpoint.version.digest
    assert headers["x-request-id"] == "q"


def test_a_signature_comes_back_as_it_was_released(running, endpoint):
    assert fetch_signature(running.url + "/", "doubler") == endpoint.model.signature


def test_a_refusal_is_quoted(running):
    with pytest.raises(ServeError, match="answered 400: .*'mask' missing"):
        predict(running.url, "doubler", {"x": INPUTS["x"]})


def test_a_body_over_the_limit_is_refused_in_the_servers_words(running):
    big = {"x": np.zeros((400_000, 2), np.float32), "mask": np.zeros(400_000, np.int64)}

    with pytest.raises(ServeError, match="413|must answer"):
        predict(running.url, "doubler", big)


def test_nobody_there_says_how_to_start(running):
    running.stop()

    with pytest.raises(ServeError, match="ingot serve NAME@STAGE"):
        predict(running.url, "doubler", INPUTS)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1/x", "http://"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ServeError, match="must be http://HOST:PORT"):
        fetch_signature(url, "doubler")


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([np.inf])])
def test_values_that_json_cannot_carry_are_refused(value):
    with pytest.raises(ServeError, match=r"Input 'x' must"):
        predict("http://127.0.0.1:1", "doubler", {"x": value})


def test_an_answer_that_is_not_json_is_named(answering):
    with pytest.raises(ServeError, match="Is it an inference server"):
        fetch_signature(answering(200, b"<html>"), "m")


def test_an_error_page_of_another_server_is_quoted(answering):
    with pytest.raises(ServeError, match="answered 502: bad gateway"):
        fetch_signature(answering(502, b"bad gateway"), "m")


def test_metadata_of_other_servers_need_no_axis_names(answering):
    row = b'{"name": "x", "datatype": "FP32", "shape": [-1, 4]}'
    url = answering(200, b'{"name": "m", "inputs": [%b], "outputs": []}' % row)

    (spec,) = fetch_signature(url, "m").inputs

    assert (spec.dtype, spec.shape) == ("float32", ("axis0", 4))
