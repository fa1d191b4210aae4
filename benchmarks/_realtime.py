"""Real-time serving beside its peers: CPU per request, requests per second, requests lost.

Ours runs with keys, metrics and the observation log on; the peers as they come. LitServe, MLServer
and BentoML need an environment of their own, whose Python the variable INGOT_SERVE_PEERS names, and
Ray Serve another, INGOT_SERVE_RAY; those that are not there are left out.
"""

import contextlib
import http.client
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from _realtime_engine import MODEL_S

PEERS = ("litserve", "mlserver", "bentoml")
HOMES = dict.fromkeys(PEERS, "INGOT_SERVE_PEERS") | {"rayserve": "INGOT_SERVE_RAY"}
PATHS = {"ingot": "/v2/models/noop/infer", "mlserver": "/v2/models/noop/infer"}
BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -2.5, 3.25, 4.0]}]}
).encode()
KILLED = ("ingot", "litserve", "rayserve")
START_S = 60
WARM_UP = 500  # requests


class Server:
    """A server in a process of its own; a context manager that ends it and all it started."""

    def __init__(self, name, *, workers=0, seconds=0.0):
        self.name, self.port = name, _free_port()
        self._folder = tempfile.TemporaryDirectory()
        python = sys.executable if name == "ingot" else os.environ[HOMES[name]]
        script = str(Path(__file__).with_name("_realtime_servers.py"))
        words = [
            python,
            script,
            name,
            str(self.port),
            self._folder.name,
            str(workers),
            str(seconds),
        ]
        self._log = Path(self._folder.name, "server.log").open("wb")  # noqa: SIM115 # __exit__ closes it
        self.process = subprocess.Popen(
            words, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def __enter__(self):
        deadline = time.monotonic() + START_S
        while self.ask() != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                words = Path(self._folder.name, "server.log").read_text(errors="replace")
                self.__exit__()
                raise RuntimeError(f"{self.name} did not start: {words[-800:]}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        with contextlib.suppress(ProcessLookupError):  # what its main process left behind
            os.killpg(self.process.pid, signal.SIGKILL)
        self._log.close()
        self._folder.cleanup()

    @property
    def request(self):
        """The bytes of one request."""
        headers = [
            "host: 127.0.0.1",
            "content-type: application/json",
            f"content-length: {len(BODY)}",
        ]
        key = Path(self._folder.name, "key.txt")
        if key.is_file():
            headers.append(f"authorization: Bearer {key.read_text()}")
        path = PATHS.get(self.name, "/predict")
        return "\r\n".join([f"POST {path} HTTP/1.1", *headers, "", ""]).encode() + BODY

    def ask(self, timeout_s=10):
        """Return the status of one request on a connection of its own; None if there was none."""
        try:
            with socket.create_connection(
                ("127.0.0.1", self.port), timeout=timeout_s
            ) as connection:
                connection.sendall(self.request)
                response = http.client.HTTPResponse(connection)
                response.begin()
                response.read()
                return response.status
        except (OSError, http.client.HTTPException):
            return None

    def processes(self):
        """Return the fields of `/proc/PID/stat` after the name, of every process it started."""
        stats = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                    stats[int(folder.name)] = fields
        mine = {pid for pid, fields in stats.items() if int(fields[3]) == self.process.pid}
        before = -1
        while before != len(mine):  # children that made a session of their own, and theirs
            before = len(mine)
            mine |= {pid for pid, fields in stats.items() if int(fields[1]) in mine}
        return {pid: stats[pid] for pid in mine}

    def cpu_s(self):
        """Return user and system seconds of every process of the server."""
        ticks = sum(int(fields[11]) + int(fields[12]) for fields in self.processes().values())
        return ticks / os.sysconf("SC_CLK_TCK")

    def workers(self):
        """Return the processes that run the model: each leaves a file with its number."""
        named = {int(path.suffix[1:]) for path in Path(self._folder.name).glob("worker.*")}
        return sorted(named & {p for p, fields in self.processes().items() if fields[0] != "Z"})


def drive(port, request, count, *, at_once=16, status=200):
    """Send a request so often over kept connections, as many at a time; return seconds."""
    left, answered = count, 0
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(at_once):
            connection = socket.create_connection(("127.0.0.1", port))
            stack.enter_context(connection)
            selector.register(connection, selectors.EVENT_READ, bytearray())
            connection.sendall(request)
            left -= 1
        started = time.perf_counter()
        while answered < count:
            for key, _ in selector.select(30):
                key.data.extend(key.fileobj.recv(65536))
                if not _is_whole(key.data, status):
                    continue
                answered += 1
                key.data.clear()
                if left > 0:
                    left -= 1
                    key.fileobj.sendall(request)
        return time.perf_counter() - started


def measure_overhead(rounds=21, *, seconds=1.0):
    """Return, for each server, CPU microseconds and requests per second of every round.

    The servers take turns within a round, each for about as long, so what slows the machine down
    for a while slows all of them.

    Args:
        rounds: How often each server has its turn.
        seconds: How long a turn lasts, about.
    """
    found = {}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(Server(name)) for name in installed(["ingot", *PEERS])}
        counts = {}
        for name, server in servers.items():
            drive(server.port, server.request, WARM_UP)
            took = drive(server.port, server.request, WARM_UP)
            counts[name] = int(WARM_UP * seconds / took)
        for _ in range(rounds):
            for name, server in servers.items():
                before = server.cpu_s()
                took = drive(server.port, server.request, counts[name])
                row = found.setdefault(name, {"cpu_us": [], "requests_per_s": []})
                row["cpu_us"].append((server.cpu_s() - before) / counts[name] * 1e6)
                row["requests_per_s"].append(counts[name] / took)
    return found


def measure_kills(name="ingot", *, requests=6000, kills=20, clients=6, seed=0):
    """Kill one of two workers of a 20 ms model again and again; return what callers saw.

    Args:
        name: One of `KILLED`.
        requests: How many in all.
        kills: How many workers are killed with SIGKILL, spread over the run.
        clients: How many callers ask at a time.
        seed: Which worker is killed.
    """
    statuses, rng = [], random.Random(seed)
    with Server(name, workers=2, seconds=MODEL_S) as server:
        before = set(server.workers())

        def call():
            while len(statuses) < requests:
                statuses.append(server.ask(30))

        threads = [threading.Thread(target=call) for _ in range(clients)]
        for thread in threads:
            thread.start()
        killed = 0
        while killed < kills and any(thread.is_alive() for thread in threads):
            if len(statuses) * kills < requests * killed or not (found := server.workers()):
                time.sleep(0.01)
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(found), signal.SIGKILL)
                killed += 1
        for thread in threads:
            thread.join()
        replaced = len(set(server.workers()) - before)
    lost = [status for status in statuses if status != 200]
    return {
        "requests": len(statuses),
        "kills": killed,
        "lost": len(lost),
        "workers_new": replaced,
        "statuses": {str(s): statuses.count(s) for s in sorted(set(statuses), key=str)},
    }


def _is_whole(data, status):
    head, found, body = bytes(data).partition(b"\r\n\r\n")
    if not found:
        return False
    if not head.startswith(b"HTTP/1.1 %d " % status):
        raise RuntimeError(f"The server must answer {status}; got {head[:80]!r} {body[:200]!r}.")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return body.endswith(b"0\r\n\r\n")


def installed(names):
    """Return those of some servers that are there."""
    modules = {"rayserve": "ray.serve"}
    found = []
    for name in names:
        python = sys.executable if name == "ingot" else os.environ.get(HOMES[name])
        code = f"import {modules.get(name, name)}"
        if python and subprocess.run([python, "-c", code], check=False).returncode == 0:
            found.append(name)
    return found


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    what = sys.argv[1:] or ["overhead", "kills"]
    result = {}
    if "overhead" in what:
        result["overhead"] = measure_overhead()
    if "kills" in what:
        result["kills"] = {n: measure_kills(n) for n in installed(KILLED)}
    print(json.dumps(result, indent=2))
