"""Fixtures that every room shares: tiny models, toy data, a home of its own, no network."""

import socket
from pathlib import Path

import numpy as np
import pytest

from ingot.models.model import Lineage, Model
from ingot.models.store import store_model
from ingot.testing.tiny import tiny_cnn, tiny_transformer, toy_images, toy_tokens

SHARED = Path(__file__).parents[2] / "shared" / "data"
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and address[0] not in LOOPBACK:
            raise AssertionError(f"a test tried to reach {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def cnn(tmp_path: Path) -> Model:
    return store_model(
        tiny_cnn(), lineage=Lineage("onnx"), name="tiny-cnn", root=tmp_path / "store"
    )


@pytest.fixture
def encoder(tmp_path: Path) -> Model:
    return store_model(
        tiny_transformer(), lineage=Lineage("onnx"), name="tiny-encoder", root=tmp_path / "store"
    )


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    return toy_images()


@pytest.fixture
def tokens() -> dict[str, np.ndarray]:
    return toy_tokens()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"real data are not here: {SHARED} does not exist")
    return SHARED
