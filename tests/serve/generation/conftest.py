"""A decoder without weights behind a real socket."""

from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest
from fake_decoder import FakeDecoding
from text_server import SIGNATURE, save_tokenizer

from ingot.models.model import Lineage, Model
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.serve.endpoint import Endpoint, Generation
from ingot.serve.server import serve_in_thread


@pytest.fixture
def model(tmp_path):
    save_tokenizer(tmp_path)
    return Model(tmp_path, "sha256:" + "ab" * 32, SIGNATURE, Lineage("onnx"), "writer")


@pytest.fixture
def endpoint(model, tmp_path):
    version = Version(
        "writer", 3, model.digest, "sha256:" + "cd" * 32, EngineConfig(), "2026-01-01T00:00:00Z", 0
    )
    return Endpoint(
        version, model, port=0, log=tmp_path / "log.sqlite", max_body_bytes=4096,
        generation=Generation(),
    )  # fmt: skip


@pytest.fixture
def serving(endpoint):
    """Give `with serving(decoding, **fields of the endpoint) as (client, running)`."""

    @contextmanager
    def start(decoding=None, **changes):
        given = FakeDecoding() if decoding is None else decoding
        with (
            serve_in_thread(replace(endpoint, **changes), given) as running,
            httpx.Client(base_url=running.url, trust_env=False, timeout=20) as client,
        ):
            yield client, running

    return start


@pytest.fixture
def http(serving):
    with serving() as (client, _):
        yield client
