"""Endpoints for the tests of this room: a double-everything session behind a real socket."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from ingot.models.model import Lineage, Model, Signature, TensorSpec
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.serve.endpoint import Endpoint
from ingot.serve.server import RunningEndpoint, serve_in_thread

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("mask", "int64", ("batch",))),
    (TensorSpec("y", "float32", ("batch", 2)), TensorSpec("kept", "bool", ("batch",))),
)
MODEL_DIGEST = "sha256:" + "ab" * 32


class Doubler:
    """A session: y = 2 x, kept = mask > 0; x of -1 breaks the engine."""

    config = EngineConfig()
    is_closed = False

    def run(self, feeds):
        if (feeds["x"] == -1).any():
            raise RuntimeError("secret detail of the engine")
        return {"y": feeds["x"] * np.float32(2), "kept": feeds["mask"] > 0}

    def executed(self):
        return ()

    def close(self):
        self.is_closed = True


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    model = Model(tmp_path, MODEL_DIGEST, SIGNATURE, Lineage("onnx"), "doubler")
    version = Version(
        "doubler", 3, MODEL_DIGEST, "sha256:" + "cd" * 32, EngineConfig(), "2026-01-01T00:00:00Z", 0
    )
    return Endpoint(version, model, port=0, log=tmp_path / "log.sqlite", max_body_bytes=4096)


@pytest.fixture
def running(endpoint: Endpoint) -> Iterator[RunningEndpoint]:
    with serve_in_thread(endpoint, Doubler()) as running:
        yield running


@pytest.fixture
def http(running: RunningEndpoint) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, trust_env=False, timeout=10) as client:
        yield client


@pytest.fixture
def body() -> dict:
    return {
        "inputs": [
            {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1.5, 2.0, 0.1, 4.0]},
            {"name": "mask", "shape": [2], "datatype": "INT64", "data": [1, 0]},
        ]
    }
