"""Servers of a no-op or a 20 ms model: `_realtime_servers.py NAME PORT FOLDER WORKERS MODEL_S`.

Ours runs in this environment; `litserve`, `mlserver`, `bentoml` and `rayserve` in others. All get
the same body and answer four floats.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

MLSERVER_MODEL = """
import asyncio
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput
class NoOp(MLModel):
    async def load(self):
        return True
    async def predict(self, payload):
        if {seconds}:
            await asyncio.sleep({seconds})
        row = ResponseOutput(name="y", shape=[1, 4], datatype="FP32", data=[0.1, 0.2, 0.3, 0.4])
        return InferenceResponse(model_name=self.name, outputs=[row])
"""
LITSERVE_APP = """
import os, pathlib, time
import litserve
class NoOp(litserve.LitAPI):
    def setup(self, device):
        pathlib.Path(__file__).with_name(f"worker.{{os.getpid()}}").touch()
    def decode_request(self, request):
        return request["inputs"][0]["data"]
    def predict(self, data):
        time.sleep({seconds}) if {seconds} else None
        return [0.1, 0.2, 0.3, 0.4]
    def encode_response(self, output):
        return {{"outputs": [{{"name": "y", "data": output}}]}}
if __name__ == "__main__":
    server = litserve.LitServer(
        NoOp(), accelerator="cpu", workers_per_device={workers}, restart_workers={restart}
    )
    server.run(host="127.0.0.1", port={port}, generate_client_file=False, log_level="error")
"""
BENTO_SERVICE = """
import time
import bentoml
@bentoml.service(workers={workers}, traffic={{"timeout": 60}})
class NoOp:
    @bentoml.api(route="/predict")
    def predict(self, inputs: list) -> list:
        time.sleep({seconds}) if {seconds} else None
        return [0.1, 0.2, 0.3, 0.4]
"""


def serve_ours(port, folder, workers, seconds):
    """Serve with keys, metrics and the log on; write the key to `key.txt`."""
    from dataclasses import replace

    from ingot.models.model import Lineage, Model, Signature, TensorSpec
    from ingot.registry.version import Version
    from ingot.runtime.engine import EngineConfig
    from ingot.serve.access.keys import KeyStore
    from ingot.serve.endpoint import Access, Endpoint
    from ingot.serve.server import run

    info = folder / "bench-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bench\nVersion: 1.0\n")
    lines = ("noop = _realtime_engine:NoOpEngine", "slow = _realtime_engine:SlowEngine")
    (info / "entry_points.txt").write_text("[ingot.engines]\n" + "\n".join(lines) + "\n")
    sys.path.insert(0, str(folder))
    keys = folder / "keys.sqlite"
    (folder / "key.txt").write_text(KeyStore(keys).create("bench", ["infer:*"])[0])
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 4)),)
    )
    model = Model(folder, "sha256:" + "0" * 64, signature, Lineage("onnx"), "noop")
    config = EngineConfig("slow" if seconds else "noop")
    version = Version("noop", 1, model.digest, model.digest, config, "2026-01-01T00:00:00Z", 0)
    endpoint = Endpoint(version, model, port=port, log=folder / "log.sqlite", workers=workers)
    run(replace(endpoint, access=Access(keys)))


def serve_litserve(port, folder, workers, seconds):
    """Serve with LitServe."""
    script = folder / "litserve_app.py"
    facts = {"port": port, "workers": max(1, workers), "restart": workers > 1, "seconds": seconds}
    script.write_text(LITSERVE_APP.format(**facts))
    os.execv(sys.executable, [sys.executable, str(script)])


def serve_mlserver(port, folder, workers, seconds):
    """Serve with MLServer."""
    (folder / "noop_model.py").write_text(MLSERVER_MODEL.format(seconds=seconds))
    server = {
        "host": "127.0.0.1", "http_port": port, "grpc_port": port + 1, "metrics_port": port + 2,
        "parallel_workers": workers, "debug": False,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(server))
    model = {"name": "noop", "implementation": "noop_model.NoOp"}
    (folder / "model-settings.json").write_text(json.dumps(model))
    os.chdir(folder)
    code = "from mlserver.cli import main; main()"
    os.execv(sys.executable, [sys.executable, "-c", code, "start", str(folder)])


def serve_bentoml(port, folder, workers, seconds):
    """Serve with BentoML."""
    source = BENTO_SERVICE.format(workers=max(1, workers), seconds=seconds)
    (folder / "noop_service.py").write_text(source)
    os.chdir(folder)
    words = ["serve", "noop_service:NoOp", "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *words])


def serve_rayserve(port, folder, workers, seconds):
    """Serve with Ray Serve, through its own proxy."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    import asyncio

    import ray
    from ray import serve

    @serve.deployment(num_replicas=max(1, workers))
    class NoOp:
        def __init__(self):
            (folder / f"worker.{os.getpid()}").touch()

        async def __call__(self, request):
            await request.json()
            await asyncio.sleep(seconds)
            return {"outputs": [{"name": "y", "data": [0.1, 0.2, 0.3, 0.4]}]}

    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", num_cpus=max(2, workers))
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(NoOp.bind(), route_prefix="/predict", blocking=True)


SERVERS = {
    "ingot": serve_ours, "litserve": serve_litserve, "mlserver": serve_mlserver,
    "bentoml": serve_bentoml, "rayserve": serve_rayserve,
}  # fmt: skip

if __name__ == "__main__":
    name, port, folder, workers, seconds = sys.argv[1:]
    SERVERS[name](int(port), Path(folder), int(workers), float(seconds))
