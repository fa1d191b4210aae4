from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingot.evaluate.claims import judge, parse_claim
from ingot.evaluate.evidence import Comparison, Evidence, Interval
from ingot.models.model import Lineage, Model
from ingot.models.store import store_model
from ingot.registry.registry import Registry
from ingot.runtime.engine import EngineConfig
from ingot.runtime.machine import machine_digest
from ingot.testing.tiny import tiny_cnn

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def model(folder: Path) -> Model:
    return store_model(tiny_cnn(), lineage=Lineage("onnx"), root=folder / "store")


@pytest.fixture
def registry(folder: Path):
    with Registry.open(now=lambda: NOW) as opened:
        yield opened


@pytest.fixture
def prove() -> Callable[..., Evidence]:
    def make(model: str, *, seed: int = 0, passed: tuple[bool, ...] = (True,)) -> Evidence:
        one = Interval(1.0, 0.5, 1.5)
        row = Comparison("accuracy", "fraction", "higher", one, one, one, one)
        claims = [parse_claim(f"accuracy >= {0.4 if ok else 0.6}") for ok in passed]
        verdicts = tuple(judge(claim, (row,)) for claim in claims)
        config = EngineConfig(threads=2, buckets=(32, 128))
        return Evidence(
            model,
            "sha256:" + "b" * 64,
            "sha256:" + "d" * 64,
            machine_digest({"cores": 2}),
            {"cores": 2},
            config,
            EngineConfig(),
            (row,),
            verdicts,
            seed=seed,
        )

    return make
