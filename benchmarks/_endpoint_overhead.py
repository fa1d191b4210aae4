"""CPU that an endpoint spends on one request beside the model: a session that does nothing."""

import http.client
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

_BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -2.5, 3.25, 4.0]}]}
).encode()


class NoOp:
    """A session that answers a constant."""

    def __init__(self, config):
        self.config, self._answer = config, {"y": np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)}

    def run(self, feeds):
        """Return four floats."""
        return self._answer

    def executed(self):
        """Return nothing: nothing runs."""
        return ()

    def close(self):
        """Free nothing."""


def measure_endpoint_overhead(requests: int = 5000, *, warm_up: int = 500) -> dict[str, float]:
    """Return user + system CPU of the server process per request, in microseconds.

    The server runs in a process of its own with observations and metrics on; a client sends four
    floats over kept-alive connections: 16 requests at a time (`cpu_us`), and one at a time
    (`cpu_us_one_at_a_time`), where every request also pays for waking the process.

    Args:
        requests: How many are counted in each of the two.
        warm_up: How many come before and are not.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "serve", str(Path(folder) / "observations.sqlite")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                port = int(server.stdout.readline().rsplit(":", 1)[1])
                many, one = (_cpu_us(server.pid, port, k, requests, warm_up) for k in (16, 1))
            finally:
                server.terminate()
    return {
        "cpu_us": many,
        "cpu_us_one_at_a_time": one,
        "requests": requests,
        "body_bytes": len(_BODY),
    }


def _cpu_us(pid, port, at_once, requests, warm_up):
    connections = [
        http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(at_once)
    ]
    _send(connections, warm_up)
    before = _cpu_s(pid)
    sent = _send(connections, requests)
    spent = _cpu_s(pid) - before
    for connection in connections:
        connection.close()
    return spent / sent * 1e6


def _send(connections, count):
    rounds = -(-count // len(connections))
    for _ in range(rounds):
        for connection in connections:
            connection.request("POST", "/v2/models/noop/infer", _BODY)
        for connection in connections:
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise RuntimeError(f"The server must answer 200; got {response.status}.")
    return rounds * len(connections)


def _cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(log):
    from ingot.models.model import Lineage, Model, Signature, TensorSpec
    from ingot.registry.version import Version
    from ingot.runtime.engine import EngineConfig
    from ingot.serve.endpoint import Endpoint
    from ingot.serve.server import run

    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 4)),)
    )
    model = Model(Path(log).parent, "sha256:" + "0" * 64, signature, Lineage("onnx"), "noop")
    config = EngineConfig()
    version = Version("noop", 1, model.digest, model.digest, config, "2026-01-01T00:00:00Z", 0)
    endpoint = Endpoint(version, model, port=0, log=Path(log))
    run(endpoint, NoOp(config), on_ready=lambda url: print(url, flush=True))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        _serve(sys.argv[2])
    else:
        print(json.dumps(measure_endpoint_overhead()))
