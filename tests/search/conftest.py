import numpy as np
import pytest

import ingot
from ingot.compress.quantize.static import QuantizeStatic
from ingot.compress.recipe import Recipe
from ingot.runtime.engine import EngineConfig
from ingot.search import judge
from ingot.search.trial import Trial
from ingot.testing.tiny import toy_images, toy_tokens

ONE = EngineConfig(threads=1)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Time briefly: these tests are about what is kept, not about how fast it is."""
    monkeypatch.setattr(judge, "CALLS", 20)
    monkeypatch.setattr(judge, "BUDGET_S", 0.5)


@pytest.fixture
def data():
    images, labels = toy_images(460)
    splits = {
        "calibration": ingot.Split({"image": images[:60]}),
        "test": ingot.Split({"image": images[60:]}, labels[60:]),
    }
    return ingot.make_data(splits, task="classification", name="toy")


@pytest.fixture
def texts():
    rows = {"calibration": toy_tokens(8), "test": toy_tokens(24, seed=5)}
    splits = {name: ingot.Split(inputs) for name, inputs in rows.items()}
    return ingot.make_data(splits, task="none", name="texts")


@pytest.fixture
def trials():
    static = Recipe((QuantizeStatic(observer="min-max"),))
    return (Trial(Recipe(), ONE), Trial(static, ONE))


@pytest.fixture
def steps():
    """Give a progress that keeps what it is told."""

    class Kept:
        def __init__(self):
            self.said = []

        def step(self, message, done, total):
            assert np.isfinite(done)
            assert 0 <= done <= total
            self.said.append(message)

    return Kept()
