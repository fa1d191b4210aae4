"""A durable job from nothing: a tiny model, an endpoint, and an instance killed on the way."""

import contextlib
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ingot.models.model import Lineage, Model
from ingot.models.store import store_model
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.serve.endpoint import Endpoint
from ingot.serve.jobs.client import JobClient
from ingot.serve.jobs.server import serve_jobs_in_thread
from ingot.serve.jobs.settings import AsyncSettings

if TYPE_CHECKING:
    from onnx import ModelProto

_NAME = "doubler"
_JOBS = 20


@dataclass(frozen=True, slots=True)
class Shown:
    """What the demonstration did.

    Attributes:
        first_s: Seconds from its start to the first durable result.
        jobs: Jobs that were put.
        killed: Instances that were killed meanwhile.
        succeeded: Jobs that were answered.
        again: Attempts beyond the first.
    """

    first_s: float
    jobs: int
    killed: int
    succeeded: int
    again: int


def show_jobs() -> Shown:
    """Serve a model that doubles numbers from a temporary folder, put jobs, kill an instance.

    Raises:
        MissingExtraError: The extra `serve` is not installed.
        ServeError: The endpoint does not start or does not answer.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ingot-jobs-") as folder:
        root = Path(folder)
        model = store_model(_doubler(), lineage=Lineage("onnx"), name=_NAME, root=root / "store")
        endpoint = Endpoint(_version(model), model, port=0, drain_s=1.0)
        with serve_jobs_in_thread(endpoint, AsyncSettings(root / "jobs")) as live:
            client = JobClient(live.url, _NAME)
            client.wait(client.submit(_request())["job"])
            first_s = time.monotonic() - began
            jobs = [client.submit(_request())["job"] for _ in range(_JOBS)]
            victims = live.supervisor.pids[:1]
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ended = [client.wait(job) for job in jobs]
    succeeded = sum(job["state"] == "succeeded" for job in ended)
    again = sum(job["attempt"] - 1 for job in ended)
    return Shown(first_s, _JOBS, len(victims), succeeded, again)


def _doubler() -> "ModelProto":
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], _NAME, [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _version(model: Model) -> Version:
    # never released: it lives as long as this demonstration, and its evidence is itself
    config = EngineConfig(threads=1)
    return Version(_NAME, 1, model.digest, model.digest, config, "1970-01-01T00:00:00Z", 0)


def _request() -> dict[str, object]:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}
    return {"inputs": [tensor]}
