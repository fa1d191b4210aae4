"""A registry with two released versions of a tiny network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingot.evaluate.claims import judge, parse_claim
from ingot.evaluate.evidence import Comparison, Evidence, Interval
from ingot.models.model import Lineage, Model
from ingot.models.store import store_model
from ingot.registry.registry import Registry
from ingot.registry.version import Version
from ingot.runtime.engine import EngineConfig
from ingot.runtime.machine import machine_digest
from ingot.serve.deploy.kserve import KServe
from ingot.serve.deploy.scaling import Scaling
from ingot.testing.tiny import tiny_cnn
from ingot.twin.policy import ScalingPolicy

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass(frozen=True)
class Released:
    registry: Registry
    version: Version
    other: Version
    model: Model


def prove(model: str) -> Evidence:
    one = Interval(1.0, 0.5, 1.5)
    row = Comparison("accuracy", "fraction", "higher", one, one, one, one)
    verdict = judge(parse_claim("accuracy >= 0.4"), (row,))
    digests = ("sha256:" + "b" * 64, "sha256:" + "d" * 64)
    machine = machine_digest({"cores": 2})
    config = EngineConfig(threads=1)
    return Evidence(
        model, *digests, machine, {"cores": 2}, config, EngineConfig(), (row,), (verdict,), seed=0
    )


@contextmanager
def release_two(folder: Path) -> Iterator[Released]:
    """Open a registry in a folder and release `digits:1` and `digits:2`, the latter to prod."""
    with Registry.open(folder, now=lambda: NOW) as registry:
        model = store_model(tiny_cnn(), lineage=Lineage("onnx"), root=folder / "store")
        other = store_model(tiny_cnn(seed=1), lineage=Lineage("onnx"), root=folder / "store")
        first = registry.release("digits", other, prove(other.digest))
        second = registry.release("digits", model, prove(model.digest))
        registry.promote("digits", 2, "prod")
        yield Released(registry, second, first, model)


@pytest.fixture
def released(tmp_path: Path) -> Iterator[Released]:
    with release_two(tmp_path / "home") as found:
        yield found


@pytest.fixture(scope="module")
def ray_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with such a registry in `home`, for processes of their own."""
    folder = tmp_path_factory.mktemp("ray")
    with release_two(folder / "home"):
        return folder


@pytest.fixture
def settings(released: Released) -> Callable[..., KServe]:
    """Give what builds settings for Kubernetes: replicas, their target, and fields of `KServe`."""

    def make(*, low: int = 1, high: int = 4, target: float = 5.0, **more: object) -> KServe:
        policy = ScalingPolicy(low, high, target, in_cooldown_s=90.0)
        values = {"image": "registry.example.org/digits:2", "name": "digits"} | more
        scaling = Scaling("http://prometheus.monitoring:9090", policy)
        return KServe(released.version, scaling=scaling, **values)

    return make
