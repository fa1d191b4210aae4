import contextlib
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from certificates import make_certificate
from ray_here import HAS_RAY, needs_ray

from ingot.core.errors import MissingExtraError, ServeError
from ingot.serve.client import predict
from ingot.serve.deploy.processes import descendants
from ingot.serve.deploy.ray_app import RayServe
from ingot.serve.deploy.ray_run import environment, run_on_ray
from ingot.serve.endpoint import Endpoint, Tls
from ingot.serve.server import serve_in_thread
from ingot.testing.tiny import toy_images

BODY = {"id": "one", "inputs": [
    {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32",
     "data": [round(0.01 * i, 2) for i in range(64)]}
]}  # fmt: skip


@pytest.fixture
def here(released):
    return Endpoint(released.version, released.model)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"replicas": 1}, "at least two"),
        ({"cpus": 0}, "cpus must be above 0"),
    ],
)
def test_figures_that_ray_cannot_run_are_refused(here, wrong, words):
    with pytest.raises(ServeError, match=words):
        RayServe(here, **wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"grpc_port": 0}, "HTTP alone"),
        ({"workers": 2}, "replicas instead"),
        ({"timeout_s": 0}, "timeout_s"),
    ],
)
def test_endpoints_that_ray_cannot_run_are_refused(here, wrong, words):
    with pytest.raises(ServeError, match=words):
        RayServe(replace(here, **wrong))


def test_tls_is_refused_with_what_to_do(here, tmp_path):
    for name in ("a.pem", "b.pem"):
        (tmp_path / name).write_text("no certificate")

    with pytest.raises(ServeError, match="tls|TLS|PEM"):
        RayServe(replace(here, tls=Tls(tmp_path / "a.pem", tmp_path / "b.pem")))


def test_an_application_is_one_version(here):
    with pytest.raises(ServeError, match="one version"):
        RayServe(replace(here, beside=(here,)))


def test_haproxy_mode_is_on_and_its_files_are_ours_alone(here, tmp_path):
    found = environment(RayServe(here), tmp_path, (1, 2))

    assert found["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert found["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    paths = [value for value in found.values() if value.startswith("/")]
    assert len(paths) == 7
    assert all(Path(path).is_relative_to(tmp_path) for path in paths)


def test_nothing_about_its_use_is_told_to_anybody(here, tmp_path):
    assert environment(RayServe(here), tmp_path, (1, 2))["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_request_is_sent_again_once_if_that_does_no_harm(here, tmp_path):
    may = environment(RayServe(here), tmp_path, (1, 2))
    must_not = environment(RayServe(replace(here, is_idempotent=False)), tmp_path, (1, 2))

    assert may["RAY_SERVE_HAPROXY_RETRIES"] == "1"
    assert may["RAY_SERVE_HAPROXY_RETRY_ON"] == "conn-failure empty-response"
    assert must_not["RAY_SERVE_HAPROXY_RETRY_ON"] == "conn-failure"


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_extra_is_named(here):
    with pytest.raises(MissingExtraError, match=r"ingot\[ray\]"):
        run_on_ray(RayServe(here))


class Deployed:
    """`ingot deploy ray` in a process of its own, and everything it started."""

    def __init__(self, folder: Path, *more: object) -> None:
        self.log = folder / "ray.log"
        words = ["deploy", "ray", "digits@prod", "--port", "0", "--drain-s", "5", *map(str, more)]
        with self.log.open("w") as out:
            self.keeper = subprocess.Popen(
                [sys.executable, "-m", "ingot.cli", *words],
                env=os.environ | {"INGOT_HOME": str(folder / "home")}, stdout=out, stderr=out,
            )  # fmt: skip
        self.url = self._wait()
        self.below = {process: _name(process) for process in descendants(self.keeper.pid)}

    def _wait(self, limit_s: float = 240) -> str:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and self.keeper.poll() is None:
            if found := re.search(r"answering at (\S+)", self.log.read_text()):
                return found[1]
            time.sleep(0.2)
        self.keeper.kill()
        raise AssertionError(self.log.read_text())

    @property
    def driver(self) -> int:
        (found,) = (p for p in self.below if b"spawn_main" in _words(p))
        return found

    def left(self, limit_s: float = 60) -> dict[int, str]:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            left = {p: name for p, name in self.below.items() if _name(p) == name}
            if not left:
                break
            time.sleep(0.1)
        return left


def _words(process: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def _name(process: int) -> str:
    with contextlib.suppress(OSError):
        state, name = Path(f"/proc/{process}/stat").read_text(), _words(process)
        return "" if state.rpartition(")")[2].split()[0] == "Z" else str(name[:80])
    return ""


def _listening(processes) -> set[str]:
    """Return the addresses that some processes listen on."""
    inodes = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes |= set(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                words = bytes.fromhex(fields[1].split(":")[0])
                numbers = struct.unpack(f"<{len(words) // 4}I", words)
                family = socket.AF_INET if table == "tcp" else socket.AF_INET6
                found.add(socket.inet_ntop(family, struct.pack(f">{len(numbers)}I", *numbers)))
    return found


@pytest.fixture(scope="module")
def deployed(ray_home):
    one = Deployed(ray_home)
    yield one
    if one.keeper.poll() is None:
        one.keeper.send_signal(signal.SIGTERM)
        one.keeper.wait(90)


@needs_ray
def test_ray_gives_the_bytes_of_the_direct_endpoint(deployed, released):
    path = "/v2/models/digits/infer"
    headers = {"x-request-id": "one"}
    through = httpx.post(deployed.url + path, json=BODY, headers=headers, trust_env=False)
    with serve_in_thread(Endpoint(released.version, released.model, port=0)) as running:
        direct = httpx.post(running.url + path, json=BODY, headers=headers, trust_env=False)

    assert direct.status_code == 200
    assert through.content == direct.content
    assert through.headers.get_list("x-request-id") == ["one"]
    for name in ("ingot-version", "ingot-model", "content-type"):
        assert through.headers[name] == direct.headers[name]


@needs_ray
def test_ray_gives_the_bytes_of_binary_tensors(deployed, released):
    feeds = {"image": toy_images()[0][:3]}
    through, _ = predict(deployed.url, "digits", feeds, binary=True)
    with serve_in_thread(Endpoint(released.version, released.model, port=0)) as running:
        direct, _ = predict(running.url, "digits", feeds, binary=True)

    assert through["logits"].tobytes() == direct["logits"].tobytes()


@needs_ray
def test_refusals_are_the_same_problem_documents(deployed, released):
    with serve_in_thread(Endpoint(released.version, released.model, port=0)) as running:
        for path, body in (("/v2/models/x/infer", BODY), ("/v2/models/digits/infer", {})):
            through = httpx.post(deployed.url + path, json=body, trust_env=False)
            direct = httpx.post(running.url + path, json=body, trust_env=False)

            assert through.status_code == direct.status_code >= 400
            assert through.content == direct.content


@needs_ray
def test_nothing_of_ray_listens_beyond_loopback(deployed):
    assert _listening(deployed.below) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@needs_ray
def test_a_driver_that_is_killed_leaves_no_process_and_no_port(deployed):
    port = int(deployed.url.rpartition(":")[2])
    assert any("haproxy" in name for name in deployed.below.values())
    os.kill(deployed.driver, signal.SIGKILL)

    assert deployed.left() == {}
    assert deployed.keeper.wait(30) == 2
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


@needs_ray
def test_with_a_certificate_requests_are_encrypted_and_nothing_is_left(ray_home):
    tls = make_certificate(ray_home)
    one = Deployed(ray_home, "--tls-cert", tls.certificate, "--tls-key", tls.key)
    try:
        path = f"{one.url}/v2/models/digits/infer"
        context = ssl.create_default_context(cafile=str(tls.certificate))
        answer = httpx.post(path, json=BODY, verify=context, trust_env=False)
        with pytest.raises(httpx.TransportError):
            httpx.post(path.replace("https", "http"), json=BODY, trust_env=False)
    finally:
        one.keeper.send_signal(signal.SIGTERM)
        ended = one.keeper.wait(90)

    assert answer.status_code == 200
    assert ended == 0
    assert one.left() == {}
