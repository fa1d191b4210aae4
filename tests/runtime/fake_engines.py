"""A clock that only sessions move, and engines whose latencies are written down."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ingot.core.errors import EngineError
from ingot.models.model import Model
from ingot.runtime.engine import Availability, EngineConfig, ExecutedNode, Precision
from ingot.runtime.noise import NoiseMeter

QUIET = NoiseMeter(stat=Path("/nowhere/stat"))


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now


class FakeSession:
    def __init__(self, clock: FakeClock, name: str, cost: Callable[[int], float]) -> None:
        self.config = EngineConfig(name)
        self.clock, self.name, self.cost = clock, name, cost
        self.calls, self.closed = 0, False
        self.answer = np.ones(4, np.float32)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.clock.now += self.cost(self.calls)
        self.clock.log.append(self.name)
        self.calls += 1
        return {"y": self.answer}

    def executed(self) -> tuple[ExecutedNode, ...]:
        return ()

    def close(self) -> None:
        self.closed = True


class FakeEngine:
    """Costs and answers by precision; a string in place of a cost is the reason it refuses."""

    def __init__(
        self,
        name: str,
        clock: FakeClock,
        costs: Mapping[Precision, float | str],
        *,
        answers: Mapping[str, np.ndarray] | None = None,
        missing: str = "",
    ) -> None:
        self.name, self.clock, self.costs, self.missing = name, clock, costs, missing
        self.answers, self.opened = answers or {}, 0

    def available(self) -> Availability:
        return Availability(not self.missing, "1.0", self.missing)

    def precisions(self, model: Model) -> tuple[Precision, ...]:
        return tuple(self.costs)

    def open(self, model: Model, config: EngineConfig) -> FakeSession:
        cost = self.costs[config.precision]
        if isinstance(cost, str):
            raise EngineError(cost)
        self.opened += 1
        session = FakeSession(self.clock, f"{self.name} {config.precision}", lambda _: cost)
        session.answer = self.answers.get(config.precision, session.answer)
        return session
